"""`plan` and the verbs `serve` and `plan`: the cheapest that meets the limits is found, checked by `serve`."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import click.testing
import numpy as np
import pytest

from hwmodels.serving import Plan, Workload, plan, serve
from qsim.cli import main
from qsim.errors import QsimError
from qsim.plots.serving import LoadCurve, frontier_figure, load_figure, timeline_figure


@lru_cache(maxsize=2)
def small(priced: bool = True) -> Plan:
    names = {"l40s": 0.9, "h200": 3.5}
    return plan(
        "llama-3-8b", ttft_s=0.5, tpot_s=0.03, rate_per_s=90.0, prompt=1000, output=200, schemes=("bf16", "fp8"),
        prices=names if priced else None, devices=() if priced else tuple(names), widths=(1, 2),
    )  # fmt: skip


def test_every_option_meets_the_limits_and_the_cheapest_of_a_measured_kind_comes_first() -> None:
    found = small()
    for apart in (False, True):
        prices = [o.price_per_hour for o in found.options if o.apart == apart]
        assert prices == sorted(prices)  # type: ignore[type-var]
    assert [o.apart for o in found.options] == sorted(o.apart for o in found.options)
    assert not found.best.apart
    cheaper = [o for o in found.options if o.apart and o.key < found.best.key]
    assert found.promised == (min(cheaper, key=lambda o: o.key) if cheaper else None)
    for o in found.options:
        assert o.ttft_s <= 0.5
        assert o.tpot_s <= 0.03
        assert o.capacity_per_s >= 90.0
        np.testing.assert_allclose(o.price_per_hour, {"l40s": 0.9, "h200": 3.5}[o.device] * o.gpus)
        np.testing.assert_allclose(o.cost_per_million, o.price_per_hour / 3600 / (90 * 200) * 1e6)


def test_separate_prefill_workers_are_never_sure_and_say_why() -> None:
    options = small().options
    apart = [o for o in options if o.deployment.prefill is not None]
    assert apart
    assert not any(o.sure for o in apart)
    assert any(o.sure for o in options)
    for o in options:
        assert ("separate_not_measured" in {n.code for n in o.notes}) == (o in apart)


def test_the_simulation_confirms_the_winner_and_one_engine_less_is_too_few() -> None:
    best = next(o for o in small().options if o.deployment.prefill is None)
    workload = Workload(rate_per_s=90.0, prompt=1000, output=200)
    s = serve("llama-3-8b", best.device, best.scheme, workload=workload, deployment=best.deployment)
    assert s.tpot.mean < 1.05 * 0.03
    assert s.ttft.mean < 0.5
    fewer = replace(best.deployment, replicas=best.deployment.replicas - 1)
    with pytest.raises(QsimError, match="can serve"):  # noqa: PT012
        one = serve("llama-3-8b", best.device, best.scheme, workload=workload, deployment=fewer)
        if one.tpot.mean > 0.03 or one.ttft.mean > 0.5:
            raise QsimError("slower than the limits, which is why no more than this many can serve")


def test_without_prices_the_fewest_devices_win_and_a_price_changes_the_winner() -> None:
    measured = [o for o in small(priced=False).options if not o.apart]
    assert small(priced=False).best.gpus == min(o.gpus for o in measured)
    assert small(priced=False).best.price_per_hour is None
    cheapest = min(o.price_per_hour for o in small().options if not o.apart)  # type: ignore[type-var]
    assert small().best.price_per_hour == cheapest


def test_the_frontier_has_no_beaten_point_and_fewer_bits_reach_further() -> None:
    points = small().frontier
    for device in ("l40s", "h200"):
        tops = {}
        for scheme in ("bf16", "fp8"):
            mine = [p for p in points if (p.device, p.scheme) == (device, scheme)]
            users = [p.tokens_per_s_per_user for p in mine]
            assert users == sorted(users, reverse=True)
            gpus = [p.tokens_per_s_per_gpu for p in mine]
            assert gpus == sorted(gpus)
            tops[scheme] = gpus[-1]
        assert tops["fp8"] > tops["bf16"]


def test_the_sensitivity_says_what_would_win_instead() -> None:
    changes = {c.what: c.winner for c in small().sensitivity}
    assert changes["load x 0.8"].price_per_hour <= small().best.price_per_hour  # type: ignore[union-attr,operator]
    assert changes["load x 1.25"].price_per_hour >= small().best.price_per_hour  # type: ignore[union-attr,operator]
    assert {"limit on TTFT x 0.8", "price of l40s x 0.8", "all predicted times x 1.1"} <= set(changes)


def test_what_nothing_can_serve_is_refused_with_the_reasons() -> None:
    with pytest.raises(QsimError, match=r"nothing serves llama-3-70b within .*: l40s bf16: weights or one request"):
        plan("llama-3-70b", ttft_s=1, tpot_s=0.03, rate_per_s=1, devices=("l40s",), widths=(1,), schemes=("bf16",))
    with pytest.raises(QsimError, match="a token takes .* ms even at the least load"):
        plan("llama-3-8b", ttft_s=1, tpot_s=1e-5, rate_per_s=1, devices=("l40s",), widths=(1,), schemes=("bf16",))
    with pytest.raises(QsimError, match="needs devices to choose from"):
        plan("llama-3-8b", ttft_s=1, tpot_s=1, rate_per_s=1)
    with pytest.raises(QsimError, match="h200 has no price"):
        plan("llama-3-8b", ttft_s=1, tpot_s=1, rate_per_s=1, devices=("h200",), prices={"l40s": 1.0})


def run(*args: str, code: int = 0) -> str:
    result = click.testing.CliRunner().invoke(main, list(args), prog_name="qsim", env={"COLUMNS": "150"})
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


SERVE = ("serve", "llama-3-8b", "--device", "h200", "--prompt", "500", "--output", "40")


def test_serve_prints_a_table_json_and_a_timeline(tmp_path: Path) -> None:
    text = run(*SERVE, "--concurrency", "16", "--price", "3.5", "--plot", str(tmp_path / "t.png"))
    assert text.startswith("llama-3-8b bf16, vllm on tp1 of h200: 16 in flight, 160 requests, 500 in and 40 out")
    assert "token to token (TPOT)" in text
    assert "per million generated tokens at 3.5 per hour" in text
    assert (tmp_path / "t.png").stat().st_size > 1000
    found = json.loads(run(*SERVE, "--concurrency", "16", "--json"))
    assert found["times"][0]["p99_s"] > found["times"][0]["p50_s"]
    np.testing.assert_allclose(found["tokens_per_s_per_user"], 1 / found["times"][1]["mean_s"])
    assert run(*SERVE, "--rate", "3", "--requests", "200", "--csv").startswith("quantity,mean_s,low_s,high_s")


def test_serve_takes_every_field_of_workload_policy_and_deployment(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n0,100,5\n")
    assert "2 requests of a trace" in run("serve", "llama-3-8b", "--device", "h200", "--trace", str(tmp_path / "t.csv"))
    base = json.loads(run(*SERVE, "--concurrency", "16", "--json"))
    for option in (("--drafts", "3"), ("--prefix-hit", "0.5"), ("--engine", "trtllm"), ("--tp", "2"), ("--pp", "2"),
                   ("--replicas", "2"), ("--prefill-workers", "1"), ("--max-sequences", "4"), ("--no-overlap",),
                   ("--budget", "64"), ("--closed-form",), ("--start", "steady")):  # fmt: skip
        other = json.loads(run(*SERVE, "--concurrency", "16", *option, "--json"))
        assert other["times"] != base["times"], option


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((*SERVE, "--concurrency", "4", "--rate", "2"), "--concurrency and --rate both say when requests come"),
        ((*SERVE, "--rate", "1000"), "requests arrive per second and tp1 of h200 can serve"),
        ((*SERVE, "--prefill-tp", "2"), "--prefill-tp needs --prefill-workers"),
        ((*SERVE, "--engine", "vlm"), "unknown engine policy 'vlm'"),
        ((*SERVE, "--trace", "nowhere.csv"), "nowhere.csv cannot be read"),
        ((*SERVE, "--closed-form", "--plot", "x.png"), "--plot draws an engine over time"),
        (("plan", "llama-3-8b", "--ttft", "1", "--tpot", "30ms", "--rate", "1"), "is no time above 0 with its unit"),
        (("plan", "llama-3-8b", "--ttft", "1s", "--tpot", "30ms", "--rate", "1", "--price", "h200"), "NAME=PER_HOUR"),
        (("plan", "llama-3-8b", "--ttft", "1s", "--tpot", "30ms", "--rate", "1"), "needs devices to choose from"),
    ],
)
def test_a_mistake_is_one_sentence(args: tuple[str, ...], message: str) -> None:
    assert message in run(*args, code=2)


def test_plan_prints_the_winner_its_options_and_the_loss(tmp_path: Path) -> None:
    args = ("plan", "llama-3-8b", "--ttft", "500ms", "--tpot", "30ms", "--rate", "10", "--prompt", "1000", "--output",
            "200", "--price", "h200=3.5,l40s=0.9", "--scheme", "fp8", "--together")  # fmt: skip
    text = run(*args, "--plot", str(tmp_path / "f.png"))
    assert text.startswith("llama-3-8b: fp8 on ")
    assert "What the winner depends on" in text
    assert "not held to measurements" not in text
    assert "not held to measurements" in run(*args[:-1]), "what an answer with separate workers is worth"
    found = json.loads(run(*args, "--json"))
    assert found["options"][0]["price_per_hour"] == min(o["price_per_hour"] for o in found["options"])
    both = run(*args[:-1])
    assert not both.startswith("llama-3-8b: fp8 on prefill"), "a kind that measurements hold comes first"
    assert "%" in found["options"][0]["loss"]
    assert found["frontier"]
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_figures_show_all_that_they_are_given() -> None:
    line = np.array([[0.0, 1, 0, 0.1], [1.0, 4, 2, 0.5], [2.0, 0, 0, 0.0]])
    above, below = timeline_figure(line, title="t").axes
    assert above.get_ylim()[1] >= 4
    assert below.get_ylabel() == "KV cache (%)"
    data = {"a": {"bf16": (np.array([1.0, 2]), np.array([3.0, 1]))}, "b": {"fp8": (np.array([9.0]), np.array([30.0]))}}
    for axes in frontier_figure(data, user_at_least=5.0).axes:
        assert axes.get_xlim()[1] > 9
        assert axes.get_ylim()[1] > 30
    x = np.array([1.0, 2.0])
    curve = LoadCurve(rate=x, token_s=x, low_s=x, high_s=2 * x, measured_rate=x, measured_s=x, other_rate=x, other_s=x)
    figure = load_figure({"one": [curve]}, other="tool")
    assert figure.axes[0].get_ylabel() == "ms per token"
