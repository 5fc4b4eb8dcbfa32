"""`qsim plan`: the cheapest deployment within limits on TTFT and TPOT."""

from __future__ import annotations

from typing import Any

import click

from qsim.errors import QsimError

from .hardware_options import complete, device_names, model_argument, scheme_names, titles_of
from .options import Picture, draw, plot_option
from .progress import reporter
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb

UNITS = {"ms": 1e-3, "s": 1.0}


class Seconds(click.ParamType):
    """A time with its unit: `30ms`, `1s`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        unit = next((u for u in UNITS if text.endswith(u)), None)
        try:
            number = float(text[: -len(unit)]) if unit else -1.0
        except ValueError:
            number = -1.0
        if unit is None or not 0 < number < 1e6:
            self.fail(f"{value!r} is no time above 0 with its unit, such as 30ms or 1s", param, ctx)
        return number * UNITS[unit]


_COLUMNS = (
    Column("device", "device", left=True), Column("scheme", "scheme", left=True),
    Column("deployment", "deployment", left=True), Column("devices", "gpus"),
    Column("TTFT", "ttft_s", "{:.3f} s".format),
    Column("TPOT", "tpot_s", lambda v: f"{v * 1e3:.1f} ms"), Column("per hour", "price_per_hour"),
    Column("per million", "cost_per_million"), Column("sure", "sure", left=True), Column("loss", "loss", left=True),
)  # fmt: skip
_CHANGES = (
    Column("change", "change", left=True), Column("winner", "winner", left=True), Column("devices", "gpus"),
    Column("per hour", "price_per_hour"),
)  # fmt: skip


@verb("plan")
@model_argument
@click.option("--ttft", type=Seconds(), required=True, metavar="TIME", help="Limit on the mean first token, as 1s.")
@click.option("--tpot", type=Seconds(), required=True, metavar="TIME", help="Limit on mean time per token, as 30ms.")
@click.option("--rate", type=float, required=True, metavar="R", help="Requests that arrive in a second.")
@click.option("--prompt", type=float, default=1024, show_default=True, metavar="L", help="Mean prompt tokens.")
@click.option("--output", type=float, default=256, show_default=True, metavar="L", help="Mean output tokens.")
@click.option("--price", multiple=True, metavar="NAME=PER_HOUR,...",
              help="Devices to choose from, with the price of an hour: h100-sxm=2.5,l40s=0.9. Repeatable.")  # fmt: skip
@click.option("--device", multiple=True, metavar="NAME", shell_complete=complete(device_names),
              help="Devices to choose from, without prices: the fewest win. Repeatable.")  # fmt: skip
@click.option("--scheme", multiple=True, default=("bf16", "fp8", "w4a16-g128"), show_default=True, metavar="NAME",
              shell_complete=complete(scheme_names), help="Schemes to choose from. Repeatable.")  # fmt: skip
@click.option("--engine", default="vllm", show_default=True, metavar="NAME", help="vllm, sglang or trtllm.")
@click.option("--together", is_flag=True, help="Leave out separate prefill workers.")
@plot_option
@table_options
def plan(
    model: str, ttft: float, tpot: float, rate: float, prompt: float, output: float, price: tuple[str, ...],
    device: tuple[str, ...], scheme: tuple[str, ...], engine: str, together: bool, plot: Picture | None, form: Form,
) -> None:  # fmt: skip
    """The fewest dollars, or devices where no price is given, that serve MODEL within the limits: over devices,
    schemes, tensor-parallel sizes, and prefill workers apart. `sure` says that the 80 % bands are within the limits
    too, which nobody can say of prefill workers apart; `loss` is what the scheme costs in quality, from published
    results.

    \b
    Examples:
      qsim plan llama-3-70b --ttft 1s --tpot 30ms --rate 20 --prompt 2000 --output 300 --price h100-sxm=2.5,h200=3.5
      qsim plan llama-3-8b --ttft 500ms --tpot 20ms --rate 10 --device l40s --device h100-sxm --plot frontier.png
    """
    from hwmodels.serving import plan as search

    prices = _prices(price)
    if prices and device:
        raise QsimError("--price and --device both name the devices to choose from: give one of them")
    with reporter("planning") as say:
        say(f"{len(prices or device)} devices, {len(scheme)} schemes")
        found = search(
            model, ttft_s=ttft, tpot_s=tpot, rate_per_s=rate, prompt=prompt, output=output, devices=device,
            schemes=scheme, prices=prices or None, policy=engine, separate=not together,
        )  # fmt: skip
    if plot is not None:
        draw(_figure(found, plot.size), plot)
    rows = [_row(o, found.model) for o in found.options]
    changes = [
        {"change": c.what, "winner": "none" if c.winner is None else _name(c.winner),
         "gpus": None if c.winner is None else c.winner.gpus,
         "price_per_hour": None if c.winner is None else c.winner.price_per_hour}
        for c in found.sensitivity
    ]  # fmt: skip
    missed = [{"device": d, "scheme": s, "why": why} for d, s, why in found.missed]
    frontier = [
        {"device": p.device, "scheme": p.scheme, "deployment": p.deployment.label, "concurrency": p.concurrency,
         "tokens_per_s_per_user": p.tokens_per_s_per_user, "tokens_per_s_per_gpu": p.tokens_per_s_per_gpu}
        for p in found.frontier
    ]  # fmt: skip

    notes = list(dict.fromkeys(str(note) for o in found.options for note in o.notes))

    def table() -> None:
        best = found.best
        money = "" if best.price_per_hour is None else f", {best.price_per_hour:.4g} per hour"
        click.echo(f"{found.model}: {_name(best)}, {best.gpus} devices{money}")
        if found.promised is not None:
            other = found.promised
            less = f"{other.gpus} devices" + ("" if other.price_per_hour is None else f", {other.price_per_hour:.4g}")
            click.echo(f"cheaper if its prediction held, which no measurement shows: {_name(other)}, {less}")
        for note in notes:
            click.echo(f"note: {note}")
        click.echo()
        print_table(_COLUMNS, rows)
        click.echo("\nWhat the winner depends on")
        print_table(_CHANGES, changes)
        for one in missed:
            click.echo(f"left out: {one['scheme']} on {one['device']}: {one['why']}")

    deliver(form, rows, table, whole={
        "model": found.model, "options": rows, "sensitivity": changes, "left_out": missed, "frontier": frontier,
        "notes": notes,
    })  # fmt: skip


def _prices(texts: tuple[str, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in (part for one in texts for part in one.split(",")):
        name, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not equals or not 0 < value < 1e9:
            raise QsimError(f"--price must be NAME=PER_HOUR with a price above 0, as h100-sxm=2.5: got {text!r}")
        if name in found:
            raise QsimError(f"--price gives {name} two prices: give each device one")
        found[name] = value
    return found


def _name(option: Any) -> str:
    return f"{option.scheme} on {option.deployment.label} of {option.device}"


def _row(option: Any, model: str) -> dict[str, Any]:
    return {
        "device": option.device, "scheme": option.scheme, "deployment": option.deployment.label, "gpus": option.gpus,
        "ttft_s": option.ttft_s, "tpot_s": option.tpot_s, "capacity_per_s": option.capacity_per_s,
        "price_per_hour": option.price_per_hour, "cost_per_million": option.cost_per_million, "sure": option.sure,
        "loss": _loss(model, option.scheme),
    }  # fmt: skip


def _loss(model: str, scheme: str) -> str:
    """What a scheme costs in quality, in words: percent of an average score, with the band."""
    from qsim.evidence import expected_loss

    try:
        found = expected_loss(model, "gptq" if scheme.startswith(("w4", "w3")) else "rtn", scheme)
    except QsimError:
        return "not known"
    if found.basis == "exact":
        return "none"
    if found.lost is None:
        return "not known"
    return f"{found.lost:.1f} % ({found.lost_low:.1f} to {found.lost_high:.1f}), {found.basis}"


def _figure(found: Any, size: str) -> Any:
    import numpy as np

    from hwmodels import get_device
    from qsim.plots import names
    from qsim.plots.serving import frontier_figure

    data: dict[str, dict[str, tuple[Any, Any]]] = {}
    titles = titles_of([get_device(name) for name in dict.fromkeys(p.device for p in found.frontier)])
    for p in found.frontier:
        device, scheme = titles[p.device], names.scheme_title(p.scheme)
        data.setdefault(device, {}).setdefault(scheme, ([], []))
        data[device][scheme][0].append(p.tokens_per_s_per_user)
        data[device][scheme][1].append(p.tokens_per_s_per_gpu)
    arrays = {d: {s: (np.array(x), np.array(y)) for s, (x, y) in curves.items()} for d, curves in data.items()}
    goal = found.goal
    title = f"{names.model_title(found.model)}, {goal.prompt:g} tokens in and {goal.output:g} out"
    return frontier_figure(arrays, title=title, user_at_least=1.0 / goal.tpot_s, size=size)
