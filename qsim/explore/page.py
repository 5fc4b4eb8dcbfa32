"""The page as one file: template, style, one module, and the parameters that it computes with.

No library draws it: its charts are a few hundred lines of SVG text, so that the file is small, opens from a disk
without a network, has nothing to build, and stays readable for who wants to know how a number came about. Its content
security policy forbids every request and every `eval`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hwmodels.device.device import Device
from hwmodels.device.load import device_names, get_device
from hwmodels.workload.architecture import Architecture, architecture_names, get_architecture
from qsim import __version__
from qsim.errors import QsimError
from qsim.files import write_text

from .losses import losses_of, served_schemes, words
from .numbers import formats
from .parameters import export

SCRIPTS = (
    "law.js",
    "serving.js",
    "charts.js",
    "codec.js",
    "numbers.js",
    "views.js",
    "questions.js",
    "state.js",
    "answers.js",
    "app.js",
)
"""Files of the page's module, in order."""
ABOUT = (
    "This file computes in your browser, with the parameters of hwmodels and the same law; it sends nothing anywhere. "
    "Kernels, stacks and profiles other than the usual ones, single requests, workloads and engines other than the one "
    "shown, and your own models and device files are what the command line and qsim explore on your machine add."
)
ABOUT_LIVE = (
    "Served by qsim explore on this machine: every prediction is made by the Python predictor. Nothing leaves it."
)
MODEL = "llama-3-8b"
SCHEME = "w4a16-g128"
CASES = ({"device": "h100-sxm", "scheme": "bf16"}, {"device": "h100-sxm", "scheme": SCHEME})
"""What the page opens with."""
MOST_CASES = 3


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a page opens with, and what it knows beside what is shipped.

    Attributes:
        devices: that the page opens with, at most three; model: likewise.
        own_devices, own_models: those of them that files of the user describe.
        files: name of such a device or model -> its path, for the commands that the page gives.
    """

    devices: tuple[str, ...] = ()
    model: str = MODEL
    own_devices: tuple[Device, ...] = ()
    own_models: tuple[Architecture, ...] = ()
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, devices: Sequence[str], models: Sequence[str]) -> Opened:
        """Of names and paths, as the command line takes them.

        Raises:
            QsimError: unknown names (the nearest are listed), files that describe none, more than three devices, or
                two of one name, which the page could not tell apart.
        """
        if len(devices) > MOST_CASES:
            raise QsimError(f"the page compares at most {MOST_CASES} devices: got {len(devices)}")
        chips, shapes = [get_device(name) for name in devices], [get_architecture(name) for name in models]
        own_chips = [(d, path) for d, path in zip(chips, devices, strict=True) if path.endswith(".toml")]
        own_shapes = [(a, path) for a, path in zip(shapes, models, strict=True) if _shipped(a.name) is not a]
        _check_apart("device", [(d.name, path) for d, path in own_chips], device_names())
        _check_apart("model", [(a.name, path) for a, path in own_shapes], architecture_names())
        paths = [*((d.name, path) for d, path in own_chips), *((a.name, path) for a, path in own_shapes)]
        return cls(
            devices=tuple(d.name for d in chips), model=shapes[0].name if shapes else MODEL,
            own_devices=tuple(d for d, _ in own_chips), own_models=tuple(a for a, _ in own_shapes),
            files=MappingProxyType(dict(paths)),
        )  # fmt: skip

    def cases(self) -> list[dict[str, str]]:
        """The cases of the first paint: the devices in 4 bit, or one device in 16 and 4 bit."""
        if len(self.devices) > 1:
            return [{"device": name, "scheme": SCHEME} for name in self.devices]
        return [{**case, **({"device": self.devices[0]} if self.devices else {})} for case in CASES]


def _shipped(name: str) -> Architecture | None:
    return get_architecture(name) if name in architecture_names() else None


def _check_apart(kind: str, named: Sequence[tuple[str, str]], shipped: Sequence[str]) -> None:
    names = [name for name, _ in named]
    for i, (name, path) in enumerate(named):
        if name in shipped or name in names[:i]:
            raise QsimError(f"{path}: there is a {kind} {name} already; give the file another name")


def render(opened: Opened | None = None, *, live: bool = False) -> str:
    """The page; `live` asks the server that sends it for every prediction."""
    opened = opened or Opened()
    parameters = export(opened.own_devices, opened.own_models)
    losses = {} if live else losses_of(parameters["models"], served_schemes())  # live, each is asked for
    config = {
        "live": live, "model": opened.model, "cases": opened.cases(), "formats": formats(),
        "files": dict(opened.files), "losses": losses, **words(),
    }  # fmt: skip
    folder = resources.files(__package__) / "templates"

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    template = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        text("page.html")
    )
    return template.render(
        css=Markup(text("page.css")), script=Markup("\n".join(text(name) for name in SCRIPTS)),
        parameters=_json(parameters), config=_json(config), version=__version__,
        about=ABOUT_LIVE if live else ABOUT, connect=Markup("'self'" if live else "'none'"),
    )  # fmt: skip


def _json(value: Any) -> Markup:
    """Values inside a script element: no text in them can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def write_page(path: Path, opened: Opened | None = None) -> int:
    """Write the page for use without a server; returns its bytes.

    Raises:
        OSError: the file cannot be written; that its folder does not exist is said before any work is done.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    page = render(opened)
    write_text(path, page)
    return len(page.encode())
