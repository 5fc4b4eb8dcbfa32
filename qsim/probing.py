"""`probe`: what a black box computes, a matrix multiply or a whole fused kernel."""

from __future__ import annotations

from typing import Any, Literal

from qsim.errors import QsimError


def probe(
    box: Any,
    *,
    kind: Literal["instruction", "pipeline"] = "instruction",
    input: str | None = None,
    scheme: Any = None,
    **more: Any,
) -> Any:
    """Recover what a black box computes from its outputs alone.

    Arguments:
        box: the function; see `qsim.tensorcore.probe` and `qsim.kernels.probe_pipeline` for what it is called with.
        kind: `instruction`: a matrix multiply of two operands; `pipeline`: a fused kernel of quantised weights.
        input: format of the operands of an instruction.
        scheme: of the weights and activations of a pipeline.
        more: further arguments of those functions.

    Returns:
        A `qsim.tensorcore.Probe` or a `qsim.kernels.PipelineProbe`; both print by `summary()`.

    Raises:
        QsimError: another kind, arguments of the other kind, and what those functions refuse.
    """
    if kind not in ("instruction", "pipeline"):
        raise QsimError(f"kind must be instruction or pipeline: got {kind!r}")
    if kind == "pipeline":
        if scheme is None:
            raise QsimError("kind='pipeline' needs the scheme of the kernel's weights and activations")
        if input is not None:
            raise QsimError("input belongs to kind='instruction': a pipeline's operands follow from its scheme")
        from qsim.kernels import probe_pipeline

        return probe_pipeline(box, scheme, **more)
    if scheme is not None:
        raise QsimError("scheme belongs to kind='pipeline'")
    if input is None:
        raise QsimError("kind='instruction' needs input, the format of the operands")
    from qsim.tensorcore import probe as of_product

    return of_product(box, input=input, **more)
