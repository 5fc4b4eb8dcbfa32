"""An opened checkpoint folder: its tensors, one at a time, quantised as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qsim.errors import QsimError
from qsim.layouts import LayerPlan, Notes, Parts, Plan, read_plan
from qsim.layouts.layout import Meaning
from qsim.layouts.parts import with_scale_format
from qsim.safetensors import FORMAT_OF, Entry, Stored, TensorFiles, open_folder
from qsim.scheme import QuantizedTensor, Scheme, TensorScheme

from .checks import quantizable
from .config import ModelConfig
from .families import block_names, expected_tensors, model_names
from .folder import check_unquantized, config_notes, quantization_of, read_config, read_json, read_tensor, resolve

HEAD = "lm_head.weight"


class Source:
    """An opened checkpoint: everything about it but its tensors, which are read when asked for.

    Arguments:
        path: `tiny`, or a folder.
        scale_inv: what `weight_scale_inv` does to the codes, where the config does not say.

    Raises:
        ValueError: as `load`, as far as headers and configs tell.
    """

    def __init__(self, path: str | Path, *, scale_inv: Meaning | None = None) -> None:
        self.folder = resolve(path)
        self.data = read_json(self.folder / "config.json")
        self.config: ModelConfig = read_config(self.folder)
        self.files: TensorFiles = open_folder(self.folder)
        self.notes = Notes()
        for note in config_notes(self.config):
            self.notes.add(note)
        self.plan = self._read_plan(scale_inv)
        if self.plan is None:
            check_unquantized(self.files)
        self.expected = dict(expected_tensors(self.config))
        self.layers: dict[str, dict[str, Entry]] = self._find_layers()
        self.scales = self._find_kv_scales()
        if self.config.tie_word_embeddings and (HEAD in self.files or "lm_head" in self.layers):
            embedding = next(iter(self.expected.values()))
            self.expected[HEAD] = embedding
        self._check()

    def _read_plan(self, scale_inv: Meaning | None) -> Plan | None:
        told = quantization_of(self.folder, self.data)
        if told is None:
            return None
        where, config = told
        try:
            return read_plan(config, self.notes, scale_inv=scale_inv)
        except QsimError as error:
            raise QsimError(f"{where}: {error}") from None

    def _find_layers(self) -> dict[str, dict[str, Entry]]:
        """Quantised layers by name, with the entries of their parts."""
        if self.plan is None:
            return {}
        names = {name.rpartition(".")[0] for name in self.files if name.rpartition(".")[2] in self.plan.layout.marks}
        out: dict[str, dict[str, Entry]] = {name: {} for name in sorted(names)}
        for name, entry in self.files.items():
            layer, _, last = name.rpartition(".")
            if layer in out and last in self.plan.layout.parts:
                out[layer][last] = entry
        return out

    def _find_kv_scales(self) -> dict[str, Entry]:
        """Scales of the KV cache under this project's names, from every name that writers have given them."""
        out: dict[str, Entry] = {}
        for i in range(self.config.num_hidden_layers):
            where = block_names(self.config, i).attention
            for which in "kv":
                spellings = [f"{where}.{which}_scale", f"{where}.attn.{which}_scale",
                             f"{where}.{which}_proj.{which}_scale", f"{where}.{which}_proj.output_scale",
                             f"{where}.kv_scale"]  # fmt: skip
                found = next((name for name in spellings if name in self.files), None)
                if found is not None:
                    out[f"{where}.{which}_scale"] = self.files[found]
        return out

    @property
    def kv_cache(self) -> TensorScheme | None:
        """How the config stores the KV cache; None when unquantised."""
        return None if self.plan is None else self.plan.kv_cache

    def __iter__(self) -> Iterator[str]:
        """Names of the model's tensors, in the order of the model."""
        yield from self.expected
        yield from self.scales

    def entries(self, name: str) -> list[Entry]:
        """What of the files a tensor of the model is made of."""
        if name in self.scales:
            return [self.scales[name]]
        layer = name.removesuffix(".weight")
        return list(self.layers[layer].values()) if layer in self.layers else [self.files[name]]

    def is_quantized(self, name: str) -> bool:
        """Whether that tensor of the model is stored quantised."""
        return name.endswith(".weight") and name.removesuffix(".weight") in self.layers

    def _check(self) -> None:
        """Every tensor of the model is there, and what is there belongs to it."""
        allowed = {name.removesuffix(".weight") for name in quantizable(self.config)}
        for layer, parts in self.layers.items():
            if layer not in allowed:
                raise QsimError(_not_a_linear(layer, next(iter(parts.values())), self.config))
        used: set[str] = {entry.name for entry in self.scales.values()}
        for name, shape in self.expected.items():
            if not self.is_quantized(name) and name not in self.files:
                layer = name.removesuffix(".weight")
                mark = self.plan.layout.marks[0] if self.plan is not None and layer in allowed else None
                expected = "" if mark is None else f"{layer}.{mark} or "
                raise QsimError(f"{self.files.path} has no tensor {expected}{name}, {shape} by config.json")
            used |= {entry.name for entry in self.entries(name)}
        for layer in self.layers:
            plan = self._layer_plan(layer)
            if plan.skipped:
                self.notes.add("the config leaves layers unquantised that are stored quantised: read as stored", layer)
        if self.plan is not None:
            self._note_unquantized(allowed)
        left = sorted(self.files.keys() - used)
        zeros = [name for name in left if name.endswith(".bias") and name.removesuffix(".bias") in self.layers]
        for name in zeros:  # AutoGPTQ gives every layer a bias
            what = "is 0 and" if not self.files[name].bits().any() else "is not 0, but"
            self.notes.add(f"a bias that the architecture does not have {what} was not used", name)
        left = [name for name in left if name not in zeros]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            self.notes.add(f"tensors that the architecture does not have were not used: {left[0]}{more}")

    def _note_unquantized(self, allowed: set[str]) -> None:
        assert self.plan is not None
        for layer in sorted(allowed - self.layers.keys()):
            if f"{layer}.weight" not in self.expected:
                continue
            scale = f"{layer}.{self.plan.layout.scale[0]}"
            plan, entry = self.plan.layer(layer), self.files[f"{layer}.weight"]
            if not entry.dtype.startswith("F") and entry.dtype != "BF16":
                raise QsimError(f"{entry.path}: tensor {entry.name} is {entry.dtype}, but its scale is missing")
            if entry.dtype.startswith("F8"):
                raise QsimError(f"{entry.path}: tensor {entry.name} is {entry.dtype}, but {scale} is missing")
            if plan is not None and not plan.skipped:
                self.notes.add("the config quantises layers that are stored unquantised: read as stored", layer)

    def _layer_plan(self, layer: str) -> LayerPlan:
        assert self.plan is not None
        plan = self.plan.layer(layer)
        if plan is None:
            entry = next(iter(self.layers[layer].values()))
            raise QsimError(f"{entry.path}: tensor {entry.name} is quantised, but no config group targets {layer}")
        return plan

    def outline(self, name: str) -> Scheme:
        """The scheme of a quantised tensor as far as config and headers tell."""
        assert self.plan is not None
        layer = name.removesuffix(".weight")
        scheme, parts = self._layer_plan(layer).scheme, self.layers[layer]
        entry = next((parts[key] for key in self.plan.layout.scale if key in parts), None)
        if entry is None or entry.dtype not in FORMAT_OF or scheme.weight.scale_format is None:
            return scheme
        if scheme.weight.scale_format.name in ("float8_e8m0fnu", "float8_e4m3fn"):
            return scheme
        return with_scale_format(scheme, FORMAT_OF[entry.dtype])

    def stored(self, name: str) -> Stored:
        """An unquantised tensor of the model, bit for bit as in the file.

        Raises:
            ValueError: another shape than the config's, or no floats.
        """
        entry = self.entries(name)[0]
        shape = self.expected.get(name)
        if shape is not None and entry.shape != shape:
            raise QsimError(f"{entry.path}: tensor {name} is {shape} by config.json: got {entry.shape}")
        tensor = entry.stored()
        if not tensor.is_float:
            raise QsimError(f"{entry.path}: tensor {entry.name} is {entry.dtype}, where a float is needed")
        return tensor

    def load(self, name: str) -> np.ndarray | QuantizedTensor:
        """A tensor of the model: float32, or quantised as it is stored.

        Raises:
            ValueError: what is wrong with it, with the file and the tensor.
        """
        if name in self.scales:
            return self._kv_scale(name)
        if not self.is_quantized(name):
            return read_tensor(self.files, name, self.expected[name])
        layer = name.removesuffix(".weight")
        plan, entries = self._layer_plan(layer), self.layers[layer]
        parts = Parts(layer, {key: e.stored() for key, e in entries.items()})
        first = next(iter(entries.values()))
        try:
            qt = plan.decode(parts, plan.scheme, self.notes)
        except ValueError as error:
            raise QsimError(f"{first.path}: {error}") from None
        if qt.shape != self.expected[name]:
            raise QsimError(
                f"{first.path}: tensor {first.name} holds a weight {qt.shape}, {self.expected[name]} by config.json"
            )
        return qt

    def _kv_scale(self, name: str) -> np.ndarray:
        entry = self.scales[name]
        values = entry.float32()
        if values.size != 1 or not np.isfinite(values).all() or not (values > 0).all():
            raise QsimError(
                f"{entry.path}: tensor {entry.name} must be one positive number: got {values.reshape(-1)[:3]}"
            )
        if self.kv_cache is None:
            self.notes.add(
                "KV scales are stored, but the config does not quantise the KV cache: they are not used", name
            )
        elif (values == 1).all():
            self.notes.add("a KV scale is exactly 1, as in an uncalibrated cache: values beyond the format clip", name)
        return values


def _not_a_linear(layer: str, entry: Entry, config: ModelConfig) -> str:
    """The sentence on a quantised tensor that is no weight of a Linear: what it is, and the rule."""
    if layer == model_names(config).embedding:
        what = "is of the embedding, stored quantised: only weights of Linears (and the head) are read quantised"
        return f"{entry.path}: tensor {entry.name} {what}; store {layer}.weight as 16- or 32-bit floats"
    return (
        f"{entry.path}: tensor {entry.name} belongs to no Linear of {config.architecture}: it is quantised, and "
        "only weights of Linears (and the head) are read quantised"
    )
