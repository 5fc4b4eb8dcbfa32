"""`qsim outliers`: what stands out in a model, and what each format makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .model_options import outliers_option, tokenizer_option, with_given_outliers, with_tokenizer
from .options import Picture, draw, plot_option
from .progress import steps
from .table import Column, Form, deliver, print_table, table_options
from .verbs import verb


@verb("outliers")
@click.argument("model", default="tiny", metavar="[MODEL]")
@click.option("--text", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="Text that the model is shown, UTF-8, or token ids: .npy, or .json. Default: the embedded "
              "calibration text.")  # fmt: skip
@click.option("--window", type=click.IntRange(min=1), metavar="N", help="Tokens of a window; 512 or the context.")
@click.option("--windows", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
              help="Windows that are looked at, spread evenly over the text.")  # fmt: skip
@outliers_option
@tokenizer_option
@plot_option
@table_options
def outliers(
    model: str, text: Path | None, window: int | None, windows: int, outliers: str | None, tokenizer: str,
    plot: Picture | None, form: Form,
) -> None:  # fmt: skip
    """MODEL is `tiny`, a folder of Hugging Face files, of which one block at a time is read, or a GGUF file.

    For each kind of layer: the largest input channel over the median one, the largest value over the typical one, and
    how far the rows of weights reach over their median. Then, for INT8 with one scale per tensor, per token and after
    smoothing, FP8, MXFP8, NVFP4 and MXFP4: whether the model keeps, loses or breaks, why, and what was published on
    models with the same outliers. Every product is measured on a sample of tokens with weights and inputs rounded.

    \b
    Examples:
      qsim outliers
      qsim outliers tiny --outliers opt-13b-like
      qsim outliers ~/models/Qwen2.5-7B --text wiki.txt --plot outliers.svg
      qsim outliers ~/models/model.gguf --json
    """
    from qsim.methods.outliers import measure_outliers
    from qsim.models.streaming import BlockByBlock
    from qsim.models.tokens import text_or_ids

    shown: Any = model
    if outliers is not None or tokenizer != "own":
        from qsim.models import load

        shown = with_given_outliers(with_tokenizer(load(model), tokenizer), outliers)
    blocks = BlockByBlock(shown)
    content = None if text is None else text_or_ids(text, blocks)
    with steps() as progress:
        report = measure_outliers(blocks, content, window=window, windows=windows, progress=progress,
                                  announce=_announce)  # fmt: skip
    data = report.to_dict()
    deliver(form, data["layers"], lambda: _print(data), whole=data)
    if plot is not None:
        from qsim.plots.outliers import outlier_figure

        draw(outlier_figure(report.model, data["layers"], size=plot.size), plot)


def _announce(estimate: Any) -> None:
    how = "one block at a time" if estimate.streams else "the whole model in memory"
    click.echo(
        f"about {max(estimate.time_s, 1):.0f} s and {estimate.memory_bytes / 1e9:.2g} GB of memory ({how}), "
        f"{estimate.disk_bytes / 1e9:.2g} GB of disk for hidden states", err=True,
    )  # fmt: skip


def _ratio(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


_KINDS = (
    Column("inputs of", "kind", left=True), Column("channel / median", "channel_ratio", _ratio),
    Column("value / typical", "peak_ratio", _ratio), Column("largest", "peak", _ratio),
    Column("kurtosis", "kurtosis", _ratio), Column("weights' row / median", "row_range", _ratio),
    Column("worst layer", "worst_layer", left=True, fold=True),
)  # fmt: skip
_VERDICTS = (
    Column("way", "title", left=True), Column("verdict", "answer", left=True), Column("error", "error", _ratio),
    Column("products", "layers"), Column("why", "why", left=True, fold=True),
)  # fmt: skip


def _print(data: dict[str, Any]) -> None:
    print_table(_KINDS, data["kinds"], title=f"{data['model']}, {data['tokens']} tokens: the worst of each kind")
    click.echo()
    print_table(_VERDICTS, data["verdicts"])
    click.echo()
    said: list[str] = []
    for verdict in data["verdicts"]:
        if verdict["answer"] == "keeps":
            continue
        for line in verdict["evidence"]:
            if line not in said:
                said.append(line)
    for line in said:
        click.echo(f"published: {line}")
    for note in data["notes"]:
        click.echo(f"note: {note}")
