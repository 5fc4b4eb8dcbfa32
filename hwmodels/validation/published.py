"""Predictions for published end-to-end and kernel numbers: one row of the table in, one prediction out.

Kernel rows are predicted with nothing fitted on them. A time of an engine also holds its scheduler, sampling and
kernels of its time, which no kernel table knows: `hwmodels.validation.laws` takes what an engine adds from its other
rows (decode) or from its rows of other models (prefill), never from the row that is predicted. Prefill rows keep the
prediction by kernels alone beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..device.device import Device
from ..device.load import get_device
from ..prediction import predict, resolve_scheme
from ..request import predict_request
from ..timing.kernel import gemm
from ..workload.architecture import Architecture, get_architecture
from ..workload.footprint import kv_bytes_per_token
from ..workload.operators import weight_nbytes
from .laws import Prefill, fit_law, prefill_engine, prefill_time
from .published_names import DEVICES, MODELS, OUTSIDE, SCHEMES, engine_of, match, number

BANDS = {"prefill": 0.15, "gemm": 0.15, "attention": 0.15, "decode": 0.20, "e2e": 0.20}
"""Relative error allowed a phase."""

Q4_K_M_BYTES = {"llama-3-8b": 4.58 * 2**30, "llama-3-70b": 39.59 * 2**30}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published row beside its prediction; `error` is relative, None when nothing predicts the row.

    `kernels_s` is a prefill's time by the kernel model alone.
    """

    id: str
    phase: str
    kind: str
    measured: float
    predicted: float | None
    low: float | None
    high: float | None
    note: str = ""
    kernels_s: float | None = None

    @property
    def error(self) -> float | None:
        return None if self.predicted is None else self.predicted / self.measured - 1


def decode_bytes(arch: Architecture, scheme_name: str, batch: float, context: float) -> float:
    """Bytes of a decode step: block weights, lm_head in 16 bit, and the KV cache; the embedding is not read."""
    if scheme_name == "q4_k_m":
        embedding = arch.head_parameters * 4.5 / 8  # quantised like the rest, not read
        return Q4_K_M_BYTES[arch.name] - embedding + batch * context * arch.kv_elements_per_token * 2
    if scheme_name == "w4a16-g32":  # bf16 scale and zero point
        return (
            0.625 * arch.block_parameters
            + 2.0 * arch.head_parameters
            + batch * context * arch.kv_elements_per_token * 2
        )
    scheme = resolve_scheme(scheme_name)
    blocks = sum(weight_nbytes(scheme, n, k) for n, k in arch.linear_shapes.values()) * arch.layers
    return blocks + 2.0 * arch.head_parameters + batch * context * kv_bytes_per_token(arch, scheme)


def clean(table: Any) -> Any:
    """The table with the column of the metric under a name that Python can write."""
    return table.rename(columns={"metric(unit)": "metric"})


def predict_rows(table: Any) -> list[Row]:
    """Every row of `published.csv` with its prediction."""
    table = clean(table)
    laws, flash = _decode_observations(table), _flash_errors(table)
    rows = [_one(row, laws, flash) for row in table.itertuples()]
    known = _prefills(table, rows)
    return [_with_law(row, known) for row in rows]


def _prefills(table: Any, rows: list[Row]) -> dict[str, Prefill]:
    """Prefills with a prediction, and 16-bit baselines that have no row of their own (`<id>/16`)."""
    found = {}
    for raw, row in zip(table.itertuples(), rows, strict=True):
        if row.phase != "prefill" or row.kernels_s is None or is_service(row):
            continue
        _, arch, scheme = _identify(raw)
        assert arch is not None
        case = Prefill(
            engine=prefill_engine(row.id), model=arch.name, integer=str(scheme).startswith("w8a8"),
            parallel=int(raw.n_devices) > 1, layers=arch.layers, kernels_s=row.kernels_s, time_s=row.measured,
        )  # fmt: skip
        found[row.id] = case
        if case.integer and raw.baseline_value > 0:
            base = _sixteen_bit(raw)
            if base and base[0].kernels_s:
                time = float(raw.baseline_value) * row.measured / float(raw.value)
                found[f"{row.id}/16"] = replace(case, integer=False, kernels_s=base[0].kernels_s, time_s=time)
    return found


def _with_law(row: Row, known: Mapping[str, Prefill]) -> Row:
    if row.id not in known:
        return row
    time, count = prefill_time(known[row.id], list(known.values()))
    if count == 0:
        return replace(row, note=f"{row.note}: kernels alone")
    note = f"{known[row.id].engine}: law from {count} rows of other models"
    return replace(row, predicted=time, low=time * 0.85, high=time * 1.15, note=note)


