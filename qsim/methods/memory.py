"""How much memory a run will take, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qsim.models import Model

from .calibration import Calibration
from .recipe import Recipe
from .registry import get_method

_SLICE = 1024  # rows that solver and record work on at a time


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the highest point of a run. `parts` add up to `total_bytes`; `disk_bytes` is the file of hidden states.

    The float model that is given is not among them: it is there already, `model_bytes`.
    """

    model_bytes: int
    parts: Mapping[str, int]
    disk_bytes: int

    @property
    def total_bytes(self) -> int:
        """On top of the model."""
        return sum(self.parts.values())


def estimate_memory(
    model: Model, recipe: Recipe, calibration: Calibration | None, *, true_sequential: bool = True, jobs: int = 1
) -> MemoryEstimate:
    """An upper estimate from shapes alone.

    Arguments:
        jobs: layers that are solved at the same time.
    """
    c = model.config
    shapes = {name: linear.weight.shape for name, linear in model.linears().items()}
    groups = [g for i in range(c.num_hidden_layers) for g in model.block_linears(i)]
    stages = max((model.block_stages(i) for i in range(c.num_hidden_layers)), key=lambda s: sum(map(len, s)))
    block = [shapes[n] for stage in stages for g in stage for n in g]
    parts = {"quantised layers": sum(n * k + 12 * (n * k // 32) for n, k in shapes.values())}
    hidden = 0
    if calibration is not None:
        windows, length = calibration.tokens.shape
        tokens = calibration.micro_batch * length
        hidden = calibration.token_count * c.hidden_size * 4
        widest = max(sum(shapes[n][0] for n in g) + shapes[g[0]][1] for g in groups)
        copies = 2 if recipe.correction else 1
        seen = sum(shapes[g[0]][1] for stage in stages for g in stage)  # inputs kept until the micro-batch is through
        parts["micro-batch"] = copies * 4 * tokens * (7 * c.hidden_size + 2 * widest + seen) + 8 * 256 * length
        per_step = [
            sum(4 * k * k * (int(recipe.hessian) + int(recipe.correction)) + 4 * recipe.sample * k + 40 * k
                for k in (shapes[g[0]][1] for g in stage))
            for stage in stages
        ]  # fmt: skip
        parts["statistics"] = max(per_step) if true_sequential and recipe.quantised_prefix else sum(per_step)
        parts["sampled windows"] = 4 * min(recipe.view_windows, windows) * length * (2 * c.hidden_size + 3 * widest)
        hidden *= copies
    # codes stacked as they are multiplied, and their float32 values
    parts["dequantised block"] = 6 * sum(n * k for n, k in block) if recipe.quantised_prefix else 0
    solver = []
    for n, k in block:
        rows = min(n, _SLICE)
        own = get_method(recipe.method).memory(n, k, recipe)
        scaled = 4 * (2 * n * k + k * k) if recipe.fold is not None else 0
        solver.append(own + scaled + 12 * 4 * rows * k + (0 if recipe.quantised_prefix else 10 * 4 * n * k))
    parts["solver"] = max(jobs, 1) * max(solver)
    return MemoryEstimate(model_bytes=model.nbytes, parts=parts, disk_bytes=hidden)
