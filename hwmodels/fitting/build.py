"""Building the shipped calibrations from measured tables.

`python -m hwmodels.fitting.build [DATA]` rewrites `h200.pytorch.toml` and `<device>.grouped.toml` from our own
measurements and, with a data folder, the `<device>.trtllm.toml` of the published tables and all files of the tables of
2026 (`hwmodels.fitting.build_2026`: about half an hour on one core). Attention kernels are named
`<kernel>.<phase>`; decode with more than 32 query heads to a KV head runs another kernel in TensorRT-LLM,
`<kernel>.decode_wide`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.errors import QsimError
from qsim.files import read_csv, write_text

from ..calibration.fitted import Parameters
from ..calibration.store import _number, load_calibration, parameters_toml
from ..checks import check_count
from ..device.load import get_device
from ..timing.families import get_family
from . import sources
from .build_2026 import build_2026
from .fit import Rows, Settings, bands, fit_and_judge, fit_parameters, gemm_rows, judge, predict_rows
from .flash import CITATION, flash_attention
from .fp8_attention import fp8_attention
from .humming import RECORDINGS, humming_kernels, quantizer
from .marlin import CITATION as CITATION_MARLIN
from .marlin import marlin_kernel
from .plausible import check_plausible

if TYPE_CHECKING:
    import pandas as pd

WIDE_GROUP = 32
"""Query heads to a KV head above which TensorRT-LLM's decode attention is another kernel."""


def _provenance(**entries: str) -> str:
    return "[provenance]\n" + "".join(f'{k} = "{v}"\n' for k, v in entries.items())


def own_kernels(held_fmt: str | None = None) -> dict[str, Parameters]:
    """Our product kernels, fitted on all our layers, judged layer by layer."""
    units = get_device("h200").compute.units
    out = {}
    for fmt, kernel in sources.OWN_FORMATS.items():
        if held_fmt in (None, fmt):
            rows, _ = sources.own_gemm_rows(fmt)
            fitted = fit_and_judge(rows, kernel, sources.OWN_SETTINGS[kernel], units)
            band = {**fitted.band, "known": sources.repeat_band(fmt)}
            out[kernel] = replace(fitted, borrowed=sources.own_shape(kernel), band=band)
    return out


def own_attention() -> dict[str, Parameters]:
    """SDPA on an H200: two constants a phase and back-end; cuDNN judged on head counts that it was not fitted on."""
    table, unseen = sources.own_table("attention"), sources.own_table("attention_unseen")
    device = get_device("h200")
    out = {}
    for phase in ("prefill", "decode"):
        for backend in ("cudnn", "flash"):
            rows = _memory_only(sources.attention_rows(device, phase, table[table.op == f"{phase}_{backend}"]), phase)
            name = f"sdpa_{backend}.{phase}"
            settings = Settings(ridge=(), tau=False, exp_weight=sources.exp_weight(phase))
            fitted = fit_parameters(rows, name, settings, None)
            if phase == "decode":
                fitted = replace(fitted, eta_compute=1.0)  # not told by these rows
            other = rows
            if backend == "cudnn":
                other = sources.attention_rows(device, phase, unseen[unseen.op == f"{phase}_default"])
                other = _memory_only(other, phase)
            guess = predict_rows(other, fitted, None)
            out[name] = replace(fitted, held_out_mape=judge(other, guess), band=bands(other.x, other.time_s, guess))
    return out


def own_grouped(device: str) -> dict[str, Parameters]:
    """Grouped products on one device, judged model by model."""
    return {
        kernel: fit_and_judge(sources.grouped_rows(device, fmt), kernel, sources.GROUPED_SETTINGS, None)
        for fmt, kernel in sources.OWN_GROUPED.items()
    }


def _phase(name: str) -> str:
    return "prefill" if "prefill" in name else "decode"


def _memory_only(rows: Rows, phase: str) -> Rows:
    """Few rows of one head count cannot tell a slow decode kernel from slow arithmetic: decode is traffic alone."""
    return rows if phase == "prefill" else replace(rows, flop_s=rows.flop_s * 1e-6)


def own_small() -> str:
    """The TOML table of element-wise kernels: the copy curve up to 256 MiB, and what a reduction over a row adds.

    Up to 64 Ki elements PyTorch's sum is one block, as the row of a norm is.
    """
    table = sources.own_table("memory")
    copy = table[(table.op == "copy") & (table.bytes <= 2**28)].sort_values("bytes")
    total = table[(table.op == "sum_f32") & (table.bytes <= 2**18)].sort_values("bytes")
    least = table[(table.op == "copy") & (table.bytes <= 4096)].median_s.mean()
    gap = {op: float(table[table.op == op].median_s.iloc[0]) for op in ("tiny_graph", "tiny_eager")}
    times = np.maximum.accumulate(copy.median_s.to_numpy())
    row = lambda v, d=5: "[" + ", ".join(_number(float(x), d) for x in v) + "]"  # noqa: E731
    return (
        "[small]\n"
        f"bytes = {row(2.0 * copy.bytes.to_numpy(), 10)}\n"
        f"time_us = {row(times * 1e6)}\n"
        f"row = {row(total.bytes.to_numpy() / 4, 10)}\n"
        f"row_us = {row((total.median_s.to_numpy() - least) * 1e6)}\n"
        f"graph_gap_us = {_number(gap['tiny_graph'] * 1e6)}\n"
        f"eager_gap_us = {_number(gap['tiny_eager'] * 1e6)}\n"
    )


