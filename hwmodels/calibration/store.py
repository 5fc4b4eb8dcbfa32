"""Fitted parameters as values, and their TOML form.

One file per device and software stack, `<device>.<stack>.toml`: provenance, then a table for each kernel family or
attention kernel with the parameters of its soft roofline, its correction surface, its held-out errors and its bands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsim.errors import QsimError
from qsim.files import TOML_LIMIT, parse_toml, read_text, read_toml

from .collectives import Collective, collective_of
from .grid import Grid, grid_text, text_grid
from .neighbours import Neighbours
from .power import LoopPower, PowerLaw, loop_of, power_of
from .surface import Surface, tile_rows

REGIMES = ("small", "medium", "large")
REGIME_EDGES = (16.0, 256.0)
"""M (or the sequence length) up to 16 is small, up to 256 medium, above large; each regime has its own band."""


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """What another kernel of the same device says of a shape: its grid, with K scaled.

    An FP8 product of length K moves the bytes and issues the instructions of a 16-bit one of length K / 2, so a library
    that picks tiles and splits alike for both leaves the same steps: `k_scale` is then 0.5.
    """

    kernel: str
    k_scale: float
    grid: Grid

    def __call__(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        return self.grid(x, a, np.asarray(b) * self.k_scale, units)


def _has_waves(part: Any) -> bool:
    return (isinstance(part, Surface) and part.waves) or (isinstance(part, Grid) and part.waves is not None)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Soft roofline of a kernel on a device: t = t0 + (C^p + (bytes / (eta_m BW))^p)^(1/p).

    C is F / (eta_c peak) + K tau. Attention adds exp_weight * exponentials / rate to C, and multiplies both by the work
    of whole tiles.

    Attributes:
        t0_s: fixed time of a call.
        eta_compute, eta_memory: reached shares of the dense peak and of the memory bandwidth.
        p: 1 adds the two times, large takes the larger.
        tau_s_per_k: latency of one step along K of a thread block; 0 where it was not fitted.
        exp_weight: share of the time of a softmax's exponentials that is not hidden behind the products.
        floor_s: no call takes less.
        tile_keys: keys of the tile that attention computes whole where the causal mask cuts it, as the fit sees it.
        surface: correction fitted on what is left, None without.
        borrowed: correction taken over from another kernel, None without.
        neighbours: what was left at measured shapes, None where it is not used; all corrections add up.
        band: regime -> (low, high), factors on the time between which 80 % of held-out measurements lie.
            `known`, where neighbours are used: the factors at a shape that was itself measured.
        held_out_mape: regime or "all" -> mean absolute error on shapes left out of the fit, as a fraction.
        rows, shapes: how much it was fitted on.
        kind: "calibrated" for this device, "transferred" from another.
    """

    kernel: str
    t0_s: float
    eta_compute: float
    eta_memory: float
    p: float
    tau_s_per_k: float = 0.0
    exp_weight: float = 0.0
    floor_s: float = 0.0
    tile_keys: float = 128.0
    surface: Surface | Grid | None = None
    borrowed: Borrowed | None = None
    neighbours: Neighbours | None = None
    band: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    held_out_mape: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    shapes: int = 0
    kind: str = "calibrated"
    origin: str = ""

    @cached_property
    def sizes(self) -> NDArray[np.float64]:
        """Values of the first coordinate at which the correction has a corner or a step: those that it was measured at,
        and the whole rows of tiles up to the largest. Empty without a correction."""
        if not self._parts:
            return np.empty(0)
        measured = np.unique(np.concatenate([2.0**knots for _, knots in self._parts]))
        whole = np.round(measured)  # the logarithms are stored with a few digits
        measured = np.unique(np.where(np.abs(measured - whole) < 1e-3 * measured, whole, measured))
        rows = tile_rows(measured[-1]) if any(_has_waves(part) for part, _ in self._parts) else np.empty(0)
        return np.unique(np.concatenate([measured, rows[rows > measured[0]]]))

    @cached_property
    def knot_of_size(self) -> NDArray[np.intp]:
        """Positions in `sizes` of those that were measured."""
        knots = np.concatenate([np.empty(0), *(k for _, k in self._parts)])
        near = np.abs(np.log2(self.sizes)[:, None] - knots).min(axis=1, initial=np.inf) < 1e-3
        return np.flatnonzero(near)

    @cached_property
    def derived(self) -> dict[Any, Parameters]:
        """What was made of these parameters for other kernels and devices, so that each is made once."""
        return {}

    @cached_property
    def _parts(self) -> tuple[tuple[Any, NDArray[np.float64]], ...]:
        """Each correction, with the logarithms of the sizes it was measured at."""
        parts = [p for p in (self.surface, self.borrowed, self.neighbours) if p is not None]
        return tuple((p.grid, p.grid.knots[0]) if isinstance(p, Borrowed) else
                     (p, p.knots[0] if isinstance(p, Grid) else p.knots) for p in parts)  # fmt: skip

    def measured(self, a: Any, b: Any) -> Any:
        """Whether the two other coordinates of a shape (N and K) lie within what the correction was measured on."""
        return self.surface is not None and self.surface.measured(a, b)

    def correction(self, x: Any, a: Any, b: Any, units: int | None = None) -> Any:
        """log(time / soft roofline) of a shape, 0 where nothing was fitted; arguments broadcast."""
        total: Any = 0.0
        for part in (self.surface, self.borrowed):
            if part is not None:
                total = total + part(x, a, b, units)
        return total if self.neighbours is None else total + self.neighbours(x, a, b)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Measured time of an element-wise kernel against the bytes it moves, and what a reduction adds.

    Attributes:
        bytes, time_s: read and written together, and the time of a copy that moves them.
        row, row_s: elements that one block sums, and how much longer that takes than a copy of a few bytes.
        graph_gap_s, eager_gap_s: from one tiny kernel to the next, in a CUDA graph and launched from Python.
    """

    bytes: np.ndarray
    time_s: np.ndarray
    row: np.ndarray
    row_s: np.ndarray
    graph_gap_s: float
    eager_gap_s: float

    def __call__(self, moved: Any) -> Any:
        """Seconds to move `moved` bytes (read and written together); beyond the last point, its rate."""
        moved = np.asarray(moved, dtype=np.float64)
        inside = np.exp(np.interp(np.log(np.maximum(moved, 1.0)), np.log(self.bytes), np.log(self.time_s)))
        return np.where(moved > self.bytes[-1], moved * (self.time_s[-1] / self.bytes[-1]), inside)

    def reduction_s(self, row: Any) -> Any:
        """Seconds that reducing over rows of so many elements adds, 0 for none: the rows themselves run in parallel."""
        row = np.asarray(row, dtype=np.float64)
        return np.where(row > 0, np.interp(row, self.row, self.row_s), 0.0)


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """Time of a library's kernel that quantises activations (M, K) with one scale per token: fixed time, time per step
    along K (a block finds the largest value of a row), and traffic at a share of the memory bandwidth."""

    t0_s: float
    tau_s_per_k: float
    eta_memory: float

    def __call__(self, m: Any, k: Any, bandwidth_bytes_per_s: float) -> Any:
        """Seconds; 16-bit values are read, 8-bit ones written. Arguments broadcast."""
        m, k = np.asarray(m, dtype=np.float64), np.asarray(k, dtype=np.float64)
        return self.t0_s + self.tau_s_per_k * k + 3.0 * m * k / (self.eta_memory * bandwidth_bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything fitted for a device: kernels and attention by name, small operators, collectives, the quantisation of
    activations by software stack, the power of the board, fused mixture-of-experts layers, where it came from."""

    name: str
    kernels: Mapping[str, Parameters]
    attention: Mapping[str, Parameters]
    small: Curve | None
    collectives: tuple[Collective, ...]
    provenance: tuple[Mapping[str, Any], ...]
    quantize: Mapping[str, Quantizer] = field(default_factory=dict)
    power: PowerLaw | None = None
    loop_power: Mapping[str, LoopPower] = field(default_factory=dict)
    moe: Mapping[str, Parameters] = field(default_factory=dict)


