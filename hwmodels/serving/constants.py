"""The constants of engines that were fitted on measured serving points, and the bands that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.files import read_toml

from .policy import EnginePolicy

FILE = Path(__file__).parent / "constants.toml"


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What an engine adds to the time of its kernels.

    Attributes:
        engine, generation: whose, on which generation of devices (`hopper`, `blackwell`, ...); "" for all others.
        step_s, row_s: of the host, for a step and for each sequence in it, beyond what runs beside the device.
        prompt_step_s: more of a step that holds prompt tokens, which no CUDA graph covers.
        request_s, token_s: between the client and the scheduler, for a request and for each token of its prompt (HTTP,
            tokeniser), where they queue.
        expert_s: more of a step for each layer of experts: kernels around them that no table holds (choice of experts,
            dispatch, shared expert beside them).
        tpot, ttft: 10 % and 90 % quantiles of measured over predicted, on rows that no fit has seen.
        moe_tpot, moe_ttft: the same for mixtures of experts.
        rows: serving rows that stand behind it. source: where they are from.
    """

    engine: str
    generation: str = ""
    step_s: float = 0.0
    row_s: float = 0.0
    prompt_step_s: float = 0.0
    request_s: float = 0.0
    token_s: float = 0.0
    expert_s: float = 0.0
    tpot: tuple[float, float] = (0.8, 1.25)
    ttft: tuple[float, float] = (0.6, 1.8)
    moe_tpot: tuple[float, float] = (0.75, 1.5)
    moe_ttft: tuple[float, float] = (0.6, 3.0)
    rows: int = 0
    source: str = ""

    def host_s(self, mixtures: int) -> tuple[float, float, float]:
        """Seconds of the host for a step of a model with so many layers of experts, for each row of it, and more where
        it holds prompts."""
        return self.step_s + mixtures * self.expert_s, self.row_s, self.prompt_step_s


def settled(constants: Constants, mixtures: int, fidelity: str, low: float, high: float) -> Constants:
    """The constants with the bands of a model.

    Where the kernels of a step were measured on the device, the engine's bands, of mixtures where the model has layers
    of experts. Where they were not, the step's own band joins that of the engine with dense models, which is the
    engine's alone: that of mixtures holds what tables of experts miss, which the step's says of these. The first token
    of mixtures keeps its band, which is wide enough for both.

    Arguments:
        constants: with the bands of the engine, from devices whose kernels were measured.
        mixtures: layers of experts. fidelity, low, high: of the step, as factors.
    """

    def joined(band: tuple[float, float]) -> tuple[float, float]:
        down, up = (math.hypot(math.log(a), math.log(b)) for a, b in zip(band, (low, high), strict=True))
        return math.exp(-down), math.exp(up)

    if fidelity == "calibrated":
        return replace(constants, tpot=constants.moe_tpot, ttft=constants.moe_ttft) if mixtures else constants
    first = constants.moe_ttft if mixtures else joined(constants.ttft)
    return replace(constants, tpot=joined(constants.tpot), ttft=first)


KEYS = ("step_s", "row_s", "prompt_step_s", "request_s", "token_s", "expert_s")
BANDS = ("tpot", "ttft", "moe_tpot", "moe_ttft")


def generation_of(calibration: str) -> str:
    """The generation of a device by the name of its calibration: what engines choose their kernels by."""
    name = calibration.lower()
    if name.startswith(("b200", "b300", "gb200", "gb300", "rtx-pro")):
        return "blackwell"
    if name.startswith(("h100", "h200", "gh200")):
        return "hopper"
    return "ada" if name.startswith(("l4", "rtx-4", "rtx-6000")) else "ampere" if name.startswith("a") else ""


def read_constants(path: str | Path) -> tuple[Constants, ...]:
    """The constants of a TOML file, as `qsim calibrate --serving` writes it.

    Raises:
        QsimError: no such file, no TOML, or a value that is missing, of another type or out of range.
    """
    table = read_toml(Path(path))
    blocks = table.get("engines")
    if not isinstance(blocks, list) or not blocks:
        raise QsimError(f"{path}: a file of serving constants must hold [[engines]] tables")
    found = []
    for block in blocks:
        fields = Fields(block, str(path))
        values: dict[str, Any] = {key: fields.number(key, 0.0, 10.0, 0.0) for key in KEYS}
        bands: dict[str, Any] = {
            key: _band(block, key, str(path)) for key in BANDS if key in ("tpot", "ttft") or key in block
        }
        found.append(Constants(
            engine=fields.text("engine"), generation=fields.text("generation", ""),
            rows=fields.integer("rows", 0, 1 << 31, 0), source=fields.text("source", ""), **values, **bands,
        ))  # fmt: skip
    return tuple(found)


def _band(block: dict[str, Any], key: str, where: str) -> tuple[float, float]:
    value = block.get(key)
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not isinstance(value, list) or not numbers or not 0 < value[0] <= 1 <= value[1]:
        raise QsimError(f"{where}: {key} must be two factors, one at most 1 and one at least 1: got {value!r:.60}")
    return float(value[0]), float(value[1])


@lru_cache(maxsize=1)
def shipped() -> tuple[Constants, ...]:
    """The constants of this package."""
    return read_constants(FILE)


def constants_for(policy: EnginePolicy, generation: str, known: tuple[Constants, ...] | None = None) -> Constants:
    """The constants of an engine on a generation of devices.

    Where the engine has none for the generation, those of the engine without a generation; for an engine that is not
    known, those of `vllm` without a generation, with wide bands.

    Arguments:
        policy: its name and whether the host overlaps (`<name>` or `<name>-sync`).
        known: None for those of this package.
    """
    found = shipped() if known is None else known
    names = [policy.name] if policy.overlap else [f"{policy.name}-sync", policy.name]
    for name in names:
        for wanted in (generation, ""):
            for one in found:
                if one.engine == name and one.generation == wanted:
                    return one
    return Constants(engine=policy.name, tpot=(0.7, 1.6), ttft=(0.4, 3.0), source="no measured engine of this name")