def table_kernels(table: Any, device: str) -> dict[str, Parameters]:
    """Product kernels of the published table on one device, judged by shape."""
    value = get_device(sources.TABLE_DEVICES[device])
    out = {}
    for kernel, name in sources.TABLE_KERNELS.items():
        if ((table.device == device) & (table.kernel == kernel)).any():
            rows = sources.table_gemm_rows(table, device, kernel)
            out[name] = fit_and_judge(rows, name, sources.table_settings(rows), value.compute.units)
    return out


def attention_parts(table: Any, device: str) -> dict[str, Rows]:
    """Rows of every attention kernel of the published table on one device."""
    value = get_device(sources.TABLE_DEVICES[device])
    out = {}
    for phase in ("prefill", "decode"):
        mine = sources.table_attention(table, device, phase)
        wide = mine.q_heads > WIDE_GROUP * mine.kv_heads if phase == "decode" else mine.q_heads < 0
        for suffix, part in (("", mine[~wide]), ("_wide", mine[wide])):
            if len(part) > 100:
                out[f"trtllm.{phase}{suffix}"] = sources.attention_rows(value, phase, part)
    return out


def table_attention(table: Any, device: str) -> dict[str, Parameters]:
    """Attention kernels of the published table on one device, judged by head counts."""
    return {
        name: fit_and_judge(rows, name, sources.attention_settings(rows, _phase(name)), None)
        for name, rows in attention_parts(table, device).items()
    }


def _write(path: Path, provenance: str, kernels: dict[str, Parameters], attention: Any, extra: str = "") -> None:
    parts = [provenance, *(parameters_toml("kernels", p) for p in kernels.values())]
    for name, p in attention.items():
        parts.append(parameters_toml("attention", replace(p, kernel=f'"{name}"')))
    write_text(path, "\n".join([*parts, extra]).rstrip() + "\n")


def build_grouped(folder: Path) -> list[Path]:
    """Write the calibrations of grouped products into `folder`."""
    written = []
    for device in sources.GROUPED_DEVICES:
        written.append(folder / f"{device.removesuffix('-sxm')}.grouped.toml")
        provenance = _provenance(
            source="hwmodels/measurements/gemm_grouped.csv", stack="PyTorch 2.11.0, CUDA 13.0, CUDA graphs",
            held_out="every model left out in turn",
        )  # fmt: skip
        _write(written[-1], provenance, own_grouped(device), {})
    return written


def build_humming(folder: Path) -> Path:
    """Write the calibration of the humming families into `folder`."""
    provenance = _provenance(
        source=f"hwmodels/measurements: {', '.join(f'{name}.csv' for name in RECORDINGS)}",
        held_out="every layer left out in turn",
        stack="humming-kernels 0.1.20, PyTorch 2.11.0, CUDA 13.0, CUDA graphs",
    )  # fmt: skip
    q = quantizer()
    more = (
        f'[quantize."vllm-2026"]\nt0_us = {_number(q.t0_s * 1e6)}\ntau_ns_per_k = {_number(q.tau_s_per_k * 1e9)}\n'
        f"eta_memory = {_number(q.eta_memory)}\n"
    )
    _write(folder / "h200.humming.toml", provenance, humming_kernels(), {}, more)
    return folder / "h200.humming.toml"


def build_fp8_attention(folder: Path) -> Path:
    """Write the calibration of FP8 attention into `folder`."""
    provenance = _provenance(
        source="hwmodels/measurements/fp8_attention.csv", stack="cuDNN 9.19, CUDA 13.0, CUDA graphs",
        held_out="every row left out in turn",
    )  # fmt: skip
    _write(folder / "h200.cudnn.toml", provenance, {}, fp8_attention())
    return folder / "h200.cudnn.toml"