def _surface(table: Mapping[str, Any] | None) -> Surface | Grid | None:
    if table is None:
        return None
    if "sizes_x" in table:
        try:
            return text_grid(table)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise QsimError(
                "a surface with sizes_x must have sizes_a, sizes_b, unit, and in values as many whole numbers as the "
                f"sizes span, as hwmodels.fit writes them: {error}"
            ) from error
    if "values_permille" in table:
        knots = tuple(np.array(table[f"knots_log2_{axis}"], dtype=np.float64) for axis in range(3))
        return Grid(
            knots=knots,  # type: ignore[arg-type]
            values=np.array(table["values_permille"], dtype=np.float64).reshape([len(k) for k in knots]) / 1000,
            waves=np.array(table["waves_permille"], dtype=np.float64) / 1000 if "waves_permille" in table else None,
        )
    return Surface(
        knots=np.array(table["knots_log2"], dtype=np.float64),
        coefficients=np.array(table["coefficients"], dtype=np.float64),
        low=np.array(table["low_log2"], dtype=np.float64),
        high=np.array(table["high_log2"], dtype=np.float64),
        waves=table["waves"],
    )


def _neighbours(table: Mapping[str, Any] | None) -> Neighbours | None:
    if table is None:
        return None
    return Neighbours(
        shapes=np.log2(np.array(table["shapes"], dtype=np.float64)),
        knots=np.array(table["knots_log2"], dtype=np.float64),
        weights=np.array(table["weights_permille"], dtype=np.float64) / 1000,
    )


