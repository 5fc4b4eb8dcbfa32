"""How a software stack runs a step: launches, kernels it has, attention back-end; and which kernel a scheme gets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from qsim.errors import QsimError
from qsim.formats import BlockFormat, IntFormat

from .parameters import calibration_of

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ..device.device import Device


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An execution profile.

    Attributes:
        launch_s: least time from kernel to kernel; 0 in a CUDA graph, where the kernels' own t0 contains the gap.
        host_s: time of a step that no kernel accounts for (scheduler, sampling, Python).
        stack: whose kernels are preferred: `pytorch`, `trtllm`, `marlin`, or None for what is calibrated on the device.
        attention: kernel, None for the device's own.
        small_kernels: element-wise kernels launched where a compiler would launch one.
        fuse_quantize: the run-time quantisation of activations is fused with the kernel before it.
        runs: software stacks of the calibrations whose kernels this profile runs; empty for whatever is calibrated.
            Kernels of another stack stand in for its own, which were not measured.
        own_host: the launches and the host were measured with this profile only on a device whose calibration holds
            them; elsewhere they are another host's.
        split: operator -> kernels it is launched as, where that is more than one; `quantize` for an activation
            function that quantises its result.
    """

    name: str
    title: str
    launch_s: float = 0.0
    host_s: float = 0.0
    stack: str | None = None
    attention: str | None = None
    small_kernels: float = 1.0
    fuse_quantize: bool = True
    runs: tuple[str, ...] = ()
    own_host: bool = True
    split: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def measured(self, origin: str, host: bool) -> bool:
        """Whether a calibrated kernel was measured as this profile runs it.

        Arguments:
            origin: the calibration file it is from, `<device>.<stack>`.
            host: whether the calibration of the device holds launch times.
        """
        stack = origin.rpartition(".")[2]
        return (self.own_host or host) and (not self.runs or stack not in STACKS or stack in self.runs)

    def further_launches(self, operator: str, reduces: bool) -> int:
        """Kernels of an element-wise operator beyond the first."""
        name = "quantize" if operator == "activation" and reduces else operator
        return self.split.get(name, 1) - 1


STACKS = ("pytorch", "grouped", "trtllm")
"""Stacks of the shipped calibrations; a file of the user's is taken for what the user runs."""
PYTORCH = ("pytorch", "grouped")
TORCH_COMPILE_SPLIT = MappingProxyType({"rope": 2, "quantize": 3})
"""From a trace of compiled layers (PyTorch 2.11, `reports/h200_variation.md`): to rotate queries and keys and write the
cache takes three kernels; a gated activation that quantises its result finds the largest value in two and writes in a
third."""

PROFILES = {
    p.name: p
    for p in (
        Profile(name="cuda_graph", title="one CUDA graph, compiled layers", split=TORCH_COMPILE_SPLIT),
        Profile(
            name="eager", title="kernels launched one by one from Python, nothing fused", launch_s=6.42e-6,
            small_kernels=3.0, fuse_quantize=False, runs=PYTORCH, own_host=False,
        ),
        Profile(
            name="torch_compile", title="PyTorch kernels in a CUDA graph", stack="pytorch", runs=PYTORCH,
            split=TORCH_COMPILE_SPLIT,
        ),
        Profile(name="trtllm", title="TensorRT-LLM kernels", stack="trtllm", attention="trtllm",
                runs=("trtllm",)),
        Profile(name="marlin", title="Marlin-class weight-only kernels", stack="marlin", runs=("marlin",)),
        Profile(
            name="serving", title="serving engine: graph, plus 1.5 ms of scheduler and sampling a step", host_s=1.5e-3,
            stack="trtllm", runs=("trtllm",), own_host=False,
        ),
        Profile(
            name="sdpa_cudnn", title="PyTorch, cuDNN attention", stack="pytorch", attention="sdpa_cudnn",
            runs=PYTORCH, split=TORCH_COMPILE_SPLIT,
        ),
        Profile(
            name="sdpa_flash", title="PyTorch, flash attention back-end", stack="pytorch", attention="sdpa_flash",
            runs=PYTORCH, split=TORCH_COMPILE_SPLIT,
        ),
    )
}  # fmt: skip


def get_profile(name: str | Profile) -> Profile:
    """A profile by name.

    Raises:
        ValueError: unknown name; the nearest are listed.
    """
    if isinstance(name, Profile):
        return name
    if name not in PROFILES:
        near = difflib.get_close_matches(name, PROFILES, n=3, cutoff=0.3) or list(PROFILES)
        raise QsimError(f"unknown execution profile {name!r}: the nearest are {', '.join(near)}")
    return PROFILES[name]


MEASURED_WIDTHS = (4, 8)
"""Bits of the integer weights that the kernels behind the calibrations read."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The kernel of a scheme's linear layers: family, format it multiplies in, and whether it is a fallback.

    `stands_in` says so where the family was measured with weights of another width: its efficiencies are then borrowed.
    """

    kernel: str
    compute: str | None = None
    stands_in: str = ""
    quantizes_activation: bool = False
    note: str = ""
    fallback: str = ""
    """What the device lacks, where the choice is a fallback; empty otherwise."""


