"""The public names in use: the shortest document of the package. Under 5 s once compiled."""

from __future__ import annotations

import numpy as np

import qsim


def test_formats():
    x = np.array([0.3, -1000.0, 1e-9], np.float32)
    codes = qsim.encode(x, "e4m3")
    assert codes.tolist() == [0x2A, 0xFE, 0x00]
    assert qsim.decode(codes, "e4m3").tolist() == [0.3125, -448.0, 0.0]
    assert qsim.cast(x, "e4m3").tolist() == [0.3125, -448.0, 0.0]
    assert qsim.get_format("e4m3").max == 448.0
    assert qsim.formats.unpack(qsim.formats.pack(np.array([1, 2, 3]), 4), 4, 3).tolist() == [1, 2, 3]
    q = qsim.formats.quantize_blocks(np.ones(32), "mxfp8_e4m3", scale_rule="rceil")
    assert q.dequantize().tolist() == [1.0] * 32
