"""Where the parameters of a kernel come from: its own calibration, a relative's, another device's, or a guess.

`calibrated` parameters were fitted to this kernel on this device. `transferred` ones are the efficiencies of a similar
kernel or device, priced at this device's peaks with a wide band.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError

from .families import ATTENTION, FAMILIES, get_attention, get_family

if TYPE_CHECKING:
    from ..calibration.fitted import Calibration, Parameters
    from ..device.device import Device
    from .family import AttentionFamily

FIDELITIES = ("ideal", "calibrated", "transferred")


@lru_cache(maxsize=512)
def calibration_named(name: str | None) -> Calibration | None:
    """The calibration of that name, None when there is none."""
    if name is None:
        return None
    from ..calibration.store import load_calibration

    return load_calibration(name)


def calibration_of(device: Device) -> Calibration | None:
    """The calibration made on this very device, None when there is none."""
    return calibration_named(device.calibration)


KIN = (("h100", "h200"), ("b200", "b300", "gb200", "gb300"))
"""Calibrations of chips of one generation: what one was corrected by at a shape holds on the others."""
NEAR = {"a100": ("h100",), "l40s": ("a100",)}
"""Calibration -> further calibrations that lend to it first; after them come all of `LENDERS`."""
LENDERS = ("h100", "h200", "a100", "l40s", "b200", "b300", "gb200", "gb300", "rtx-pro-6000")


def lenders(device: Device) -> list[str]:
    """Calibrations to borrow from, nearest first."""
    kin = [name for group in KIN if device.calibration in group for name in group]
    own = [name for name in (device.transfer_from,) if name]
    near = (*kin, *own, *NEAR.get(device.calibration or "", ()), *LENDERS)
    return [name for name in dict.fromkeys(near) if name != device.calibration]


def is_kin(device: Device, donor: str) -> bool:
    """Whether a calibration is of a chip of the same generation, or the one that the device file names."""
    return donor == device.transfer_from or any(device.calibration in group and donor in group for group in KIN)


ACROSS = ("boards", "generations", "kernels")
"""What separates parameters from where they are used: the same kernel on a chip of the same generation, the same on
another generation, or another kernel."""


def across(device: Device, kernel: str, origin: str) -> str:
    """One of `ACROSS` for parameters of `<kernel> on <calibration>`."""
    name, _, donor = origin.partition(" on ")
    alike = name == kernel or (get_family(kernel).sixteen_bit and name in FAMILIES and get_family(name).sixteen_bit)
    return "kernels" if not alike else "boards" if is_kin(device, donor) else "generations"


TRANSFER_BANDS = {
    ("boards", True): {"small": (0.94, 1.04), "medium": (0.92, 1.04), "large": (0.90, 1.13), "all": (0.92, 1.07)},
    ("boards", False): {"small": (0.80, 1.10), "medium": (0.72, 1.10), "large": (0.86, 1.22), "all": (0.79, 1.13)},
    ("generations", True): {"small": (0.91, 1.16), "medium": (0.94, 1.19), "large": (0.92, 1.41), "all": (0.92, 1.21)},
    ("generations", False): {"small": (0.72, 1.39), "medium": (0.70, 1.21), "large": (0.63, 1.59), "all": (0.68, 1.39)},
    ("kernels", True): {"small": (0.91, 1.16), "medium": (0.94, 1.19), "large": (0.92, 1.41), "all": (0.92, 1.21)},
    ("kernels", False): {"small": (0.62, 1.20), "medium": (0.67, 1.32), "large": (0.86, 1.76), "all": (0.67, 1.39)},
}  # fmt: skip
"""What separates two, whether the kernel is a 16-bit one -> regime -> factors on a transferred time between which 80 %
of the times lie that each calibrated device's own calibration gives (`reports/transfer.md`)."""


TRANSFER_BAND = {True: 0.25, False: 0.40}
"""Half width of the 80 % band of 16-bit and of quantised kernels where less is known: on a device that no table holds,
of attention, of another stack or width of weights."""
LARGE_TRANSFER = 1.63
"""High end of that band for a quantised kernel above M = 256."""


def measured_parameters(device: Device, kernel: str) -> Parameters | None:
    """What was fitted to a family on this very device, by its calibration or by the family itself; else None."""
    return _fitted(device.calibration or device.name, calibration_of(device), kernel)


def _fitted(name: str, table: Calibration | None, kernel: str) -> Parameters | None:
    if table is not None and kernel in table.kernels:
        return table.kernels[kernel]
    return get_family(kernel).measured.get(name)


