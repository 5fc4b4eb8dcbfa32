"""What is fuzzed of arrays: formats, quantisation, products, GPTQ."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import qsim

FORMATS = ("e4m3", "e5m2", "int8", "uint4", "fp4", "bfloat16", "nf4", "e8m0", "float6_e3m2fn", "tf32")
SCHEMES = (
    "w4a16-g128",
    "w4a16-g32",
    "w8a8-channel-token",
    "fp8",
    "fp8-block128",
    "mxfp4",
    "nvfp4",
    "nf4-g64",
    "w3a16",
)


def try_encode(example: tuple[Any, str], _folder: Path) -> None:
    x, fmt = example
    with np.errstate(all="ignore"):
        codes = qsim.encode(x, fmt)
        qsim.decode(codes, fmt)
        qsim.cast(x, fmt)


def try_blocks(example: tuple[Any, str], _folder: Path) -> None:
    x, fmt = example
    values = qsim.formats.quantize_blocks(x, fmt).dequantize(np.float64)
    assert np.isfinite(values).all() or not np.isfinite(np.asarray(x, dtype=np.float64)).all()


def try_decode(example: tuple[Any, str], _folder: Path) -> None:
    codes, fmt = example
    qsim.decode(codes, fmt)


def try_quantize(example: tuple[Any, str], _folder: Path) -> None:
    w, scheme = example
    q = qsim.quantize(w, scheme)
    assert q.shape == np.shape(w)


@cache
def _packed(scheme: str) -> Any:
    w = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    return qsim.kernels.pack(qsim.quantize(w, scheme))


def try_linear(example: tuple[Any, str], _folder: Path) -> None:
    x, scheme = example
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Inf times 0 in the float32 product of a dense format
        qsim.kernels.linear(x, _packed(scheme))


def try_gptq(example: tuple[Any, Any], _folder: Path) -> None:
    from qsim.algorithms import gptq

    w, hessian = example
    gptq(w, hessian, "w4a16-g32")


def try_matmul(example: tuple[Any, Any, Any], _folder: Path) -> None:
    a, b, instruction = example
    qsim.tensorcore.matmul(a, b, instruction=instruction)
