"""Which checkpoint to serve for which case: the answers, each with its bands and badges."""

from __future__ import annotations

from ..figure import Section
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    return (
        f"The fastest checkpoint that engines serve and that loses at most {result.spec.max_lost:g} % of an average "
        "score. Gains are over 16 bit; badges say what time and loss stand on."
    )


SECTION = Section(name="when", title="What to serve", short="What to serve", order=1, text=_text,
                  template="when.html")  # fmt: skip
FIGURES = ()
