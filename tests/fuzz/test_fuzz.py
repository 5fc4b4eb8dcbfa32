"""A bounded fuzz of every way in: whatever is given, the answer is a value or one sentence."""

import pytest

from .run import run
from .targets import TARGETS

EXAMPLES = 60


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_anything_is_a_value_or_one_sentence(target):
    counts = run(target, EXAMPLES, derandomize=True)
    assert counts["refused"] > 0
