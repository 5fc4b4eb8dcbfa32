"""Which method for which case: the answers, each with its band and its tag."""

from __future__ import annotations

from ..figure import Section
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    return (
        f"For every case and device: the fastest method whose loss is at most {result.spec.quality.max_loss:g} bits "
        "per byte (at one-sided 95 % confidence). Where the 80 % bands cannot tell methods apart, the one that loses "
        "least is named and the others stand below it. The number of devices is the fewest that hold any acceptable "
        "method."
    )


SECTION = Section(name="when", title="Which method for which case", short="When to use what", order=1, text=_text,
                  template="when.html")  # fmt: skip
FIGURES = ()
