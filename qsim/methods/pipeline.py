"""`quantize_model`: block by block through a model, from a stream of calibration text to quantised layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from qsim._native.blas import one_blas_thread
from qsim.errors import QsimError
from qsim.files import temporary_folder
from qsim.models import Model
from qsim.models.fingerprint import fingerprint
from qsim.scheme import Scheme

from .calibration import calibration_of
from .kv import stores_kv
from .memory import MemoryEstimate, estimate_memory
from .passes import is_small
from .recipe import Recipe
from .registry import get_recipe
from .result import QuantizationResult, version
from .rotation import rotate_model
from .run import Progress, Run
from .store import Store


def quantize_model(
    model: Model,
    method: str = "gptq",
    scheme: str | Scheme | None = None,
    calibration: Any = None,
    *,
    window: int | None = None,
    windows: int | None = None,
    micro_batch: int | None = None,
    true_sequential: bool = True,
    rotate: str | None = None,
    fp8_attention: bool = False,
    ignore: Sequence[str] = (),
    n_jobs: int | None = None,
    work_dir: str | Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[MemoryEstimate], None] | None = None,
    seed: int = 0,
    **options: Any,
) -> QuantizationResult:
    """Quantise the Linears of a model's blocks; embeddings, norms and head stay as they are.

    Arguments:
        model: with float weights.
        method: a name of `list_methods`.
        scheme: name or value; None is the method's default one.
        calibration: text, UTF-8 bytes, token ids or a `Calibration`; see `calibration_of` for `window`, `windows` and
            `micro_batch`. Methods that need none take None; their records then have no output errors.
        true_sequential: GPTQ sees the inputs of o_proj as the quantised q, k, v give them, and so on through a block;
            False takes all inputs of a block at once.
        rotate: `offline` turns hidden states and heads by Hadamard matrices that are folded into the weights (QuaRot's
            R1, R2); `online` also turns the input of down_proj, at run time (R4). See `rotate_model`.
        fp8_attention: form attention's products from FP8 operands.
        ignore: Linears that stay float, as patterns (`*.down_proj`, `model.layers.0.*`).
        n_jobs: Linears solved at a time, as joblib counts them. None is 1, or whatever `joblib.parallel_config` says,
            so that a cluster can be given from outside.
        work_dir: folder for finished layers. A run that was interrupted goes on from there when it is repeated with the
            same arguments, and gives the same result; a layer's file that was damaged meanwhile is set aside, solved
            again and named in the result's notes. The run is recognised by every byte of the model, whose SHA-256 is
            taken first. None keeps nothing.
        progress: called as work gets done.
        announce: called with the memory estimate before the start.
        seed: of random signs in `rotate`.
        options: of the method: the fields of its `Options`.

    Returns:
        The quantised model, the records, and what was asked.

    Raises:
        ValueError: before anything is computed: a scheme that the method cannot do, layers whose K a group does not
            divide (all are listed), too little text, quantised weights. And, while computing, NaN in activations; the
            message names the layer.
    """
    started = time.perf_counter()
    recipe = get_recipe(method, scheme, options)
    source, names = _prepare(model, recipe, rotate, ignore, seed)
    given = None
    if calibration is not None:
        given = calibration_of(source, calibration, window=window, windows=windows, micro_batch=micro_batch)
    elif recipe.needs_calibration or stores_kv(recipe.scheme):
        raise QsimError(f"{method} with {recipe.scheme.name or 'this scheme'} needs calibration text: give calibration")
    settings = {
        **recipe.settings, "rotate": rotate, "fp8_attention": fp8_attention, "ignore": list(ignore), "seed": seed,
        "true_sequential": true_sequential,
    }  # fmt: skip
    store = Store(None, {})
    if work_dir is not None:  # only then is the model worth the time of a fingerprint
        identity = {
            "qsim": version(), "method": method, "scheme": recipe.scheme.to_toml(), "settings": settings,
            "model": fingerprint(model),
            "calibration": None if given is None else [given.digest, list(given.tokens.shape), given.micro_batch],
        }  # fmt: skip
        store = Store(Path(work_dir), identity)
    estimate = estimate_memory(source, recipe, given, true_sequential=true_sequential, jobs=n_jobs or 1)
    if announce is not None:
        announce(estimate)
    run = Run(source, recipe, given, names, store, true_sequential, n_jobs, progress)
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread(is_small(source)))
        if given is not None:
            run.open(stack.enter_context(temporary_folder()), stack)
        run.all_blocks()
    quantised = run.finish(fp8_attention)
    return QuantizationResult(
        model=quantised, layers=tuple(run.records[n] for n in names), method=method, scheme=recipe.scheme,
        settings=settings, estimate=estimate, resumed=run.resumed, notes=store.notes,
        time_s=time.perf_counter() - started,
        calibration={} if given is None else {
            "windows": given.windows, "window": given.tokens.shape[1], "tokens": given.token_count,
            "digest": given.digest,
        },
    )  # fmt: skip


def _prepare(
    model: Model, recipe: Recipe, rotate: str | None, ignore: Sequence[str], seed: int
) -> tuple[Model, list[str]]:
    """The float model that is quantised, and the Linears, all of which the scheme fits."""
    quantised = [n for n, one in model.linears().items() if one.is_quantized]
    if quantised:
        raise QsimError(f"weights to quantise are float: {quantised[0]} and {len(quantised) - 1} more are quantised")
    names = [n for n in model.linears() if not any(fnmatchcase(n, pattern) for pattern in ignore)]
    if not names:
        raise QsimError(f"ignore leaves no Linear to quantise: got {', '.join(ignore)}")
    wrong = []
    for name in names:
        try:
            recipe.scheme.weight.check_shape(model.linears()[name].weight.shape, name)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        more = f" (and {len(wrong) - 1} more layers)" if len(wrong) > 1 else ""
        raise QsimError(wrong[0] + more)
    return (model if rotate is None else rotate_model(model, rotate, seed=seed)), names
