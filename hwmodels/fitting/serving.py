"""Constants of engines, fitted on measured serving points, with bands from points that no fit has seen.

    python -m hwmodels.fitting.serving serving.csv hwmodels/serving/constants.toml

Nothing else is fitted on serving points: the times of kernels are what `predict` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.files import write_text

from ..serving.constants import KEYS, Constants
from ..serving.points import Point, Scored, Tables, is_dense, read_points, score

Array = np.ndarray[Any, np.dtype[np.float64]]
SCALES = {"step_s": 5e-4, "row_s": 1e-5, "prompt_step_s": 2e-3, "request_s": 2e-2, "token_s": 5e-6}
"""What each constant is likely to be: its prior is a half-normal of this width around that of all engines together."""
WIDTHS = np.array([0.06, 0.20])
"""Spread of the logarithm of TPOT and TTFT that is no fault of the constants; beyond 1.5 of it an error counts
linearly (Huber)."""
ROUNDS = 3
LEAST = 8
"""Points that a group needs for constants of its own."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Constants of one group of points, with their errors on points of the fit and on points left out.

    Attributes:
        constants: with the bands. points: of the fit. seen, unseen: their predictions, the second by constants that
            were fitted without their block of model, device and engine.
    """

    constants: Constants
    points: tuple[Point, ...]
    seen: tuple[Scored, ...]
    unseen: tuple[Scored, ...]


def fit_constants(
    points: Sequence[Point], tables: Tables, prior: Constants, say: Callable[[str], None] = lambda _: None
) -> Constants:
    """The constants that predict some points best: robust least squares of the logarithms of TPOT and TTFT.

    Every block of model, device and engine counts the same. `prior` is what is believed without points.
    """
    names = tuple(SCALES)
    scale = np.array([SCALES[n] for n in names])
    believed = np.array([getattr(prior, n) for n in names])
    counts: dict[Any, int] = {}
    for p in points:
        counts[p.block] = counts.get(p.block, 0) + 1
    weight = np.repeat([1.0 / np.sqrt(counts[p.block]) for p in points], 2)
    weight *= np.sqrt(min(len(points), 40) / len(counts))
    measured = np.log([[p.number("tpot_s"), p.number("ttft_s")] for p in points]).reshape(-1)

    def predicted(values: Array) -> Array:
        one = _with(prior, names, values)
        found = [score(p, tables, (one,)) for p in points]
        return np.log([[s.tpot_s, s.ttft_s] for s in found]).reshape(-1)

    values = np.maximum(believed, 0.1 * scale)
    spread = np.tile(WIDTHS, len(points))
    for turn in range(ROUNDS):
        here = predicted(values)
        error = (measured - here) / spread
        slope = np.empty((here.size, len(names)))
        for i in range(len(names)):
            moved = values.copy()
            moved[i] += 0.5 * scale[i]
            slope[:, i] = (predicted(moved) - here) / 0.5 / spread
        robust = weight * np.sqrt(np.minimum(1.0, 1.5 / np.maximum(np.abs(error), 1e-9)))
        values = _solve(slope * robust[:, None], error * robust, values, scale, believed)
        say(f"round {turn + 1}: " + ", ".join(f"{n} {v:.3g}" for n, v in zip(names, values, strict=True)))
    return replace(_with(prior, names, values), rows=len(points))


def _with(constants: Constants, names: Sequence[str], values: Array) -> Constants:
    changes: dict[str, Any] = {n: float(v) for n, v in zip(names, values, strict=True)}
    return replace(constants, **changes)


def _solve(slope: Array, error: Array, values: Array, scale: Array, believed: Array) -> Array:
    """The non-negative constants of a linear model, held near what is believed."""
    from scipy.optimize import lsq_linear

    now, prior = values / scale, believed / scale
    rows = np.vstack([slope, np.eye(scale.size)])
    target = np.concatenate([error + slope @ now, prior])
    return np.asarray(lsq_linear(rows, target, bounds=(0.0, np.inf)).x * scale)


def engine_groups(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points that count, by engine and by whether its host overlaps."""
    found: dict[str, list[Point]] = {}
    for p in points:
        if not p.trap and p.text("mode") != "disagg":
            found.setdefault(p.group, []).append(p)
    return found


def pooled(fits: Mapping[str, Constants], name: str) -> Constants:
    """What is believed of an engine without points of it: the median of the others, whose host overlaps alike if
    there are such."""
    rest = {n: c for n, c in fits.items() if n != name}
    alike = [c for n, c in rest.items() if n.endswith("-sync") == name.endswith("-sync")]
    others = alike or list(rest.values())
    values: dict[str, Any] = {
        k: float(np.median([getattr(c, k) for c in others])) if others else SCALES.get(k, 0.0) for k in KEYS
    }
    return Constants(engine=name, **values)


def band(scored: Sequence[Scored], which: str) -> tuple[float, float]:
    """10 % and 90 % quantiles of measured over predicted, every device counting the same."""
    devices: dict[str, int] = {}
    for s in scored:
        devices[s.point.text("device")] = devices.get(s.point.text("device"), 0) + 1
    ratio = np.array([1.0 / getattr(s, f"{which}_ratio") for s in scored])
    share = np.array([1.0 / devices[s.point.text("device")] for s in scored])
    order = np.argsort(ratio)
    at = (np.cumsum(share[order]) - share[order] / 2) / share.sum()
    low, high = np.interp([0.1, 0.9], at, ratio[order])
    return float(min(low, 0.99)), float(max(high, 1.01))


