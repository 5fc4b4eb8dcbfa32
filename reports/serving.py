"""Predicted against measured deployments: tables, and a figure of latency against throughput.

    python reports/serving.py --data DIR [--write]

DIR holds serving.csv (see hwmodels/measurements/README.md); without --data the sample of this repository is used.
Prints tables; with --write they go to reports/serving.md, with reports/serving.png. aiconfigurator's own estimates of
the same points stand beside them where its wheel is installed.
"""

import platform
import sys
import time
from pathlib import Path

import numpy as np

from hwmodels.fitting.serving import devices_left_out, fit_all, fit_rows, scorable
from hwmodels.serving.points import Tables, is_dense, read_points, score
from hwmodels.validation.serving import exam_rows, examine, line
from qsim.plots.serving import LoadCurve, load_figure
from qsim.plots.style import save

SHOWN = (
    ("llama-3-70b", "H200", "vllm", "1", "1024", "1024"), ("llama-3-70b", "H200", "vllm", "8", "1024", "1024"),
    ("llama-3-70b", "H200", "trtllm", "2", "8192", "1024"), ("llama-3-70b", "H200", "trtllm", "8", "1024", "8192"),
    ("qwen3-32b", "H100-SXM", "vllm", "4", "1024", "1024"), ("qwen3-32b", "H100-SXM", "trtllm", "2", "2048", "256"),
    ("qwen3-32b", "H100-SXM", "sglang", "4", "4096", "512"), ("llama-3-8b", "H200", "sglang", "1", "8000", "500"),
    ("qwen3-32b", "H100-SXM", "vllm", "8", "4096", "512"),
)  # fmt: skip
"""Model, device, engine, tensor-parallel size, prompt and output tokens of the panels."""


CONFIGS = {"llama-3-70b": "meta-llama/Meta-Llama-3.1-70B", "llama-3-8b": "meta-llama/Meta-Llama-3.1-8B"}
"""Configs of the same shapes that aiconfigurator's wheel holds."""
BESIDE = 8
"""One of so many dense points is estimated by aiconfigurator too: an estimate takes seconds."""


def table(head, rows) -> list[str]:
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def percent(value) -> str:
    return f"{value:.1f} %"


def exam_tables(exam) -> list[str]:
    lines, rows = [], exam_rows(exam)
    for section in dict.fromkeys(r["section"] for r in rows):
        head = ["points", "rows", *(f"{w} {p}" for w in ("TPOT", "TTFT") for p in ("median", "p90", "bias", "in band"))]
        cells = [
            [r["group"], r["rows"],
             *(text for w in ("tpot", "ttft") for text in (
                 percent(r[f"{w}_percent"]), f"{r[f'{w}_p90_percent']:.0f} %", f"{r[f'{w}_bias']:.2f}",
                 f"{100 * r[f'{w}_in_band']:.0f} %"))]
            for r in rows if r["section"] == section
        ]  # fmt: skip
        lines += [f"### {section}", "", *table(head, cells), ""]
    return [*lines, *exam.remarks, ""]


def by_device(scored) -> list[str]:
    """Errors by device, and by whether a step's kernels were measured there."""
    rows = []
    for device in sorted({s.point.text("device") for s in scored}):
        mine = [s for s in scored if s.point.text("device") == device]
        parts = [(device, mine), *(
            (f"{device}, kernels {name}", part) for name, part in (
                ("measured", [s for s in mine if s.table.fidelity == "calibrated"]),
                ("not measured", [s for s in mine if s.table.fidelity != "calibrated"]),
            ) if 0 < len(part) < len(mine)
        )]  # fmt: skip
        for what, part in parts:
            one = line(what, part)
            rows.append([
                what, one.count, percent(100 * one.tpot), f"{100 * one.tpot_p90:.0f} %", f"{one.tpot_bias:.2f}",
                f"{one.tpot_held:.0%}", percent(100 * one.ttft), f"{one.ttft_held:.0%}",
            ])  # fmt: skip
    head = ["device", "rows", "TPOT median", "p90", "bias", "in band", "TTFT median", "in band"]
    return table(head, rows)