def _identify(row: Any) -> tuple[Device | None, Architecture | None, str | None]:
    device = match(DEVICES, row.device)
    model = match(MODELS, str(row.model))
    scheme = match(SCHEMES, str(row.method))
    if scheme in ("fp8-tensor", "fp8-tensor-kvfp8") and engine_of(row) == "tensorrt-llm":
        scheme = scheme.replace("fp8-tensor", "fp8-static", 1)  # engines are built with static scales
    return (get_device(device) if device else None, get_architecture(model) if model else None, scheme)


def _seconds(row: Any) -> float | None:
    """The measured value as seconds per step or request, None for ratios."""
    metric, value, batch = row.metric, float(row.value), max(1.0, number(row.batch, 1.0))
    if "ms" in metric:
        return value * 1e-3
    if "(s" in metric and "tok/s" not in metric:
        return value
    if metric == "throughput (tok/s)":
        return (batch if row.phase == "decode" else batch * number(row.input_len, 1.0)) / value
    if "out tok/s" in metric:
        return batch * number(row.output_len, 128.0) / value
    return None


def _decode_observations(table: Any) -> list[tuple[str, str, str, float, float, bool]]:
    """(id, engine, device, ideal seconds of traffic, measured seconds) of the decode rows on one device."""
    out = []
    for row in table.itertuples():
        dev, arch, scheme = _identify(row)
        time = _seconds(row)
        if row.phase == "decode" and dev and arch and scheme and time and (int(row.n_devices) == 1 or "GPTQ" in row.id):
            if "unfused" in row.method:
                continue
            moved = decode_bytes(arch, scheme, 1, _context(row)) / dev.memory.bandwidth_bytes_per_s
            out.append((row.id, engine_of(row), dev.name, moved, time, arch.layers > 60))
    return out


def _context(row: Any) -> float:
    prompt = number(row.input_len, 64.0) if str(row.input_len)[:1].isdigit() else 64.0
    return max(1.0, prompt + number(row.output_len, 0.0) / 2)


def _one(row: Any, laws: Any, flash: Mapping[str, float]) -> Row:
    dev, arch, scheme = _identify(row)
    base: dict[str, Any] = {"id": row.id, "phase": row.phase}
    try:
        if "speedup" in row.metric or "relative" in row.metric:
            return _ratio(row, dev, arch, scheme, base)
        if row.phase == "gemm":
            return _gemm(row, dev, base)
        if row.phase == "attention":
            return _attention(row, flash, base)
        if dev is None or arch is None or scheme is None:
            return Row(**base, kind="time", measured=float(row.value), predicted=None, low=None, high=None,
                       note="device, model or format outside the model")  # fmt: skip
        if row.phase == "decode":
            return _decode(row, dev, arch, scheme, laws, base)
        return _step(row, dev, arch, scheme, base)
    except ValueError as error:
        return Row(**base, kind="time", measured=float(row.value), predicted=None, low=None, high=None, note=str(error))


def _decode(row: Any, dev: Device, arch: Architecture, scheme: str, laws: Any, base: dict[str, Any]) -> Row:
    time = _seconds(row)
    assert time is not None
    if "unfused" in row.method:
        return Row(**base, kind="time", measured=time, predicted=None, low=None, high=None,
                   note="unfused dynamic quantisation in eager mode")  # fmt: skip
    engine, tp = engine_of(row), int(row.n_devices)
    if engine == "gptq arxiv":
        tp = 1  # layers are spread over the devices, which work one after the other
    family, big = dev.name.split("-sxm")[0].split("-pcie")[0], arch.layers > 60
    kin = [o for o in laws if o[1] == engine and o[0] != row.id and o[2].startswith(family)]
    same = [o for o in kin if o[5] == big]
    others = same if len(same) > 1 else kin
    note = f"{engine}: t0 and eta from {len(others)} other rows on this device"
    if not others:
        others = [o for o in laws if o[1] == engine and o[0] != row.id]
        note = f"{engine}: t0 and eta from {len(others)} rows on other devices"
    t0, eta = fit_law(np.array([o[3] for o in others]), np.array([o[4] for o in others]))
    moved = decode_bytes(arch, scheme, 1, _context(row)) / dev.memory.bandwidth_bytes_per_s
    same_size = any(o[5] == big for o in others)
    predicted = t0 * (1.0 if same_size else arch.layers / 32) + moved / eta / tp
    if tp > 1:
        from ..timing.collectives import collective

        predicted += 2 * arch.layers * float(collective(dev, "all_reduce", 2.0 * arch.hidden, tp).time_s)
    return Row(**base, kind="time", measured=time, predicted=predicted, low=predicted * 0.8, high=predicted * 1.2,
               note=note)  # fmt: skip


