"""Rooflines: every name can be read, every roof and operator is there, what is left out is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

import hwmodels
from hwmodels.device.load import device_names
from qsim.cli import main
from qsim.cli.roofline_view import figure as view
from qsim.errors import QsimError
from qsim.plots.names import operator_title
from qsim.plots.roofline import Point, Roof, roofline_figure
from qsim.plots.style import save
from qsim.plots.theme import THEMES, with_theme
from qsim.scheme import list_schemes

from .legible import drawn_texts, faults

DEVICES = ("h100-sxm", "b200", "asic", "l40s", "mi300x", "groq-like")
SCHEMES = ("bf16", "fp8", "w4a16-g128", "nvfp4", "fp8-rowwise-kvfp8")


def made(
    devices: tuple[str, ...],
    schemes: tuple[str, ...],
    *,
    model: str = "llama-3-8b",
    phases: tuple[str, ...] = ("decode",),
    batches: tuple[int, ...] = (1,),
    **how: Any,
) -> Figure:
    cases = [hwmodels.predict(d, model, s, ph, b, 2048) for ph in phases for d in devices for s in schemes
             for b in batches]  # fmt: skip
    return view(cases, **how)


CASES: list[dict[str, Any]] = [
    {"devices": DEVICES[:1], "schemes": SCHEMES, "size": "column", "beside": ("time",)},
    {"devices": DEVICES[:1], "schemes": SCHEMES[:3:2], "batches": (1, 4, 16, 64, 256), "path": "batch"},
    {"devices": DEVICES[:2], "schemes": SCHEMES[:3], "path": "scheme", "layout": "overlay", "size": "square"},
    {"devices": DEVICES, "schemes": SCHEMES[:3], "model": "llama-3-70b", "size": "slide"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_text_of_a_roofline_can_be_read(case: dict[str, Any]) -> None:
    assert faults(made(**case)) == []


ALL = [
    {"devices": DEVICES[:d], "schemes": SCHEMES[:s], "phases": phases, "batches": (batch,), "size": size,
     "model": model}
    for model in ("llama-3-8b", "mixtral-8x22b", "deepseek-v2-lite")
    for phases in (("decode",), ("prefill",), ("decode", "prefill"))
    for d, s in ((1, 1), (1, 5), (2, 3), (3, 3), (4, 2), (6, 3))
    for size, batch in (("slide", 1), ("page", 16), ("column", 1), ("square", 64))
]  # fmt: skip
PATHS = [
    {
        "devices": DEVICES[:d],
        "schemes": SCHEMES[:s],
        "size": size,
        "path": path,
        "layout": layout,
        "batches": (1, 2, 4, 8, 16, 32, 64, 128, 256) if path == "batch" else (1,),
    }
    for path, s in (("scheme", 3), ("scheme", 5), ("batch", 1), ("batch", 2))
    for d, layout in ((1, "panels"), (2, "panels"), (2, "overlay"), (3, "overlay"))
    for size in ("slide", "page")
]
BESIDE = [
    {"devices": DEVICES[:d], "schemes": SCHEMES[:s], "phases": phases, "size": size, "beside": beside}
    for beside in (("time",), ("table",), ("time", "table"))
    for d, s, size in ((1, 2, "slide"), (1, 1, "square"), (3, 3, "page"), (6, 2, "page"), (1, 3, "column"))
    for phases in (("decode",), ("decode", "prefill"))
    # what a size has no room for is refused
    if len(phases) == 1 or (("table" not in beside or size not in ("slide", "square")) and len(beside) * d < 12)
]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [*ALL, *PATHS, *BESIDE], ids=str)
def test_every_text_of_many_rooflines_can_be_read(case: dict[str, Any]) -> None:
    assert faults(made(**case)) == []


def named(figure: Figure, name: str) -> list[Any]:
    return [a for axes in figure.axes for a in axes.get_children() if a.get_label() == f"_{name}"]


def test_names_are_those_of_people_not_of_files() -> None:
    said = " ".join(t.get_text() for t in made(DEVICES[:2], SCHEMES[:3], model="llama-3-70b").findobj(Text))
    for name in ("Llama-3 70B", "H100 SXM", "B200", "W4A16 g128", "TFLOP/s", "3.35 TB/s", "BF16", "gate+up"):
        assert name in said
    for name in ("llama-3-70b", "h100-sxm", "w4a16-g128", "bfloat16", "float8", "gate_up", "GB/s"):
        assert name not in said


def test_no_point_is_above_the_roofs_that_are_drawn() -> None:
    """On every device, in every scheme that its matrix units and those of its neighbours run."""
    schemes = [s.name for s in list_schemes()][::6]
    for device in device_names()[::7]:
        figure = made((device,), tuple(schemes[:5]), phases=("prefill",))
        roofs = named(figure, "roof")
        highest = max(float(line.get_ydata().max()) for line in roofs)
        slope = max(line.get_ydata()[0] / line.get_xdata()[0] for line in roofs if line.get_ydata()[0] < highest)
        for marker in named(figure, "marker"):
            x, y = marker.get_xydata()[0]
            assert y <= 1.02 * min(highest, slope * x), device  # a marker of several stands in their middle


def test_every_operator_of_a_large_share_is_drawn_and_the_others_are_named_as_left_out() -> None:
    cases = [hwmodels.predict("h200", "deepseek-v3", "fp8", "decode", 64, 2048, tensor_parallel=8)]
    figure = view(cases)
    said = " ".join(t.get_text() for t in figure.findobj(Text)).replace("\n", " ")
    total = float(cases[0].time_s)
    for op in (op for op in cases[0].operators if op.formats):
        assert operator_title(op.name) in said, op.name
        assert (f"not drawn: {operator_title(op.name)}" in said) <= (float(op.time_s) / total < 0.01)


def test_a_path_goes_through_its_values_in_order() -> None:
    figure = made(DEVICES[:1], SCHEMES[:1], batches=(1, 4, 16, 64), path="batch")
    x = max((line.get_xdata() for line in named(figure, "path")), key=lambda x: x[-1] / x[0])
    assert len(x) == 4
    assert list(x) == sorted(x)
    assert x[-1] / x[0] == pytest.approx(64, rel=0.2)  # 64 times the operations on nearly the same bytes
    values = [t.get_text() for t in named(figure, "label")]
    assert {"batch 1", "4", "16", "64"} <= set(values)


def test_the_area_of_a_marker_is_its_share_of_the_time() -> None:
    roofs = [Roof(device="d", format="BF16", peak_flop_per_s=1e15, bandwidth_bytes_per_s=1e12)]
    points = [Point(device="d", operator=name, scheme="s", intensity=x, flop_per_s=x * 1e11, share=share)
              for name, x, share in (("a", 1.0, 0.2), ("b", 1000.0, 0.8))]  # fmt: skip
    small, large = sorted(m.get_markersize() for m in named(roofline_figure("t", roofs, points), "marker"))
    shape = 1.15  # other shapes than a square are drawn this much wider for the same weight
    assert large / small == pytest.approx(2.0, rel=shape - 1)


ROOF = Roof(device="d0", format="BF16", peak_flop_per_s=1e15, bandwidth_bytes_per_s=1e12)
POINT = Point(device="d0", operator="a", scheme="s", intensity=1.0, flop_per_s=1e11)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"roofs": [], "points": []}, "at least one roof"),
        ({"roofs": [replace(ROOF, device=f"d{i}") for i in range(7)]}, "at most 6 devices: got 7"),
        ({"roofs": [replace(ROOF, device=f"d{i}") for i in range(4)], "layout": "overlay"}, "at most 3 devices: got 4"),
        ({"points": [replace(POINT, scheme=str(i)) for i in range(7)]}, "at most 6 schemes: got 7"),
        ({"points": [replace(POINT, case=c) for c in "ab"], "layout": "overlay"}, "one case"),
        ({"points": [replace(POINT, intensity=0.0)]}, "axes are logarithmic"),
        ({"points": [replace(POINT, flop_per_s=float("nan"))]}, "axes are logarithmic"),
        ({"points": [replace(POINT, at="1")], "path": "batch"}, "at least two values"),
        ({"path": "device"}, "scheme or batch"),
        ({"layout": "pile"}, "panels or overlay"),
        ({"size": "slides"}, "slide"),
    ],
)
def test_what_a_roofline_cannot_hold_is_refused_in_a_sentence(change: dict[str, Any], said: str) -> None:
    with pytest.raises(QsimError, match=said):
        roofline_figure("t", **{"roofs": [ROOF], "points": [POINT], **change})


@pytest.mark.parametrize("theme", sorted(THEMES))
def test_a_theme_leaves_no_colour_of_another(theme: str) -> None:
    figure = with_theme(made(DEVICES[:2], SCHEMES[:3]), theme)
    background = to_rgba(figure.get_facecolor())
    for text, _ in drawn_texts(figure):
        difference = abs(luminance(to_rgba(text.get_color())) - luminance(background))
        assert difference > 0.35, f"{theme}: {text.get_text()!r} on its ground"
        ground = text.get_bbox_patch()
        assert ground is None or ground.get_edgecolor()[3] == 0, f"{theme}: a frame around {text.get_text()!r}"
    if theme == "print":
        for line in named(figure, "marker"):
            r, g, b, _ = to_rgba(line.get_color())
            assert r == g == b


def luminance(color: tuple[float, ...]) -> float:
    return 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]


def test_the_command_draws_paths_on_a_slide_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    plot = tmp_path / "x.pdf"
    args = "roofline llama-3-8b --scheme bf16 --scheme w4a16-g128 --size slide --theme dark".split()
    done = CliRunner().invoke(main, [*args, "--path", "batch=1:16", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert plot.read_bytes().startswith(b"%PDF")
    for more, said in (
        (["--path", "batch=4", "--plot", str(plot)], "at least two batches"),
        (["--path", "batch=x", "--plot", str(plot)], "is not a list"),
        (["--path", "context=1:4", "--plot", str(plot)], "--path must be scheme"),
        (["--path", "batch=1:4", "--batch", "2", "--plot", str(plot)], "leave --batch out"),
        (["--path", "scheme"], "give --plot"),
    ):
        assert said in CliRunner().invoke(main, [*args, *more]).output
    assert "at least two --scheme" in CliRunner().invoke(
        main, ["roofline", "llama-3-8b", "--path", "scheme", "--plot", str(plot)]).output  # fmt: skip


def test_an_svg_holds_its_text_as_text(tmp_path: Path) -> None:
    file = save(made(DEVICES[:1], SCHEMES[:1]), tmp_path / "x.svg")
    assert "<text" in file.read_text()
    assert "Llama-3 8B on H100 SXM, decode" in file.read_text()
