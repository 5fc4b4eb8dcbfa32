"""Power laws of boards: an H200 from our own settled loops, B200 and GB200 from the tables of 2026.

Our loops run for 1.8 s, and the energy counter is read after the first third. The tables' sensor was read every 100 ms
over loops of 0.3 to 1 s, and it averages over about a second: of short calls it shows what ran before. The tables tell
apart attention, which we did not measure, and other boards; from them only calls of `LONG_S` and more are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration.power import LoopPower, PowerLaw, loop_toml, power_toml
from ..calibration.surface import Array
from ..device.device import Device
from ..device.load import get_device
from ..timing.families import FAMILIES, get_family
from ..timing.power import LIMIT, rescaled
from ..workload.operators import attention_cost
from .field import Field, Part, field_weights, fit_field, hash_shapes, place
from .sources import own_table
from .tables_2026 import CITATION, TABLES, Table, mine

LONG_S = 3e-4
STREAM_S = 1e-4
"""The same for rows that wait for memory: few of them are longer."""
FEW = 128.0
LEAST_ROWS = 1000
"""Of a kernel, for a field of its own; the tables with fewer hold only large products."""
DEVICES = {"H200": "h200", "B200": "b200", "GB200": "gb200"}
"""Devices of the tables whose power was read -> device file."""
OPERANDS = {
    "gemm_bf16": (2.0, 16), "gemm_fp8": (1.0, 8), "gemm_fp8_row": (1.0, 8), "gemm_int8": (1.0, 8),
    "gemm_w4a16_humming": (0.516, 16), "layer_bf16": (2.0, 16), "layer_fp8_row": (1.0, 8),
    "layer_w4a16_humming": (0.516, 16),
}  # fmt: skip
"""Kernel of our loops -> bytes of a weight, bits of the operands."""
LAYER_WEIGHTS = 218_103_808 / 4
"""Weights of the mean product of a Llama-3-8B layer, over whose four `layer_*` rows run in turn."""
START = {"busy_w": 140.0, "byte_j": 37e-12, "weight_j": 44e-12, "op16": 1.0e-12, "op8": 0.5e-12,
         "vector_busy_w": 130.0, "vector_byte_j": 80e-12}  # fmt: skip

PRODUCT, ATTENTION, VECTOR = 0, 1, 2
FIELD = Field(
    parts=(
        Part(size=0.5, reach={"x": 4.0, "a": 2.3, "b": 6.5}),
        Part(size=0.25, reach={"x": 0.56, "a": 0.38, "b": 2.0}),
        Part(size=0.15, reach={"x": 2.1, "ab": 1.0}),
    ),
    noise=0.1,
)
"""Prior of the logarithm of the power that the tables' sensor shows of a loop, over M, N, K."""


@dataclass(frozen=True, kw_only=True)
class PowerRows:
    """Measured power: `kind` of each row, bits of its operands, rates a second, watts; all (n,)."""

    kind: NDArray[np.int64]
    bits: NDArray[np.int64]
    bytes_per_s: Array
    weights_per_s: Array
    ops_per_s: Array
    watts: Array

    def __len__(self) -> int:
        return len(self.watts)

    def take(self, mask: Any) -> PowerRows:
        """The rows of a mask or of indices."""
        return PowerRows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


def law_watts(law: PowerLaw, rows: PowerRows) -> Array:
    """What a law says of the rows."""
    out = law.vector_w(rows.bytes_per_s)
    for bits in law.op_j:
        mine = (rows.kind == PRODUCT) & (rows.bits == bits)
        out = np.where(mine, law.product_w(rows.bytes_per_s, rows.weights_per_s, rows.ops_per_s, bits), out)
    attention = law.attention_w(rows.bytes_per_s, rows.weights_per_s, rows.ops_per_s)
    return np.where(rows.kind == ATTENTION, attention, out)