def between(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The geometric mean of two bands."""
    return float(np.sqrt(one[0] * other[0])), float(np.sqrt(one[1] * other[1]))


def fit_all(points: Sequence[Point], say: Callable[[str], None] = lambda _: None) -> dict[str, Fitted]:
    """Constants of every engine in the points, and their errors on blocks left out of the fit.

    Raises:
        QsimError: too few points of every engine.
    """
    tables = Tables()
    groups = {n: g for n, g in engine_groups(points).items() if len(g) >= LEAST}
    if not groups:
        raise QsimError(f"serving constants need at least {LEAST} points of one engine, without traps")
    first: dict[str, Constants] = {}
    for name, group in groups.items():
        say(f"{name}: {len(group)} points")
        first[name] = fit_constants(group, tables, pooled({}, name), say)
    found, apart = {}, dict[str, list[Scored]]()
    for name, group in groups.items():
        believed = pooled(first, name)
        final = fit_constants(group, tables, believed, say)
        for block in sorted({p.block for p in group}):
            rest = [p for p in group if p.block != block]
            without = fit_constants(rest, tables, believed, say) if len(rest) >= LEAST else believed
            apart.setdefault(name, []).extend(score(p, tables, (without,)) for p in group if p.block == block)
        seen = tuple(score(p, tables, (final,)) for p in group)
        found[name] = Fitted(constants=final, points=tuple(group), seen=seen, unseen=tuple(apart[name]))
    # few blocks stand behind an engine: half of its band is that of all engines
    everything = [s for scored in apart.values() for s in scored]
    token, first_token = band(everything, "tpot"), band(everything, "ttft")
    return {
        name: replace(fit, constants=replace(
            fit.constants, tpot=between(band(fit.unseen, "tpot"), token),
            ttft=between(band(fit.unseen, "ttft"), first_token),
        ))
        for name, fit in found.items()
    }  # fmt: skip


def _errors(scored: Sequence[Scored]) -> tuple[float, float]:
    """Median |error| of TPOT and TTFT."""
    token, first = (float(np.median([abs(getattr(s, f"{w}_ratio") - 1) for s in scored])) for w in ("tpot", "ttft"))
    return token, first


def fit_rows(fits: Mapping[str, Fitted]) -> list[dict[str, Any]]:
    """The constants as flat rows: microseconds, errors in percent, in the fit and left out of it."""
    rows = []
    for name, fit in fits.items():
        c, seen, unseen = fit.constants, _errors(fit.seen), _errors(fit.unseen)
        rows.append({
            "engine": name, "points": len(fit.points), **{f"{k}_us".replace("_s_us", "_us"): getattr(c, k) * 1e6
                                                          for k in KEYS},
            "tpot_percent": 100 * seen[0], "tpot_left_out_percent": 100 * unseen[0], "tpot_low": c.tpot[0],
            "tpot_high": c.tpot[1], "ttft_percent": 100 * seen[1], "ttft_left_out_percent": 100 * unseen[1],
            "ttft_low": c.ttft[0], "ttft_high": c.ttft[1],
        })  # fmt: skip
    return rows


def constants_toml(fits: Mapping[str, Fitted], source: str) -> str:
    """The file that `read_constants` reads."""
    parts = [
        "# Constants of serving engines, fitted by hwmodels.fitting.serving on measured serving points; nothing else\n"
        "# is. tpot and ttft: 10 % and 90 % quantiles of measured over predicted, on blocks of model, device and\n"
        "# engine that were left out of the fit; half of each band is that of all engines.\n"
    ]
    for name, fit in fits.items():
        c, seen, unseen = fit.constants, _errors(fit.seen), _errors(fit.unseen)
        parts.append(
            f'\n[[engines]]\nengine = "{name}"\n'
            + "".join(f"{key} = {getattr(c, key):.4g}\n" for key in KEYS)
            + f"tpot = [{c.tpot[0]:.4g}, {c.tpot[1]:.4g}]\nttft = [{c.ttft[0]:.4g}, {c.ttft[1]:.4g}]\n"
            f"rows = {len(fit.points)}\n"
            f'source = "{source}: median error of TPOT and TTFT {seen[0]:.1%} and {seen[1]:.1%} in the fit, '
            f'{unseen[0]:.1%} and {unseen[1]:.1%} left out"\n'
        )
    return "".join(parts)


def scorable(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that constants are fitted on: of dense models that are known, on one set of devices, no trap.

    The kernels of experts are predicted too roughly for what is left to be the engine's.
    """
    return tuple(p for p in points if not p.trap and p.text("mode") != "disagg" and _is_known(p) and is_dense(p))


def _is_known(point: Point) -> bool:
    """Whether the model is known."""
    try:
        is_dense(point)
    except QsimError:
        return False
    return True


def main() -> None:
    """Fit on a file and write the constants."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    points = scorable(read_points(source))
    fits = fit_all(points, lambda text: print(text, file=sys.stderr))  # noqa: T201
    write_text(target, constants_toml(fits, f"{source.name}, {len(points)} dense points"))


if __name__ == "__main__":
    main()
