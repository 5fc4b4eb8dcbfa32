"""Predictions against measurements, never by a fit that has seen the row: the tables of `qsim validate`.

Products and attention are held out by layer shape (a shape's rows leave the fit together); whole steps are never
fitted; of published rows see `hwmodels.validation.published`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from ..device.load import get_device
from ..fitting import sources
from ..fitting.build import attention_parts
from ..fitting.fit import Settings, coverage, fit_parameters, held_out, judge, predict_rows
from ..prediction import predict
from ..workload.architecture import Architecture, from_table
from ..workload.table import shipped_table
from . import kernels
from .power import power_errors
from .result import Group, Validation, points_of
from .tables_2026 import table_errors, transfer_errors

if TYPE_CHECKING:
    import pandas as pd

STEP_SCHEMES = {"bf16": "bf16", "fp8": "fp8-rowwise", "int8": "w8a8-channel-token", "int4": "w4a16-g128"}
"""`fmt` of the measured steps -> scheme."""

REQUIRED = {
    "cublas_bf16": 4.0, "cublas_fp8": 4.0, "tinygemm_int4": 6.0, "cublas_fp8_rowwise": 8.0, "cublas_int8": 11.0,
}  # fmt: skip


STEPS = {
    "e2e": "H200 whole steps of Llama-3-8B, nothing fitted on them",
    "e2e_unseen": "H200 whole steps, second campaign: four models",
}
"""Measured tables of whole steps, in the order of the campaigns -> the section that holds them."""


def measured_architecture(name: str) -> Architecture:
    """The model of a measured step: `llama3-70b-16l` is Llama-3-70B cut to 16 layers; biases were left out."""
    cut = {"llama3-8b": "llama-3-8b", "llama2-7b": "llama-2-7b", "qwen2.5-7b": "qwen2.5-7b"}
    table, change = ("llama-3-70b", {"layers": 16}) if name not in cut else (cut[name], {"qkv_bias": False})
    return from_table({**shipped_table(table), **change}, f"{table}.toml", table)


def validate(data: str | Path | None = None, *, layers: bool = True) -> Validation:
    """Recompute every comparison.

    Arguments:
        data: the folder of the published tables; None leaves them out.
        layers: fit again without each measured layer. Most of the time goes there; without it nothing is fitted but
            attention, and whole steps are still predicted.

    Raises:
        ValueError: the folder lacks a table.
    """
    if data is not None:
        for name in ("measured_gemm", "measured_attention", "published"):
            sources.data_table(data, name)  # refused here, not after a minute of fits
    with threadpool_limits(1, user_api="blas"):  # thousands of small systems: threads only wait for each other
        return _validate(data, layers)


def _validate(data: str | Path | None, layers: bool) -> Validation:
    import pandas as pd

    from .claims import seed_claims

    groups: list[Group] = []
    points: list[pd.DataFrame] = []
    for part in (_own_layers, _own_grouped, _own_attention) if layers else (_own_grouped, _own_attention):
        g, p = part()
        groups += g
        points += p
    for found in (kernels.fused_products, kernels.fp8_prefills) if layers else (kernels.fp8_prefills,):
        entries, more = found()
        groups += [Group(**entry) for entry in entries]
        points += more
    g, p, signs = _steps()
    groups += g
    points += p
    groups += [
        Group(**entry)
        for entry in (
            *table_errors(None if data is None else Path(data)),
            *(transfer_errors() if layers else ()),
            *power_errors(None if data is None else Path(data)),
        )
    ]
    published: list[Any] = []
    ratios: list[Any] = []
    if data is not None:
        g, p = _tables(Path(data))
        groups += g
        points += p
        g, published, ratios = _published(Path(data))
        groups += [*(Group(**entry) for entry in kernels.published_gains(Path(data))[0]), *g]
    return Validation(
        groups=tuple(groups), points=pd.concat(points, ignore_index=True), signs=signs, published=tuple(published),
        ratios=tuple(ratios), claims=tuple(seed_claims()),
    )  # fmt: skip


def _percent(errors: dict[str, float]) -> dict[str, float]:
    return {key: 100 * value for key, value in errors.items()}


OTHER_MEASUREMENTS = {
    "gemm": "first campaign (clock in mixed states)",
    "gemm_unseen": "second campaign (clock in mixed states)",
    "gemm_between": "sizes between the powers of two",
}
"""Table -> what it holds; all are of layers that the settled measurements hold too."""


def _own_layers() -> tuple[list[Group], list[pd.DataFrame]]:
    units = get_device("h200").compute.units
    groups, further, points = [], [], []
    section = "H200 linear layers, each layer left out in turn"
    for fmt, kernel in sources.OWN_FORMATS.items():
        rows, table = sources.own_gemm_rows(fmt)
        others = [sources.own_gemm_rows(fmt, name)[0] for name in OTHER_MEASUREMENTS]
        guess, fold, more = held_out(rows, kernel, sources.OWN_SETTINGS[kernel], units, others)
        error = np.abs(guess / rows.time_s - 1)
        detail = _percent(judge(rows, guess))
        for prefix, name in (("l8b.", "Llama-3-8B layers"), ("l70b.", "Llama-3-70B layers"), ("q7b.", "Qwen2.5-7B")):
            detail[name] = 100 * float(error[table.layer.str.startswith(prefix).to_numpy()].mean())
        groups.append(
            Group(section=section, name=kernel, rows=len(rows), mape=detail["all"], required=REQUIRED[kernel],
                  coverage=coverage(rows.x, rows.time_s, guess, fold), detail=detail)
        )  # fmt: skip
        points.append(points_of(section, kernel, rows.x, rows.time_s, guess))
        further.append(
            {
                name: (len(o), 100 * judge(o, g)["all"])
                for name, o, g in zip(OTHER_MEASUREMENTS, others, more, strict=True)
            }
        )
    section = "Other measurements of these layers, by the same fits that have not seen the layer"
    for name, title in OTHER_MEASUREMENTS.items():
        each = dict(zip(sources.OWN_SETTINGS, (f[name] for f in further), strict=True))
        count = sum(n for n, _ in each.values())
        mean = sum(n * e for n, e in each.values()) / count
        groups.append(
            Group(section=section, name=title, rows=count, mape=mean, detail={k: e for k, (_, e) in each.items()})
        )
    return groups, points


def _own_grouped() -> tuple[list[Group], list[pd.DataFrame]]:
    groups, points = [], []
    section = "Grouped products of experts, each of four models left out in turn"
    for device in sources.GROUPED_DEVICES:
        for fmt, kernel in sources.OWN_GROUPED.items():
            rows = sources.grouped_rows(device, fmt)
            guess, fold, _ = held_out(rows, kernel, sources.GROUPED_SETTINGS, None)
            name, detail = f"{device} {kernel}", _percent(judge(rows, guess))
            groups.append(
                Group(section=section, name=name, rows=len(rows), mape=detail["all"], detail=detail,
                      coverage=coverage(rows.x, rows.time_s, guess, fold))
            )  # fmt: skip
            points.append(points_of(section, name, rows.x, rows.time_s, guess))
    return groups, points


def _own_attention() -> tuple[list[Group], list[pd.DataFrame]]:
    table, other = sources.own_table("attention"), sources.own_table("attention_unseen")
    device = get_device("h200")
    groups, points = [], []
    section = "H200 attention (cuDNN), fitted on 32/8 heads, tried on 32/32, 64/8, 28/4"
    for phase, required in (("prefill", 15.0), ("decode", 25.0)):
        rows = sources.attention_rows(device, phase, table[table.op == f"{phase}_cudnn"])
        fresh = sources.attention_rows(device, phase, other[other.op == f"{phase}_default"])
        if phase == "decode":
            rows, fresh = (replace(r, flop_s=r.flop_s * 1e-6) for r in (rows, fresh))
        settings = Settings(ridge=(), tau=False, exp_weight=sources.exp_weight(phase))
        fitted = fit_parameters(rows, "sdpa_cudnn", settings, None)
        guess = predict_rows(fresh, fitted, None)
        groups.append(
            Group(
                section=section, name=phase, rows=len(fresh), mape=100 * judge(fresh, guess)["all"], required=required
            )
        )
        points.append(points_of(section, phase, fresh.x, fresh.time_s, guess))
    return groups, points


def step_table(name: str) -> pd.DataFrame:
    """Measured steps (`e2e` or `e2e_unseen`) with their prediction and band."""
    table = sources.own_table(name)
    found = []
    for row in table.itertuples():
        p = predict(
            "h200", measured_architecture(row.model), STEP_SCHEMES[row.fmt], row.phase, row.batch, row.seq,
            profile="torch_compile",
        )  # fmt: skip
        found.append((float(p.time_s), float(p.low_s), float(p.high_s)))
    table[["predicted_s", "low_s", "high_s"]] = found
    return table


def sign_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Measured and predicted speed-up over bf16 of every quantised step that has a bf16 twin."""
    key = ["model", "phase", "batch", "seq"]
    base = steps[steps.fmt == "bf16"][[*key, "median_s", "predicted_s"]]
    pairs = steps[steps.fmt != "bf16"].merge(base, on=key, suffixes=("", "_bf16"))
    pairs["measured"] = pairs.median_s_bf16 / pairs.median_s
    pairs["predicted"] = pairs.predicted_s_bf16 / pairs.predicted_s
    pairs["wrong_sign"] = (pairs.measured > 1) != (pairs.predicted > 1)
    return pairs[[*key, "fmt", "measured", "predicted", "wrong_sign"]]