def own_rows() -> tuple[PowerRows, list[str]]:
    """Our settled loops on an H200, and what each is: `at the limit`, `layers`, `products` or `element-wise`."""
    table = own_table("power")
    limit = get_device("h200").power.board_w  # type: ignore[union-attr]
    rows, what = [], []
    for r in table[table.call_s > 0].itertuples():
        moved, weights, ops, bits, kind = 0.0, 0.0, 0.0, 16, PRODUCT
        if r.kernel not in OPERANDS:
            kind = VECTOR
            moved = 0.0 if "in_l2" in r.kernel else float(r.shape.split()[0]) * (2 if r.kernel == "copy_u8" else 1)
        else:
            size, bits = OPERANDS[r.kernel]
            if r.kernel.startswith("layer"):
                m, weights, act = float(r.shape.split()[0]), LAYER_WEIGHTS, 0.0
            else:
                m, n, k = map(float, r.shape.split("x"))
                weights, act = n * k, bits / 8 * m * k + (4 if r.kernel == "gemm_int8" else 2) * m * n
            moved, ops = size * weights + act, 2 * m * weights
        rows.append((kind, bits, moved / r.call_s, weights / r.call_s, ops / r.call_s, r.mean_w))
        group = "layers" if r.kernel.startswith("layer") else "products" if kind == PRODUCT else "element-wise"
        what.append("at the limit" if r.mean_w > 0.97 * limit else group)
    kind_, bits_, *rest = (np.array(column) for column in zip(*rows, strict=True))
    return PowerRows(kind=kind_, bits=bits_, **dict(zip(_RATES, rest, strict=True))), what


_RATES = ("bytes_per_s", "weights_per_s", "ops_per_s", "watts")


def _own_law(rows: PowerRows, limit_w: float, idle_w: float) -> PowerLaw:
    from scipy.optimize import least_squares

    start = np.log(list(START.values()))

    def make(theta: Any) -> PowerLaw:
        v = dict(zip(START, np.exp(theta).tolist(), strict=True))
        return PowerLaw(
            limit_w=limit_w, idle_w=idle_w, busy_w=v["busy_w"], byte_j=v["byte_j"], weight_j=v["weight_j"],
            op_j={16: v["op16"], 8: v["op8"], 4: v["op8"] / 2}, attention_op_j=v["op16"],
            vector_busy_w=v["vector_busy_w"], vector_byte_j=v["vector_byte_j"], band=(1.0, 1.0), loop_band=(1.0, 1.0),
        )  # fmt: skip

    def misfit(theta: Any) -> Any:
        # a weak pull to the start keeps what a few rows left out would not tell
        return np.concatenate([np.log(law_watts(make(theta), rows) / rows.watts), 0.02 * (theta - start)])

    return make(least_squares(misfit, start, loss="soft_l1", f_scale=0.05).x)


def own_law() -> tuple[PowerLaw, Array]:
    """The law of an H200 without attention, and what it says of every row of `own_rows` when that is left out."""
    device = get_device("h200")
    assert device.power is not None
    limit, idle = LIMIT * device.power.board_w, float(own_table("power").mean_w[own_table("power").call_s == 0].mean())
    rows, what = own_rows()
    out = np.empty(len(rows))
    for i in range(len(rows)):
        kept = np.arange(len(rows)) != i
        out[i] = law_watts(_own_law(rows.take(kept), limit, idle), rows.take(~kept))[0]
    below = np.array([w != "at the limit" for w in what])
    error = np.abs(out / rows.watts - 1)
    held_out = {name: float(error[[w == name for w in what]].mean()) for name in dict.fromkeys(what)}
    law = _own_law(rows, limit, idle)
    band = _band((rows.watts / out)[below])
    counts = {name: what.count(name) for name in held_out}
    return replace(law, band=band, held_out=held_out, counts=counts, rows=len(rows)), out


def _band(ratio: Array) -> tuple[float, float]:
    low, high = np.exp(np.quantile(np.log(ratio), [0.1, 0.9]))
    return float(low), float(high)


