"""From a model, or another checkpoint, to a folder that the engines load."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qsim.errors import QsimError
from qsim.files import write_json
from qsim.folders import check_apart, recover
from qsim.layouts import Fact, Layer, Layout, Notes, get_layout, refusal, write_plan
from qsim.layouts.layout import Meaning
from qsim.layouts.plain import DTYPES, narrowest, rounded
from qsim.layouts.registry import choose_layout
from qsim.models import Model, load
from qsim.models.folder import KEYS, gguf_file
from qsim.models.source import Source
from qsim.models.stacked import stack_experts
from qsim.safetensors import Stored
from qsim.scheme import QuantizedTensor, TensorScheme, tensor_scale_of

from . import gguf
from .checks import (
    HEAD,
    check_dtype,
    check_kv,
    check_layers,
    check_settings,
    fused_apart,
    fused_groups,
    fused_scales,
    kv_cache_of,
    layer_of,
    linear_names,
    with_float_embedding,
    with_kv,
)
from .folder import SHARD_BYTES, ShardWriter, check_target, copy_beside, new_folder

Progress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write` and `convert` made.

    Arguments:
        path: the folder.
        layout: how its quantised layers are stored.
        files: names in it.
        total_bytes: of its tensors.
        dtype: of the model, by its config; engines run in it.
        notes: what a user of the folder must know.
    """

    path: Path
    layout: str
    files: tuple[str, ...]
    total_bytes: int
    dtype: str
    notes: tuple[str, ...]


def write(
    model: Model,
    path: str | Path,
    layout: str = "auto",
    *,
    overwrite: bool = False,
    dequantize: bool = False,
    dtype: str | None = None,
    tensor_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    add_files: Callable[[Path], object] | None = None,
) -> Written:
    """Write a model as a Hugging Face folder, or as a GGUF file.

    Arguments:
        path: the folder; it appears whole or not at all. With `gguf` a path that ends in `.gguf` is the file itself.
        layout: how quantised layers are stored; `auto` is the first of `qsim.list_layouts()` that holds them all, which
            is plain for an unquantised model. `layouts_for` says what each holds.
        overwrite: replace a checkpoint that is there; nothing else is ever replaced.
        dequantize: with `plain` and `gguf`, write the values of quantised layers.
        dtype: `float32`, `float16` or `bfloat16` to round unquantised tensors to. None rounds nothing: each is stored
            in the model's own dtype where that is exact, else in the narrowest that is.
        tensor_type: with `gguf`, the type to round matrices to that are not quantised: `q8_0`, `q6_k`, `q5_0`, `q4_k`,
            `q4_0`, `mxfp4`, `bf16`, `f16` or `f32`. None stores each in the narrowest float that holds it.
        shard_bytes: the largest file, in bytes.
        progress: called with tensors done, tensors in all, and a name.
        add_files: called with the folder before it appears, for what must be in it from the start.

    Codes, scales and zero points are stored exactly. The config's dtype becomes that of 16-bit scales, since engines
    cast scales to the model's dtype.

    Raises:
        ValueError: something that the layout cannot hold (layer, rule, what to use instead), a target that exists, or
            that the model was read from. In all cases nothing is written.
        OSError: the disk is full or the folder cannot be written; nothing is left that looks like a checkpoint.
    """
    if layout != "gguf":
        model = with_float_embedding(model)
    quantized = {n: t for n, t in model.tensors.items() if isinstance(t, QuantizedTensor)}
    kv = kv_cache_of(model, quantized)
    layers = [Layer.of(qt, layer_of(name), with_kv(qt.scheme, kv)) for name, qt in quantized.items()]
    chosen = _chosen(layout, layers, kv)
    check_settings(model)
    if tensor_type is not None and chosen.container != "gguf":
        raise QsimError(f"tensor_type={tensor_type!r} belongs to layout 'gguf': got {chosen.name!r}")
    values_only = _values_only(chosen, dequantize)
    if not values_only:
        check_layers(chosen.name, layers)
        check_kv(chosen.name, kv)
    if model.path is not None:
        check_apart(model.path, path)
    if chosen.container == "gguf":
        check_dtype(dtype)
        done = gguf.write_model(
            model, Path(path), overwrite=overwrite, dequantize=dequantize, dtype=dtype, tensor_type=tensor_type,
            progress=progress, add_files=add_files,
        )  # fmt: skip
        return Written(path=Path(path), layout=chosen.name, files=done.files, total_bytes=done.total_bytes,
                       dtype=dtype or model.config.dtype, notes=done.notes)  # fmt: skip
    facts = {layer_of(n): _fact(qt, kv) for n, qt in quantized.items()} if _is_quantized(chosen) else {}
    data = model.config.to_dict()
    if HEAD + ".weight" in model.tensors:
        data["tie_word_embeddings"] = False
    job = _Job(layout=chosen, data=data, dtype=check_dtype(dtype), own_dtype=model.config.dtype, kv_cache=kv)
    job.linears = [layer_of(n) for n in linear_names(model.config)]
    job.fused = fused_groups(model.config)
    job.beside = model.path
    tensors = {n: t for n, t in model.tensors.items() if not (values_only and job.drops(n))}
    if not _is_quantized(chosen):
        tensors = stack_experts(model.config, tensors)
    return _run(job, path, tensors.items(), len(tensors), facts, True, overwrite, shard_bytes, progress,
                add_files)  # fmt: skip


