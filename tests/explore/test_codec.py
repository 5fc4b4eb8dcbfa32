"""The page's codec is qsim's: every bfloat16 input into every format of at most eight bits, and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import qsim
from qsim.explore.numbers import formats
from qsim.formats import dequantize_blocks, get_format, quantize_blocks

from .browser import computed

ALL_BFLOAT16 = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)

CODES = """
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
return out;
"""


def test_codes_of_all_bfloat16_inputs_are_those_of_encode(tmp_path: Path) -> None:
    known = formats()["elements"]
    assert len(known) > 20
    found = computed(["codec.js"], {"elements": known}, CODES, tmp_path)
    is_nan = np.isnan(ALL_BFLOAT16)
    for name in known:
        fmt = get_format(name)
        expected = [f"{code:02x}" for code in qsim.encode(np.where(is_nan, 0, ALL_BFLOAT16), fmt).tolist()]
        nan = "--" if fmt.nan_code is None else f"{fmt.nan_code:02x}"
        for i in np.flatnonzero(is_nan).tolist():
            expected[i] = nan
        assert found[name] == "".join(expected), name


def test_values_of_all_codes_are_those_of_decode(tmp_path: Path) -> None:
    known = formats()["elements"]
    body = """
    const said = (v) => (Number.isFinite(v) && !Object.is(v, -0) ? v : Object.is(v, -0) ? "-0" : String(v));
    return Object.fromEntries(Object.entries(data.elements).map(([name, f]) =>
      [name, Array.from({ length: 2 ** f.bits }, (_, code) => said(Codec.decode(code, f)))]));
    """
    found = computed(["codec.js"], {"elements": known}, body, tmp_path)
    special = {"-0": -0.0, "NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
    for name, values in found.items():
        ours = np.array([special.get(v, v) if isinstance(v, str) else v for v in values], np.float64)
        theirs = qsim.decode(np.arange(1 << get_format(name).bits, dtype=np.uint8), name, dtype=np.float64)
        assert ours.tobytes() == theirs.tobytes() or (
            np.array_equal(np.isnan(ours), np.isnan(theirs))
            and ours[~np.isnan(ours)].tobytes() == theirs[~np.isnan(theirs)].tobytes()
        ), name


def test_blocks_have_the_scales_and_codes_of_quantize_blocks(tmp_path: Path) -> None:
    known, rng = formats(), np.random.default_rng(3)
    cases = []
    for name, block in known["blocks"].items():
        for _ in range(40):
            x = (rng.standard_normal(block["size"]) * 2.0 ** rng.integers(-20, 20)).astype(np.float32)
            x[rng.integers(0, len(x), 3)] = 0
            cases.append({"name": name, "x": x.tolist()})
        cases.append({"name": name, "x": [0.0] * block["size"]})
    body = """
    return data.cases.map((c) => { const b = Codec.block(c.x, data.blocks[c.name], data.elements);
      return { scale: b.scaleCode, codes: b.codes, values: b.values }; });
    """
    found = computed(["codec.js"], {**known, "cases": cases}, body, tmp_path)
    for case, here in zip(cases, found, strict=True):
        q = quantize_blocks(np.array(case["x"], np.float32), case["name"])
        assert here["scale"] == int(q.scales[0]), case
        assert here["codes"] == q.codes.tolist(), case
        values = dequantize_blocks(q, dtype=np.float64)
        # float64 multiplies NVFP4's two scales in another order, which may differ in its last bit
        np.testing.assert_allclose(np.array(here["values"]), values, rtol=1e-15)