def table_rows(gemm: Any, attention: Any, device: str, least_s: float = LONG_S) -> PowerRows:
    """Rows of the tables of 2026 with power on a device of theirs, whose calls take `least_s` or more."""
    parts = []
    for which in (t for t in TABLES if t.device == device):
        found = mine(gemm, which)
        found = found[found.power_w.notna() & (found.latency_s >= least_s)]
        for kernel, part in found.groupby("kernel"):
            family = get_family(f"{which.stack}_{kernel}")
            bits = {"bf16": 16, "nvfp4": 4}.get(str(kernel), 8)
            m, n, k, t = (part[c].to_numpy(float) for c in ("m", "n", "k", "latency_s"))
            moved = family.weight_bits / 8 * n * k + family.activation_bytes * m * k + family.output_bytes * m * n
            parts.append((PRODUCT, bits, moved / t, n * k / t, 2 * m * n * k / t, part.power_w.to_numpy(float)))
        found = mine(attention, which)
        latent = found.phase.str.endswith("_mla")
        found = found[found.power_w.notna() & (found.latency_s >= least_s) & ~latent]
        for (phase, kv, head_dim, window), part in found.groupby(["phase", "kv", "head_dim", "window"]):
            phase = "prefill" if phase == "context" else "decode"
            size = 1.0 if kv == "fp8" else 2.0
            batch, seq, q, heads, t = (
                part[c].to_numpy(float) for c in ("batch", "seq", "q_heads", "kv_heads", "latency_s")
            )
            cost = attention_cost(
                phase, batch=batch, context=seq, q_heads=q, kv_heads=heads, head_dim=int(head_dim),
                kv_bytes_per_element=size, window=int(window) or None,
            )  # fmt: skip
            rates = (cost.traffic_bytes / t, cost.cached / t + 0 * t, cost.flop / t)
            parts.append((ATTENTION, 16, *rates, part.power_w.to_numpy(float)))
    count = [len(part[-1]) for part in parts]
    return PowerRows(
        kind=np.repeat([part[0] for part in parts], count), bits=np.repeat([part[1] for part in parts], count),
        **{name: np.concatenate([part[2 + i] for part in parts]) for i, name in enumerate(_RATES)},
    )  # fmt: skip


def _with_attention(law: PowerLaw, rows: PowerRows) -> PowerLaw:
    """The energy of an operation of attention, from the prefills of the tables."""
    from scipy.optimize import minimize_scalar

    prefill = rows.take((rows.kind == ATTENTION) & (rows.weights_per_s == 0))

    def misfit(theta: float) -> float:
        tried = replace(law, attention_op_j=float(np.exp(theta)))
        return float(np.abs(np.log(law_watts(tried, prefill) / prefill.watts)).sum())

    found = minimize_scalar(misfit, bounds=(np.log(1e-14), np.log(1e-11)), method="bounded")
    law = replace(law, attention_op_j=float(np.exp(found.x)))
    apart = rows.take(rows.kind == ATTENTION)
    return replace(law, loop_band=_band(apart.watts / law_watts(law, apart)))


def h200_law(gemm: Any, attention: Any) -> PowerLaw:
    """The law of an H200: our loops, and attention from the tables."""
    law, _ = own_law()
    law = _with_attention(law, table_rows(gemm, attention, "H200"))
    rows = table_rows(gemm, attention, "H200", STREAM_S)
    counts = {**law.counts, **_counts(rows)}
    return replace(law, held_out={**law.held_out, **_errors(law, rows)}, counts=counts)


def _counts(rows: PowerRows, words: str = "") -> dict[str, int]:
    """How many rows of the tables wait for memory, by kind."""
    return {f"tables: {name}{words}": int(which.sum()) for name, which in streaming(rows).items()}


def _errors(law: PowerLaw, rows: PowerRows, words: str = "") -> dict[str, float]:
    """Mean absolute errors on the rows of the tables that wait for memory."""
    said = law_watts(law, rows)
    return {
        f"tables: {name}{words}": float(np.abs(said[which] / rows.watts[which] - 1).mean())
        for name, which in streaming(rows).items()
    }


