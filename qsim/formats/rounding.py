"""The choices that change bits, by name: rounding, overflow, NaN."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from qsim.errors import QsimError

Rounding: TypeAlias = Literal["nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd", "stochastic"]
"""How a value between two neighbours is rounded.

* `nearest_even`: to the nearer; a tie to the even code (IEEE 754 roundTiesToEven). In E8M0, where no
  significand is even, a tie goes to the larger.
* `nearest_away`: to the nearer; a tie away from zero.
* `toward_zero`, `up` (toward +inf), `down` (toward -inf): IEEE 754's directed modes.
* `to_odd`: to the neighbour with the odd code unless exact; a later narrower rounding is then correct
  (Boldo and Melquiond 2008).
* `stochastic`: away from zero with the probability of the discarded fraction v, by N random bits R:
  away when floor(v * 2^N) + R >= 2^N (P3109 stochastic A).
"""

Overflow: TypeAlias = Literal["saturate", "saturate_finite", "nonsaturating"]
"""What becomes of a value that rounds beyond the largest finite one.

* `saturate`: the largest finite value of that sign, infinities included (hardware's satfinite).
* `saturate_finite`: finite values clamp, infinities stay where the format has them (P3109 SatPropagate).
* `nonsaturating`: the format's Inf, else its NaN, else an error. Directed modes that cannot overflow give the
  largest finite value (IEEE 754 7.4).
"""

NanPolicy: TypeAlias = Literal["canonical", "keep_sign", "zero", "max", "error"]
"""What becomes of a NaN.

* `canonical`: the format's canonical NaN without the input's sign, as hardware gives it; an error when the format
  has none.
* `keep_sign`: the same with the input's sign, where the format has both (ml_dtypes, torch).
* `zero`: +0 (`cvt.rni.sat.s8.f32`).
* `max`: the largest finite value (CUDA's FP6 and FP4 conversions).
* `error`: always an error.
"""

# Order is the code that the compiled kernels receive.
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
OVERFLOWS: tuple[Overflow, ...] = get_args(Overflow)
NAN_POLICIES: tuple[NanPolicy, ...] = get_args(NanPolicy)


def check_choice(what: str, given: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `given` is one of `allowed`."""
    if given not in allowed:
        raise QsimError(f"unknown {what} {given!r}: choose one of {', '.join(allowed)}")
