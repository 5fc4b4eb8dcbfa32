"""What a model must be like to be written in a layout; each refusal is one sentence, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qsim.errors import QsimError
from qsim.formats import BlockFormat, get_format
from qsim.layouts import Fact, Layer, get_layout, refusal
from qsim.layouts.plain import DTYPES
from qsim.models import Model
from qsim.models.checks import quantizable
from qsim.models.families import block_names, model_names
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme

HEAD = "lm_head"


def layer_of(name: str) -> str:
    """A Linear's name from its weight's."""
    return name.removesuffix(".weight")


def with_float_embedding(model: Model) -> Model:
    """The model with float32 values of an embedding that is quantised: only GGUF has a place for its codes."""
    name = f"{model_names(model.config).embedding}.weight"
    table = model.tensors[name]
    if not isinstance(table, QuantizedTensor):
        return model
    return model.replace(tensors={**model.tensors, name: table.dequantize()})


def with_kv(scheme: Scheme, kv: TensorScheme | None) -> Scheme:
    """The scheme with the KV cache of the model that it is written in."""
    return scheme.replace(kv_cache=TensorScheme(format=get_format("bfloat16")) if kv is None else kv)


def linear_names(config: Any) -> list[str]:
    """Weights of Linears in the order of the model, then routers, which loaders take for Linears and which stay
    unquantised; the head last even when it is tied."""
    head = model_names(config).head + ".weight"
    routers = [block_names(config, i).router for i in range(config.num_hidden_layers)]
    return [*sorted(quantizable(config) - {head}), *(f"{name}.weight" for name in routers if name is not None), head]


def kv_cache_of(model: Model, quantized: Mapping[str, QuantizedTensor]) -> TensorScheme | None:
    """How the KV cache is stored: as the model says, or as its weights' scheme does."""
    if model.kv_cache is not None:
        return model.kv_cache if model.kv_cache.is_quantized else None
    said = [(name, qt.scheme.kv_cache) for name, qt in quantized.items() if qt.scheme.kv_cache.is_quantized]
    for name, other in said[1:]:
        if other != said[0][1]:
            raise QsimError(
                f"one scheme stores the KV cache: {said[0][0]} and {name} name different ones; set kv_cache"
            )
    return said[0][1] if said else None


def check_layers(layout: str, layers: Iterable[Layer]) -> None:
    """Refuse the first layer that a layout cannot hold."""
    for layer in layers:
        wrong = refusal(layer, layout)
        if wrong is not None:
            raise QsimError(wrong)


def check_kv(layout: str, kv: TensorScheme | None) -> None:
    """Refuse a quantised KV cache in a checkpoint without a config of quantisation."""
    if kv is not None and get_layout(layout).quant_method is None:
        raise QsimError(
            f"the KV cache is {kv.format.name}: layout {layout} has no place for that; use layout "
            "'compressed-tensors', or a model with kv_cache=None"
        )


def check_settings(model: Model) -> None:
    """Refuse a model that computes something which its tensors do not tell."""
    for name in (*model.linears(), HEAD):
        if model.settings_of(name).get("input_transform") is not None:
            raise QsimError(
                f"layer {name}: its input is rotated while the model runs (input_transform), and no layout stores "
                "that; write the model without online rotations"
            )


def check_dtype(dtype: str | None) -> str | None:
    """The dtype, or a refusal."""
    if dtype not in (None, *DTYPES):
        raise QsimError(f"dtype must be {', '.join(DTYPES)} or None: got {dtype!r}")
    return dtype


def fused_groups(config: Any) -> list[list[str]]:
    """Layers that engines fuse into one product: q k v, gate up."""
    groups = (g for i in range(config.num_hidden_layers) for g in block_names(config, i).groups)
    return [group for group in groups if len(group) > 1]


def fused_apart(facts: Mapping[str, Fact], fused: Iterable[Sequence[str]]) -> str | None:
    """The first layer that is stored otherwise than those that engines fuse it with; None when there is none."""
    for group in fused:
        schemes = [facts[name].scheme if name in facts else None for name in group]
        odd = next((i for i, scheme in enumerate(schemes) if scheme != schemes[0]), None)
        if odd is not None:
            return group[odd]
    return None


def fused_scales(facts: Mapping[str, Fact], fused: Iterable[Sequence[str]]) -> list[str]:
    """What engines make of fused layers whose tensor scales, or scales of static activations, differ; sentences.

    Source: see `qsim.scheme.shared`.
    """
    blocks, floats, inputs = _Unequal(), _Unequal(), _Unequal()
    for group in fused:
        known = [(name, facts[name]) for name in group if name in facts]
        if not known or len({fact.scheme for _, fact in known}) > 1:
            continue  # `fused_apart` says that
        is_block = isinstance(known[0][1].scheme.weight.format, BlockFormat)
        (blocks if is_block else floats).see([(name, fact.tensor_scale) for name, fact in known])
        inputs.see([(name, fact.input_scale) for name, fact in known])
    who, out = "layers that engines fuse (q k v, gate up) have", []
    if blocks.groups:
        out.append(
            f"{who} tensor scales of their own: vLLM applies the largest stored divisor to all, so that weights become "
            f"up to {blocks.ratio:.3g} times too small; quantise the model again {blocks.where}"
        )
    if floats.groups:
        out.append(
            f"{who} tensor scales of their own: vLLM requantises all to the largest, which rounds weights twice, under "
            f"up to {floats.ratio:.3g} times their own scale {floats.where}"
        )
    if inputs.groups:
        out.append(
            f"{who} static activation scales of their own: vLLM applies one of them to all, and they differ by a "
            f"factor of up to {inputs.ratio:.3g} {inputs.where}"
        )
    return out


class _Unequal:
    """Fused groups whose scales differ, and by how much at most."""

    def __init__(self) -> None:
        self.groups, self.ratio, self.first = 0, 1.0, ""

    def see(self, scales: Sequence[tuple[str, float | None]]) -> None:
        given = [(scale, name) for name, scale in scales if scale is not None]
        if len(given) < 2 or min(given)[0] == max(given)[0]:
            return
        self.groups += 1
        self.first = self.first or min(given)[1]
        self.ratio = max(self.ratio, max(given)[0] / min(given)[0])

    @property
    def where(self) -> str:
        return f"({self.first}{f' and {self.groups - 1} more groups' if self.groups > 1 else ''})"
