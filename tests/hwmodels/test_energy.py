"""Energy and price: watts between idle and the limit, joules that add up, bands that say what is not measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import hwmodels
from hwmodels.calibration.power import power_of, power_toml
from hwmodels.calibration.store import load_calibration
from hwmodels.energy import prices_of
from hwmodels.fitting.power import law_watts, own_rows
from hwmodels.timing.power import MEASURED, power_law
from qsim.cli import main
from qsim.errors import QsimError


def test_every_settled_loop_of_an_h200_has_the_power_that_the_law_says() -> None:
    law = power_law(hwmodels.get_device("h200"))
    assert law is not None
    rows, what = own_rows()
    error = np.abs(law_watts(law, rows) / rows.watts - 1)
    assert error.mean() < 0.03  # the loops are in the fit; `held_out` below has each left out
    assert max(law.held_out[name] for name in set(what)) < 0.08
    assert error[["layer" in w for w in what]].mean() < 0.05


@pytest.mark.parametrize("name", hwmodels.device_names())
def test_power_lies_between_idle_and_the_limit_of_the_board(name: str) -> None:
    device = hwmodels.get_device(name)
    law = power_law(device)
    for phase, batch in (("decode", 1), ("decode", 256), ("prefill", 4)):
        p = hwmodels.predict(device, "llama-3.2-1b", "w4a16-g128", phase, batch, 2048)
        if law is None:
            assert p.energy is None
            assert p.joule_per_token is None
            continue
        assert p.energy is not None
        assert law.idle_w < p.energy.power_w <= law.limit_w < 1.01 * device.power.board_w  # type: ignore[union-attr]
        assert p.energy.low_j < p.energy_j < p.energy.high_j


def test_a_step_with_more_work_draws_more_power_and_a_token_of_a_larger_batch_takes_less_energy() -> None:
    steps = [hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", b, 1024) for b in (1, 16, 128)]
    powers = [p.energy.power_w for p in steps]  # type: ignore[union-attr]
    assert powers == sorted(powers)
    per_token = [p.joule_per_token for p in steps]
    assert per_token == sorted(per_token, reverse=True)
    many = hwmodels.predict("h200", "llama-3-8b", "bf16", "decode", np.array([1, 16, 128]), 1024)
    np.testing.assert_allclose(many.joule_per_token, per_token, rtol=1e-9)  # sums in another order


def test_two_devices_draw_twice_what_one_of_them_draws() -> None:
    p = hwmodels.predict("h200", "llama-3-70b", "fp8", "decode", 8, 1024, tensor_parallel=2)
    assert p.energy is not None
    assert p.energy_j == pytest.approx(2 * p.energy.power_w * p.time_s, rel=1e-12)


def test_power_that_was_not_measured_is_lent_by_share_of_the_limit_and_has_a_wider_band() -> None:
    known, lent = (hwmodels.predict(d, "llama-3-8b", "bf16") for d in ("h200", "h100-sxm"))
    assert known.energy is not None
    assert lent.energy is not None
    assert (known.energy.fidelity, lent.energy.fidelity) == ("calibrated", "transferred")
    assert lent.energy.origin == "h200 by share of power"
    widths = [np.log(p.energy.high_j / p.energy.low_j) for p in (known, lent)]  # type: ignore[union-attr]
    assert widths[1] > 2 * widths[0]
    blackwell = hwmodels.predict("b300", "llama-3-8b", "bf16").energy
    assert blackwell is not None
    assert blackwell.origin.startswith("b200")


def test_a_lower_limit_of_the_board_lowers_the_power_of_a_step_that_reaches_it() -> None:
    full, capped = (
        hwmodels.predict("h200", "llama-3-8b", "bf16", "prefill", 4, 2048, overrides={"power.board_w": w})
        for w in (700, 500)
    )
    assert capped.energy.power_w < 500 < full.energy.power_w  # type: ignore[union-attr]


def test_the_power_of_a_loop_of_the_tables_is_what_its_sensor_showed() -> None:
    shown = hwmodels.gemm_power("h200", np.array([1, 8192]), 8192, 8192, "vllm022_bf16")
    assert 126 < shown[0] < shown[1] < 701  # the range of the table
    settled = hwmodels.gemm_power("h200", 8192, 8192, 8192)
    assert settled == pytest.approx(678.4, rel=0.04)  # `power.csv`
    with pytest.raises(QsimError, match="kernel"):
        hwmodels.gemm_power("h200", 1, 64, 64, "vllm022_bf17")


@pytest.mark.parametrize("name", MEASURED)
def test_a_power_law_is_what_its_file_says(name: str) -> None:
    from qsim.files import parse_toml

    table = load_calibration(name)
    assert table is not None
    assert table.power is not None
    again = power_of(parse_toml(power_toml(table.power), "again")["power"], table.power.origin)
    assert again == table.power
    for loop in table.loop_power.values():
        assert loop.held_out_mape > 0
        assert loop.band[0] < 1 < loop.band[1]


def test_a_power_table_without_a_number_names_the_file() -> None:
    with pytest.raises(QsimError, match=r"calibration mine: \[power\] must have"):
        power_of({"limit_w": 700.0}, "mine")


def test_a_million_tokens_cost_the_hours_that_they_take_on_all_devices() -> None:
    p = hwmodels.predict("h200", "llama-3-70b", "fp8", "decode", 8, 1024, tensor_parallel=2)
    assert p.cost_per_million_tokens(3.6) == pytest.approx(1e6 / p.tokens_per_s * 2 * 3.6 / 3600, rel=1e-12)
    chips = hwmodels.predict("groq-like", "llama-3-8b", "bf16", "decode", 1, 1024)
    assert chips.chips > 10
    assert chips.cost_per_million_tokens(1.0) == pytest.approx(1e6 * chips.time_s * chips.chips / 3600, rel=1e-12)
    with pytest.raises(QsimError, match="price_per_hour"):
        p.cost_per_million_tokens(0)
    r = hwmodels.predict_request("h200", "llama-3-8b", batch=4, prompt=100, new_tokens=50)
    assert r.cost_per_million_tokens(3.6) == pytest.approx(1e6 / r.output_tokens_per_s * 3.6 / 3600, rel=1e-12)
    assert r.joule_per_token_low < r.joule_per_token < r.joule_per_token_high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("texts", "names", "said"),
    [(["0"], ["h200"], "above 0"), (["x"], ["h200"], "above 0"), (["nan"], ["h200"], "above 0"),
     (["h20=2"], ["h200"], "h200"), (["h200=2", "3"], ["h200"], "two prices"),
     (["h200=2"], ["h200", "l40s"], "no price for l40s"), (["inf"], ["h200"], "above 0")],
)  # fmt: skip
def test_a_price_that_makes_no_sense_is_refused_with_the_rule(texts: list[str], names: list[str], said: str) -> None:
    with pytest.raises(QsimError, match=said):
        prices_of(texts, names)


def test_a_price_is_for_every_device_or_for_one() -> None:
    assert prices_of(["2.5"], ["h200", "l40s"]) == {"h200": 2.5, "l40s": 2.5}
    assert prices_of(["h200=3", "l40s=1"], ["h200", "l40s"]) == {"h200": 3.0, "l40s": 1.0}
    assert prices_of([], ["h200"]) == {}


def test_a_sweep_has_joules_and_costs_where_they_are_asked_for() -> None:
    table = hwmodels.sweep(["h200", "l40s"], "llama-3-8b", batch=[1, 8], price={"h200": 3.5, "l40s": 0.9},
                           columns=["time_s", "joule_per_token"])  # fmt: skip
    for row in table.itertuples():
        p = hwmodels.predict(str(row.device), "llama-3-8b", batch=int(row.batch))
        assert row.joule_per_token == pytest.approx(float(p.joule_per_token), rel=1e-9)
        price = {"h200": 3.5, "l40s": 0.9}[str(row.device)]
        assert row.cost_per_million_tokens == pytest.approx(float(p.cost_per_million_tokens(price)), rel=1e-9)
    assert "joule_per_token" not in hwmodels.sweep("h200", "llama-3-8b", batch=[1])
    with pytest.raises(QsimError, match="no price for l40s"):
        hwmodels.sweep("l40s", "llama-3-8b", price={"h200": 3.5})


def test_the_commands_print_energy_with_a_band_and_the_cost_of_a_million_tokens() -> None:
    run = CliRunner()
    words = ["predict", "llama-3-8b", "--device", "h200", "--price", "3.5"]
    shown = run.invoke(main, words)
    assert shown.exit_code == 0, shown.output
    assert "J per token  (80 % band" in shown.output
    assert "per million tokens at 3.5 per hour and device" in shown.output
    assert "at most" not in shown.output
    row = json.loads(run.invoke(main, [*words, "--json"]).output)
    assert row["joule_per_token_low"] < row["joule_per_token"] < row["joule_per_token_high"]
    assert row["cost_per_million_tokens"] == pytest.approx(3.5 / 3600 / row["tokens_per_s"] * 1e6)
    asked = run.invoke(main, ["predict", "llama-3-8b", "--device", "h200", "--phase", "request", "--price", "3.5"])
    assert "per million generated tokens" in asked.output
    table = run.invoke(main, ["sweep", "llama-3-8b", "--device", "h200", "--price", "h200=3.5", "--batch", "1:4"])
    assert "cost/1e6 tokens" in table.output
    assert "J/token" in table.output
    wrong = run.invoke(main, ["sweep", "llama-3-8b", "--device", "h200", "--price", "h20=3.5"])
    assert wrong.exit_code != 0
