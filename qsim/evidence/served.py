"""What inference engines serve: checkpoints that vLLM, TensorRT-LLM or SGLang load, by the names that users say."""

from __future__ import annotations

from dataclasses import dataclass

from .precision import Precision, of_scheme
from .table import method_of


@dataclass(frozen=True, kw_only=True)
class Served:
    """One kind of checkpoint.

    Attributes:
        title: as users say it.
        method, scheme: how this project makes it.
        calibrated: whether the method looks at text; such checkpoints lose less and are published ready to load.
        effort: rank of what it takes to serve: 0 nothing, 1 to 1.4 a flag at start (finer scales, which lose less to
            outliers, first), 2 a checkpoint made beforehand, 3 one made with calibration for activations.
    """

    title: str
    method: str
    scheme: str
    calibrated: bool
    effort: float


SERVED = (
    Served(title="BF16", method="none", scheme="bf16", calibrated=False, effort=0),
    Served(title="FP8 dynamic", method="fp8", scheme="fp8-rowwise", calibrated=False, effort=1),
    Served(title="FP8 block", method="fp8", scheme="fp8-block128", calibrated=False, effort=1.4),
    Served(title="FP8 tensor", method="fp8", scheme="fp8-tensor", calibrated=False, effort=1.2),
    Served(title="FP8 static", method="fp8", scheme="fp8-static", calibrated=True, effort=3),
    Served(title="AWQ INT4 g128", method="awq", scheme="w4a16-g128", calibrated=True, effort=2),
    Served(title="GPTQ INT4 g128", method="gptq", scheme="w4a16-g128", calibrated=True, effort=2),
    Served(title="SmoothQuant INT8", method="smoothquant", scheme="w8a8-channel-token", calibrated=True, effort=3),
    Served(title="NVFP4", method="rtn", scheme="nvfp4", calibrated=False, effort=3),
    Served(title="MXFP4", method="rtn", scheme="mxfp4", calibrated=False, effort=3),
    Served(title="MXFP8", method="rtn", scheme="mxfp8", calibrated=False, effort=3),
)  # fmt: skip
"""Without FP8 KV; each is served with it too."""


def served_as(method: str, scheme: str) -> Served | None:
    """The kind of checkpoint that an engine serves for a method and a scheme, whatever its KV cache; None for none."""
    p = of_scheme(scheme)
    wanted = Precision(weight=p.weight, region=p.region, activation=p.activation, scaling=p.scaling)
    name = "none" if wanted == Precision() else method_of(method)
    return next((s for s in SERVED if s.method == name and of_scheme(s.scheme) == wanted), None)


def served_title(method: str, scheme: str) -> str | None:
    """`AWQ INT4 g128 + FP8 KV`; None for what no engine serves."""
    found, kv = served_as(method, scheme), of_scheme(scheme).kv
    if found is None:
        return None
    return found.title if kv == "none" else f"{found.title} + {kv.upper()} KV"