def other_law(base: PowerLaw, device: Device, gemm: Any, attention: Any, table: str) -> PowerLaw:
    """The law of another board of the tables: that of the H200 by share of the limit, idle the least that the sensor
    showed, all energies times one factor, and attention's operations fitted.

    The factor and the errors are of rows that stream weights or a cache. The 8-bit rows of few tokens are left out, as
    their kernels ran at a tenth of the memory's rate; most others only say that the board is at its limit."""
    from scipy.optimize import minimize_scalar

    assert device.power is not None
    every = np.concatenate([t.power_w[(t.device == table) & t.power_w.notna()] for t in (gemm, attention)])
    start = replace(
        rescaled(base, get_device("h200"), device, LIMIT * device.power.board_w), idle_w=float(every.min()),
        kind="calibrated",
    )  # fmt: skip
    rows = table_rows(gemm, attention, table, STREAM_S)
    waiting = rows.take(np.logical_or.reduce(list(streaming(rows).values())))

    def misfit(theta: float) -> float:
        tried = _times(start, float(np.exp(theta)))
        return float(np.abs(np.log(law_watts(tried, waiting) / waiting.watts)).sum())

    factor = float(np.exp(minimize_scalar(misfit, bounds=(-1.0, 1.0), method="bounded").x))
    law = _with_attention(_times(start, factor), table_rows(gemm, attention, table))
    lent = ", by the H200's law"
    held_out = {**_errors(law, rows), **_errors(start, rows, lent)}
    counts = {**_counts(rows), **_counts(rows, lent)}
    return replace(
        law, band=_band(waiting.watts / law_watts(law, waiting)), rows=len(rows), held_out=held_out, counts=counts,
    )  # fmt: skip


def _times(law: PowerLaw, factor: float) -> PowerLaw:
    """The law with all of its energies, but not idle, times a factor."""
    names = ("busy_w", "byte_j", "weight_j", "attention_op_j", "vector_busy_w", "vector_byte_j")
    more = {name: factor * getattr(law, name) for name in names}
    return replace(law, op_j={bits: factor * j for bits, j in law.op_j.items()}, **more)


def streaming(rows: PowerRows) -> dict[str, Any]:
    """Rows that wait for memory: 16-bit products of few tokens, and decode attention."""
    tokens = rows.ops_per_s / (2 * np.maximum(rows.weights_per_s, 1.0))
    return {
        "few tokens, 16 bit": (rows.kind == PRODUCT) & (rows.bits == 16) & (tokens < FEW),
        "decode attention": (rows.kind == ATTENTION) & (rows.weights_per_s > 0),
    }


def loop_powers(gemm: Any, which: Table) -> list[LoopPower]:
    """Fields of the kernels of a table whose power was read at `LEAST_ROWS` rows and more, judged by shape (N, K)."""
    out = []
    found = mine(gemm, which)
    found = found[found.power_w.notna()]
    for kernel in sorted(found.kernel.unique()):
        t = found[found.kernel == kernel]
        if f"{which.stack}_{kernel}" not in FAMILIES or len(t) < LEAST_ROWS:
            continue
        coordinates = np.log2(t[["m", "n", "k"]].to_numpy(float).T)
        knots: Any = tuple(np.unique(c) for c in coordinates)
        watts = np.log(t.power_w.to_numpy(float))
        between = place(coordinates, knots, FIELD).between
        fold = hash_shapes(t[["n", "k"]].to_numpy()) % 5
        guess = np.empty(len(t))
        for i in np.unique(fold):
            kept, left = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
            middle = np.median(watts[kept])
            weights = field_weights(between[np.ix_(kept, kept)], watts[kept] - middle, FIELD.noise)
            guess[left] = middle + between[np.ix_(left, kept)] @ weights
        middle = float(np.median(watts))
        grid = fit_field(coordinates, watts - middle, knots, FIELD)
        out.append(
            LoopPower(
                kernel=f"{which.stack}_{kernel}", log_watts=replace(grid, values=grid.values + middle), rows=len(t),
                held_out_mape=float(np.abs(np.exp(guess - watts) - 1).mean()), band=_band(np.exp(watts - guess)),
            )
        )  # fmt: skip
    return out


def power_files(gemm: Any, attention: Any, device: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Name and lines of every power calibration.

    Arguments:
        device: a file of `hwmodels/devices`; None gives all.
    """
    base = h200_law(gemm, attention)
    for table, name in DEVICES.items():
        if device not in (None, name):
            continue
        law = base if table == "H200" else other_law(base, get_device(name), gemm, attention, table)
        source = f"{CITATION}; hwmodels/measurements/power.csv (H200)"
        head = [
            "[provenance]", f'source = "{source}"', 'stack = "power"', "year = 2026",
            'held_out = "every loop of ours left out in turn; loops of the tables by shape (N, K), five parts by hash"',
            "",
        ]  # fmt: skip
        loops = [loop for which in TABLES if which.device == table for loop in loop_powers(gemm, which)]
        yield f"{name}.power.toml", [*head, power_toml(law), *(loop_toml(loop) for loop in loops)]
