"""`qsim quantize`: a checkpoint quantised by GPTQ, AWQ, SmoothQuant, FP8 or rounding, and the record of its layers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qsim.errors import QsimError
from qsim.layouts import LAYOUTS
from qsim.layouts.gguf.types import TYPES
from qsim.methods import METHODS

from .method_options import MethodCommand, given_options, method_options
from .model_options import outliers_option, tokenizer_option, with_given_outliers, with_tokenizer
from .options import Picture, draw, plot_option
from .progress import says_what_is_kept, work
from .table import Column, Form, deliver, print_table, records, table_options
from .verbs import verb

if TYPE_CHECKING:
    from qsim.checkpoints import Written
    from qsim.methods import MemoryEstimate, QuantizationResult
    from qsim.models import Model

TINY_BYTES = 65536
GGUF_SCHEMES = {one.name: one.scheme for one in TYPES.values() if one.scheme is not None}
"""Types of GGUF that hold a scheme's codes one to one -> the scheme."""


@verb("quantize", make=partial(click.command, cls=MethodCommand))
@method_options
@click.argument("model", metavar="MODEL")
@click.option("--method", type=click.Choice(list(METHODS)), default="gptq", show_default=True,
              help="How the codes are found.")  # fmt: skip
@click.option(
    "--scheme",
    metavar="NAME",
    help="w4a16-g128, w8a8, fp8-block128, mxfp4, ... Default: the method's usual; w4a16-g128-sym for --layout gptq.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The new checkpoint.")
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", show_default=True, metavar="NAME",
              help=f"{', '.join(LAYOUTS)}; auto: the first that holds the scheme.")  # fmt: skip
@click.option("--gguf-type", type=click.Choice(list(GGUF_SCHEMES), case_sensitive=False), metavar="NAME",
              help=f"{', '.join(GGUF_SCHEMES)}: the scheme that this type of GGUF holds, for --layout gguf; the "
              "embedding is rounded to it too. K-quants are found by --method rtn.")  # fmt: skip
@click.option("--force", "--overwrite", "overwrite", is_flag=True, help="Replace the checkpoint in DIR.")
@click.option("--calibration", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="Text, UTF-8, or token ids: .npy, (T,) or (windows, T), or .json, a list of them. Default for the "
              "embedded model: its own, the first 64 KiB.")  # fmt: skip
@tokenizer_option
@click.option("--window", type=click.IntRange(min=1), metavar="N", help="Tokens of a calibration window. Default: 512.")
@click.option(
    "--windows", type=click.IntRange(min=1), metavar="N", help="At most so many windows, spread over the text."
)
@click.option("--one-pass", is_flag=True,
              help="Methods that look at quantised inputs (GPTQ): a whole block at once, not by groups.")  # fmt: skip
@click.option("--rotate", is_flag=True, help="Fold Hadamard rotations into the weights first (QuaRot's R1 and R2).")
@outliers_option
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Linears to leave as they are. Repeatable.")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Linears solved at a time.")
@click.option("--restart", is_flag=True, help="Discard partial results and start over.")
@plot_option
@table_options
def quantize(
    model: str,
    method: str,
    scheme: str | None,
    out: Path,
    layout: str,
    gguf_type: str | None,
    overwrite: bool,
    calibration: Path | None,
    tokenizer: str,
    window: int | None,
    windows: int | None,
    one_pass: bool,
    rotate: bool,
    outliers: str | None,
    ignore: tuple[str, ...],
    jobs: int | None,
    restart: bool,
    plot: Picture | None,
    form: Form,
    **options: Any,
) -> None:
    """MODEL is `tiny` or a folder of Hugging Face files. Its linear layers are quantised and written to DIR as a
    checkpoint.

    The record of every layer, what round-to-nearest would have lost and what the method lost, is printed and lies
    beside the checkpoint as quantization_record.json. Finished layers are kept in DIR.part: after an interruption the
    same command goes on from there.

    \b
    Examples:
      qsim quantize tiny --method gptq --scheme w4a16-g128 --out DIR
      qsim quantize tiny --method awq --scheme w3a16-g128 --out DIR --layout compressed-tensors
      qsim quantize tiny --method smoothquant --outliers 100 --out DIR
      qsim quantize FOLDER --method gptq --act-order on --static-groups --calibration TEXT --out DIR
    """
    place = Path(os.path.abspath(out))
    if not place.name:
        raise QsimError(f"--out must name a folder in another: got {out}")
    part = place.with_name(f"{place.name}.part")
    if gguf_type is not None:
        scheme, layout = _of_gguf(gguf_type, scheme, layout)
    with says_what_is_kept(lambda: _kept(part, restart)):
        result, written = _run(
            model, method, scheme, place, part, layout, overwrite, calibration, tokenizer, restart, outliers, ignore,
            options, gguf_type, window=window, windows=windows, true_sequential=not one_pass,
            rotate="offline" if rotate else None, n_jobs=jobs,
        )  # fmt: skip
    if plot is not None:
        from qsim.plots.layers import record_figure

        draw(record_figure(result.model.name, [r.to_dict() for r in result.layers], size=plot.size), plot)

    def table() -> None:
        _print(result)
        for note in written.notes:
            click.echo(f"note: {note}")
        click.echo(f"wrote {out} ({written.layout})")

    for note in written.notes if form != "table" else ():
        click.echo(f"note: {note}", err=True)

    deliver(form, records(result.records), table, whole=result.to_dict())