def decode_cases(table: Any) -> Iterator[tuple[dict[str, Any], Device, Architecture, str, float]]:
    """Published decode steps at batch 1 that a step prediction can stand beside: row, device, model, scheme, seconds.

    Left out: services, layers spread over devices that work in turn, and unfused quantisation in eager mode.
    """
    for row in clean(table).itertuples():
        engine = engine_of(row)
        if str(row.phase) != "decode" or engine == "gptq arxiv" or "unfused" in str(row.method):
            continue
        if number(row.batch, 1) != 1:
            continue
        device, arch, scheme = _identify(row)
        time_s = _seconds(row)
        if device is None or arch is None or scheme is None or time_s is None:
            continue
        head = {"id": row.id, "engine": engine, "devices": int(row.n_devices), "context": max(1.0, _context(row))}
        yield head, device, arch, "w4a16-g32" if scheme == "q4_k_m" else scheme, time_s


def _profile(row: Any) -> str:
    engine = engine_of(row)
    return {"vllm": "serving", "tensorrt-llm": "trtllm"}.get(engine, "cuda_graph")


def _step(row: Any, dev: Device, arch: Architecture, scheme: str, base: dict[str, Any]) -> Row:
    time = _seconds(row)
    assert time is not None
    batch, tp = max(1, int(number(row.batch, 1))), int(row.n_devices)
    prompt, new = int(number(row.input_len, 128)), int(number(row.output_len, 128))
    if row.phase == "prefill":
        half = "FP16 accumulate" in str(row.table) and "w4" in str(row.method)
        faster = {"compute.peaks.bfloat16.dense_tflops": 330.3} if half else None  # this kernel accumulates in FP16
        p = predict(
            dev, arch, scheme, "prefill", batch, prompt, tensor_parallel=tp, profile=_profile(row), overrides=faster
        )
        time_s, low, high = (float(v) for v in (p.time_s, p.low_s, p.high_s))
    else:
        r = predict_request(
            dev, arch, scheme, batch=batch, prompt=prompt, new_tokens=new, tensor_parallel=tp, profile=_profile(row),
            capacity=False,
        )  # fmt: skip
        time_s, low, high = r.total_s, r.low_s, r.high_s
    return Row(**base, kind="time", measured=time, predicted=time_s, low=low, high=high, note=_profile(row),
               kernels_s=time_s if row.phase == "prefill" else None)  # fmt: skip


def _gemm(row: Any, dev: Device | None, base: dict[str, Any]) -> Row:
    measured = float(row.value)
    if dev is None or "TFLOPS" not in row.metric:
        return Row(**base, kind="rate", measured=measured, predicted=None, low=None, high=None, note="no model of it")
    kernel = {"fp8": "cublas_fp8", "bf16": "cublas_bf16"}.get(str(row.method))
    if "128x128" in row.model:
        kernel = "trtllm_fp8_block"
    if kernel is None:
        kernel = "trtllm_int8_wo" if "w8" in row.method else "marlin_int4"
        kernel = "marlin_fp8" if "w8" in row.method else kernel
    if str(row.batch) in ("nan", ""):
        m = n = k = 8192.0
        note = f"{kernel} at 8192 x 8192 x 8192; the source searches for the best shape"
    else:
        m, k, n = float(row.batch), float(row.input_len), float(row.output_len)
        note = kernel
    est = gemm(dev, m, n, k, kernel)
    flop = 2 * m * n * k / 1e12
    return Row(**base, kind="rate", measured=measured, predicted=flop / float(est.time_s), low=flop / float(est.high_s),
               high=flop / float(est.low_s), note=note)  # fmt: skip


def _attention(row: Any, flash: Mapping[str, float], base: dict[str, Any]) -> Row:
    """FlashAttention-3, by the share of the peak of its other rows: predicted time over measured scales the rate."""
    measured, error = float(row.value), flash[row.id]
    return Row(
        **base, kind="rate", measured=measured, predicted=measured / error, low=measured / error * 0.85,
        high=measured / error * 1.15, note="FlashAttention-3: level from its other rows",
    )  # fmt: skip


