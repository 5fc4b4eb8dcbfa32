"""`qsim generate`: text from a model, as it is made."""

from __future__ import annotations

import sys
from typing import Any

import click

from qsim.errors import QsimError

from .model_options import model_options, prepared_model
from .numbers import NumberType
from .table import json_option, print_json
from .verbs import verb


@verb("generate")
@click.argument("prompt")
@click.option("--model", default="tiny", show_default=True, metavar="MODEL",
              help="The embedded model, or a folder of Hugging Face files.")  # fmt: skip
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    metavar="N",
    help="Generate at most so many tokens.",
)
@click.option(
    "--temperature", type=NumberType(), default=0.0, show_default=True, metavar="T", help="0 takes the likeliest token."
)
@click.option("--top-p", type=NumberType(), default=1.0, show_default=True, metavar="P",
              help="Draw among the likeliest tokens that have this probability together.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Random seed.")
@model_options
@json_option
def generate(
    prompt: str,
    model: str,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    as_json: bool,
    **how: Any,
) -> None:
    """Continue PROMPT (or stdin, for -), greedily or by drawing, and say how fast.

    The text goes to stdout, the speed to stderr.

    \b
    Examples:
      qsim generate "def fibonacci(n):"
      qsim generate "import " --temperature 0.8 --top-p 0.95 --seed 1
      qsim generate "class Stack:" --scheme w4a16-g128
      qsim generate "Once upon a time" --model DIR --json
    """
    from qsim.models import complete

    used, _ = prepared_model(model, **how)
    text = _from_stdin() if prompt == "-" else prompt
    pieces = iter([text])  # the prompt comes first, once it is known that there is something to continue

    def stream(piece: str) -> None:
        click.echo(next(pieces, "") + piece, nl=False)
        sys.stdout.flush()

    g = complete(used, text, max_new_tokens, temperature=temperature, top_p=top_p, seed=seed,
                 stream=None if as_json else stream)  # fmt: skip
    if as_json:
        print_json({"model": used.name, "prompt": g.prompt, "text": g.text, "tokens": list(g.tokens),
                    "prompt_tokens": g.prompt_tokens, "stop": g.stop, "temperature": temperature, "top_p": top_p,
                    "seed": seed, "prefill_s": g.prefill_s, "decode_s": g.decode_s,
                    "prefill_tokens_per_s": g.prefill_tokens_per_s, "decode_tokens_per_s": g.decode_tokens_per_s,
                    "notes": list(used.notes)})  # fmt: skip
        return
    stream("\n")
    rate = "" if g.decode_tokens_per_s is None else f", then {g.decode_tokens_per_s:.0f} tokens/s"
    ended = {"length": "", "eos": "; ended by itself", "context": "; the context is full"}[g.stop]
    click.echo(
        f"{used.name}: {len(g.tokens)} tokens; first after {g.prefill_s * 1e3:.0f} ms "
        f"(prompt of {g.prompt_tokens}){rate}{ended}",
        err=True,
    )
    for note in used.notes:
        click.echo(f"note: {note}", err=True)


def _from_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise QsimError(
            f"stdin is not {error.encoding} text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