def generic(kernel: str, eta: tuple[float, float] = (0.8, 0.8)) -> Parameters:
    """Parameters for a kernel that nothing comparable was measured of."""
    from ..calibration.fitted import Parameters

    return Parameters(
        kernel=kernel, t0_s=5e-6, eta_compute=eta[0], eta_memory=eta[1], p=3.0, kind="transferred", origin="generic"
    )


def transferred(found: Parameters, origin: str, *, kin: bool = False) -> Parameters:
    """Parameters for another kernel or device; the correction goes along only between devices of one kind."""
    key = (origin, kin)
    if key not in found.derived:
        part = found if kin else replace(found, surface=None, borrowed=None, neighbours=None)
        found.derived[key] = replace(part, kind="transferred", band={}, origin=origin)
    return found.derived[key]


def _lent(device: Device, kernel: str, found: Parameters, name: str, donor: str) -> Parameters:
    """Parameters of the family `name` on `donor`, for `kernel` on a device, with the band of what separates the two."""
    origin = f"{name} on {donor}"
    separate = across(device, kernel, origin)
    p = transferred(found, origin, kin=separate == "boards")
    sixteen_bit = get_family(name).sixteen_bit
    share = _compute_share(device, [name, *(("trtllm_bf16",) if sixteen_bit else ())], "kernels")
    band, half = TRANSFER_BANDS[separate, sixteen_bit], TRANSFER_BAND[sixteen_bit]
    if calibration_of(device) is None:  # published steps on boards that no table holds lie further away
        band = {regime: (min(low, 1 - half), max(high, 1 + half)) for regime, (low, high) in band.items()}
    if share is not None:
        p = _reaching(p, share)
    key = tuple(band.items())
    if key not in p.derived:
        p.derived[key] = replace(p, band=band)
    return p.derived[key]


def _reaching(p: Parameters, share: float) -> Parameters:
    """The parameters with another share of the peak."""
    if share not in p.derived:
        p.derived[share] = replace(p, eta_compute=share)
    return p.derived[share]


def _compute_share(device: Device, names: Sequence[str], kind: str) -> float | None:
    """The share of its peak that a kernel reaches on the device that `compute_from` names, None without."""
    table = calibration_named(device.compute_from)
    known = {} if table is None else table.kernels if kind == "kernels" else table.attention
    return next((known[name].eta_compute for name in names if name in known), None)


def check_fidelity(fidelity: str) -> None:
    """Raise ValueError for a fidelity that does not exist."""
    if fidelity not in FIDELITIES:
        raise QsimError(f"fidelity must be one of {', '.join(FIDELITIES)}: got {fidelity!r}")


def kernel_parameters(device: Device, kernel: str, fidelity: str = "calibrated") -> Parameters:
    """The parameters a kernel family is priced with on a device, tagged with where they come from.

    Raises:
        ValueError: unknown kernel or fidelity.
    """
    family = get_family(kernel)
    check_fidelity(fidelity)
    own = calibration_of(device)
    if fidelity == "calibrated":
        found = measured_parameters(device, kernel)
        if found is not None:
            return found
    for donor, name in () if family.lenders is None else family.lenders(device):
        found = None if donor == device.calibration else _fitted(donor, calibration_named(donor), name)
        if found is not None:
            return _lent(device, kernel, found, name, donor)
    if fidelity == "calibrated" and own is not None:
        for name in family.like:
            if name in own.kernels and family.sixteen_bit:  # the same library under another name
                return own.kernels[name]
            if name in own.kernels:
                return _lent(device, kernel, own.kernels[name], name, str(device.calibration))
    for donor in lenders(device):
        table = calibration_named(donor)
        for name in (kernel, *(family.like if family.sixteen_bit else ())):
            found = _fitted(donor, table, name)
            if found is not None:
                return _lent(device, kernel, found, name, donor)
    for donor in lenders(device):
        table = calibration_named(donor)
        for name in family.like:
            if table is not None and name in table.kernels:
                return _lent(device, kernel, table.kernels[name], name, donor)
    return generic(kernel)


def attention_variant(
    kv_bytes_per_element: Any, head_dim: Any, window: Any, value_dim: Any, shared_kv: bool
) -> str | None:
    """How the measured tables name a case of attention: `_kv8` for an FP8 cache with one scale per tensor, `_d64` for
    heads of 64, `_w128` with a window of 128 tokens, `_mla` for latent attention; "" for a 16-bit cache, heads of 128
    and no window; None for a case that was not measured."""
    if any(np.ndim(v) for v in (kv_bytes_per_element, head_dim, window, value_dim)):
        return None
    cache = "_kv8" if abs(kv_bytes_per_element - 1.0) < 0.005 else "" if kv_bytes_per_element == 2.0 else None
    if value_dim not in (None, head_dim):
        latent = (head_dim, value_dim) == ((576, 512) if shared_kv else (192, 128))
        heads = "_mla" if latent and window is None else None
    else:
        heads = {(128, None): "", (64, None): "_d64", (64, 128): "_d64_w128"}.get((head_dim, window))
    return None if cache is None or heads is None or (shared_kv and heads != "_mla") else cache + heads