def _steps() -> tuple[list[Group], list[pd.DataFrame], pd.DataFrame]:
    import pandas as pd

    groups, points, signs = [], [], []
    for name, title in STEPS.items():
        table = step_table(name)
        error = 100 * (table.predicted_s / table.median_s - 1).abs()
        inside = (table.median_s >= table.low_s) & (table.median_s <= table.high_s)
        pairs = sign_table(table).assign(table=name)
        signs.append(pairs)
        required = 5.0
        for phase in ("decode", "prefill"):
            mine = table.phase == phase
            groups.append(
                Group(section=title, name=phase, rows=int(mine.sum()), mape=float(error[mine].mean()),
                      required=required,
                      coverage=float(inside[mine].mean()),
                      detail={"within 10 %": 100 * float((error[mine] <= 10).mean())})
            )  # fmt: skip
        groups.append(
            Group(section=title, name="all", rows=len(table), mape=float(error.mean()), coverage=float(inside.mean()),
                  detail={"within 10 %": 100 * float((error <= 10).mean()), "pairs": float(len(pairs)),
                          "wrong signs": float(pairs.wrong_sign.sum())})
        )  # fmt: skip
        if name == "e2e_unseen":
            for model, part in table.groupby("model"):
                groups.append(
                    Group(section=title, name=str(model), rows=len(part), mape=float(error[part.index].mean()))
                )
        points.append(
            pd.DataFrame({"section": title, "name": table.phase, "measured_s": table.median_s,
                          "predicted_s": table.predicted_s, "low_s": table.low_s, "high_s": table.high_s})
        )  # fmt: skip
    return groups, points, pd.concat(signs, ignore_index=True)


