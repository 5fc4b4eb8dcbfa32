"""Kernel families: all that is known of a matrix-product or attention kernel, whatever the device.

A family says whose kernel it is and from when, the format it multiplies in, the bytes of its operands, whether the
run-time quantisation of the activation is inside its time, and which schemes it runs. How fast it is on a device is
calibration: in `hwmodels/calibration/*.toml`, or in the family itself where it comes from outside this package.

A family is declared once, in a file of `hwmodels/timing/known/`, in an installed package, or by a program
(`families.register_kernels`); every list of them is derived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qsim.reprs import one_line
from qsim.scheme import Scheme

from ..calibration.fitted import Parameters
from ..device.device import Device

VECTOR = "vector"
"""Compute format of a kernel that is bound by the vector units, not by the tensor cores."""

_NONE: Mapping[str, Parameters] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class KernelFamily:
    """One family of matrix products.

    Attributes:
        name, title: for programs and for people.
        engine, version, year: whose kernel it is, the version that was measured, and the year of that version: its
            generation.
        stacks: software stacks that run it, its own first.
        compute: operand format of the product, as in a device file, or `vector`.
        weight_bits: bits per weight with scales and zero points, where the caller gives no exact byte count.
        activation_bytes, output_bytes: per element read and written.
        includes_quantize: the run-time quantisation of the activation is part of the measured time.
        layer_from_16_bit: `gemm_time` adds that quantisation unless told not to: the family is known as a layer.
        runs: which schemes it multiplies; None for one that no scheme chooses by itself.
        stands_in: for a scheme that it runs, what it was measured with instead, in a sentence, "" where it was measured
            with that; None says the latter of all. Its efficiencies are then borrowed, as `transferred`.
        fits: which of these have scales shared as it multiplies them; None for all. Where another family fits, this one
            is not chosen.
        formats: for a device and a scheme, the format it multiplies in there, None where it cannot; without it, its
            own `compute` where the device has that peak.
        campaign: the measurements that its times are of. `best` compares times of one campaign only, as those of two
            differ by more than kernels do; "" for one that is compared with no other.
        preference: among families that run a scheme, lower first.
        fallback: what stands for a scheme where nothing is calibrated: the candidate with the highest number.
        grouped: family of the kernel that multiplies the experts of a mixture in one call, "" for none.
        lenders: for a device, (calibration, family) pairs to borrow from before all others where it is not calibrated.
        like: families whose efficiencies are borrowed, nearest first, where this one is not calibrated.
        measured: calibration name of a device -> fitted parameters, for a family from outside this package.
        min_m: least M that the library takes.
        sixteen_bit: weights and activations are 16 bit; transferred predictions then have the narrower band.
    """

    name: str
    title: str
    compute: str
    weight_bits: float
    activation_bytes: float
    engine: str = ""
    version: str = ""
    year: int | None = None
    stacks: tuple[str, ...] = ()
    output_bytes: float = 2.0
    includes_quantize: bool = False
    layer_from_16_bit: bool = False
    runs: Callable[[Scheme], bool] | None = None
    stands_in: Callable[[Scheme], str] | None = None
    fits: Callable[[Scheme], bool] | None = None
    formats: Callable[[Device, Scheme], str | None] | None = None
    campaign: str = ""
    preference: int = 50
    fallback: int = 0
    grouped: str = ""
    lenders: Callable[[Device], tuple[tuple[str, str], ...]] | None = None
    like: tuple[str, ...] = ()
    measured: Mapping[str, Parameters] = field(default_factory=lambda: _NONE)
    sixteen_bit: bool = False
    min_m: int = 1

    __repr__ = one_line

    @property
    def generation(self) -> str:
        """Engine, version and year, in one text."""
        return _generation(self.engine, self.version, self.year)

    @property
    def quantizes_activation(self) -> bool:
        return self.activation_bytes < 2 or self.includes_quantize


@dataclass(frozen=True, kw_only=True)
class AttentionFamily:
    """One family of attention kernels.

    Attributes:
        name, title, engine, version, year: as in `KernelFamily`.
        preference: among those measured on a device, lower first.
        instruction: a part of the name of a tensor-core instruction that it needs, "" for none.
        needs: that instruction in words.
        compute: format of its two products; "" for the 16-bit one of the device.
        element_bytes: of queries, keys, values and outputs.
        phases: what it offers.
        head_sizes: sizes of a head that were fitted each for itself, as `<name>.<phase>_<size>`; () for one fit of all.
        chosen: whether it is taken where none is asked for.
        variants: whether it was fitted for each format of the cache, head size and window by itself, as
            `<name><variant>.<phase>` (see `parameters.attention_variant`).
        splits_wide: whether decode with many query heads per KV head is another kernel, `<name>.decode_wide`.
        newer: other names of its newer versions, which are taken where it was not measured.
    """

    name: str
    title: str
    engine: str = ""
    version: str = ""
    year: int | None = None
    preference: int = 50
    instruction: str = ""
    needs: str = ""
    compute: str = ""
    element_bytes: float = 2.0
    phases: tuple[str, ...] = ("prefill", "decode")
    head_sizes: tuple[int, ...] = ()
    chosen: bool = True
    variants: bool = False
    splits_wide: bool = False
    newer: tuple[str, ...] = ()

    __repr__ = one_line

    @property
    def generation(self) -> str:
        """Engine, version and year, in one text."""
        return _generation(self.engine, self.version, self.year)


def _generation(engine: str, version: str, year: int | None) -> str:
    return f"{engine} {version}".strip() + (f" ({year})" if year else "")