def _run(
    model: str, method: str, scheme: str | None, out: Path, part: Path, layout: str, overwrite: bool,
    calibration: Path | None, tokenizer: str, restart: bool, outliers: str | None,
    ignore: tuple[str, ...], options: Mapping[str, Any], gguf_type: str | None, **settings: Any,
) -> tuple[QuantizationResult, Written]:  # fmt: skip
    """Quantise into the hidden folder that becomes `out`; the result, and what was written."""
    from qsim.checkpoints import write
    from qsim.checkpoints.folder import check_target
    from qsim.folders import check_apart, recover
    from qsim.methods import quantize_model
    from qsim.methods.store import KIND
    from qsim.models import load
    from qsim.models.tokens import text_or_ids
    from qsim.pieces import Pieces, forget

    for said in recover(out):
        click.echo(f"note: {said}", err=True)
    _clear_finished(out, part)
    check_target(out, overwrite=overwrite)
    if calibration is not None:
        check_apart(calibration, out)
        check_apart(calibration, part)
    given = given_options(method, options)
    scheme = scheme or _scheme_for(method, layout)
    source = with_tokenizer(load(model), tokenizer)
    if source.path is not None:
        check_apart(source.path, out)
        check_apart(source.path, part)
    source = with_given_outliers(source, outliers)
    text = text_or_ids(calibration, source) if calibration is not None else _own_text(model)
    _refuse_what_cannot_be_written(source, method, scheme, layout, ignore, given, text is not None)
    if restart:
        forget(part, KIND)
    with work() as progress:
        result = quantize_model(source, method, scheme, text, ignore=ignore, work_dir=part, progress=progress,
                                announce=_announce, **settings, **given)  # fmt: skip
    pieces = Pieces(part, KIND, None)

    def add_record(folder: Path) -> None:
        result.to_json(folder)
        pieces.put(_WRITTEN, _digest(folder))

    written = write(
        result.model, out, layout, overwrite=overwrite, tensor_type=gguf_type, add_files=add_record  # type: ignore[arg-type]
    )  # fmt: skip
    pieces.remove()
    return result, written


_WRITTEN = "written"  # the piece that says which record the finished checkpoint has


def _digest(folder: Path) -> bytes:
    from qsim.methods.result import RECORD_FILE

    return hashlib.sha256((folder / RECORD_FILE).read_bytes()).hexdigest().encode()


def _clear_finished(out: Path, part: Path) -> None:
    """Remove the pieces of a run that was killed after its checkpoint was in place."""
    from qsim.methods.result import RECORD_FILE
    from qsim.methods.store import KIND
    from qsim.pieces import Pieces, count, drop_empty

    drop_empty(part, KIND)
    if count(part, _WRITTEN) and (out / RECORD_FILE).is_file():
        work = Pieces(part, KIND, None)
        if work.get(_WRITTEN) == _digest(out):
            work.remove()


def _kept(part: Path, restart: bool) -> str:
    from qsim.methods.store import finished_layers

    command = "the same command without --restart" if restart else "the same command"
    done = finished_layers(part)
    if not done:
        return "no layer is finished; the same command starts again"
    return f"{done} layers are finished in {part}; {command} goes on from there"


def _scheme_for(method: str, layout: str) -> str:
    """The method's usual scheme, or what the layout wants instead, which is said."""
    usual = METHODS[method].default_scheme
    found = LAYOUTS[layout].usual_scheme(usual) if layout in LAYOUTS else usual
    if found != usual:
        click.echo(
            f"scheme {found}: layout {layout} is symmetric unless --scheme says otherwise, since the fast kernels of "
            f"engines (Marlin) read sym=true only; the usual scheme of {method} is {usual}",
            err=True,
        )
    return found


