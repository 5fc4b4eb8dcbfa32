"""Public names: their annotations resolve, and what is no sensible number is refused with one sentence."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import hwmodels
import qsim
from qsim.errors import QsimError


def public_callables() -> Iterator[tuple[str, Any]]:
    for package in (qsim, hwmodels):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value) or callable(value):
                yield f"{package.__name__}.{name}", value
            if inspect.isclass(value):
                for part, member in vars(value).items():
                    function = member.fget if isinstance(member, property) else member
                    if inspect.isfunction(function) and not part.startswith("_"):
                        yield f"{package.__name__}.{name}.{part}", function


@pytest.mark.parametrize(("name", "value"), list(public_callables()))
def test_the_annotations_of_public_names_resolve(name: str, value: Any) -> None:
    hints = typing.get_type_hints(value)
    if inspect.isfunction(value):
        assert set(inspect.signature(value).parameters) - {"self", "cls"} <= set(hints), name


NONSENSE = [0, -1, float("nan"), float("inf"), -float("inf"), "4", True, None, 1j, [], object(), 10**400,
            np.ones([1] * 20)]  # fmt: skip
SIZES: dict[str, tuple[typing.Callable[..., Any], dict[str, Any], tuple[str, ...]]] = {
    "predict": (
        hwmodels.predict, {"device": "h100", "model": "llama-3.2-1b"}, ("batch", "context", "tensor_parallel")
    ),
    "prefill": (hwmodels.predict, {"device": "h100", "model": "llama-3.2-1b", "phase": "prefill"}, ("seq",)),
    "predict_request": (
        hwmodels.predict_request, {"device": "h100", "model": "llama-3.2-1b"},
        ("batch", "prompt", "new_tokens", "tensor_parallel"),
    ),
    "throughput": (
        hwmodels.throughput, {"device": "h100", "model": "llama-3.2-1b"}, ("prompt", "new_tokens", "tensor_parallel")
    ),
    "sweep": (
        hwmodels.sweep, {"device": "h100", "model": "llama-3.2-1b"}, ("batch", "context", "tensor_parallel")
    ),
    "tornado": (
        hwmodels.tornado, {"device": "h100", "model": "llama-3.2-1b"}, ("batch", "context", "change", "tensor_parallel")
    ),
    "gemm": (hwmodels.gemm, {"device": "h100", "m": 1, "n": 64, "k": 64}, ("m", "n", "k", "weight_bytes")),
    "gemm_time": (hwmodels.gemm_time, {"device": "h100", "M": 1, "N": 64, "K": 64}, ("M", "N", "K", "weight_bytes")),
    "attention": (
        hwmodels.attention,
        {"device": "h100", "phase": "prefill", "batch": 1, "seq": 64, "q_heads": 8, "kv_heads": 8},
        ("batch", "seq", "q_heads", "kv_heads", "head_dim", "value_dim", "kv_bytes_per_element", "new"),
    ),
    "attention_time": (
        hwmodels.attention_time,
        {"device": "h100", "phase": "decode", "batch": 1, "seq": 64, "q_heads": 8, "kv_heads": 8},
        ("batch", "seq", "q_heads", "kv_heads", "head_dim", "value_dim", "kv_bytes_per_element"),
    ),
    "roofline": (
        hwmodels.roofline, {"flop": 1, "traffic_bytes": 1, "peak_flop_per_s": 1, "bandwidth_bytes_per_s": 1},
        ("flop", "traffic_bytes", "peak_flop_per_s", "bandwidth_bytes_per_s"),
    ),
    "break_even": (
        lambda **how: hwmodels.break_even(lambda x: x < 3, **how), {"low": 1, "high": 8}, ("low", "high", "tolerance")
    ),
    "slower_from_batch": (
        hwmodels.whatif.slower_from_batch, {"device": "h100", "model": "llama-3.2-1b", "scheme": "fp8"},
        ("high", "context", "tensor_parallel"),
    ),
    "compute_bound_from": (
        hwmodels.whatif.compute_bound_from, {"device": "h100", "model": "llama-3.2-1b"},
        ("batch", "context", "low", "high"),
    ),
    "smallest_sram_gbytes": (hwmodels.whatif.smallest_sram_gbytes, {"model": "llama-3.2-1b"}, ("chips", "kv_tokens")),
}  # fmt: skip
OPTIONAL = {"seq", "weight_bytes", "value_dim", "new", "low", "high"}
ZERO_IS_FINE = {"flop", "traffic_bytes", "kv_tokens", "value_dim"}


@pytest.mark.parametrize("name", SIZES)
def test_what_is_no_sensible_number_is_one_sentence(name: str) -> None:
    call, good, sizes = SIZES[name]
    call(**good)
    for size in sizes:
        for bad in NONSENSE:
            if (bad is None and size in OPTIONAL) or (type(bad) is int and bad == 0 and size in ZERO_IS_FINE):
                continue
            with pytest.raises(QsimError) as error:
                call(**{**good, size: bad})
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 300, str(error.value)[:300]


@pytest.mark.parametrize(("q", "kv"), [(8, 16), (32, 5), (8, 0.5 + 2.5), (4, 4.5)])
def test_kv_heads_divide_query_heads(q: float, kv: float) -> None:
    for call in (hwmodels.attention, hwmodels.attention_time):
        with pytest.raises(QsimError, match="kv_heads must divide q_heads"):
            call("h100", "decode", 1, 64, q, kv)


def test_break_even_ends_for_every_tolerance_and_condition() -> None:
    """A tolerance of 0 once searched for ever: float64 has no number between two neighbours."""
    for tolerance in (0, -1, 1, 2, 1e-30):
        with pytest.raises(QsimError, match="tolerance must be at least"):
            hwmodels.break_even(lambda x: x < 3.7, 1, 10, tolerance=tolerance)
    found = hwmodels.break_even(lambda x: x < 3.7, 1, 10, tolerance=1e-12)
    assert found.value == pytest.approx(3.7, rel=2e-12)
    assert hwmodels.break_even(lambda x: x < 1e300, 1e-300, 1e308).value == pytest.approx(1e300, rel=2e-3)
    with pytest.raises(QsimError, match=r"NaN at 1"):
        hwmodels.break_even(lambda x: float("nan"), 1, 10)  # type: ignore[arg-type, return-value]
    with pytest.raises(QsimError, match="none from"):
        hwmodels.break_even(lambda x: x < 3, 1.2, 1.8, integer=True)
    with pytest.raises(QsimError, match="0 < low < high"):
        hwmodels.break_even(lambda x: x < 3, 5, 5)
    assert hwmodels.break_even(lambda x: x < 9.7, 1, 10, integer=True).value == 10
