"""`qsim predict`: time, memory and throughput of one case."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qsim.errors import QsimError
from qsim.notes import Note, pick, without

from .hardware_options import (
    Count,
    chosen_devices,
    device_option,
    how_options,
    milliseconds,
    model_argument,
    price_option,
    scheme_option,
    set_option,
)
from .options import Picture, draw, plot_option
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb

if TYPE_CHECKING:
    from hwmodels.predicted import Prediction

SAME = 0.02
"""Change of the time below which it is not worth a note."""

_COLUMNS = (
    Column("operator", "operator", left=True), Column("calls", "calls"), Column("time", "time_s", milliseconds),
    Column("share", "share", "{:.1%}".format), Column("FLOP/B", "flop_per_byte", "{:.3g}".format),
    Column("bound", "bound", left=True), Column("kernel", "kernel", left=True),
    Column("generation", "generation", left=True), Column("fidelity", "fidelity", left=True),
    Column("GFLOP", "gflop", "{:.4g}".format), Column("MB", "mbytes", "{:.4g}".format),
)  # fmt: skip


@verb("predict")
@model_argument
@device_option()
@scheme_option()
@click.option("--phase", type=click.Choice(["decode", "prefill", "request"]), default="decode", show_default=True,
              help="One decode step, one prefill, or whole requests.")  # fmt: skip
@click.option("--batch", type=Count(), default=1, show_default=True, metavar="B",
              help="Batch size: sequences at once.")  # fmt: skip
@click.option(
    "--context",
    type=Count(),
    default=2048,
    show_default=True,
    metavar="L",
    help="Tokens in the cache; the prompt of a prefill.",
)
@click.option(
    "--new-tokens",
    type=Count(),
    default=256,
    show_default=True,
    metavar="N",
    help="With --phase request: tokens to generate.",
)
@click.option(
    "--kernel",
    metavar="NAME",
    help="Kernel family of the linear layers, instead of the stack's choice; see qsim devices DEVICE --kernels.",
)
@click.option("--attention", metavar="NAME", help="Attention kernel; qsim devices DEVICE --kernels lists them.")
@click.option("--explain", metavar="OPERATOR", help="The measured products nearest to a matrix product of the table.")
@click.option("--baseline", metavar="SCHEME", help="Speed-up over this scheme, with its band.")
@click.option("--ep", "expert_parallel", type=int, default=1, show_default=True, metavar="N",
              help="Devices that the experts of a mixture are dealt out to; beyond --tp, groups of --tp devices with "
              "this batch each.")  # fmt: skip
@price_option
@how_options
@set_option
@plot_option
@table_options
def predict(
    model: str,
    device: str,
    scheme: str,
    phase: str,
    batch: int,
    context: int,
    new_tokens: int,
    kernel: str | None,
    attention: str | None,
    explain: str | None,
    baseline: str | None,
    price: tuple[str, ...],
    plot: Picture | None,
    overrides: tuple[str, ...],
    form: Form,
    **how: Any,
) -> None:
    """MODEL is a name (llama-3-70b, mixtral-8x7b, ...) or a path to a Hugging Face config.json. Times come with an 80 %
    band: of the measured cases, about four in five lay inside theirs.

    \b
    Examples:
      qsim predict llama-3-70b --device h100-sxm --scheme fp8-rowwise --batch 16 --context 4096
      qsim predict llama-3-8b --device a100 --scheme w4a16-g128 --baseline bf16
      qsim predict llama-3-8b --device l40s --phase request --batch 32 --new-tokens 500
      qsim predict llama-3-8b --device asic --set memory.bandwidth_gbytes_per_s=6000
    """
    import hwmodels
    from hwmodels.describe import prediction_row
    from hwmodels.energy import prices_of
    from hwmodels.predicted import operator_rows

    options = {**how, "kernel": kernel, "attention_kernel": attention}
    source = click.get_current_context().get_parameter_source("new_tokens")
    if phase != "request" and source is not click.core.ParameterSource.DEFAULT:
        raise QsimError(f"--new-tokens counts with --phase request only: got --phase {phase}")
    (chip,) = chosen_devices([device], overrides)
    if phase == "request":
        unused = {"--plot": plot, "--baseline": baseline, "--explain": explain}
        for name in (n for n, given in unused.items() if given is not None):
            raise QsimError(f"{name} is for one step: --phase request does not take it")
        _request(hwmodels.predict_request(
            chip, model, scheme, batch=batch, prompt=context, new_tokens=new_tokens, **options
        ), prices_of(price, [device]).get(device), form)  # fmt: skip
        return
    p = hwmodels.predict(chip, model, scheme, phase, batch, context, **options)
    gain = None
    if baseline is not None:
        base_options = {**options, "kernel": None}
        base = hwmodels.predict(chip, model, baseline, phase, batch, context, **base_options)
        gain = hwmodels.speedup(p, base)
    head, rows = prediction_row(p), operator_rows(p)
    head["notes"] += _zero_points(
        p, lambda other: hwmodels.predict(chip, model, other, phase, batch, context, **options)
    )
    if gain is not None:
        head |= {"baseline": baseline, "speedup": float(gain.value), "speedup_low": float(gain.low),
                 "speedup_high": float(gain.high)}  # fmt: skip
    if price:
        hourly = prices_of(price, [device])[device]
        head |= {"price_per_hour": hourly, "cost_per_million_tokens": float(p.cost_per_million_tokens(hourly))}
    if plot is not None:
        from qsim.plots import names
        from qsim.plots.bars import breakdown_figure

        parts = {names.operator_title(r["operator"]): [float(r["time_s"])] for r in rows}
        (where,) = names.device_titles([p.device.title])
        title = f"{names.model_title(p.architecture.name)} on {where}, {phase}, batch {batch}"
        draw(breakdown_figure(title, [names.scheme_title(p.scheme.name or scheme)], parts, size=plot.size), plot)
    if explain is not None:
        from hwmodels.evidence import basis

        found, rests = p.evidence(explain), basis(p.device, p.operators, explain)
        points = [dict(zip(found.columns, row, strict=True)) for row in found.rows]
        deliver(form, points, lambda: _explain(explain, rests, points), whole={"basis": rests, "points": points})
        return
    deliver(form, rows, lambda: _print(head, rows), whole={**head, "operators": rows})


def _explain(operator: str, rests: str, points: list[dict[str, Any]]) -> None:
    click.echo(f"{operator}: {rests}")
    if points:
        click.echo()
        print_table([Column(name, name, left=name in ("device", "family")) for name in points[0]], points, names=2)
    else:
        click.echo("The recordings that ship hold no product of this family.")


def _zero_points(p: Prediction, predicted: Callable[[str], Prediction]) -> list[Note]:
    """What the zero points of the weights cost: names of 4-bit schemes mean either kind in the field."""
    base, cut, cache = p.scheme.name.partition("-kv")
    if p.scheme.weight.symmetric or not p.scheme.weight.is_quantized:
        return []
    symmetric = base.removesuffix("-asym") if base.endswith("-asym") else f"{base}-sym"
    try:
        other = predicted(symmetric + cut + cache)
    except QsimError:  # no such scheme, or a kernel that was asked for does not run it
        return []
    if other.scheme.weight.symmetric is False or abs(float(other.time_s / p.time_s) - 1) < SAME:
        return []
    text = (
        f"{base} has zero points, as AWQ has them (vLLM's W4A16_ASYM for 4 bit); without, {symmetric}, which is "
        f"GPTQ's default and vLLM's W4A16, takes {milliseconds(float(other.time_s))}"
    )
    return [Note("zero_points", text)]


def _print(head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    notes = head["notes"]
    if (shortage := pick(notes, "does_not_fit")) is not None:
        click.echo(shortage)
        notes = without(notes, "does_not_fit")
    h = head
    step = "per step, TPOT" if h["phase"] == "decode" else "the prefill, TTFT"
    devices = max(h["tensor_parallel"], h["expert_parallel"])
    many = f", {devices} devices" if devices > 1 else ""
    many += f" with experts over {h['expert_parallel']}" if h["expert_parallel"] > 1 else ""
    band = f"80 % band {milliseconds(h['low_s'])} to {milliseconds(h['high_s'])}"
    used = f"weights {h['weights_gbytes']:.1f}, KV cache {h['kv_cache_gbytes']:.1f}"
    lines = [
        f"{h['model']} {h['scheme']} on {h['device']}: {h['phase']}, batch {h['batch']}, context {h['context']}{many}",
        f"  time        {milliseconds(h['time_s'])} {step}  ({band}, {h['fidelity']})",
    ]
    if "speedup" in h:
        lines.append(
            f"  speed-up    {h['speedup']:.2f}x over {h['baseline']}  "
            f"(80 % band {h['speedup_low']:.2f} to {h['speedup_high']:.2f})"
        )
    lines += [
        f"  rate        {h['tokens_per_s']:.4g} tokens/s  (MBU {h['mbu']:.0%}, MFU {h['mfu']:.0%}; "
        f"mostly {h['bound']}-bound)",
        f"  memory      {h['total_gbytes']:.1f} of {h['capacity_gbytes']:g} GB: {used}; "
        f"largest batch at this context {h['largest_batch']}",
    ]
    click.echo("\n".join(lines))
    if h["joule_per_token"] is not None:
        band = f"80 % band {h['joule_per_token_low']:.3g} to {h['joule_per_token_high']:.3g}"
        basis = "calibrated" if h["energy_fidelity"] == "calibrated" else f"transferred: {h['energy_origin']}"
        click.echo(f"  energy      {h['joule_per_token']:.3g} J per token  ({band}, {basis}; {h['power_w']:.0f} W)")
    if "cost_per_million_tokens" in h:
        hourly = f"{h['price_per_hour']:g} per hour and device"
        click.echo(f"  cost        {h['cost_per_million_tokens']:.4g} per million tokens at {hourly}")
    for note in notes:
        click.echo(f"  note        {note}")
    click.echo()
    print_table(_COLUMNS, rows)


def _request(r: Any, price: float | None, form: Form) -> None:
    from dataclasses import asdict

    row = asdict(r)
    if price is not None:
        row |= {"price_per_hour": price, "cost_per_million_tokens": r.cost_per_million_tokens(price)}

    def table() -> None:
        many = f", {r.tensor_parallel} devices" if r.tensor_parallel > 1 else ""
        each = f"{r.batch} requests of {r.prompt} + {r.new_tokens} tokens"
        click.echo(f"{r.model} {r.scheme} on {r.device}: {each}{many}, profile {r.profile}")
        places = f"{r.running_batch} at once" + (", each place filled again" if r.batch > r.running_batch else "")
        for line in (
            f"TTFT        {milliseconds(r.ttft_s)}",
            f"TPOT        {milliseconds(r.tpot_s)} in the mean over the growing context",
            f"latency     {r.latency_s:.4g} s per request  (80 % band {r.low_s:.4g} to {r.high_s:.4g}, {r.fidelity})",
            f"throughput  {r.output_tokens_per_s:.4g} generated tokens/s ({places})",
            *(
                f"energy      {r.joule_per_token:.3g} J per generated token  (80 % band {r.joule_per_token_low:.3g} to "
                f"{r.joule_per_token_high:.3g})"
                for _ in range(r.joule_per_token is not None)
            ),
            *(
                f"cost        {row['cost_per_million_tokens']:.4g} per million generated tokens at {price:g} per hour "
                "and device"
                for _ in range(price is not None)
            ),
            *(f"note        {note}" for note in r.notes),
        ):
            click.echo(f"  {line}")

    deliver(form, [row], table, whole=row)
