"""The page's codec is qsim's: every bfloat16 input into every format of at most eight bits, and blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qsim
from qsim.explore.numbers import formats
from qsim.formats import dequantize_blocks, get_format, quantize_blocks
from qsim.tensorcore import reference

from .browser import computed

ALL_BFLOAT16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)

CODES = """
const said = (v) => (Number.isFinite(v) && !Object.is(v, -0) ? v : Object.is(v, -0) ? "-0" : String(v));
const values = Object.fromEntries(Object.entries(data.elements).map(([name, f]) =>
  [name, Array.from({ length: 2 ** f.bits }, (_, code) => said(Codec.decode(code, f)))]));
const blocks = data.cases.map((c) => { const b = Codec.block(c.x, data.blocks[c.name], data.elements);
  return { scale: b.scaleCode, codes: b.codes, values: b.values }; });
const sums = data.factors.map((pairs) => {
  let sum = 0;
  return pairs.map(([a, b]) => (sum = Codec.accumulate(sum, a, b, 13)));
});
const bits = new Uint32Array(1), value = new Float32Array(bits.buffer), out = {};
for (const [name, f] of Object.entries(data.elements)) {
  const text = new Array(65536);
  for (let i = 0; i < 65536; i++) {
    bits[0] = i << 16;
    const code = Codec.encode(value[0], f);
    text[i] = code === null ? "--" : code.toString(16).padStart(2, "0");
  }
  out[name] = text.join("");
}
return { codes: out, values, blocks, sums };
"""


Made = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What the browser was given, and what it made of it."""
    known, rng, cases = formats(), np.random.default_rng(3), []
    for name, block in known["blocks"].items():
        for _ in range(40):
            x = (rng.standard_normal(block["size"]) * 2.0 ** rng.integers(-20, 20)).astype(np.float32)
            x[rng.integers(0, len(x), 3)] = 0
            cases.append({"name": name, "x": x.tolist()})
        cases.append({"name": name, "x": [0.0] * block["size"]})
    factors = qsim.decode(rng.integers(0, 0x7F, (20, 60, 2)).astype(np.uint8), "e4m3").astype(np.float64)
    factors *= rng.choice([-1.0, 1.0, 1.0], factors.shape)
    factors[:4] = 1.75  # the sum grows until nothing is added
    data = {**known, "cases": cases, "factors": factors.tolist()}
    return data, computed(["codec.js"], data, CODES, tmp_path_factory.mktemp("codec"))


def test_codes_of_all_bfloat16_inputs_are_those_of_encode(made: Made) -> None:
    known, found = made[0]["elements"], made[1]["codes"]
    assert len(known) > 20
    is_nan = np.isnan(ALL_BFLOAT16)
    for name in known:
        fmt = get_format(name)
        expected = [f"{code:02x}" for code in qsim.encode(np.where(is_nan, 0, ALL_BFLOAT16), fmt).tolist()]
        nan = "--" if fmt.nan_code is None else f"{fmt.nan_code:02x}"
        for i in np.flatnonzero(is_nan).tolist():
            expected[i] = nan
        assert found[name] == "".join(expected), name


def test_values_of_all_codes_are_those_of_decode(made: Made) -> None:
    special = {"-0": -0.0, "NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    for name, values in made[1]["values"].items():
        ours = np.array([special.get(v, v) if isinstance(v, str) else v for v in values], np.float64)
        theirs = qsim.decode(np.arange(1 << get_format(name).bits, dtype=np.uint8), name, dtype=np.float64)
        numbers = ~np.isnan(theirs)
        assert np.array_equal(~np.isnan(ours), numbers), name
        assert ours[numbers].tobytes() == theirs[numbers].tobytes(), name


def test_blocks_have_the_scales_and_codes_of_quantize_blocks(made: Made) -> None:
    for case, here in zip(made[0]["cases"], made[1]["blocks"], strict=True):
        q = quantize_blocks(np.array(case["x"], np.float32), case["name"])
        assert here["scale"] == int(q.scales[0]), case
        assert here["codes"] == q.codes.tolist(), case
        values = dequantize_blocks(q, dtype=np.float64)
        # float64 multiplies NVFP4's two scales in another order, which may differ in its last bit
        np.testing.assert_allclose(np.array(here["values"]), values, rtol=1e-15)


def test_the_accumulator_of_13_bits_is_that_of_hopper(made: Made) -> None:
    for factors, sums in zip(made[0]["factors"], made[1]["sums"], strict=True):
        c = np.zeros((1, 1), np.uint32)
        for pair, here in zip(factors, sums, strict=True):
            a, b = np.zeros((2, 1, 32), np.uint8)
            a[0, 0], b[0, 0] = qsim.encode(np.array(pair), "e4m3")
            c = reference.mma("hopper.wgmma.f32.e4m3", a, b, c)
            assert here == float(c.view(np.float32)[0, 0]), factors
