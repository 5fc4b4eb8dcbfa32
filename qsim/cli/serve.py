"""`qsim serve`: what the users of a deployment see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from qsim.errors import QsimError

from .hardware_options import (
    chosen_devices,
    device_option,
    model_argument,
    price_option,
    scheme_option,
    set_option,
    titles_of,
)
from .options import Picture, draw, plot_option
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb

_COLUMNS = (
    Column("", "quantity", left=True), Column("mean", "mean"), Column("80 % band", "band"), Column("p50", "p50"),
    Column("p90", "p90"), Column("p99", "p99"),
)  # fmt: skip


@verb("serve")
@model_argument
@device_option()
@scheme_option()
@click.option("--quantized", type=click.Choice(["all", "mlp", "experts"]), default="all", show_default=True,
              help="Layers that follow the scheme; the others are in 16 bit.")  # fmt: skip
@click.option("--engine", default="vllm", show_default=True, metavar="NAME",
              help="Engine whose scheduler and kernels are modelled: vllm, sglang, trtllm.")  # fmt: skip
@click.option("--concurrency", type=int, metavar="N", help="Requests in flight: each that ends sends the next.")
@click.option("--rate", type=float, metavar="R", help="Requests that arrive in a second, instead of --concurrency.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="CSV",
              help="Requests of a file: arrival_s, prompt_tokens, output_tokens.")  # fmt: skip
@click.option("--prompt", default="1024", show_default=True, metavar="L",
              help="Prompt tokens: 1000, uniform:800:1000, lognormal:1000:0.5 or file:PATH.")  # fmt: skip
@click.option("--output", default="256", show_default=True, metavar="L", help="Output tokens, in the same forms.")
@click.option("--requests", type=int, metavar="N", help="Requests of the run.  [default: 10 for each in flight]")
@click.option("--start", type=click.Choice(["burst", "steady"]), default="burst", show_default=True,
              help="Count the burst that fills all places at first, or leave it out.")  # fmt: skip
@click.option("--prefix-hit", type=float, default=0.0, show_default=True, metavar="SHARE",
              help="Share of the prompt tokens that the prefix cache holds.")  # fmt: skip
@click.option("--tp", type=int, default=1, show_default=True, metavar="N", help="Tensor-parallel size.")
@click.option("--pp", type=int, default=1, show_default=True, metavar="N", help="Pipeline stages.")
@click.option("--dp", type=int, default=1, show_default=True, metavar="N", help="Attention data-parallel ranks.")
@click.option("--ep", type=int, default=1, show_default=True, metavar="N", help="Devices that experts are spread over.")
@click.option("--replicas", type=int, default=1, show_default=True, metavar="N",
              help="Engines side by side; decode workers with --prefill-workers.")  # fmt: skip
@click.option("--prefill-workers", type=int, default=0, show_default=True, metavar="N",
              help="Read prompts on so many workers of their own.")  # fmt: skip
@click.option("--prefill-tp", type=int, metavar="N", help="Tensor-parallel size of a prefill worker.  [default: --tp]")
@click.option("--link", type=float, default=50.0, show_default=True, metavar="GBYTES_PER_S",
              help="Rate between a prefill and a decode worker.")  # fmt: skip
@click.option("--budget", type=int, metavar="TOKENS", help="Tokens of a step.  [default: the engine's]")
@click.option("--max-sequences", type=int, metavar="N", help="Sequences that run at once.  [default: the engine's]")
@click.option("--no-overlap", is_flag=True, help="Host and device take turns.")
@click.option("--offload", type=float, default=0.0, show_default=True, metavar="GBYTES",
              help="Host memory for the KV cache of sequences that were put back.")  # fmt: skip
@click.option("--offload-rate", type=float, default=50.0, show_default=True, metavar="GBYTES_PER_S",
              help="Rate at which it is copied back.")  # fmt: skip
@click.option("--drafts", type=int, default=0, show_default=True, metavar="N",
              help="Speculative decoding: tokens drafted in each step.")  # fmt: skip
@click.option("--acceptance", type=float, default=0.7, show_default=True, metavar="SHARE",
              help="Chance that a drafted token is accepted.")  # fmt: skip
@click.option("--branches", type=int, default=1, show_default=True, metavar="N",
              help="Alternatives of each drafted token.")  # fmt: skip
@click.option("--draft-cost", type=float, default=0.05, show_default=True, metavar="SHARE",
              help="Time to draft a token, as a share of a decode step.")  # fmt: skip
@click.option("--closed-form", is_flag=True, help="Means of the steady state, without simulating steps.")
@click.option("--constants", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="TOML",
              help="Constants of engines that qsim calibrate --serving wrote.")  # fmt: skip
@price_option
@set_option
@plot_option
@table_options
def serve(model: str, device: str, scheme: str, plot: Picture | None, form: Form, **given: Any) -> None:
    """MODEL is served by an engine: requests arrive, wait, are read beside the decode steps of others, and decode.
    Times are over requests, with an 80 % band from measured deployments that no fit has seen.

    \b
    Examples:
      qsim serve llama-3-70b --device h200 --scheme fp8 --tp 4 --concurrency 32 --prompt 2000 --output 300
      qsim serve llama-3-8b --device h200 --rate 5 --prompt lognormal:1000:0.6 --output uniform:50:400 --price 3
      qsim serve llama-3-8b --device l40s --concurrency 16 --drafts 3 --acceptance 0.8
      qsim serve llama-3-8b --device h200 --concurrency 64 --plot timeline.png
    """
    import hwmodels
    from hwmodels.energy import prices_of
    from hwmodels.serving.constants import read_constants

    (chip,) = chosen_devices([device], given["overrides"])
    hourly = prices_of(given["price"], [device]).get(device)
    s = hwmodels.serve(
        model, chip, scheme, workload=_workload(given), policy=_policy(given), deployment=_deployment(given),
        method="closed_form" if given["closed_form"] else "simulate", quantized=given["quantized"],
        price_per_hour=hourly,
        constants=None if given["constants"] is None else read_constants(given["constants"]),
    )  # fmt: skip
    if plot is not None:
        if not len(s.timeline):
            raise QsimError("--plot draws an engine over time: a closed form, or separate prefill workers, have none")
        from qsim.plots import names
        from qsim.plots.serving import timeline_figure

        what = f"{names.model_title(s.model)} {names.scheme_title(s.scheme)}"
        title = f"{what} on {s.deployment.label} of {titles_of([chip])[chip.name]}"
        draw(timeline_figure(s.timeline, title=title, size=plot.size), plot)
    rows, whole = _rows(s), _whole(s)
    deliver(form, rows, lambda: _table(s, rows, whole), whole={**whole, "times": rows})


def _workload(given: dict[str, Any]) -> Any:
    from hwmodels.serving.workload import Workload, read_trace

    ways = {"--concurrency": given["concurrency"], "--rate": given["rate"], "--trace": given["trace"]}
    used = [name for name, value in ways.items() if value is not None]
    if len(used) > 1:
        raise QsimError(f"{used[0]} and {used[1]} both say when requests come: give one of them")
    if given["trace"] is not None:
        return Workload(trace=read_trace(given["trace"]), requests=given["requests"], prefix_hit=given["prefix_hit"])
    if not used:
        given = {**given, "concurrency": 32}
    return Workload(
        concurrency=given["concurrency"], rate_per_s=given["rate"], prompt=given["prompt"], output=given["output"],
        requests=given["requests"], prefix_hit=given["prefix_hit"], start=given["start"],
    )  # fmt: skip


def _policy(given: dict[str, Any]) -> Any:
    from hwmodels.serving.policy import Speculation, get_policy

    changes: dict[str, Any] = {
        "overlap": not given["no_overlap"],
        "offload_gbytes": given["offload"],
        "offload_gbytes_per_s": given["offload_rate"],
    }
    changes |= {name: given[key] for name, key in (("token_budget", "budget"), ("max_sequences", "max_sequences"))
                if given[key] is not None}  # fmt: skip
    if given["drafts"]:
        changes["speculation"] = Speculation(
            drafts=given["drafts"], acceptance=given["acceptance"], branches=given["branches"],
            draft_share=given["draft_cost"],
        )  # fmt: skip
    return replace(get_policy(given["engine"]), **changes)


def _deployment(given: dict[str, Any]) -> Any:
    from hwmodels.serving.deployment import Deployment

    apart = None
    if given["prefill_workers"]:
        apart = Deployment(tensor_parallel=given["prefill_tp"] or given["tp"], replicas=given["prefill_workers"])
    elif given["prefill_tp"] is not None:
        raise QsimError("--prefill-tp needs --prefill-workers: how many workers read prompts")
    return Deployment(
        tensor_parallel=given["tp"], pipeline_parallel=given["pp"], attention_data_parallel=given["dp"],
        expert_parallel=given["ep"], replicas=given["replicas"], prefill=apart, link_gbytes_per_s=given["link"],
    )  # fmt: skip


def _rows(s: Any) -> list[dict[str, Any]]:
    return [
        {"quantity": name, "mean_s": t.mean, "low_s": t.band[0], "high_s": t.band[1], "p50_s": t.p50, "p90_s": t.p90,
         "p99_s": t.p99}
        for name, t in (("first token (TTFT)", s.ttft), ("token to token (TPOT)", s.tpot), ("whole request", s.latency))
    ]  # fmt: skip


def _whole(s: Any) -> dict[str, Any]:
    return {
        "model": s.model, "device": s.device, "scheme": s.scheme, "engine": s.policy.name, "method": s.method,
        "deployment": s.deployment.label, "gpus": s.gpus, "requests": s.workload.count,
        "concurrency": s.workload.concurrency, "rate_per_s": s.workload.offered_per_s,
        "tokens_per_s_per_user": s.tokens_per_s_per_user, "tokens_per_s_per_gpu": s.tokens_per_s_per_gpu,
        "output_tokens_per_s": s.output_tokens_per_s, "requests_per_s": s.requests_per_s,
        "capacity_per_s": s.capacity_per_s, "mean_rows": s.mean_rows, "kv_tokens": s.step.kv_tokens,
        "kv_occupancy": s.kv_occupancy, "preemptions": s.preemptions, "limit": s.limit, "kernel": s.step.kernel,
        "joules_per_million_tokens": s.joules_per_million_tokens, "price_per_hour": s.price_per_hour,
        "cost_per_million_tokens": s.cost_per_million_tokens, "notes": [str(n) for n in s.notes],
    }  # fmt: skip


LIMITS = {
    "memory": "the KV cache: requests wait for a place",
    "sequences": "the engine's limit on sequences: requests wait for a place",
    "budget": "prompts: nearly every step holds some",
    "requests": "the requests in flight: there is room for more",
    "arrivals": "the arrivals: there is room for more",
    "prefill": "the prefill workers",
}


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _table(s: Any, rows: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    w = s.workload
    lengths = f"{w.count} requests, {w.prompt} in and {w.output} out"
    if w.trace:
        load, lengths = "as they come", f"{w.count} requests of a trace"
    else:
        load = f"{w.concurrency} in flight" if w.rate_per_s is None else f"{w.rate_per_s:.4g} a second"
    engine = f"{s.policy.name} on {s.deployment.label} of {s.device}"
    click.echo(f"{s.model} {s.scheme}, {engine}: {load}, {lengths}\n")
    shown = [
        {"quantity": r["quantity"], "mean": _time(r["mean_s"]), "band": f"{_time(r['low_s'])} to {_time(r['high_s'])}",
         **{p: _time(r[f"{p}_s"]) for p in ("p50", "p90", "p99")}}
        for r in rows
    ]  # fmt: skip
    print_table(_COLUMNS, shown)
    click.echo()
    lines = [
        ("throughput", f"{s.output_tokens_per_s:.4g} tokens/s, {s.requests_per_s:.3g} requests/s "
                       f"(at most {s.capacity_per_s:.3g})"),
        ("each user", f"{s.tokens_per_s_per_user:.4g} tokens/s"),
        ("each device", f"{s.tokens_per_s_per_gpu:.4g} tokens/s, {s.gpus} in all"),
        ("held by", LIMITS[s.limit]),
    ]  # fmt: skip
    if s.kv_occupancy is not None:
        lines.append(("KV cache", f"{s.kv_occupancy:.0%} of {s.step.kv_tokens:.0f} tokens at most, "
                                  f"{s.preemptions} preemptions"))  # fmt: skip
    if s.joules_per_million_tokens is not None:
        lines.append(("energy", f"{s.joules_per_million_tokens / 3.6e6:.3g} kWh per million generated tokens"))
    if s.cost_per_million_tokens is not None:
        cost = f"{s.cost_per_million_tokens:.4g} per million generated tokens at {s.price_per_hour:g} per hour"
        lines.append(("cost", cost))
    for name, text in lines:
        click.echo(f"{name:<12}{text}")
    for note in whole["notes"]:
        click.echo(f"note        {note}")