def _of_gguf(gguf_type: str, scheme: str | None, layout: str) -> tuple[str, str]:
    """The scheme and the layout that a type of GGUF stands for."""
    if layout not in ("auto", "gguf"):
        raise QsimError(f"--gguf-type belongs to --layout gguf: got --layout {layout}")
    if scheme is not None:
        raise QsimError(f"--gguf-type {gguf_type} is scheme {GGUF_SCHEMES[gguf_type]}: it takes no --scheme {scheme}")
    return GGUF_SCHEMES[gguf_type], "gguf"


def _own_text(model: str) -> str | None:
    if model != "tiny":
        return None
    from qsim.models import tiny_text

    return tiny_text("calibration").encode()[:TINY_BYTES].decode(errors="ignore")


def _refuse_what_cannot_be_written(
    source: Model, method: str, scheme: str | None, layout: str, ignore: tuple[str, ...], given: Mapping[str, Any],
    calibrated: bool,
) -> None:  # fmt: skip
    """Find out before hours of work whether the layout holds the result."""
    from fnmatch import fnmatchcase

    from qsim.checkpoints.checks import check_layers
    from qsim.layouts import Layer, default_layout
    from qsim.methods.activations import needs_input_scale, stores_input_scale
    from qsim.methods.registry import get_recipe

    recipe = get_recipe(method, scheme, given)
    found = recipe.scheme
    if stores_input_scale(found) and not needs_input_scale(found) and not calibrated:
        raise QsimError(f"checkpoints with {found.activation.format.name} activations store their tensor scale, which "
                         "needs calibration text: give --calibration")  # fmt: skip
    grouped = found.weight.granularity is not None and found.weight.granularity.kind == "group"
    scattered = recipe.scattered and grouped
    layers = [
        Layer(scheme=found, shape=one.weight.shape, act_order=scattered, name=name)
        for name, one in source.linears().items()
        if not any(fnmatchcase(name, pattern) for pattern in ignore)
    ]
    check_layers(default_layout(found, layers) if layout == "auto" else layout, layers)


def _announce(estimate: MemoryEstimate) -> None:
    parts = ", ".join(f"{name} {_mib(size)}" for name, size in estimate.parts.items() if size)
    click.echo(
        f"memory: at most {_mib(estimate.total_bytes)} beside the model's {_mib(estimate.model_bytes)} ({parts}); "
        f"{_mib(estimate.disk_bytes)} on disk",
        err=True,
    )


def _mib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _block_and_name(layer: str) -> str:
    block = next((part for part in layer.split(".") if part.isdigit()), "")
    return f"{block} {layer.rpartition('.')[2]}"


def _notes(fallback: str | None, notes: str) -> str:
    return "; ".join(filter(None, [f"fell back to {fallback}" if fallback else "", notes]))


_ERRORS = (
    Column("RTN error", "rtn_output_error", "{:.3g}".format), Column("error", "output_error", "{:.3g}".format),
    Column("ratio", "error_ratio", "{:.2f}".format), Column("SQNR dB", "sqnr_db", "{:.1f}".format),
)  # fmt: skip
_WEIGHT_ERRORS = (
    Column("RTN MSE", "rtn_weight_mse", "{:.3g}".format), Column("MSE", "weight_mse", "{:.3g}".format),
)  # fmt: skip


def _print(result: QuantizationResult) -> None:
    frame = result.records
    calibrated = frame.output_error.notna().all()
    columns = (
        Column("layer", "layer", _block_and_name, left=True), *(_ERRORS if calibrated else _WEIGHT_ERRORS),
        Column("scale", "scale_median", "{:.3g}".format), Column("clipped", "clip_fraction", "{:.2%}".format),
        Column("time s", "time_s", "{:.2f}".format),
        Column("notes", ("fallback", "notes"), _notes, left=True, fold=True),
    )  # fmt: skip
    print_table(columns, records(frame))
    worse = int((frame.error_ratio > 1).sum()) if calibrated else 0
    ratio = f"; mean error ratio {frame.error_ratio.mean():.3f}, above 1 in {worse}" if calibrated else ""
    resumed = f"; {result.resumed} found finished" if result.resumed else ""
    click.echo(f"{len(frame)} layers in {result.time_s:.1f} s{ratio}{resumed}")
    for verdict in result.outliers:
        if verdict.answer != "keeps":
            click.echo(f"outliers: {verdict.title} {verdict.answer}, for {verdict.why}; see qsim outliers")
    for note in (*result.notes, *result.model.notes):
        click.echo(f"note: {note}")