def choose_kernel(device: Device, scheme: Scheme, profile: Profile, *, strict: bool = False) -> Choice:
    """The kernel family that real stacks run a scheme with on a device.

    A scheme the device has no arithmetic for runs as what stacks do instead: the weights stay small and are turned into
    16 bit inside the product, activations stay in 16 bit. The choice says so.

    Raises:
        ValueError: with `strict`, instead of a fallback; or a scheme that no kernel family covers.
    """
    choice = _measured_width(_choose(device, scheme, profile), scheme)
    if choice.fallback and strict:
        raise QsimError(f"{device.name} has no path for {scheme.name or 'this scheme'}: {choice.fallback}")
    return choice


def _measured_width(choice: Choice, scheme: Scheme) -> Choice:
    """Integer kernels were measured with 4 and 8 bits; other widths borrow the efficiencies of the next wider one."""
    w = scheme.weight
    if not isinstance(w.format, IntFormat) or w.bits in MEASURED_WIDTHS:
        return choice
    wider = min((bits for bits in MEASURED_WIDTHS if bits > w.bits), default=max(MEASURED_WIDTHS))
    note = f"no {w.bits:g}-bit kernel was measured: priced with the efficiencies of the {wider}-bit one"
    return replace(choice, stands_in=note)


def _prefer(device: Device, profile: Profile, *candidates: tuple[str, str]) -> str:
    """The candidate of the profile's stack, else the first one calibrated on the device, else the last."""
    for stack, kernel in candidates:
        if stack == profile.stack:
            return kernel
    own = calibration_of(device)
    for _, kernel in candidates:
        if own is not None and kernel in own.kernels:
            return kernel
    return candidates[-1][1]


def _choose(device: Device, scheme: Scheme, profile: Profile) -> Choice:
    w, a = scheme.weight, scheme.activation
    has = device.compute.formats
    if not w.is_quantized and not a.is_quantized:
        return Choice(
            kernel=_prefer(device, profile, ("pytorch", "cublas_bf16"), ("trtllm", "trtllm_bf16"), ("", "cublas_bf16"))
        )
    if not a.is_quantized:
        return Choice(kernel=_weight_only(device, scheme, profile))
    if isinstance(w.format, BlockFormat) or (w.bits <= 4 and not isinstance(w.format, IntFormat)):
        peak = w.format.name if w.format.name in has else None
        if peak is None and w.bits <= 4 and "float4_e2m1fn" in has:
            peak = "float4_e2m1fn"
        if peak is not None:
            return Choice(
                kernel="native_fp4" if w.bits <= 4 else "native_mxfp8", compute=peak, quantizes_activation=True
            )
        return _fall_back(device, scheme, profile, f"no {w.format.name} product")
    if isinstance(w.format, IntFormat) and isinstance(a.format, IntFormat):
        if w.bits <= 4 and a.bits <= 4 and "int4" in has and device.vendor == "parametric":
            return Choice(kernel="w4a8", compute="int4", quantizes_activation=True)
        if "int8" not in has:
            return _fall_back(device, scheme, profile, "no INT8 product")
        if w.bits <= 4:
            note = "4-bit operands are multiplied at the INT8 rate" if a.bits <= 4 else ""
            return Choice(kernel="w4a8", compute="int8", quantizes_activation=True, note=note)
        kernel = _prefer(device, profile, ("pytorch", "cublas_int8"), ("trtllm", "trtllm_sq"))
        return Choice(kernel=kernel, quantizes_activation=True)
    if w.format.name.startswith("float8") and a.format.name.startswith("float8"):
        if "float8_e4m3fn" not in has:
            return _fall_back(device, scheme, profile, "no FP8 product")
        kind = w.granularity.kind if w.granularity is not None else "tensor"
        if kind == "block":
            return Choice(kernel="trtllm_fp8_block", quantizes_activation=True)
        own = "cublas_fp8_rowwise" if kind in ("channel", "group") else "cublas_fp8"
        if not a.dynamic:  # the plugin's time contains a quantisation that a static scale fuses away
            return Choice(kernel=own, quantizes_activation=True)
        kernel = _prefer(device, profile, ("pytorch", own), ("trtllm", "trtllm_fp8"))
        return Choice(kernel=kernel, quantizes_activation=True)
    return _fall_back(device, scheme, profile, f"no product of {w.format.name} with {a.format.name}")


def _weight_only(device: Device, scheme: Scheme, profile: Profile) -> str:
    w = scheme.weight
    if isinstance(w.format, IntFormat) and w.bits <= 4:
        return _prefer(
            device, profile, ("pytorch", "tinygemm_int4"), ("trtllm", "trtllm_int4_wo"), ("marlin", "marlin_int4")
        )
    if isinstance(w.format, IntFormat):
        return "trtllm_int8_wo"
    return "marlin_fp8" if w.bits > 4 else "marlin_int4"


def _fall_back(device: Device, scheme: Scheme, profile: Profile, why: str) -> Choice:
    lacks = f"{why} on {device.name}"
    return Choice(
        kernel=_weight_only(device, scheme, profile),
        note=f"{lacks}: priced as weight-only, dequantised to 16 bit inside the product",
        fallback=lacks,
    )
