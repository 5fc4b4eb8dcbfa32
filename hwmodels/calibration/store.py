"""Fitted parameters in their TOML form: read and written.

One file per device and software stack, `<device>.<stack>.toml`: provenance, then a table for each kernel family or
attention kernel with the parameters of its soft roofline, its correction surface, its held-out errors and its bands.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from qsim.errors import QsimError
from qsim.files import TOML_LIMIT, parse_toml, read_text, read_toml

from .collectives import collective_of
from .fitted import Borrowed, Calibration, Curve, Mixture, Parameters, Quantizer
from .grid import Grid, grid_text, text_grid
from .mixtures import mixture_of
from .neighbours import Neighbours
from .power import LoopPower, PowerLaw, loop_of, power_of
from .surface import Surface


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
    moe: dict[str, Mixture] = {}
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
            moe[name] = mixture_of(_parameters(name, entry, origin), entry)
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


def parameters_toml(section: str, fitted: Parameters, further: Sequence[str] = ()) -> str:
    """The TOML table of one fitted kernel, with `further` lines of its own."""
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
        *further,
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
