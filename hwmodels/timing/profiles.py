"""How a software stack runs a step: launches, kernels it has, attention back-end; and which kernel a scheme gets."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from qsim.errors import QsimError

from .families import FAMILIES
from .family import VECTOR, KernelFamily
from .parameters import measured_parameters
from .peaks import SIXTEEN_BIT
from .schemes import missing_product

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ..device.device import Device


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An execution profile.

    Attributes:
        launch_s: least time from kernel to kernel; 0 in a CUDA graph, where the kernels' own t0 contains the gap.
        host_s: time of a step that no kernel accounts for (scheduler, sampling, Python).
        stack: whose kernels are preferred (`KernelFamily.stack`), or None for what is calibrated on the device.
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
            name="torch_compile", title="PyTorch kernels in a CUDA graph", stack="pytorch-2.11", runs=PYTORCH,
            split=TORCH_COMPILE_SPLIT,
        ),
        Profile(name="trtllm", title="TensorRT-LLM kernels", stack="trtllm-1.x", attention="trtllm",
                runs=("trtllm",)),
        Profile(name="marlin", title="Marlin-class weight-only kernels", stack="marlin-2024", runs=("marlin",)),
        Profile(
            name="serving", title="serving engine: graph, plus 1.5 ms of scheduler and sampling a step", host_s=1.5e-3,
            stack="trtllm-1.x", runs=("trtllm",), own_host=False,
        ),
        Profile(
            name="sdpa_cudnn", title="PyTorch, cuDNN attention", stack="pytorch-2.11", attention="sdpa_cudnn",
            runs=PYTORCH, split=TORCH_COMPILE_SPLIT,
        ),
        Profile(
            name="sdpa_flash", title="PyTorch, flash attention back-end", stack="pytorch-2.11", attention="sdpa_flash",
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
    able = _able(device, scheme)
    if able:
        return _choice(scheme, *_prefer(device, profile, able))
    why = f"{missing_product(scheme)} on {device.name}"
    if strict:
        raise QsimError(f"{device.name} has no path for {scheme.name or 'this scheme'}: {why}")
    alone = scheme.replace(activation="bfloat16", compute=None)
    able = _able(device, alone)
    if not able:
        raise QsimError(f"no kernel family runs {scheme.name or 'this scheme'} on {device.name}: {why}")
    note = f"{why}: priced as weight-only, dequantised to 16 bit inside the product"
    return replace(_choice(alone, *_prefer(device, profile, able)), note=note, fallback=why)


Able = tuple[KernelFamily, "str | None"]


def _able(device: Device, scheme: Scheme) -> list[Able]:
    """The families that run a scheme on a device, the preferred first, each with the format it multiplies in there
    where that is not its own."""
    found: list[Able] = []
    for family in FAMILIES.values():
        if family.runs is None or not family.runs(scheme):
            continue
        if family.formats is not None:
            name = family.formats(device, scheme)
            if name is not None:
                found.append((family, name))
        elif family.compute in (VECTOR, *SIXTEEN_BIT) or family.compute in device.compute.formats:
            found.append((family, None))
    return found


def _prefer(device: Device, profile: Profile, able: Sequence[Able]) -> Able:
    """The family of the profile's stack, else the first one measured on the device, else the usual stand-in."""
    for family, compute in able:
        if profile.stack is not None and family.stack == profile.stack:
            return family, compute
    for family, compute in able:
        if measured_parameters(device, family.name) is not None:
            return family, compute
    return max(able, key=lambda one: one[0].fallback)


def _choice(scheme: Scheme, family: KernelFamily, compute: str | None) -> Choice:
    return Choice(
        kernel=family.name, compute=compute, quantizes_activation=scheme.activation.is_quantized,
        stands_in=_stands_in(scheme, family), note=_widened(scheme, compute),
    )  # fmt: skip


def _stands_in(scheme: Scheme, family: KernelFamily) -> str:
    """What the family was measured with instead of the scheme, "" where it was measured with that."""
    if family.exact is None or family.exact(scheme):
        return ""
    w = scheme.weight
    wider = next((bits for bits in (4, 8) if bits > w.bits), 8)
    return f"no {w.bits:g}-bit kernel was measured: priced with the efficiencies of the {wider}-bit one"


def _widened(scheme: Scheme, compute: str | None) -> str:
    narrow = compute == "int8" and scheme.weight.bits <= 4 and scheme.activation.bits <= 4
    return "4-bit operands are multiplied at the INT8 rate" if narrow else ""