def _limit(device: str, kernel: str) -> float:
    return 17.0 if device == "L40S" else 8.0 if kernel == "bf16" else 15.0


def _tables(data: Path) -> tuple[list[Group], list[pd.DataFrame]]:
    gemm, attention = sources.data_table(data, "measured_gemm"), sources.data_table(data, "measured_attention")
    groups, points = [], []
    section = "Published product table, five folds over (N, K)"
    for device, name in sources.TABLE_DEVICES.items():
        units = get_device(name).compute.units
        for kernel in sources.TABLE_KERNELS:
            if not ((gemm.device == device) & (gemm.kernel == kernel)).any():
                continue
            rows = sources.table_gemm_rows(gemm, device, kernel)
            guess, fold, _ = held_out(rows, kernel, sources.table_settings(rows), units)
            errors = _percent(judge(rows, guess))
            groups.append(
                Group(section=section, name=f"{device} {kernel}", rows=len(rows), mape=errors["all"],
                      required=_limit(device, kernel), coverage=coverage(rows.x, rows.time_s, guess, fold),
                      detail=errors)
            )  # fmt: skip
            points.append(points_of(section, f"{device} {kernel}", rows.x, rows.time_s, guess))
    section = "Published attention table, five folds over (query heads, KV heads)"
    for device in sources.TABLE_DEVICES:
        parts = attention_parts(attention, device)
        for phase, required in (("prefill", 15.0), ("decode", 25.0)):
            chosen = {k: v for k, v in parts.items() if k.startswith(f"trtllm.{phase}")}
            joined = [
                (rows, *held_out(rows, k, sources.attention_settings(rows, phase), None)[:2])
                for k, rows in chosen.items()
            ]
            error = np.concatenate([np.abs(guess / rows.time_s - 1) for rows, guess, _ in joined])
            inside = [coverage(rows.x, rows.time_s, guess, fold) * len(rows) for rows, guess, fold in joined]
            groups.append(
                Group(section=section, name=f"{device} {phase}", rows=len(error), mape=100 * float(error.mean()),
                      required=required, coverage=sum(inside) / len(error))
            )  # fmt: skip
            points += [points_of(section, f"{device} {phase}", r.x, r.time_s, guess) for r, guess, _ in joined]
    return groups, points


