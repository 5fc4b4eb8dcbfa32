"""`qsim convert`: a checkpoint rewritten in another layout, or as a GGUF file in the type that is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import click

from qsim.errors import QsimError
from qsim.layouts import LAYOUTS
from qsim.layouts.gguf.types import WRITTEN

from .progress import work
from .verbs import verb


@verb("convert")
@click.argument("model", metavar="MODEL")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR",
              help="The new checkpoint; a name that ends in .gguf is the file itself.")  # fmt: skip
@click.option("--layout", type=click.Choice(["auto", *LAYOUTS]), default="auto", show_default=True, metavar="NAME",
              help=f"{', '.join(LAYOUTS)}; auto: gguf for a name in .gguf or with --gguf-type, else the first that "
              "holds the layers.")  # fmt: skip
@click.option("--gguf-type", type=click.Choice(WRITTEN, case_sensitive=False), metavar="NAME",
              help=f"Round matrices that are not quantised to this type of GGUF: {', '.join(WRITTEN)}. Default: the "
              "narrowest float that holds each.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), metavar="NAME",
              help="Round unquantised tensors to float32, float16 or bfloat16. Default: round nothing.")  # fmt: skip
@click.option("--dequantize", is_flag=True, help="Write the values of quantised layers (layouts plain and gguf).")
@click.option("--force", "--overwrite", "overwrite", is_flag=True, help="Replace the checkpoint in DIR.")
def convert(
    model: str, out: Path, layout: str, gguf_type: str | None, dtype: str | None, dequantize: bool, overwrite: bool
) -> None:
    """MODEL is `tiny`, a folder of Hugging Face files or a GGUF file. Codes, scales and zero points are kept as they
    are; what the new layout cannot hold is refused before anything is written.

    \b
    Examples:
      qsim convert FOLDER --out model.gguf --gguf-type q4_k
      qsim convert model.gguf --out FOLDER --dequantize --dtype bfloat16
      qsim convert FOLDER --out DIR --layout compressed-tensors
    """
    from qsim.checkpoints import convert as rewrite

    if layout == "auto" and (gguf_type is not None or out.suffix == ".gguf"):
        layout = "gguf"
    elif layout == "auto" and dequantize:
        layout = "plain"
    if gguf_type is not None and layout != "gguf":
        raise QsimError(f"--gguf-type belongs to --layout gguf: got --layout {layout}")
    if gguf_type is not None and dtype is not None:
        raise QsimError(f"--gguf-type and --dtype are one choice: got {gguf_type} and {dtype}")
    with work() as progress:
        written = rewrite(model, Path(os.path.abspath(out)), layout, overwrite=overwrite, dequantize=dequantize,
                          dtype=dtype, tensor_type=gguf_type, progress=progress)  # fmt: skip
    for note in written.notes:
        click.echo(f"note: {note}")
    click.echo(f"wrote {out} ({written.layout}, {written.total_bytes / 2**20:.1f} MiB of tensors)")
