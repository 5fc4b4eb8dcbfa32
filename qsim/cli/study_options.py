"""From the options of `qsim study` to the study that they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsim.errors import QsimError, nearest

if TYPE_CHECKING:
    from qsim.study import Case, Method, Quality, Speed, StudySpec
    from qsim.study.spec import Measure, Phase


def spec_from(given: Mapping[str, Any]) -> StudySpec:
    """The study of a file, or the default one, with what the options change.

    Raises:
        ValueError: options that do not go together, or name what does not exist.
    """
    from qsim.study import StudySpec, read_spec

    spec = StudySpec() if given["file"] is None else read_spec(given["file"])
    if given["overrides"] and not given["device"]:
        raise QsimError("--set changes the devices named with --device: name one")
    methods = _methods(given)
    cases = _cases(given)
    changes: dict[str, Any] = {}
    if given["max_loss"] is not None:
        if not 0 < given["max_loss"] <= 100:
            raise QsimError(f"--max-loss must be above 0 and at most 100 percent of a score: got {given['max_loss']:g}")
        changes["max_lost"] = given["max_loss"]
    if given["rows"] is not None:
        changes["evidence"] = str(given["rows"])
    return replace(
        spec, methods=methods or spec.methods, cases=cases or spec.cases, quality=_quality(spec.quality, given),
        speed=_speed(spec.speed, given), **changes,
    )  # fmt: skip


def _methods(given: Mapping[str, Any]) -> tuple[Method, ...]:
    from qsim.study.method import methods_for
    from qsim.study.study_file import spec_of

    found = [m for scheme in given["scheme"] for m in methods_for(scheme)]
    if given["method"]:
        found += spec_of({"methods": list(given["method"])}, "--method").methods
    return tuple({m.name: m for m in found}.values())


MEASURED: dict[Phase, Measure] = {
    "decode": "tpot", "prefill": "ttft", "request": "tokens_per_s", "serve": "tokens_per_s",
}  # fmt: skip
"""Kind of a workload -> what is asked of it."""


def _workload(text: str) -> Case:
    """A case from `KIND:N:PROMPT[:NEW]`."""
    from qsim.study import Case

    word, *sizes = text.split(":")
    kind = next((known for known in MEASURED if known == word), None)
    if kind is None:
        raise QsimError(nearest("kind of case", word, MEASURED))
    if len(sizes) not in (2, 3) or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise QsimError(f"--case must be KIND:N:PROMPT or KIND:N:PROMPT:NEW with whole numbers above 0: got {text!r}")
    number, prompt, new = (int(size) for size in (*sizes, "256")[:3])
    titles = {
        "decode": f"Decode, {number} x {prompt}", "prefill": f"Prompt, {number} x {prompt}",
        "request": f"{number} requests of {prompt} + {new}", "serve": f"Serving, {number} users of {prompt} + {new}",
    }  # fmt: skip
    return Case(
        name=text.replace(":", "-"), title=titles[kind], phase=kind, batch=number, context=prompt, new_tokens=new,
        measure=MEASURED[kind],
    )  # fmt: skip


def _cases(given: Mapping[str, Any]) -> tuple[Case, ...]:
    from qsim.study import Case

    batch, context = given["batch"], given["context"]
    if given["workload"]:
        if batch is not None or context is not None:
            raise QsimError("--case and --batch or --context both say what runs: give one of them")
        return tuple(_workload(text) for text in given["workload"])
    if batch is None and context is None:
        return ()
    b, length = batch or 1, context or 2048
    return (
        Case(name="step", title=f"Decode, {b} x {length}", phase="decode", batch=b, context=length, measure="tpot"),
        Case(name="prompt", title=f"Prompt, {b} x {length}", phase="prefill", batch=b, context=length, measure="ttft"),
        Case(name="requests", title=f"{b} requests of {length} + 256", phase="request", batch=b, context=length,
             measure="tokens_per_s"),
    )  # fmt: skip


def _quality(quality: Quality, given: Mapping[str, Any]) -> Quality:
    changes: dict[str, Any] = {}
    measured = [m for m in given["model"] if _has_weights(m)]
    if len(measured) > 1:
        raise QsimError(f"one model is measured at a time: got the checkpoints {' and '.join(measured[:2])}")
    if measured:
        changes |= {
            "model": measured[0],
            "exact_bytes": 0,
        }  # the emulator would need hours: a study file can ask for it
        if given["file"] is None:
            from qsim.models.outline import outline
            from qsim.study.cost import text_bytes

            changes["max_bytes"] = text_bytes(outline(measured[0]).parameters)
    if given["max_bytes"] is not None:
        changes["max_bytes"] = given["max_bytes"]
    for name in ("text", "calibration"):
        if given[name] is not None:
            if not given[name].is_file():
                raise QsimError(f"--{name}: {given[name]} does not exist")
            changes[name] = str(given[name])
    return replace(quality, **changes)


def _has_weights(model: str) -> bool:
    """Whether a target is a folder with weights or a GGUF file: it is then measured too, not only priced."""
    from qsim.models.folder import gguf_file

    folder = Path(model)
    return (folder.is_dir() and any(folder.glob("*.safetensors"))) or gguf_file(folder) is not None


def _speed(speed: Speed, given: Mapping[str, Any]) -> Speed:
    from hwmodels.device.load import overrides_by_device
    from qsim.study import DeviceSpec
    from qsim.study.spec import DEFAULT_DEVICES

    changes: dict[str, Any] = {}
    if given["model"]:
        changes["models"] = tuple(given["model"])
    if given["device"]:
        known = {d.name: d for d in (*speed.devices, *DEFAULT_DEVICES)}
        overrides, _ = overrides_by_device(given["device"], given["overrides"])
        changes["devices"] = tuple(
            replace(known.get(name, DeviceSpec(name=name)), set=mine, label="")
            for name, mine in zip(given["device"], overrides, strict=True)
        )
    if given["context"] is not None:
        changes["context"] = given["context"]
    if given["profile"] is not None:
        changes["profile"] = given["profile"]
    if given["price"]:
        from hwmodels.device.load import get_device
        from hwmodels.energy import prices_of

        chosen = changes.get("devices", speed.devices)
        changes["prices"] = prices_of(given["price"], list(dict.fromkeys(get_device(d.name).name for d in chosen)))
    return replace(speed, **changes)