def left_out(fits) -> list[str]:
    head = ["engine", "points", "TPOT in the fit", "left out", "TTFT in the fit", "left out"]
    rows = [
        [r["engine"], r["points"], percent(r["tpot_percent"]), percent(r["tpot_left_out_percent"]),
         percent(r["ttft_percent"]), percent(r["ttft_left_out_percent"])]
        for r in fit_rows(fits)
    ]  # fmt: skip
    dense = [s.banded(fit.constants) for fit in fits.values() for s in fit.unseen]
    mixtures = [s.banded(fit.constants) for fit in fits.values() for s in fit.mixtures]
    known = [s for s in dense if s.point.known]
    rest = [s for s in dense if not s.point.known]
    protocol = f"TTFT of points whose protocol is documented: {100 * line('', known).ttft:.1f} % in the median"
    protocol += f", of the others {100 * line('', rest).ttft:.1f} %." if rest else "."
    constants = [
        "engine",
        "us per step",
        "us per row",
        "us more with prompts",
        "ms per request",
        "us per prompt token",
        "us per layer of experts",
        *(f"{w} band{of}" for of in ("", ", experts") for w in ("TPOT", "TTFT")),
    ]
    ends = "{:.2f} to {:.2f}".format
    values = [
        [n, f"{1e6 * f.constants.step_s:.0f}", f"{1e6 * f.constants.row_s:.0f}",
         f"{1e6 * f.constants.prompt_step_s:.0f}", f"{1e3 * f.constants.request_s:.0f}",
         f"{1e6 * f.constants.token_s:.1f}", f"{1e6 * f.constants.expert_s:.0f}",
         *(ends(*getattr(f.constants, name)) for name in ("tpot", "ttft", "moe_tpot", "moe_ttft"))]
        for n, f in fits.items()
    ]  # fmt: skip
    return [
        *table(head, rows), "",
        "The same points left out, by device; the bands are those that were drawn from them, half of each from all "
        "engines together:", "",
        *by_device(dense), "", protocol, "",
        "Mixtures of experts, likewise by blocks that were left out of the fit of what a layer of experts adds. Where "
        "the kernels were not measured on the device, the band of the step joins that of the engine.", "",
        *by_device(mixtures), "", "The constants; `-sync` is an engine whose host and device take turns:", "",
        *table(constants, values), "",
    ]  # fmt: skip


def aiconfigurator(points):
    """TPOT and TTFT of aiconfigurator's wheel for some points, None where it is absent or has no estimate."""
    try:
        from aiconfigurator.cli.api import cli_estimate
    except ImportError:
        return None
    found = {}
    for p in points:
        try:
            r = cli_estimate(
                model_path=CONFIGS.get(p.text("model"), p.text("checkpoint")),
                system_name=p.text("device").lower().partition("-")[0] + "_sxm",
                backend_name=p.text("engine"), mode="agg", isl=int(p.number("mean_prompt_tokens")),
                osl=int(p.number("mean_output_tokens")), batch_size=p.concurrency, tp_size=int(p.number("tp")),
                **({} if p.text("weights") == "bf16" else {"gemm_quant_mode": p.text("weights")}),
                **({"kvcache_quant_mode": "fp8"} if p.scheme.endswith("kvfp8") else {}),
            )  # fmt: skip
        except Exception as error:
            sys.stderr.write(f"aiconfigurator, line {p.line}: {error}\n")
            continue
        found[p.line] = (r.tpot / 1e3, r.ttft / 1e3)
    return found


def curves(points, other) -> dict[str, list[LoadCurve]]:
    tables, panels = Tables(), {}
    for model, device, engine, tp, prompt, output in SHOWN:
        mine = [
            p for p in points
            if (p.text("model"), p.text("device"), p.text("engine"), p.text("tp"), p.text("prompt_tokens"),
                p.text("output_tokens")) == (model, device, engine, tp, prompt, output) and not p.trap
        ]  # fmt: skip
        mine.sort(key=lambda p: p.concurrency)
        if len(mine) < 2:
            continue
        scored = [score(p, tables) for p in mine]

        def rate(p, first, token):
            out = p.number("mean_output_tokens", p.number("output_tokens"))
            return p.concurrency * out / (first + (out - 1) * token) / p.number("tp")

        known = [p for p in mine if other and p.line in other]
        panels[f"{model} {mine[0].text('weights')}, {engine}\n{tp} x {device}, {prompt}/{output}"] = [LoadCurve(
            rate=np.array([rate(s.point, s.ttft_s, s.tpot_s) for s in scored]),
            token_s=np.array([s.tpot_s for s in scored]),
            low_s=np.array([s.tpot_s * s.constants.tpot[0] for s in scored]),
            high_s=np.array([s.tpot_s * s.constants.tpot[1] for s in scored]),
            measured_rate=np.array([rate(p, p.number("ttft_s"), p.number("tpot_s")) for p in mine]),
            measured_s=np.array([p.number("tpot_s") for p in mine]),
            other_rate=np.array([rate(p, other[p.line][1], other[p.line][0]) for p in known]) if known else None,
            other_s=np.array([other[p.line][0] for p in known]) if known else None,
        )]  # fmt: skip
    return panels


