"""Which checkpoint to serve for which case: the answers, each with its bands and badges."""

from __future__ import annotations

from ..figure import Section
from ..result import StudyResult


def _text(result: StudyResult) -> str:
    return (
        f"What engines serve, loses at most {result.spec.max_lost:g} % of an average score on the target, and is of a "
        "kind that destroyed no model of its class; of those the fastest, and where the 80 % bands cannot tell, one "
        "whose time was measured on the device, then the simpler one. A larger loss must buy a tenth of speed. Gains "
        "are over 16 bit; the badges say what the time and the loss stand on."
    )


SECTION = Section(name="when", title="What to serve", short="What to serve", order=1, text=_text,
                  template="when.html")  # fmt: skip
FIGURES = ()