def convert(
    source: str | Path,
    target: str | Path,
    layout: str = "auto",
    *,
    overwrite: bool = False,
    dequantize: bool = False,
    dtype: str | None = None,
    tensor_type: str | None = None,
    scale_inv: Meaning | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Written:
    """Rewrite a checkpoint in another layout, one layer at a time.

    Held at any time are one shard (256 MiB unless `shard_bytes` says otherwise) and one layer with its codes.
    Unquantised tensors keep their bits. What headers and config tell is checked before the first byte is written;
    zero points and scales are checked as they come, and what does not fit leaves nothing behind. To and from GGUF the
    whole model is held.

    Arguments:
        source: a folder or file that `read` reads, or `tiny`.
        target: the new folder.
        layout, overwrite, dequantize, dtype, tensor_type, shard_bytes, progress: as in `write`.
        scale_inv: as in `read`.

    Raises:
        ValueError, OSError: as `read` and `write`; a target that is the source or holds it.
    """
    one_file = layout != "auto" and get_layout(layout, auto=True).container == "gguf"
    if one_file or gguf_file(source) is not None:
        return write(load(source, scale_inv=scale_inv), target, layout, overwrite=overwrite, dequantize=dequantize,
                     dtype=dtype, tensor_type=tensor_type, shard_bytes=shard_bytes, progress=progress)  # fmt: skip
    if tensor_type is not None:
        raise QsimError(f"tensor_type={tensor_type!r} belongs to layout 'gguf': got {layout!r}")
    opened = Source(source, scale_inv=scale_inv)
    kv = opened.kv_cache
    layers = [
        Layer(scheme=with_kv(opened.outline(name), kv), shape=opened.expected[name], name=layer_of(name))
        for name in opened
        if opened.is_quantized(name)
    ]
    chosen = _chosen(layout, layers, kv)
    values_only = _values_only(chosen, dequantize)
    check_apart(opened.folder, target)
    if not values_only:
        check_layers(chosen.name, layers)
        check_kv(chosen.name, kv)
    facts = {layer.name: Fact(scheme=layer.scheme) for layer in layers} if _is_quantized(chosen) else {}
    job = _Job(layout=chosen, data=dict(opened.data), dtype=check_dtype(dtype), own_dtype=opened.config.dtype,
               kv_cache=kv)  # fmt: skip
    job.linears = [layer_of(n) for n in linear_names(opened.config)]
    job.fused = fused_groups(opened.config)
    job.beside = opened.folder
    job.notes = opened.notes
    names = [name for name in opened if not (values_only and job.drops(name))]

    def items() -> Iterator[tuple[str, Any]]:
        for name in names:
            yield name, opened.load(name) if opened.is_quantized(name) else opened.stored(name)

    return _run(job, target, items(), len(names), facts, False, overwrite, shard_bytes, progress)


class _Job:
    """What both ways to write share."""

    def __init__(
        self, *, layout: Layout, data: dict[str, Any], dtype: str | None, own_dtype: str, kv_cache: TensorScheme | None
    ) -> None:
        self.layout, self.data, self.dtype, self.kv_cache = layout, data, dtype, kv_cache
        self.own_dtype = own_dtype if own_dtype in DTYPES else "float32"
        self.linears: list[str] = []
        self.fused: list[list[str]] = []
        self.beside: Path | None = None
        self.notes = Notes()

    def drops(self, name: str) -> bool:
        """Whether a tensor has no meaning in a checkpoint without quantisation: scales of the KV cache."""
        if not name.endswith((".k_scale", ".v_scale")):
            return False
        self.notes.add("the KV cache is not quantised in a plain checkpoint: its scales were left out")
        return True

    def plain(self, name: str, tensor: np.ndarray | Stored | QuantizedTensor) -> Stored:
        """A tensor without codes as it is stored."""
        if isinstance(tensor, Stored):
            if self.dtype is None or tensor.dtype not in ("F32", "F16", "BF16", "F64"):
                return tensor
            tensor = tensor.values()
        if name.endswith(("k_scale", "v_scale")):
            return narrowest(tensor, ())[0]
        if self.dtype is not None:
            found, changed = rounded(tensor, self.dtype, name)
            if changed:
                self.notes.add(f"unquantised tensors were rounded to {self.dtype}, as asked", name)
            return found
        found, dtype = narrowest(tensor, (self.own_dtype, "bfloat16", "float16"))
        if dtype == "float32" != self.own_dtype:
            self.notes.add(f"unquantised tensors are stored in float32: {self.own_dtype} would round them", name)
        return found


def _run(
    job: _Job,
    path: str | Path,
    items: Iterable[tuple[str, Any]],
    count: int,
    facts: Mapping[str, Fact],
    checked: bool,
    overwrite: bool,
    shard_bytes: int,
    progress: Progress | None,
    add_files: Callable[[Path], object] | None = None,
) -> Written:
    recover(path)
    check_target(Path(path), overwrite=overwrite)
    if _is_quantized(job.layout) and not facts and job.kv_cache is None:
        raise QsimError(f"the model has no quantised layer for layout {job.layout.name!r}: quantise it, or use 'plain'")
    remarks, job.notes = job.notes, Notes()
    _config(job, facts)  # refuses layers that differ where they must not; its notes are those of the real facts, later
    job.notes = remarks
    found: dict[str, Fact] = {}
    with new_folder(path, overwrite=overwrite) as folder:
        shards = ShardWriter(folder, shard_bytes=shard_bytes)
        for done, (name, tensor) in enumerate(items):
            if progress is not None:
                progress(done, count, name)
            if isinstance(tensor, QuantizedTensor) and _is_quantized(job.layout):
                layer = layer_of(name)
                seen = Layer.of(tensor, layer, with_kv(tensor.scheme, job.kv_cache))
                if not checked and (wrong := refusal(seen, job.layout.name)) is not None:
                    raise QsimError(wrong)
                found[layer] = _fact(tensor, job.kv_cache)
                if (remark := job.layout.remark(tensor)) is not None:
                    job.notes.add(remark, layer)
                for last, stored in job.layout.encode(tensor).items():
                    shards.add(f"{layer}.{last}", stored)
            else:
                shards.add(name, job.plain(name, tensor))
            del tensor
        beside, left = copy_beside(job.beside, folder)
        if left:
            job.notes.add(f"not copied, because they are links or no regular files: {', '.join(left)}")
        files = shards.close()
        data, dtype = _config(job, found)
        if job.layout.beside is not None:
            legacy = {k: v for k, v in data["quantization_config"].items() if k != "quant_method"}
            write_json(folder / job.layout.beside, {"quant_method": job.layout.quant_method, **legacy})
            files.append(job.layout.beside)
        if add_files is not None:
            before = set(folder.iterdir())
            add_files(folder)
            files += [added.name for added in folder.iterdir() if added not in before]
        write_json(folder / "config.json", data)
        if progress is not None:
            progress(count, count, "")
    return Written(
        path=Path(path),
        layout=job.layout.name,
        files=tuple(sorted([*files, *beside, "config.json"])),
        total_bytes=shards.total_bytes,
        dtype=dtype,
        notes=job.notes.lines(),
    )


def _config(job: _Job, facts: Mapping[str, Fact]) -> tuple[dict[str, Any], str]:
    """The whole config.json, and the dtype in it."""
    data = {key: value for key, value in job.data.items() if key not in KEYS}
    dtype = job.dtype or job.own_dtype
    if facts or (job.kv_cache is not None and job.layout.kv_cache_alone):
        plain = [name for name in job.linears if name not in facts]
        try:
            version = importlib.metadata.version("qsim")
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        data["quantization_config"] = write_plan(job.layout.name, facts, plain, job.kv_cache, version)
        apart = fused_apart(facts, job.fused)
        if apart is not None:
            job.notes.add("engines fuse q k v and gate up, and want them stored alike", apart)
        for sentence in fused_scales(facts, job.fused):
            job.notes.add(sentence)
        scales = Counter(f.scheme.weight.scale_format.name for f in facts.values() if f.scheme.weight.scale_format)
        common = scales.most_common(1)[0][0] if scales else dtype
        if common in ("float16", "bfloat16") and common != dtype:
            job.notes.add(f"the config's dtype is {common}, not {dtype}: engines cast scales to it")
            dtype = common
        if "float32" in scales and dtype != "float32" and job.layout.casts_scales:
            job.notes.add(f"scales are float32: engines that run in {dtype} may round them")
    key = "dtype" if "dtype" in data and "torch_dtype" not in data else "torch_dtype"
    data[key] = dtype
    return data, dtype


def _chosen(layout: str, layers: Sequence[Layer], kv: TensorScheme | None) -> Layout:
    """The layout that was asked for; for `auto`, the first that holds everything."""
    return get_layout(choose_layout(layers, kv_cache=kv is not None) if layout == "auto" else layout, auto=True)


def _is_quantized(layout: Layout) -> bool:
    return layout.quant_method is not None


def _values_only(layout: Layout, dequantize: bool) -> bool:
    if dequantize and _is_quantized(layout):
        raise QsimError(f"dequantize=True belongs to layout 'plain': got {layout.name!r}")
    return dequantize


def _fact(qt: QuantizedTensor, kv: TensorScheme | None) -> Fact:
    return Fact(
        scheme=with_kv(qt.scheme, kv),
        act_order=qt.group_index is not None,
        tensor_scale=tensor_scale_of(qt),
        input_scale=qt.input_scale,
    )
