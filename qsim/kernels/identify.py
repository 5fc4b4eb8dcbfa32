"""Which fused kernel computed an output: every row that runs the scheme, by how many outputs it misses."""

from __future__ import annotations

from typing import Any

import numpy as np

from qsim.arrays import as_plain_array, real_array
from qsim.errors import QsimError
from qsim.formats import decode
from qsim.tables import Table

from .linear import linear
from .packing import PackedWeight
from .pipelines import Pipeline, list_pipelines

F32 = np.float32


def identify(x: Any, packed: PackedWeight, y: Any) -> Table[Pipeline]:
    """The known kernels that run this weight, those first whose outputs differ least from `y`.

    Arguments:
        x: (M, K) activations as `linear(..., exact=True, kernel=...)` takes them. Sums that cancel tell kernels apart
            best: what is left of them shows where each was cut.
        packed: the weight.
        y: (M, N) what the unknown kernel returned: floats, or BF16 codes as uint16.

    Returns:
        One row for each kernel: its name, how many outputs differ, of how many, and its status. No difference in a few
        thousand outputs of such an x is strong evidence, not proof: kernels of which one never rounds where the other
        does agree on many inputs.

    Raises:
        QsimError: outputs of another shape, or no kernel for the scheme.
    """
    given = as_plain_array(y, "outputs")
    if given.dtype == np.uint16:
        values = np.asarray(decode(given, "bfloat16"), F32)
    else:
        values = real_array(given, "outputs", dtype=F32)
    tokens = len(as_plain_array(x[0] if isinstance(x, tuple) else x, "activations"))
    if values.shape != (tokens, packed.shape[0]):
        raise QsimError(f"outputs must have the shape ({tokens}, {packed.shape[0]}): got {values.shape}")
    rows = [row for row in list_pipelines() if row.fits(packed.scheme, tokens)]
    if not rows:
        raise QsimError(f"no kernel here runs {packed.scheme!r}: qsim.list_pipelines() shows what is known")
    wanted = values.view(np.uint32)
    found = []
    for row in rows:
        bits = linear(x, packed, exact=True, kernel=row).view(np.uint32)
        found.append((int((bits != wanted).sum()), row))
    found.sort(key=lambda pair: pair[0])
    return Table(
        columns=("pipeline", "differ", "outputs", "status"),
        rows=tuple((row.name, differ, values.size, row.status) for differ, row in found),
        values=tuple(row for _, row in found),
    )
