"""`qsim eval`: bits per byte, perplexity, and what quantisation has cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .model_options import model_options, prepared_model
from .progress import work
from .table import Form, deliver, table_options
from .verbs import verb


@verb("eval")
@click.argument("model", default="tiny", metavar="[MODEL]")
@click.option("--text", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
              help="Text to measure on, UTF-8, or token ids: .npy, or .json, a list of them. Default: the embedded "
              "model's test text.")  # fmt: skip
@click.option(
    "--reference",
    metavar="MODEL",
    help="Compare with this model: KL divergence, agreement of the likeliest token, paired difference.",
)
@click.option(
    "--protocol",
    type=click.Choice(["windows", "sliding", "gptq"]),
    default="windows",
    show_default=True,
    help="One window after the other, overlapping windows, or whole windows as in the GPTQ paper.",
)
@click.option("--window", default=512, show_default=True, metavar="N", help="Tokens that go into the model at once.")
@click.option("--stride", type=int, metavar="N", help="With --protocol sliding: tokens between windows.")
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Use only the first N bytes of the text.")
@model_options
@table_options
def eval(
    model: str,
    text: Path | None,
    reference: str | None,
    protocol: Any,
    window: int,
    stride: int | None,
    max_bytes: int | None,
    form: Form,
    **how: Any,
) -> None:
    """Bits per byte and perplexity of a text, with standard errors. MODEL is `tiny`, the embedded model, or a folder of
    Hugging Face files, quantised or not. With --scheme its weights are rounded to nearest first and the model before
    it is the reference.

    \b
    Examples:
      qsim eval
      qsim eval --scheme w4a16-g128 --max-bytes 65536
      qsim eval DIR --reference tiny
      qsim eval --scheme fp8-rowwise --instruction hopper.wgmma.f32.e4m3 --max-bytes 4096
    """
    from qsim.models import evaluate, load, tiny_text
    from qsim.models.tokens import text_or_ids

    measured, original = prepared_model(model, **how)
    against = load(reference) if reference is not None else None if measured is original else original
    content = text_or_ids(text, measured) if text is not None else tiny_text("test")
    with work() as progress:
        result = evaluate(
            measured, content, window=window, stride=stride, protocol=protocol, reference=against, max_bytes=max_bytes,
            progress=lambda done, total: progress(done, total, "windows of text"),
        )  # fmt: skip
    row = {"text": str(text) if text is not None else "tiny test text", **result.to_dict()}
    deliver(form, [row], lambda: click.echo("\n".join(_lines(row))), whole=row)


def _lines(r: dict[str, Any]) -> list[str]:
    how = {"windows": f"windows of {r['window']}", "gptq": f"GPTQ's windows of {r['window']}",
           "sliding": f"windows of {r['window']} every {r['stride']}"}[r["protocol"]]  # fmt: skip
    size = "" if r["bytes"] is None else f"{r['bytes']} bytes of "
    out = [
        f"{r['model']}: {size}{r['text']}, {r['tokens']} tokens in {how}",
        f"  bits per byte    {_with_error(r, 'bits_per_byte', '.4f')}",
        f"  perplexity       {_with_error(r, 'perplexity', '.4g')} per token",
        f"  accuracy         {_with_error(r, 'accuracy', '.2%')} of tokens are the likeliest",
    ]
    if r["reference"] is not None:
        out += [
            f"against {r['reference']}",
            f"  bits per byte    {_with_error(r, 'bits_per_byte_delta', '+.4f')}",
            f"  KL divergence    {_with_error(r, 'kl', '.3g')} nats per token",
            f"  top-1 agreement  {_with_error(r, 'top1_agreement', '.2%')}",
        ]
    errors = "± one standard error over windows" if r["windows"] > 1 else "one window: no standard error"
    out.append(f"{errors}; {r['time_s']:.1f} s, {r['tokens'] / r['time_s']:.0f} tokens/s")
    return out + [f"note: {note}" for note in r["notes"]]


def _with_error(r: dict[str, Any], name: str, form: str) -> str:
    if r[name] is None:
        return "unknown"
    error = r[f"{name}_se"]
    if error is None:
        return f"{r[name]:{form}}"
    return f"{r[name]:{form}} ± " + (f"{error:.2%}" if form.endswith("%") else f"{error:.2g}")
