"""The keys of each `quantization_config`, with their types; keys of other versions are accepted and listed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qsim.errors import QsimError

_Any = Any | None


def _pattern(text: str) -> str:
    """A target, an ignore entry or a rule whose regular expression compiles."""
    for mark in ("re:", "-:", "+:"):
        if text.startswith(mark):
            return _compiled(text, text.removeprefix(mark))
    return text


def _compiled(text: str, expression: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise QsimError(f"{expression!r} is not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, AfterValidator(_pattern)]
Rule = Annotated[str, AfterValidator(lambda text: _compiled(text, text.removeprefix("-:").removeprefix("+:")))]
Size = Annotated[int, Field(ge=1)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="allow")

    quant_method: str | None = None


class _Kept(_Keys):
    """What writers keep of the calibration and of their kernels; it does not say how tensors are stored."""

    act_group_aware: _Any = None
    backend: _Any = None
    batch_size: _Any = None
    block_name_to_quantize: _Any = None
    cache_block_outputs: _Any = None
    damp_auto_increment: _Any = None
    damp_percent: _Any = None
    dataset: _Any = None
    disable_exllama: _Any = None
    do_fuse: _Any = None
    exllama_config: _Any = None
    fuse_max_seq_len: _Any = None
    max_input_length: _Any = None
    meta: _Any = None
    method: _Any = None
    model_file_base_name: _Any = None
    model_name_or_path: _Any = None
    model_seqlen: _Any = None
    module_name_preceding_first_block: _Any = None
    modules_in_block_to_quantize: _Any = None
    modules_to_fuse: _Any = None
    mse: _Any = None
    pad_token_id: _Any = None
    q_group_size: _Any = None
    quantizer: _Any = None
    static_groups: _Any = None
    tokenizer: _Any = None
    true_sequential: _Any = None
    use_cuda_fp16: _Any = None
    use_exllama: _Any = None
    w_bit: _Any = None


class Gptq(_Kept):
    """AutoGPTQ, GPTQModel, optimum."""

    bits: int
    group_size: int
    sym: bool = True
    desc_act: bool | None = None
    lm_head: bool | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    pack_dtype: str | None = None
    is_marlin_format: bool | None = None
    dynamic: dict[Rule, dict[str, Any] | None] | None = None
    modules_to_not_convert: list[str] | None = None
    version: _Any = None


class Awq(_Kept):
    """AutoAWQ, GPTQModel."""

    bits: int
    group_size: int
    zero_point: bool = True
    version: str | None = None
    modules_to_not_convert: list[str] | None = None
    checkpoint_format: _Any = None
    desc_act: _Any = None
    format: _Any = None
    lm_head: _Any = None
    pack_dtype: _Any = None
    sym: _Any = None


class Fp8(_Keys):
    """AutoFP8, vLLM, DeepSeek, GPTQModel."""

    activation_scheme: Literal["static", "dynamic"] = "dynamic"
    weight_block_size: tuple[Size, Size] | None = None
    ignored_layers: list[str] | None = None
    modules_to_not_convert: list[str] | None = None
    kv_cache_scheme: str | dict[str, Any] | None = None
    fmt: str | None = None
    format: str | None = None
    scale_fmt: str | None = None
    weight_scale_semantics: str | None = None
    weight_scale_method: _Any = None
    bits: _Any = None
    checkpoint_format: _Any = None
    dequantize: _Any = None
    desc_act: _Any = None
    dynamic: _Any = None
    expert_dtype: _Any = None
    group_size: _Any = None
    is_checkpoint_fp8_serialized: _Any = None
    lm_head: _Any = None
    meta: _Any = None
    method: _Any = None
    modules_to_convert: _Any = None
    pack_dtype: _Any = None
    sym: _Any = None
    version: _Any = None


class Args(BaseModel):
    """QuantizationArgs of compressed-tensors."""

    model_config = ConfigDict(extra="allow")

    num_bits: int = 8
    type: Literal["int", "float"] = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    block_structure: tuple[Size, Size] | Annotated[str, Field(pattern=r"^\d+[xX]\d+$")] | None = None
    dynamic: bool | Literal["local"] = False
    actorder: _Any = None
    scale_dtype: str | None = None
    zp_dtype: str | None = None
    observer: _Any = None
    observer_kwargs: _Any = None

    def said(self) -> dict[str, Any]:
        """As a dict, with the strategy that the library infers where none is given."""
        out = self.model_dump(exclude_unset=True)
        if self.strategy is None:
            size = self.group_size
            out["strategy"] = "tensor" if size is None else "channel" if size == -1 else "group"
        return out


class Group(BaseModel):
    """QuantizationScheme of compressed-tensors."""

    model_config = ConfigDict(extra="allow")

    targets: list[Pattern]
    weights: Args | None = None
    input_activations: Args | None = None
    output_activations: Args | None = None
    format: str | None = None


class CompressedTensors(_Keys):
    """llm-compressor, compressed-tensors."""

    config_groups: dict[str, Group]
    format: str | None = None
    quantization_status: str | None = None
    ignore: list[Pattern] | None = None
    kv_cache_scheme: Args | None = None
    global_compression_ratio: _Any = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None
    moe_sparsity_config: dict[str, Any] | None = None
    version: _Any = None
    run_compressed: _Any = None
    dequantize: _Any = None
    use_optimized_inference: _Any = None


MODELS: dict[str, type[_Keys]] = {"gptq": Gptq, "awq": Awq, "compressed-tensors": CompressedTensors, "fp8": Fp8}


def parse(method: str, config: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The typed keys of a config, and the names of those that are not known here.

    Raises:
        ValueError: a key that is missing or of another type; the sentence names it and what was given.
    """
    try:
        keys = MODELS[method].model_validate(dict(config))
    except ValidationError as errors:
        first = errors.errors()[0]
        where = ".".join(
            str(part) for part in first["loc"] if not str(part).startswith(("tuple[", "function-", "dict["))
        )
        if first["type"] == "missing":
            raise QsimError(f"quantization_config ({method}): key {where!r} is missing") from None
        rule = first["msg"].removeprefix("Value error, ")
        given = str(first["input"])
        raise QsimError(
            f"quantization_config ({method}): key {where!r}: {rule[0].lower()}{rule[1:]}: got {given[:60]}"
        ) from None
    return keys, sorted(_unknown(keys))


def _unknown(keys: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in keys.model_extra or {}:
        yield prefix + name
    for name in type(keys).model_fields:
        value = getattr(keys, name)
        inner = value if isinstance(value, dict) else {"": value}
        for key, item in inner.items():
            if isinstance(item, BaseModel):
                yield from _unknown(item, f"{prefix}{name}.{key}." if key else f"{prefix}{name}.")
