"""No config, however broken, gives anything but a shape or a QsimError."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsim.errors import QsimError
from qsim.families import Shape, model_types, read_config

DATA = Path(__file__).parent / "data"
NAMES = [row["name"] for row in csv.DictReader((DATA / "expected.csv").read_text().splitlines())]
KEYS = sorted({key for name in NAMES for key in json.loads((DATA / f"{name}.json").read_text())})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.sampled_from([10**6, 10**30, -(10**30)]), st.floats(),
    st.sampled_from(["auto", "", "M*", "full_attention", "4"]), st.lists(st.integers(-1, 9), max_size=4),
    st.lists(st.sampled_from(["full_attention", "mamba", "x"]), max_size=4), st.just({}), st.just({"a": {"b": 1}}),
    st.lists(st.lists(st.integers(0, 2), max_size=2), max_size=2),
)  # fmt: skip


@cache
def text(name: str) -> str:
    return (DATA / f"{name}.json").read_text()


def outcome(config: Any) -> None:
    for strict in (True, False):
        message, shape = "", None
        try:
            shape = read_config(config, strict=strict)
        except QsimError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 2000
        if shape is not None:
            assert isinstance(shape, Shape)
            assert 0 < shape.active_parameters <= shape.parameters
            assert shape.cache_bytes(1) >= 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(KEYS), ODD, min_size=1, max_size=3))
def test_a_real_config_with_changed_values_is_read_or_refused(name, change):
    config = json.loads(text(name))
    config.get("text_config", config).update(change)
    outcome(config)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(model_types())), st.dictionaries(st.sampled_from(KEYS), ODD, max_size=6))
def test_a_config_of_few_random_keys_is_read_or_refused(kind, values):
    outcome({**values, "model_type": kind})
