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

from ..serving.constants import BANDS, KEYS, Constants, constants_for
from ..serving.points import Point, Scored, Tables, is_dense, read_points, score
from ..serving.recipes import UNKNOWN

Array = np.ndarray[Any, np.dtype[np.float64]]
SCALES = {"step_s": 5e-4, "row_s": 1e-5, "prompt_step_s": 2e-3, "request_s": 2e-2, "token_s": 5e-6, "expert_s": 2e-5}
"""What each constant is likely to be: its prior is a half-normal of this width around that of all engines together."""
DENSE = tuple(name for name in SCALES if name != "expert_s")
"""What is fitted on dense models; the last on mixtures of experts, with the others as they are."""
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
        constants: with the bands. points: dense ones of the fit. seen, unseen: their predictions, the second by
            constants that were fitted without their block of model, device and engine. mixtures: predictions of
            mixtures of experts by constants that were fitted without their block.
    """

    constants: Constants
    points: tuple[Point, ...]
    seen: tuple[Scored, ...]
    unseen: tuple[Scored, ...]
    mixtures: tuple[Scored, ...] = ()


def fit_constants(
    points: Sequence[Point], tables: Tables, prior: Constants, say: Callable[[str], None] = lambda _: None,
    names: Sequence[str] = DENSE,
) -> Constants:  # fmt: skip
    """The constants that predict some points best: robust least squares of the logarithms of TPOT and TTFT.

    Every block of model, device and engine counts the same. `prior` is what is believed without points;
    what is not in `names` stays as it has it.
    """
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


def left_out_by(
    points: Sequence[Point], part: Callable[[Point], Any], fit: Callable[[Sequence[Point]], Constants], tables: Tables
) -> list[Scored]:
    """Predictions of points by constants that were fitted without their part: their block, or their device."""
    found = []
    for one in sorted({part(p) for p in points}):
        without = fit([p for p in points if part(p) != one])
        found += [score(p, tables, (without,)) for p in points if part(p) == one]
    return found


def fit_all(points: Sequence[Point], say: Callable[[str], None] = lambda _: None) -> dict[str, Fitted]:
    """Constants of every engine in the points, and their errors on blocks left out of the fit.

    Raises:
        QsimError: too few points of every engine.
    """
    tables = Tables()
    points = [p for p in points if _is_priced(p, tables)]
    dense = [p for p in points if is_dense(p)]
    groups = {n: g for n, g in engine_groups(dense).items() if len(g) >= LEAST}
    if not groups and not any(len(g) >= LEAST for g in engine_groups(points).values()):
        raise QsimError(f"serving constants need at least {LEAST} points of one engine, without traps")
    first: dict[str, Constants] = {}
    for name, group in groups.items():
        say(f"{name}: {len(group)} points")
        first[name] = fit_constants(group, tables, pooled({}, name), say)
    found, apart = {}, dict[str, list[Scored]]()
    for name, group in groups.items():
        believed = pooled(first, name)
        refit = lambda rest, at=believed: (  # noqa: E731
            fit_constants(rest, tables, at, say) if len(rest) >= LEAST else at
        )
        final = fit_constants(group, tables, believed, say)
        apart[name] = left_out_by(group, lambda p: p.block, refit, tables)
        seen = tuple(score(p, tables, (final,)) for p in group)
        found[name] = Fitted(constants=final, points=tuple(group), seen=seen, unseen=tuple(apart[name]))
    # few blocks stand behind an engine: half of its band is that of all engines
    everything = [s for scored in apart.values() for s in scored]
    shared = {which: band(everything, which) for which in ("tpot", "ttft")} if everything else {}
    own: dict[str, dict[str, Any]] = {
        name: {which: between(band(fit.unseen, which), shared[which]) for which in shared}
        for name, fit in found.items()
    }
    found = {
        name: replace(fit, constants=replace(fit.constants, **own[name]))
        for name, fit in found.items()
    }  # fmt: skip
    return _with_mixtures(found, [p for p in points if not is_dense(p)], tables, say)


def _with_mixtures(
    fits: Mapping[str, Fitted], points: Sequence[Point], tables: Tables, say: Callable[[str], None]
) -> dict[str, Fitted]:
    """The constants with what mixtures of experts add, and their bands.

    The fit is on points whose kernels were measured on the device: of the others, what is left is no engine's alone.
    """
    groups = {n: g for n, g in engine_groups(points).items() if len(g) >= LEAST}
    if not groups:
        return dict(fits)
    # an engine without dense points keeps the constants that it has
    shipped = {n: constants_for(g[0].policy(), "") for n, g in groups.items() if n not in fits}
    fits = {**fits, **{n: Fitted(constants=c, points=(), seen=(), unseen=()) for n, c in shipped.items()}}

    def fit(rest: Sequence[Point], name: str, believed: float) -> Constants:
        prior = replace(fits[name].constants, expert_s=believed)
        rest = [p for p in rest if tables.of(p, p.deployment()).fidelity == "calibrated"]
        return fit_constants(rest, tables, prior, say, ("expert_s",)) if len(rest) >= LEAST else prior

    first = {name: fit(group, name, 0.0).expert_s for name, group in groups.items()}
    others = {n: float(np.median([v for k, v in first.items() if k != n] or [0.0])) for n in fits}
    finals = {n: fit(groups[n], n, others[n]).expert_s if n in groups else others[n] for n in fits}
    apart = {
        name: left_out_by(
            group, lambda p: p.block, lambda rest, n=name: fit(rest, n, others[n]), tables  # type: ignore[misc]
        )
        for name, group in groups.items()
    }  # fmt: skip
    # the step's own band joins where its kernels were not measured: what is left is of those that were
    measured = {n: [s for s in scored if s.table.fidelity == "calibrated"] for n, scored in apart.items()}
    everything = [s for scored in measured.values() for s in scored]
    found = {}
    for name, one in fits.items():
        own = measured.get(name, [])
        bands: dict[str, Any] = {}
        for which in ("tpot", "ttft") if everything else ():
            shared = band(everything, which)
            bands[f"moe_{which}"] = between(band(own, which), shared) if len(own) >= LEAST else shared
        found[name] = replace(
            one, constants=replace(one.constants, expert_s=finals[name], **bands), mixtures=tuple(apart.get(name, ())),
        )  # fmt: skip
    return found


def devices_left_out(points: Sequence[Point], say: Callable[[str], None] = lambda _: None) -> tuple[Scored, ...]:
    """Every point by constants that were fitted without any point of its device, mixtures of experts too.

    An engine that ran on no other device has the median of the others alike, fitted without the device as well.
    """
    tables, found = Tables(), list[Scored]()
    points = [p for p in points if _is_priced(p, tables)]
    for device in sorted({p.text("device") for p in points}):
        say(f"without {device}")
        rest = [p for p in points if p.text("device") != device]
        known: dict[str, Constants] = {}
        for name, group in engine_groups([p for p in rest if is_dense(p)]).items():
            if len(group) >= LEAST:
                known[name] = fit_constants(group, tables, pooled({}, name), say)
        for name, group in engine_groups([p for p in rest if not is_dense(p)]).items():
            measured = [p for p in group if tables.of(p, p.deployment()).fidelity == "calibrated"]
            if name in known and len(measured) >= LEAST:
                known[name] = fit_constants(measured, tables, known[name], say, ("expert_s",))
        for p in points:
            if p.text("device") == device:
                found.append(score(p, tables, (known.get(p.group) or pooled(known, p.group),)))
    return tuple(found)


def _errors(scored: Sequence[Scored]) -> tuple[float, float]:
    """Median |error| of TPOT and TTFT; NaN without points."""
    if not scored:
        return float("nan"), float("nan")
    token, first = (float(np.median([abs(getattr(s, f"{w}_ratio") - 1) for s in scored])) for w in ("tpot", "ttft"))
    return token, first


def fit_rows(fits: Mapping[str, Fitted]) -> list[dict[str, Any]]:
    """The constants as flat rows: microseconds, errors in percent, in the fit and left out of it."""
    rows = []
    for name, fit in fits.items():
        c, seen, unseen = fit.constants, _errors(fit.seen), _errors(fit.unseen)
        if not fit.unseen:
            seen = unseen = _errors(fit.mixtures)
        rows.append({
            "engine": name, "points": len(fit.points) + len(fit.mixtures),
            **{f"{k}_us".replace("_s_us", "_us"): getattr(c, k) * 1e6 for k in KEYS},
            "tpot_percent": 100 * seen[0], "tpot_left_out_percent": 100 * unseen[0], "tpot_low": c.tpot[0],
            "tpot_high": c.tpot[1], "ttft_percent": 100 * seen[1], "ttft_left_out_percent": 100 * unseen[1],
            "ttft_low": c.ttft[0], "ttft_high": c.ttft[1],
        })  # fmt: skip
    return rows


def _said(fit: Fitted) -> str:
    """The errors of a fit in words."""
    parts = []
    for what, seen, unseen in (("dense", fit.seen, fit.unseen), ("experts", (), fit.mixtures)):
        if unseen:
            inside = "{:.1%} and {:.1%} in the fit, ".format(*_errors(seen)) if seen else ""
            left = "{:.1%} and {:.1%} left out".format(*_errors(unseen))
            parts.append(f"{len(unseen)} {what}, median error of TPOT and TTFT {inside}{left}")
    return "; ".join(parts)


def constants_toml(fits: Mapping[str, Fitted], source: str) -> str:
    """The file that `read_constants` reads."""
    parts = [
        "# Constants of serving engines, fitted by hwmodels.fitting.serving on measured serving points; nothing else\n"
        "# is. tpot and ttft: 10 % and 90 % quantiles of measured over predicted, on blocks of model, device and\n"
        "# engine that were left out of the fit; half of each band is that of all engines.\n"
    ]
    for name, fit in fits.items():
        c = fit.constants
        parts.append(
            f'\n[[engines]]\nengine = "{name}"\n'
            + "".join(f"{key} = {getattr(c, key):.4g}\n" for key in KEYS)
            + "".join(f"{key} = [{getattr(c, key)[0]:.4g}, {getattr(c, key)[1]:.4g}]\n" for key in BANDS)
            + f"rows = {len(fit.points) + len(fit.mixtures)}\n"
            f'source = "{source}: {_said(fit)}"\n'
        )
    return "".join(parts)


def scorable(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that constants are fitted on: of models that are known, on one set of devices, no trap, and of
    mixtures those that are known to have run with or without speculative decoding.
    """
    return tuple(
        p for p in points
        if not p.trap and p.text("mode") != "disagg" and _is_known(p) and p.speculation != UNKNOWN
    )  # fmt: skip


def _is_known(point: Point) -> bool:
    """Whether the model is known."""
    try:
        is_dense(point)
    except QsimError:
        return False
    return True


def _is_priced(point: Point, tables: Tables) -> bool:
    """Whether the point can be predicted at all."""
    try:
        score(point, tables)
    except QsimError:
        return False
    return True


def main() -> None:
    """Fit on a file and write the constants."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    points = scorable(read_points(source))
    fits = fit_all(points, lambda text: print(text, file=sys.stderr))  # noqa: T201
    write_text(target, constants_toml(fits, f"{source.name}, {len(points)} points"))


if __name__ == "__main__":
    main()