def _tables(table: Mapping[str, Any], section: str, origin: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and table of every kernel of a section."""
    found = table.get(section, {})
    wrong = [section] if not isinstance(found, dict) else [k for k, v in found.items() if not isinstance(v, dict)]
    if wrong:
        raise QsimError(f"calibration {origin}: {wrong[0]} must be a table; qsim calibrate --out writes such a file")
    yield from found.items()


def _parameters(name: str, table: Mapping[str, Any], origin: str) -> Parameters:
    try:
        return _fitted(name, table, origin)
    except KeyError as error:
        why = f"has no {error.args[0]}"
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        why = f"has a value of the wrong type or shape ({error})"
    raise QsimError(f"calibration {origin}: kernel {name} {why}; qsim calibrate --out writes such a file")


def _quantizer(name: str, table: Mapping[str, Any], origin: str) -> Quantizer:
    try:
        return Quantizer(
            t0_s=table["t0_us"] * 1e-6, tau_s_per_k=table["tau_ns_per_k"] * 1e-9, eta_memory=table["eta_memory"]
        )
    except (KeyError, TypeError) as error:
        raise QsimError(
            f"calibration {origin}: quantize.{name} must have t0_us, tau_ns_per_k and eta_memory as numbers: {error}"
        ) from error


def _fitted(name: str, table: Mapping[str, Any], origin: str) -> Parameters:
    return Parameters(
        kernel=name,
        t0_s=table["t0_us"] * 1e-6,
        eta_compute=table["eta_compute"],
        eta_memory=table["eta_memory"],
        p=table["p"],
        tau_s_per_k=table.get("tau_ns_per_k", 0.0) * 1e-9,
        exp_weight=table.get("exp_weight", 0.0),
        floor_s=table.get("floor_us", 0.0) * 1e-6,
        tile_keys=table.get("tile_keys", 128.0),
        surface=_surface(table.get("surface")),
        neighbours=_neighbours(table.get("neighbours")),
        band={k: (v[0], v[1]) for k, v in table.get("band_80", {}).items()},
        held_out_mape=dict(table.get("held_out_mape", {})),
        rows=table.get("rows", 0),
        shapes=table.get("shapes", 0),
        origin=origin,
    )


def read_parameters(path: str | Path) -> dict[str, Parameters]:
    """Kernel family -> parameters, of a TOML that `hwmodels.fit` wrote; for `KernelFamily.measured`.

    Raises:
        QsimError: not a file of fitted parameters. OSError: it cannot be opened.
    """
    origin = Path(path).stem
    found = {name: _parameters(name, entry, origin) for name, entry in _tables(read_toml(path), "kernels", origin)}
    if not found:
        raise QsimError(f"{path} has no fitted kernel; hwmodels.fit(..., out=...) writes such a file")
    return found


def calibrated_names() -> tuple[str, ...]:
    """The names of the shipped calibrations."""
    folder = resources.files("hwmodels") / "calibration"
    return tuple(sorted({f.name.split(".")[0] for f in folder.iterdir() if f.name.endswith(".toml")}))


@lru_cache(maxsize=32)
def load_calibration(device: str) -> Calibration | None:
    """The calibration of a device: all its files together, or None when there is none."""
    if device.endswith(".toml"):
        path = Path(device)
        if not os.path.isfile(path):
            raise QsimError(f"calibration file {device} does not exist")
        texts = [(path.stem, read_text(path, limit=TOML_LIMIT))]
    else:
        folder = resources.files("hwmodels") / "calibration"
        found = sorted(f.name for f in folder.iterdir() if f.name.startswith(f"{device}.") and f.name.endswith(".toml"))
        texts = [(name[:-5], (folder / name).read_text(encoding="utf-8")) for name in found]
    if not texts:
        return None
    kernels: dict[str, Parameters] = {}
    borrows: dict[str, tuple[str, float]] = {}
    attention: dict[str, Parameters] = {}
    quantize: dict[str, Quantizer] = {}
    small: Curve | None = None
    power: PowerLaw | None = None
    loops: dict[str, LoopPower] = {}
    moe: dict[str, Parameters] = {}
    provenance, collectives = [], []
    for origin, text in texts:
        table = parse_toml(text, f"calibration {origin}")
        provenance.append({"file": origin, **table.get("provenance", {})})
        for name, entry in _tables(table, "kernels", origin):
            if name not in kernels and "shape_of" in entry:
                borrows[name] = (entry["shape_of"], entry["shape_k_scale"])
            kernels.setdefault(name, _parameters(name, entry, origin))
        for name, entry in _tables(table, "attention", origin):
            attention.setdefault(name, _parameters(name, entry, origin))
        for name, entry in _tables(table, "quantize", origin):
            quantize[name] = _quantizer(name, entry, origin)
        for name, entry in _tables(table, "moe", origin):
            moe[name] = _parameters(name, entry, origin)
        for name, entry in _tables(table, "loop_power", origin):
            loops[name] = loop_of(name, entry, origin)
        power = power_of(table["power"], origin) if "power" in table else power
        collectives += [collective_of(entry) for entry in table.get("collectives", ())]
        if "small" in table:
            t = table["small"]
            small = Curve(
                bytes=np.array(t["bytes"], dtype=np.float64),
                time_s=np.array(t["time_us"], dtype=np.float64) * 1e-6,
                row=np.array(t["row"], dtype=np.float64),
                row_s=np.array(t["row_us"], dtype=np.float64) * 1e-6,
                graph_gap_s=t["graph_gap_us"] * 1e-6,
                eager_gap_s=t["eager_gap_us"] * 1e-6,
            )
    for name, (donor, scale) in borrows.items():
        grid = kernels[donor].surface if donor in kernels else None
        if not isinstance(grid, Grid):
            raise QsimError(f"{device}: kernel {name} takes its shape from {donor}, which has no grid there")
        kernels[name] = replace(kernels[name], borrowed=Borrowed(kernel=donor, k_scale=scale, grid=grid))
    return Calibration(
        name=device, kernels=kernels, attention=attention, small=small, collectives=tuple(collectives),
        provenance=tuple(provenance), quantize=quantize, power=power, loop_power=loops, moe=moe,
    )  # fmt: skip


def _number(value: float, digits: int = 5) -> str:
    text = f"{value:.{digits}g}"
    return text if any(c in text for c in ".en") else text + ".0"


def parameters_toml(section: str, fitted: Parameters) -> str:
    """The TOML table of one fitted kernel."""
    head = f"{section}.{fitted.kernel}"
    lines = [
        f"[{head}]",
        f"t0_us = {_number(fitted.t0_s * 1e6)}",
        f"eta_compute = {_number(fitted.eta_compute)}",
        f"eta_memory = {_number(fitted.eta_memory)}",
        f"p = {_number(fitted.p)}",
        f"tau_ns_per_k = {_number(fitted.tau_s_per_k * 1e9)}",
        f"rows = {fitted.rows}",
        f"shapes = {fitted.shapes}",
        "held_out_mape = { " + ", ".join(f"{k} = {_number(v, 3)}" for k, v in fitted.held_out_mape.items()) + " }",
        "band_80 = { "
        + ", ".join(f"{k} = [{_number(a, 4)}, {_number(b, 4)}]" for k, (a, b) in fitted.band.items())
        + " }",
    ]
    if fitted.exp_weight:
        lines.append(f"exp_weight = {_number(fitted.exp_weight)}")
    if fitted.floor_s:
        lines += [f"floor_us = {_number(fitted.floor_s * 1e6)}", f"tile_keys = {_number(fitted.tile_keys)}"]
    if fitted.borrowed is not None:
        lines += [f'shape_of = "{fitted.borrowed.kernel}"', f"shape_k_scale = {_number(fitted.borrowed.k_scale)}"]
    if isinstance(fitted.surface, Grid):
        lines += [f"[{head}.surface]", *_grid_lines(fitted.surface)]
    elif fitted.surface is not None:
        lines += [f"[{head}.surface]", *_surface_lines(fitted.surface)]
    if fitted.neighbours is not None:
        lines += [f"[{head}.neighbours]", *_neighbour_lines(fitted.neighbours)]
    return "\n".join(lines) + "\n"


def _row(values: Any) -> str:
    return "[" + ", ".join(_number(float(v), 4) for v in values) + "]"


def _surface_lines(s: Surface) -> list[str]:
    return [
        f"waves = {'true' if s.waves else 'false'}",
        f"knots_log2 = {_row(s.knots)}",
        f"low_log2 = {_row(s.low)}",
        f"high_log2 = {_row(s.high)}",
        "coefficients = [",
        *(f"  {_row(r)}," for r in s.coefficients),
        "]",
    ]


def _whole(values: Any) -> str:
    return ", ".join(str(round(1000 * float(v))) for v in values)


def _grid_lines(g: Grid) -> list[str]:
    """Corner values as whole numbers: with waves in thousandths, a line for each pair of the first two knots; without,
    as `grid_text`."""
    if g.waves is None:
        return grid_text(g)
    lines = [f"knots_log2_{axis} = {_row(k)}" for axis, k in enumerate(g.knots)]
    lines += ["values_permille = [", *(f"  {_whole(r)}," for r in g.values.reshape(-1, g.values.shape[2])), "]"]
    return [*lines, "waves_permille = [", *(f"  [{_whole(r)}]," for r in g.waves), "]"]


def _neighbour_lines(n: Neighbours) -> list[str]:
    return [
        f"knots_log2 = {_row(n.knots)}",
        "shapes = [" + ", ".join(f"[{round(a)}, {round(b)}]" for a, b in 2.0**n.shapes) + "]",
        "weights_permille = [",
        *(f"  [{_whole(r)}]," for r in n.weights),
        "]",
    ]