def _flash_errors(table: Any) -> dict[str, float]:
    """Row -> predicted over measured time of the flash-attention bars, each left out in turn."""
    from ..fitting.flash import fit_flash, flash_rows, leave_one_out

    if not table.id.str.startswith("FA3-").any():
        return {}
    rows = flash_rows(table, baseline=False)
    guess = leave_one_out(rows, fit_flash(flash_rows(table, baseline=True)).exp_weight)
    return dict(zip(table.id[table.id.str.startswith("FA3-")], (guess / rows.time_s).tolist(), strict=True))


def _ratio(row: Any, dev: Device | None, arch: Architecture | None, scheme: str | None, base: dict[str, Any]) -> Row:
    measured = float(row.speedup)
    empty = Row(**base, kind="ratio", measured=measured, predicted=None, low=None, high=None, note="no model of it")
    if dev is None:
        return empty
    if row.phase == "gemm":
        if "marlin" not in row.method:
            return Row(**{**empty.__dict__, "note": "kernel without a family here"})
        m = float(row.batch)
        if "base" in row.device:
            dev = get_device(dev.name, {"compute.peaks.bfloat16.dense_tflops": 125 * 885 / 1695})
        if "72k" in row.table or "73728" in str(row.output_len):
            shapes = [(73728.0, 18432.0)]
        else:
            big = "65B" in row.model
            h, f = (8192.0, 22016.0) if big else (4096.0, 11008.0)
            shapes = [(3 * h, h), (h, h), (2 * f, h), (h, f)]
        times = [
            sum(float(gemm(dev, m, n, k, kernel).time_s) for n, k in shapes)
            for kernel in ("cublas_bf16", "marlin_int4")
        ]
        return Row(**base, kind="ratio", measured=measured, predicted=times[0] / times[1], low=None, high=None,
                   note="Marlin-class, nothing fitted")  # fmt: skip
    if arch is None or scheme is None:
        return empty
    batch = max(1, int(number(row.batch, 1)))
    prompt, new = int(number(row.input_len, 128)), int(number(row.output_len, 128))
    how = {"batch": batch, "prompt": prompt, "new_tokens": new, "profile": "trtllm", "capacity": False}
    one = predict_request(dev, arch, scheme, **how)  # type: ignore[arg-type]
    other = predict_request(dev, arch, "bf16", **how)  # type: ignore[arg-type]
    return Row(**base, kind="ratio", measured=measured, predicted=other.total_s / one.total_s, low=None, high=None)


def ratio_rows(table: Any, rows: list[Row]) -> list[Row]:
    """Speed-ups: rows published as ratios, and rows of one engine with a 16-bit baseline of the same source."""
    table = clean(table)
    by_id = {r.id: r for r in rows}
    known = _prefills(table, rows)
    out = [r for r in rows if r.kind == "ratio" and r.predicted is not None]
    for row in table.itertuples():
        mine = by_id[row.id]
        if mine.kind != "time" or mine.predicted is None or not row.baseline_value > 0:
            continue
        same = table[
            (table.source == row.source) & (table.device == row.device) & (table.model == row.model)
            & (table.batch == row.batch) & (table.input_len == row.input_len) & (table.value == row.baseline_value)
        ]  # fmt: skip
        base = [by_id[i] for i in same.id if by_id[i].predicted is not None]
        if not base and row.phase == "prefill":
            base = _sixteen_bit(row)
            if base and f"{row.id}/16" in known:
                time, _ = prefill_time(known[f"{row.id}/16"], list(known.values()))
                base = [replace(base[0], predicted=time)]
        if base and base[0].predicted:
            out.append(
                Row(id=row.id, phase=row.phase, kind="ratio", measured=float(row.speedup),
                    predicted=base[0].predicted / mine.predicted, low=None, high=None)
            )  # fmt: skip
    return out


def _sixteen_bit(row: Any) -> list[Row]:
    """The prediction of the row's case in 16 bit, for a baseline that has no row of its own."""
    dev, arch, _ = _identify(row)
    if dev is None or arch is None or int(row.n_devices) > 1:
        return []
    return [_step(row, dev, arch, "bf16", {"id": row.id, "phase": row.phase})]


def likely_reason(row: Row) -> str:
    """Why a row may lie outside its band."""
    return match(OUTSIDE, row.id) or row.note


def is_service(row: Row) -> bool:
    """A vendor's service, whose chip count and batching are unknown: not held against the model."""
    return "SN40L" in row.id


def is_old_engine(row: Row) -> bool:
    """An engine of 2022 or 2023, whose kernels are not those that the calibrations measured."""
    return re.match(r"SQ-|LC-.*-pp|TRT5|TRT6|TRT-|TRTQ|GPTQ", row.id) is not None