def _published(data: Path) -> tuple[list[Group], list[Any], list[Any]]:
    from .published import BANDS, is_old_engine, is_service, ratio_rows
    from .published import predict_rows as predict_published

    table = sources.data_table(data, "published")
    rows = predict_published(table)
    ratios = ratio_rows(table, rows)
    groups = []
    section = "Published rows: median error"
    for name, band, mine in (
        *((p, b, [r for r in rows if r.phase == p and r.kind != "ratio"]) for p, b in BANDS.items()),
        ("speed-up ratios", 0.10, ratios),
    ):
        usable = [r for r in mine if r.error is not None and not is_service(r)]
        errors = np.abs([float(r.error or 0.0) for r in usable])
        recent = np.abs([float(r.error or 0.0) for r in usable if not is_old_engine(r)])
        alone = [abs(r.kernels_s / r.measured - 1) for r in usable if r.kernels_s is not None]
        detail = {"median by kernels alone": 100 * float(np.median(alone))} if alone and name == "prefill" else {}
        groups.append(
            Group(
                section=section, name=name, rows=len(errors), mape=100 * float(np.median(errors)), required=100 * band,
                statistic="median error",
                detail={"mean": 100 * float(errors.mean()), "share inside": 100 * float((errors <= band).mean()),
                        "median, engines from 2024": 100 * float(np.median(recent)), **detail},
            )
        )  # fmt: skip
    return groups, rows, ratios


def layer_speedups() -> pd.DataFrame:
    """Speed-up over bf16 against M: geometric mean over the five Llama-3-8B layers.

    Predicted by the shipped calibration, which was fitted on these layers; the band is that of both kernels.
    """
    import pandas as pd

    from ..timing.kernel import gemm

    tables = []
    for fmt, kernel in sources.OWN_FORMATS.items():
        _, table = sources.own_gemm_rows(fmt)
        table = table[table.layer.str.startswith("l8b.")].groupby(["N", "K", "M"], as_index=False).median_s.mean()
        est = gemm("h200", table.M.to_numpy(), table.N.to_numpy(), table.K.to_numpy(), kernel)
        tables.append(table.assign(kernel=kernel, time_s=est.time_s, low_s=est.low_s, high_s=est.high_s))
    table = pd.concat(tables)
    base = table[table.kernel == "cublas_bf16"]
    both = table[table.kernel != "cublas_bf16"].merge(base, on=["N", "K", "M"], suffixes=("", "_base"))
    logs = pd.DataFrame(
        {
            "kernel": both.kernel, "M": both.M,
            "measured": np.log(both.median_s_base / both.median_s), "predicted": np.log(both.time_s_base / both.time_s),
            "down": np.hypot(np.log(both.time_s_base / both.low_s_base), np.log(both.high_s / both.time_s)),
            "up": np.hypot(np.log(both.high_s_base / both.time_s_base), np.log(both.time_s / both.low_s)),
        }
    )  # fmt: skip
    mean = logs.groupby(["kernel", "M"], sort=False).mean().reset_index()
    return pd.DataFrame(
        {
            "kernel": mean.kernel, "M": mean.M, "measured": np.exp(mean.measured), "predicted": np.exp(mean.predicted),
            "low": np.exp(mean.predicted - mean.down), "high": np.exp(mean.predicted + mean.up),
        }
    )  # fmt: skip