def measured_attention(
    device: Device, phase: str, kernel: str | None, variant: str | None, wide: bool
) -> Parameters | None:
    """What was fitted on this very device to just this case of attention; of several engines, where none is asked for,
    what is known best (the least error on head counts left out of the fit)."""
    own = calibration_of(device)
    if own is None or variant is None:
        return None
    chosen = [f for f in ATTENTION.values() if f.chosen] if kernel is None else [get_attention(kernel)]
    chosen += [get_attention(name) for family in chosen for name in family.newer if kernel is not None]
    found = []
    for family in chosen:
        if not family.variants:
            if variant == "" and not family.head_sizes and f"{family.name}.{phase}" in own.attention:
                return None  # an older calibration of this kernel, which is looked up by its own rules
            continue
        case = variant.removeprefix("_kv8") if family.compute else variant
        name = f"{family.name}{case}.{phase}{'_wide' if wide and family.splits_wide else ''}"
        if name in own.attention:
            found.append(own.attention[name])
    return min(found, key=lambda p: p.held_out_mape.get("all", np.inf), default=None)


def attention_parameters(
    device: Device,
    phase: str,
    kernel: str | None,
    fidelity: str = "calibrated",
    wide: bool = False,
    head_dim: Any = None,
) -> Parameters:
    """Parameters of an attention kernel; without a name the device's first, else what a donor has.

    Of a kernel that was measured by head size, those of the nearest size, as `transferred` where it is another.
    """
    family = None if kernel is None else get_attention(kernel)
    if family is not None and family.head_sizes:
        sizes = family.head_sizes
        if head_dim is not None and np.ndim(head_dim):
            raise QsimError(f"{family.name} was measured by head size: give one head_dim, not an array of them")
        size = 128 if head_dim is None else min(sizes, key=lambda known: abs(np.log(known / head_dim)))
        found = _attention_parameters(device, f"{phase}_{size}", phase, kernel, fidelity, False)
        if head_dim in (None, size) or found.kind != "calibrated":
            return found
        return transferred(found, f"{found.origin}, heads of {size}")
    return _attention_parameters(device, phase, phase, kernel, fidelity, wide)


def _attention_parameters(
    device: Device, suffix: str, phase: str, kernel: str | None, fidelity: str, wide: bool
) -> Parameters:
    """Those of the kernels whose names end in `suffix`; `wide` prefers the kernel for many query heads."""
    if kernel is not None:
        _check_attention(device, phase, get_attention(kernel))
    names = [kernel] if kernel is not None else [n for n, f in ATTENTION.items() if f.chosen and not f.variants]
    suffixes = [f"{suffix}_wide", suffix] if wide else [suffix]
    own = calibration_of(device)
    if own is not None and fidelity == "calibrated":
        for ending in suffixes:
            for name in names:
                if f"{name}.{ending}" in own.attention:
                    return own.attention[f"{name}.{ending}"]
    donors = lenders(device)
    near = [device.calibration] if own is not None and fidelity == "calibrated" else []
    for ending in suffixes:
        for place, wanted in ((donors, names), ([*near, *donors], ["trtllm"])):
            for donor in place:
                table = calibration_named(donor)
                for name in wanted:
                    if table is not None and f"{name}.{ending}" in table.attention:
                        found = table.attention[f"{name}.{ending}"]
                        kin = donor == device.calibration or is_kin(device, donor or "")
                        lent = transferred(found, f"{name} on {donor}", kin=kin)
                        share = _compute_share(device, [f"{name}.{ending}"], "attention")
                        return lent if share is None else _reaching(lent, share)
    return generic(f"{kernel}.{phase}")


def _check_attention(device: Device, phase: str, family: AttentionFamily) -> None:
    """Refuse an attention kernel that a device cannot run, or a phase that it does not offer."""
    if family.instruction and not any(family.instruction in name for name in device.instructions.values()):
        raise QsimError(f"{family.title} ({family.name}) needs {family.needs}: {device.name} has none of them")
    if phase not in family.phases:
        raise QsimError(f"{family.title} ({family.name}) offers {' and '.join(family.phases)} only: got {phase}")