def main() -> None:
    folder = Path(sys.argv[sys.argv.index("--data") + 1]) if "--data" in sys.argv else None
    points = read_points(None if folder is None else folder / "serving.csv")
    examine([p for p in points if p.text("model") == "llama-3-8b"][:2])  # compiled before the clock starts
    start = time.perf_counter()
    exam = examine(points)
    seconds = time.perf_counter() - start
    dense = scorable(points)
    say = lambda text: sys.stderr.write(text + "\n")  # noqa: E731
    fits = fit_all(dense, say)
    apart = [s.banded(fits[s.point.group].constants) if s.point.group in fits else s
             for s in devices_left_out(dense, say)]  # fmt: skip
    beside = aiconfigurator([p for p in dense if p.text("traps") == ""][::BESIDE])
    lines = [
        "# Served latencies against measured deployments",
        "",
        f"`python reports/serving.py{' --data DIR' if folder else ''} --write`, Python {platform.python_version()}, "
        f"NumPy {np.__version__}. {len(points)} points in {seconds:.0f} s on {platform.machine()}.",
        "",
        "![Latency against throughput](serving.png)",
        "",
        "Means of TPOT and TTFT: |predicted / measured - 1|, predicted / measured (bias), and the share of measured "
        "values in the 80 % band. Points with known traps are left out, as the measurements' README says.",
        "",
        "## Points that no fit has seen",
        "",
        "Nothing but a few constants of each engine is fitted on serving points. Here each block of "
        "model, device and engine is predicted with constants that were fitted without it (where an engine has one "
        "block, with the median of the other engines alike).",
        "",
        *left_out(fits),
        "## A device left out whole",
        "",
        "Constants fitted without any point of the device, of dense models and of mixtures; an engine that ran on no "
        "other device has the median of the others alike. Dense models:",
        "",
        *by_device([s for s in apart if is_dense(s.point)]),
        "",
        "Mixtures of experts:",
        "",
        *by_device([s for s in apart if not is_dense(s.point)]),
        "",
        "## All points, with the shipped constants",
        "",
        *exam_tables(exam),
        "Of DeepSeek-V3 (and of Qwen3.5 in FP8 on B200) some versions served with and without speculative decoding and "
        "do not say which: their bands reach down to twice the speed, and they are in no fit.",
    ]
    if beside is not None:
        mine = {s.point.line: s for s in exam.scored}
        both = [(p, beside[p.line], mine[p.line]) for p in dense if p.line in beside and p.line in mine]
        rows = []
        for name, token, first in (
            ("this package", [s.tpot_ratio for _, _, s in both], [s.ttft_ratio for _, _, s in both]),
            ("aiconfigurator", [b[0] / p.number("tpot_s") for p, b, _ in both],
             [b[1] / p.number("ttft_s") for p, b, _ in both]),
        ):  # fmt: skip
            errors = [np.abs(np.array(v) - 1) for v in (token, first)]
            rows.append([name, len(both), *(f"{100 * np.quantile(e, q):.1f} %" for e in errors for q in (0.5, 0.9))])
        lines += ["", "## Beside aiconfigurator", "", *table(
            ["", "points", "TPOT median", "p90", "TTFT median", "p90"], rows)]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    if "--write" in sys.argv:
        here = Path(__file__).parent
        (here / "serving.md").write_text(text)
        title = "Latency against throughput of measured deployments"
        save(load_figure(curves([p for p in points if is_known(p)], beside), title=title,
                         other="aiconfigurator" if beside else ""), here / "serving.png")  # fmt: skip


def is_known(point) -> bool:
    try:
        return is_dense(point)
    except ValueError:
        return False


if __name__ == "__main__":
    main()
