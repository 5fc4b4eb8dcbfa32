"""Serving: the event loop against hand counts and identities, the closed form against the loop, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import hwmodels
from hwmodels.serving import (
    Constants,
    Deployment,
    EnginePolicy,
    Lengths,
    Speculation,
    Workload,
    closed_form,
    get_policy,
    policy_names,
    read_trace,
    serve,
    simulate,
    tabulate,
)
from hwmodels.serving.steps import StepTable
from hwmodels.serving.workload import as_lengths
from qsim.errors import QsimError
from qsim.scheme import get_scheme

FREE = Constants(engine="none")
"""An engine whose host costs nothing."""
PLAIN = EnginePolicy(name="plain", graph_rows=(), watermark=0.0, block_tokens=1)


def flat_table(*, decode_s: float = 1.0, token_s: float = 0.01, kv_tokens: float = 1e9) -> StepTable:
    """A decode step of any rows takes `decode_s`, and each prompt token beside it `token_s`; attention is free."""
    tokens = np.arange(4001, dtype=np.float64)
    linear = decode_s + token_s * tokens
    linear[0] = 0.0
    return StepTable(
        linear=linear, head=np.zeros(4001), decode=np.zeros((65, 4)), prompt=np.zeros(8), padded=np.arange(65),
        spacing=1000.0, fixed=0.0, first=64.0, ratio=1.0, kv_tokens=kv_tokens, kv_bytes=1.0, generation="",
        fidelity="calibrated", low=0.8, high=1.2, power_w=None, notes=(), kernel="", weights_bytes=0.0,
        capacity_bytes=1.0,
    )  # fmt: skip


@lru_cache(maxsize=8)
def real_table(name: str = "vllm") -> StepTable:
    device, arch = hwmodels.get_device("h200"), hwmodels.get_architecture("llama-3-8b")
    return tabulate(device, arch, get_scheme("bf16"), get_policy(name), Deployment(), rows=65, context=6000)


def test_one_request_is_its_prefill_and_its_steps() -> None:
    run = simulate(flat_table(), Workload(concurrency=1, prompt=100, output=11, requests=1, spread=0), PLAIN, FREE)
    # the prompt's step: 1 + 100 * 0.01; ten steps of one row: 1 + 0.01
    np.testing.assert_allclose(run.ttft_s, 2.0)
    np.testing.assert_allclose(run.tpot_s, 1.01)
    assert run.steps == 11


def test_prompts_beyond_the_budget_are_read_in_pieces_beside_the_decode_rows() -> None:
    policy = replace(PLAIN, token_budget=50)
    run = simulate(flat_table(), Workload(concurrency=1, prompt=120, output=2, requests=1, spread=0), policy, FREE)
    np.testing.assert_allclose(run.ttft_s, 1.5 + 1.5 + 1.2)
    two = simulate(flat_table(), Workload(concurrency=2, prompt=50, output=3, requests=2, spread=0), policy, FREE)
    # the second prompt has the room that the first one's decode row leaves: 49 tokens, then the last one
    np.testing.assert_allclose(two.first_s, [1.5, 1.5 + 1.5 + 1.02])


def test_whole_prompts_wait_for_a_step_with_room_and_prefill_first_stops_decoding() -> None:
    trace = ((0.0, 40, 3), (0.5, 40, 3))
    whole = replace(PLAIN, schedule="whole_prompts", token_budget=60)
    run = simulate(flat_table(), Workload(trace=trace), whole, FREE)
    np.testing.assert_allclose(run.first_s, [1.4, 1.4 + 1.41])
    np.testing.assert_allclose(run.done_s[0], 1.4 + 1.41 + 1.02)
    alone = simulate(flat_table(), Workload(trace=trace), replace(whole, schedule="prefill_first"), FREE)
    np.testing.assert_allclose(alone.first_s, [1.4, 2.8])
    np.testing.assert_allclose(alone.done_s, [2.8 + 1.02 * 2] * 2)


def test_prompts_are_held_back_for_the_steps_that_the_policy_says() -> None:
    trace = ((0.0, 10, 40), (1.5, 10, 2))
    waits = {
        hold: simulate(flat_table(), Workload(trace=trace), replace(PLAIN, batch_wait_steps=hold), FREE).ttft_s[1]
        for hold in (0, 7)
    }
    np.testing.assert_allclose(waits[7] - waits[0], 7 * 1.01)


def test_tokens_are_conserved_and_littles_law_holds() -> None:
    workload = Workload(concurrency=16, prompt="uniform:100:900", output="uniform:20:200", seed=3)
    for name in policy_names():
        run = simulate(real_table(name), workload, get_policy(name), FREE)
        assert run.output.size == 160
        assert (run.done_s > run.first_s).all()
        assert (run.first_s > run.begun_s).all()
        in_flight = run.latency_s.sum() / run.span_s
        assert 0.75 * 16 < in_flight <= 16 + 1e-9  # fewer at the end, when none follows
        assert run.steps >= run.output.max()


def test_a_small_cache_puts_requests_back_and_copying_them_is_cheaper_than_reading_them_again() -> None:
    workload = Workload(concurrency=8, prompt=200, output=200, requests=16, spread=0)
    small = flat_table(kv_tokens=1500.0)
    run = simulate(small, workload, PLAIN, FREE)
    assert run.preemptions > 0
    assert np.isfinite(run.done_s).all()
    assert run.timeline[:, 3].max() <= 1500
    reserved = simulate(small, workload, replace(PLAIN, reserve_output=True), FREE)
    assert reserved.preemptions == 0
    assert reserved.timeline[:, 1].max() == 3  # 1500 // 401
    copied = simulate(small, workload, replace(PLAIN, offload_gbytes=8.0, offload_gbytes_per_s=1.0), FREE)
    assert copied.preemptions == copied.copied > 0
    assert copied.span_s < run.span_s
    assert run.copied == 0
    # a tier that holds one sequence of the several that are put back, and a slow one
    one = simulate(small, workload, replace(PLAIN, offload_gbytes=4e-7, offload_gbytes_per_s=1.0), FREE)
    assert 0 < one.copied < one.preemptions
    slow = simulate(small, workload, replace(PLAIN, offload_gbytes=8.0, offload_gbytes_per_s=1e-9), FREE)
    assert slow.span_s > copied.span_s


@pytest.mark.parametrize("name", ["vllm", "trtllm", "sglang"])
def test_the_closed_form_is_the_loop_over_a_random_grid_in_the_steady_region(name: str) -> None:
    """TTFT and TPOT within 5 % for nine of ten random deployments, of closed and of open loops.

    Steady is where prompts take less than two fifths of the time: beyond it, requests of a closed loop fall into step
    with each other. What is left over is the draw of some hundred requests, and a closed loop of equal gaps.
    """
    rng = np.random.default_rng(7)
    policy, table, errors = get_policy(name), real_table(name), []
    while len(errors) < 40:
        prompt, output = (float(np.round(2 ** rng.uniform(*bits))) for bits in ((7, 12), (6, 10)))
        host = Constants(
            engine=name, step_s=rng.uniform(0, 1e-3), row_s=2e-5, prompt_step_s=rng.uniform(0, 5e-3),
            request_s=rng.uniform(0.005, 0.05), token_s=4e-6,
        )  # fmt: skip
        lengths = {
            "prompt": f"uniform:{0.8 * prompt}:{1.2 * prompt}",
            "output": f"uniform:{0.8 * output}:{1.2 * output}",
        }
        means: dict[str, float] = {"prompt": prompt, "output": output}
        if rng.random() < 0.5:
            flight = round(2 ** rng.uniform(0, 6))
            workload = Workload(concurrency=flight, start="steady", requests=max(200, 12 * flight), **lengths)
            means["concurrency"] = flight
        else:
            most = closed_form(table, policy, host, concurrency=60.0, **means).requests_per_s
            means["rate_per_s"] = float(most) * rng.uniform(0.1, 0.7)
            workload = Workload(rate_per_s=means["rate_per_s"], requests=800, **lengths)
        run, mean = simulate(table, workload, policy, host), closed_form(table, policy, host, **means)
        if run.prompt_share < 0.4:
            errors.append([abs(mean.tpot_s / run.tpot_s.mean() - 1), abs(mean.ttft_s / run.ttft_s.mean() - 1)])
    assert (np.quantile(errors, 0.9, axis=0) < 0.05).all()
    assert (np.median(errors, axis=0) < 0.025).all()
    assert np.max(errors) < 0.15


def test_the_closed_form_takes_arrays_and_open_loops() -> None:
    table, policy = real_table(), get_policy("vllm")
    many = closed_form(table, policy, FREE, prompt=1000, output=np.array([[100], [300]]), concurrency=[1, 8, 32])
    assert many.tpot_s.shape == (2, 3)
    one = closed_form(table, policy, FREE, prompt=1000, output=300, concurrency=8)
    np.testing.assert_allclose(many.tpot_s[1, 1], one.tpot_s)
    assert (np.diff(many.tpot_s, axis=1) > 0).all()
    workload = Workload(rate_per_s=4.0, prompt=1000, output=200, requests=600)
    run = simulate(table, workload, policy, FREE)
    mean = closed_form(table, policy, FREE, prompt=1000, output=200, rate_per_s=4.0)
    assert abs(mean.tpot_s / run.tpot_s.mean() - 1) < 0.05


def test_a_result_holds_what_a_buyer_asks_for() -> None:
    workload = Workload(concurrency=16, prompt=1000, output=100)
    s = serve("llama-3-8b", "h200", "bf16", workload=workload, policy="vllm", price_per_hour=3.0)
    assert s.tpot.p50 is not None
    assert s.ttft.p99 is not None
    assert s.ttft.p50 <= s.ttft.p90 <= s.ttft.p99  # type: ignore[operator]
    assert s.tpot.low < 1 < s.tpot.high
    np.testing.assert_allclose(s.cost_per_million_tokens, 3.0 / 3600 / s.output_tokens_per_s * 1e6)
    np.testing.assert_allclose(s.tokens_per_s_per_user * s.tpot.mean, 1.0)
    assert s.joules_per_million_tokens is not None
    assert 0 < s.kv_occupancy < 1  # type: ignore[operator]
    assert s.timeline.shape[1] == 4
    assert s.limit == "requests"
    replicas = serve("llama-3-8b", "h200", "bf16", workload=replace(workload, concurrency=32),
                     deployment=Deployment(replicas=2))  # fmt: skip
    assert replicas.gpus == 2
    np.testing.assert_allclose(replicas.output_tokens_per_s, 2 * s.output_tokens_per_s, rtol=0.05)
    assert len(repr(s)) < 200, "a line, not the tables behind it"


def test_more_devices_and_fewer_bits_are_faster_and_a_pipeline_serves_more() -> None:
    workload = Workload(concurrency=32, prompt=1000, output=100, requests=96)
    times = {
        (scheme, tp): serve("llama-3-70b", "h200", scheme, workload=workload,
                            deployment=Deployment(tensor_parallel=tp)).tpot.mean
        for scheme in ("bf16", "fp8-tensor") for tp in (4, 8)
    }  # fmt: skip
    assert times["bf16", 8] < times["bf16", 4]
    assert times["fp8-tensor", 4] < times["bf16", 4]
    one, two = (
        serve("llama-3-8b", "h200", workload=workload, deployment=Deployment(pipeline_parallel=n)) for n in (1, 2)
    )
    assert two.output_tokens_per_s > 1.2 * one.output_tokens_per_s


def test_separate_prefill_workers_keep_prompts_out_of_the_decode_steps() -> None:
    workload = Workload(concurrency=64, prompt=4000, output=100)
    together = serve("llama-3-8b", "h200", workload=workload, deployment=Deployment(replicas=4))
    apart = serve("llama-3-8b", "h200", workload=workload,
                  deployment=Deployment(replicas=1, prefill=Deployment(replicas=3)))  # fmt: skip
    assert apart.gpus == together.gpus == 4
    assert apart.tpot.mean < together.tpot.mean
    slow = Deployment(replicas=1, prefill=Deployment(replicas=3), link_gbytes_per_s=0.1)
    assert serve("llama-3-8b", "h200", workload=workload, deployment=slow).tpot.mean > apart.tpot.mean
    with pytest.raises(QsimError, match="can serve"):
        serve("llama-3-8b", "h200", workload=Workload(rate_per_s=50.0, prompt=4000, output=10),
              deployment=Deployment(replicas=4, prefill=Deployment()))  # fmt: skip


def test_layers_that_stay_in_sixteen_bit_take_time_and_memory() -> None:
    workload = Workload(concurrency=8, prompt=500, output=50)
    found = [
        serve("minimax-m2", "b200", "nvfp4", workload=workload, deployment=Deployment(tensor_parallel=2), quantized=q)
        for q in ("all", "mlp", "experts")
    ]
    weights = [s.step.weights_bytes for s in found]
    arch = hwmodels.get_architecture("minimax-m2")
    mixers = sum(p.weights for p in arch.parts if p.name in ("qkv", "o"))
    np.testing.assert_allclose(weights[1] - weights[0], mixers * (2 - 4.5 / 8) / 2, rtol=0.01)
    np.testing.assert_allclose(weights[2], weights[1])  # this model has no other layers
    assert found[1].step.kv_tokens < found[0].step.kv_tokens
    assert found[1].tpot.mean > found[0].tpot.mean
    np.testing.assert_allclose(found[2].tpot.mean, found[1].tpot.mean, rtol=0.02)
    with pytest.raises(QsimError, match="unknown part that is quantised 'attention'"):
        serve("minimax-m2", "b200", "nvfp4", workload=workload, quantized="attention")
    with pytest.raises(QsimError, match="llama-3-8b has none"):
        serve("llama-3-8b", "b200", "nvfp4", workload=workload, quantized="experts")


def test_a_layer_of_experts_adds_what_its_constant_says() -> None:
    host = Constants(engine="none", expert_s=0.5)
    table = replace(flat_table(), mixtures=3)
    run = simulate(table, Workload(concurrency=1, prompt=100, output=11, requests=1, spread=0), PLAIN, host)
    np.testing.assert_allclose(run.tpot_s, 1.01 + 3 * 0.5)


def test_speculation_gains_by_its_acceptance_and_costs_its_drafts() -> None:
    np.testing.assert_allclose(Speculation(drafts=3, acceptance=0.5).gained, 1 + 0.5 + 0.25 + 0.125)
    assert Speculation(drafts=2, acceptance=1.0).gained == 3
    assert Speculation(drafts=2, acceptance=0.5, branches=2).gained > Speculation(drafts=2, acceptance=0.5).gained
    workload = Workload(concurrency=2, prompt=500, output=100)

    def token_s(speculation: Speculation | None) -> float:
        policy = replace(get_policy("vllm"), speculation=speculation)
        return serve("llama-3-8b", "h200", workload=workload, policy=policy).tpot.mean

    none = token_s(None)
    good = token_s(Speculation(drafts=3, acceptance=0.8))
    assert good < 0.6 * none
    assert token_s(Speculation(drafts=3, acceptance=0.0)) > none
    assert good < token_s(Speculation(drafts=3, acceptance=0.8, draft_share=0.3))
    policy = replace(get_policy("vllm"), speculation=Speculation(drafts=3, acceptance=0.8))
    notes = serve("llama-3-8b", "h200", workload=workload, policy=policy).notes
    assert any(note.startswith("3 drafts, acceptance 0.8: 2.95 tokens from a step in the mean") for note in notes)


def test_a_prefix_cache_saves_prefill_and_keeps_the_attention_to_it() -> None:
    plain, cached = (
        serve("llama-3-8b", "h200", workload=Workload(concurrency=16, prompt=4000, output=100, prefix_hit=hit))
        for hit in (0.0, 0.75)
    )
    assert cached.ttft.mean < 0.5 * plain.ttft.mean
    assert cached.output_tokens_per_s > plain.output_tokens_per_s


def test_arrivals_above_the_capacity_are_refused_with_it() -> None:
    s = serve("llama-3-8b", "h200", workload=Workload(rate_per_s=2.0, prompt=1000, output=200, requests=200))
    assert s.capacity_per_s > 2.0
    with pytest.raises(QsimError, match=r"requests arrive per second and tp1 of h200 can serve [\d.]+: the queue"):
        serve("llama-3-8b", "h200", workload=Workload(rate_per_s=2 * s.capacity_per_s, prompt=1000, output=200))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(QsimError, match="does not fit tp1 of h100-sxm: its weights are"):
        serve("llama-3-70b", "h100-sxm", workload=Workload(concurrency=1))
    with pytest.raises(QsimError, match=r"a request of 918\d+ tokens does not fit"):
        serve("llama-3-8b", "l40s", workload=Workload(concurrency=1, prompt=900000, output=100))
    with pytest.raises(QsimError, match="tensor_parallel must divide"):
        serve("llama-3-8b", "h200", workload=Workload(concurrency=1), deployment=Deployment(tensor_parallel=3))


def test_percentiles_of_too_few_requests_are_left_out_and_said() -> None:
    s = serve("llama-3-8b", "h200", workload=Workload(concurrency=4, prompt=500, output=50, requests=40))
    assert s.ttft.p99 is None
    assert s.ttft.p90 is not None
    assert any("p99 needs 100 requests and the run has 40" in note for note in s.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens\n0,5\n", "has no column output_tokens"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,5\n3,5,5\n2,5,5\n", "row 4: arrival_s must not go back: .* -1 s"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5,x\n", "row 2: a time and two whole numbers"),
        ("arrival_s,prompt_tokens,output_tokens\n0,0,5\n", "row 2: .* at least 1 token"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,5,5\n", "row 2: the time must be finite"),
        ("arrival_s,prompt_tokens,output_tokens\n", "holds no request"),
    ],
)
def test_a_bad_trace_is_refused_with_its_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(QsimError, match=message):
        read_trace(tmp_path / "t.csv")


def test_a_trace_is_served_as_it_comes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n5,100,3\n5.5,200,2\n60,50,1\n")
    trace = read_trace(tmp_path / "t.csv")
    assert trace == ((5.0, 100, 3), (5.5, 200, 2), (60.0, 50, 1))
    run = simulate(flat_table(), Workload(trace=trace), PLAIN, FREE)
    np.testing.assert_allclose(run.first_s[[0, 2]], [2.0, 55.0 + 1.5])
    assert serve("llama-3-8b", "h200", workload=Workload(trace=trace)).ttft.p90 is None


def test_lengths_are_drawn_as_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert set(as_lengths("uniform:3:5").draw(200, rng)) == {3.0, 4.0, 5.0}
    log = as_lengths("lognormal:1000:0.5")
    drawn = log.draw(20000, rng)
    np.testing.assert_allclose(drawn.mean(), log.mean, rtol=0.02)  # four standard errors of 20,000 draws
    (tmp_path / "l.csv").write_text("tokens\n7\n9\n")
    assert as_lengths(f"file:{tmp_path / 'l.csv'}") == Lengths(kind="values", values=(7, 9))
    for bad in ("uniform:5:3", "uniform:3", "half", "lognormal:0:1", -3, True, None, f"file:{tmp_path / 'no.csv'}"):
        with pytest.raises(QsimError):
            as_lengths(bad)  # type: ignore[arg-type]
    (tmp_path / "l.csv").write_text("tokens\n7\nx\n")
    with pytest.raises(QsimError, match="line 3: a length must be a whole number"):
        as_lengths(f"file:{tmp_path / 'l.csv'}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(), "exactly one of concurrency, rate_per_s and trace"),
        (lambda: Workload(concurrency=1, rate_per_s=1.0), "exactly one of"),
        (lambda: Workload(concurrency=0), "concurrency must be at least 1"),
        (lambda: Workload(rate_per_s=float("inf")), "rate_per_s"),
        (lambda: Workload(concurrency=1, prefix_hit=1.0), "prefix_hit is a share below 1"),
        (lambda: Workload(concurrency=1, start="late"), "start must be burst or steady"),
        (lambda: EnginePolicy(name="x", schedule="mixd"), "mixed"),
        (lambda: EnginePolicy(name="x", memory_share=1.5), "memory_share"),
        (lambda: EnginePolicy(name="x", graph_rows=(4, 2)), "graph_rows must increase"),
        (lambda: Speculation(acceptance=1.5), "acceptance is a share"),
        (lambda: Deployment(tensor_parallel=2, expert_parallel=3), "expert_parallel must divide the 2 devices"),
        (lambda: get_policy("vlm"), "vllm"),
    ],
)
def test_settings_that_no_engine_can_have_are_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(QsimError, match=message):
        make()