def build(folder: Path, data: Path | None = None) -> list[Path]:
    """Write all calibrations into `folder`; those of the published tables only when `data` is given.

    The tables come first: our own kernels take over what they say of shapes, from the files that ship.
    """
    written = []
    if data is not None:
        gemm, attention = sources.data_table(data, "measured_gemm"), sources.data_table(data, "measured_attention")
        written.append(folder / "h100.flash.toml")
        _write(
            written[-1],
            _provenance(source=CITATION, stack="FlashAttention-3", held_out="every bar left out in turn"),
            {},
            flash_attention(sources.data_table(data, "published")),
        )
        written.append(folder / "ampere.marlin.toml")
        _write(
            written[-1],
            _provenance(source=CITATION_MARLIN, stack="Marlin", held_out="every published ratio left out in turn"),
            {"marlin_int4": marlin_kernel(sources.data_table(data, "published"))},
            {},
        )
        load_calibration.cache_clear()
        for device, name in sources.TABLE_DEVICES.items():
            short = {"a100-sxm-80gb": "a100", "h100-sxm": "h100"}.get(name, name)
            written.append(folder / f"{short}.trtllm.toml")
            _write(
                written[-1],
                _provenance(
                    source=sources.TABLE_CITATION,
                    stack="TensorRT-LLM 1.0 to 1.3",
                    held_out="five folds over (N, K); attention over (query heads, KV heads)",
                ),
                table_kernels(gemm, device),
                table_attention(attention, device),
            )
        load_calibration.cache_clear()
        written += build_2026(folder, data)
    written += [*build_grouped(folder), build_humming(folder), build_fp8_attention(folder)]
    written.append(folder / "h200.pytorch.toml")
    _write(
        written[-1],
        _provenance(
            source="hwmodels/measurements: gemm_settled.csv, attention.csv, memory.csv",
            stack="PyTorch 2.11.0, CUDA 13.0, CUDA graphs",
            held_out="every layer left out in turn; attention: other head counts (cuDNN)",
        ),
        own_kernels(),
        own_attention(),
        own_small(),
    )
    load_calibration.cache_clear()
    return written


def _timings(path: str | Path) -> pd.DataFrame:
    """The table that `fit` reads: kernel, m, n, k and latency_s of every row, checked."""
    import pandas as pd

    header, rows = read_csv(path)
    header = ["latency_s" if name == "median_s" else name for name in header]
    if "kernel" not in header:
        header = ["kernel" if name == "fmt" else name for name in header]
    sizes = ("m", "n", "k", "latency_s")
    missing = [c for c in ("kernel", *sizes) if c not in header]
    if missing:
        raise QsimError(f"{path}: column {missing[0]!r} is missing; needed: kernel, m, n, k, latency_s (or median_s)")
    if not rows:
        raise QsimError(f"{path} has no rows: a fit needs at least 10 of each kernel")
    columns: dict[str, list[Any]] = {"kernel": [row[header.index("kernel")] for row in rows]}
    for name in sizes:
        columns[name] = []
        for number, row in enumerate(rows, 1):
            text = row[header.index(name)]
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not (0 < value < 1e12):
                raise QsimError(f"{path}: row {number}: {name} must be a positive number: got {text[:40]!r}")
            columns[name].append(value)
    return pd.DataFrame(columns)


def fit(
    csv: str | Path, device: str, *, out: str | Path | None = None, source: str = "", folds: int = 5
) -> dict[str, Parameters]:
    """Fit kernel parameters to a CSV of measured products.

    Arguments:
        csv: columns `kernel` (a family of `hwmodels.kernel_families`, or `fmt`/`kernel` as in our tables), `m, n, k`
            (any case) and `latency_s` or `median_s`.
        device: the device it was measured on; its peaks set the scale.
        out: TOML to write; the device's `calibration` may name it.

    Returns:
        kernel family -> parameters with held-out errors (folds over (N, K)) and bands.

    Raises:
        ValueError: missing columns, unknown kernels, times that are not positive, too few rows, or a row that cannot be
            right (`plausible.check_plausible`).
    """
    check_count(folds=folds)
    if folds < 2:
        raise QsimError(f"folds must be at least 2, so that every shape is judged by a fit without it: got {folds}")
    table = _timings(csv)
    value = get_device(device)
    names = {**sources.TABLE_KERNELS, **sources.OWN_FORMATS}
    fitted = {}
    for label, mine in table.groupby("kernel"):
        name = str(label) if "_" in str(label) and label not in names else names.get(str(label), str(label))
        family = get_family(name)
        if len(mine) < 10:
            raise QsimError(f"{csv}: kernel {label!r} has {len(mine)} rows; a fit needs at least 10")
        rows = gemm_rows(value, family, mine.m, mine.n, mine.k, mine.latency_s)
        check_plausible(csv, value, mine, rows)
        shapes = len(np.unique(rows.shape))
        settings = Settings(ridge=(1.0,) if shapes >= 4 else (), folds=min(folds, shapes), tau=shapes >= 4)
        if shapes < 2:
            guess = predict_rows(rows, one := fit_parameters(rows, name, settings, value.compute.units), None)
            fitted[name] = replace(one, held_out_mape={}, band=bands(rows.x, rows.time_s, guess))
        else:
            fitted[name] = fit_and_judge(rows, name, settings, value.compute.units)
    if out is not None:
        provenance = _provenance(source=source or Path(csv).name, stack="user", held_out=f"{folds} folds over (N, K)")
        _write(Path(out), provenance, fitted, {})
    return fitted


if __name__ == "__main__":
    build(Path(__file__).parents[1] / "calibration", Path(sys.argv[1]) if len(sys.argv) > 1 else None)
