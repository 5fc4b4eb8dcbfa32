"""Which schemes a KV cache can have."""

from __future__ import annotations

from qsim.errors import QsimError
from qsim.formats import BlockFormat, FloatFormat

from .tensor_scheme import TensorScheme


def check_kv_scheme(scheme: TensorScheme) -> None:
    """Refuse a scheme that a cache cannot have.

    Raises:
        ValueError: granularities of weights, block formats, zero points with a stored scale.
    """
    if not scheme.is_quantized or isinstance(scheme.format, BlockFormat):
        if isinstance(scheme.format, BlockFormat):
            raise QsimError(f"a KV cache must be a 16-bit float, FP8 or integers: got {scheme.format.name}")
        return
    assert scheme.granularity is not None
    if scheme.granularity.kind not in ("tensor", "token", "group"):
        raise QsimError(f"the granularity of a KV cache must be tensor, token or group(g): got {scheme.granularity}")
    if not scheme.dynamic and (scheme.granularity.kind != "tensor" or not isinstance(scheme.format, FloatFormat)):
        raise QsimError(
            f"stored KV scales must be per tensor, of FP8: got {scheme.format.name}, {scheme.granularity}; "
            "use dynamic=True for scales found from every token"
        )
