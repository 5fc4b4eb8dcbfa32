"""GPTQ version 2: as version 1, with zero points as they are. Its configs and version 1's are read alike."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from . import gptq

LAYOUT = replace(
    gptq.LAYOUT,
    name="gptq_v2",
    says="the same, version 2: zero points as they are",
    order=30,
    refuses=partial(gptq.refuses, version=2),
    encode=partial(gptq.encode, version=2),
    write_config=partial(gptq.write_config, form="gptq_v2"),
    is_legacy=lambda config: False,
)
