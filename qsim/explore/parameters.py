"""What the page computes with: the parameters of every device, kernel, scheme and model, as plain values for JSON.

The page has no model of its own. Its module (`templates/law.js`) is the law of `hwmodels` line by line, and everything
that the law reads of files is here: device tables in the units of their keys, fitted parameters with their corrections,
the kernel that each device runs each scheme with, shapes of models, and how a scheme stores a weight. Choices between
kernels are made here, in Python: they do not depend on any number that the page can change but one, whether unpacking
bounds a product (`hwmodels.timing.known.marlin.unpacking_bound`), so those parameters are given for both answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hwmodels import prediction
from hwmodels.calibration import power as power_module
from hwmodels.calibration.fitted import REGIME_EDGES, REGIMES
from hwmodels.calibration.grid import Grid
from hwmodels.calibration.neighbours import WIDTH
from hwmodels.calibration.store import Parameters
from hwmodels.calibration.surface import TILES
from hwmodels.device.build import NUMBERS, field_value
from hwmodels.device.device import Device
from hwmodels.device.load import device_names, get_device
from hwmodels.timing import attention_kernel, execution, kernel, moe, parameters
from hwmodels.timing import power as board
from hwmodels.timing.families import FAMILIES, get_family
from hwmodels.timing.known import marlin
from hwmodels.timing.peaks import sixteen_bit
from hwmodels.timing.profiles import Choice, choose_kernel, get_profile
from hwmodels.workload import footprint, operators
from hwmodels.workload.architecture import Architecture, architecture_names, get_architecture
from qsim.families import Attention, Experts, Latent, Mixer, Mlp
from qsim.formats import BlockFormat
from qsim.scheme import Scheme, get_scheme, list_schemes
from qsim.scheme.tensor_scheme import TensorScheme

from .served import engine_constants, engine_value, own_attention, own_kernels

KV_CACHES = ("", "fp8", "e5m2", "int8", "int4")
"""Formats of the KV cache that the page offers, as the endings `-kv...` of a scheme's name; "" is 16 bit."""
VARIANTS = ("", "_kv8", "_d64", "_kv8_d64", "_d64_w128", "_kv8_d64_w128", "_mla", "_kv8_mla")
"""Cases of attention that tables may hold (`hwmodels.timing.parameters.attention_variant`)."""
PROFILE = "cuda_graph"
"""The execution profile of the page: the default of `predict`."""


class Interned:
    """Values in a list, each once; what refers to one holds its place."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._at: dict[Any, int] = {}

    def __call__(self, key: Any, make: Any) -> int:
        """The place of the value of `key`, which `make()` gives where it is new."""
        if key not in self._at:
            self._at[key] = len(self.values)
            self.values.append(make())
        return self._at[key]


def _numbers(values: Any) -> list[Any]:
    """Numbers of an array, without the noise of their last digits: fits are stored with four or five digits."""
    return [_number(v) for v in np.asarray(values, dtype=np.float64).reshape(-1)]


def _number(value: Any) -> Any:
    v = float(f"{float(value):.12g}")
    return int(v) if v == int(v) and abs(v) < 1e15 else v


def _counts(values: Any) -> dict[str, Any]:
    """Corner values as whole numbers of the largest unit that holds them."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    for unit in (0.01, 0.001):
        whole = np.rint(flat / unit)
        if np.abs(whole * unit - flat).max(initial=0.0) < 1e-9:
            return {"unit": unit, "v": whole.astype(int).tolist()}
    return {"unit": 1, "v": _numbers(flat)}


class Fits:
    """Fitted parameters and their corrections, each once."""

    def __init__(self) -> None:
        self.fits = Interned()
        self.corrections = Interned()
        self._alive: list[Any] = []  # what an identity in a key belongs to must live as long as the key

    def __call__(self, p: Parameters) -> int:
        """The place of some parameters."""
        self._alive.append(p)
        parts = (id(p.surface), id(p.borrowed), id(p.neighbours))
        key = (*parts, p.kernel, p.t0_s, p.eta_compute, p.eta_memory, p.p, p.tau_s_per_k, p.exp_weight, p.floor_s,
               p.tile_keys, p.kind, p.origin, tuple(p.band.items()))  # fmt: skip
        return self.fits(key, lambda: self._value(p))

    def _value(self, p: Parameters) -> dict[str, Any]:
        family = FAMILIES.get(p.kernel)
        out: dict[str, Any] = {
            "name": p.kernel, "t0": p.t0_s, "ec": p.eta_compute, "em": p.eta_memory, "p": p.p, "kind": p.kind,
            "origin": p.origin, "sixteen": family is None or family.sixteen_bit,
        }  # fmt: skip
        more = {"tau": p.tau_s_per_k, "exp": p.exp_weight, "floor": p.floor_s, "tile": p.tile_keys}
        out |= {name: value for name, value in more.items() if value != (128.0 if name == "tile" else 0.0)}
        if p.band:
            out["band"] = [list(p.band.get(name, p.band["all"])) for name in REGIMES]
            if "known" in p.band:
                out["known"] = list(p.band["known"])
        if p.surface is not None:
            out["s"] = self._correction(p.surface)
        if p.borrowed is not None:
            out["b"] = [self._correction(p.borrowed.grid), p.borrowed.k_scale]
        if p.neighbours is not None:
            out["n"] = self._correction(p.neighbours)
        return out

    def _correction(self, part: Any) -> int:
        return self.corrections(id(part), lambda: _correction(part))


def _correction(part: Any) -> dict[str, Any]:
    if isinstance(part, Grid):
        out = {"type": "grid", "knots": [_numbers(k) for k in part.knots], **_counts(part.values)}
        return out if part.waves is None else {**out, "waves": [_numbers(row) for row in part.waves]}
    if hasattr(part, "coefficients"):
        return {"type": "surface", "knots": _numbers(part.knots), "c": [_numbers(row) for row in part.coefficients],
                "low": _numbers(part.low), "high": _numbers(part.high), "waves": part.waves}  # fmt: skip
    return {"type": "near", "shapes": [_numbers(row) for row in part.shapes], "knots": _numbers(part.knots),
            "w": [_numbers(row) for row in part.weights]}  # fmt: skip


# --- schemes and models ------------------------------------------------------------------------------------------


def _tensor(part: TensorScheme) -> dict[str, Any]:
    """What `nbytes` reads of a part, and how it counts as an operand."""
    zero = part.zero_point_format or part.minimum_format
    g = part.granularity
    return {
        "bits": part.bits, "q": part.is_quantized, "format": part.format.name, "summary": part.summary,
        "kind": None if g is None else g.kind, "columns": None if g is None else g.columns,
        "rows": None if g is None else g.rows, "scale": 0 if part.scale_format is None else part.scale_format.bits,
        "extra": 4 if isinstance(part.format, BlockFormat) and part.format.tensor_scale else 0,
        "zero": 0 if zero is None else zero.bits, "minimum": part.minimum_format is not None,
        "super": part.superblock, "dynamic": part.dynamic,
    }  # fmt: skip


def scheme_value(scheme: Scheme) -> dict[str, Any]:
    """How a scheme stores and multiplies."""
    return {"weight": _tensor(scheme.weight), "act": _tensor(scheme.activation), "kv": _tensor(scheme.kv_cache)}


def _mixer(mixer: Mixer) -> dict[str, Any]:
    out: dict[str, Any] = {"widths": list(mixer.cache_widths), "window": mixer.window}
    if isinstance(mixer, Attention):
        names: tuple[str, ...] = (
            "inputs",
            "heads",
            "kv_heads",
            "head_dim",
            "value_dim",
            "gate",
            "shares_kv",
            "keys_are_values",
            "kind",
        )
        return {"type": "attention", **out, **{name: getattr(mixer, name) for name in names}}
    linears = [[item.name, item.n, item.k] for item in mixer.linears]
    if isinstance(mixer, Latent):
        names = ("inputs", "heads", "nope_dim", "rope_dim", "value_dim", "kv_rank", "q_rank", "index_heads",
                 "index_dim", "index_topk", "gate", "head_dim")  # fmt: skip
        return {"type": "latent", **out, "linears": linears, **{name: getattr(mixer, name) for name in names}}
    names = ("state", "conv_channels", "conv_kernel", "state_elements")
    return {"type": "recurrent", **out, "linears": linears, **{name: getattr(mixer, name) for name in names}}


def _mlp(mlp: Mlp | Experts) -> dict[str, Any]:
    names: tuple[str, ...] = ("inputs", "width", "gated")
    if isinstance(mlp, Experts):
        names = (*names, "experts", "per_token", "shared", "latent")
    kind = "experts" if isinstance(mlp, Experts) else "dense"
    return {"type": kind, **{name: getattr(mlp, name) for name in names}}


def model_value(a: Architecture) -> dict[str, Any]:
    """The shape of a model as the operators of a step and its memory need it."""
    groups = [
        {"count": count, "norms": layer.norms, "parallel": layer.parallel, "mixers": len(layer.mixers),
         "mlps": len(layer.mlps)}
        for layer, count in a.shape.groups
    ]  # fmt: skip
    normed = {
        prefix: sum(count for layer, count in a.shape.groups if layer.mixers[:1] == (mixer,))
        for prefix, mixer, _ in a.mixers
    }
    return {
        "layers": a.layers, "hidden": a.hidden, "heads": a.heads, "recurrent": a.heads == 1 and a.is_recurrent,
        "longest": a.shape.max_positions, "state": a.shape.state_bytes, "groups": groups,
        "mixers": [{"prefix": p, "count": n, "normed": normed[p], **_mixer(m)} for p, m, n in a.mixers],
        "mlps": [{"prefix": p, "count": n, **_mlp(m)} for p, m, n in a.mlps],
        "further": [[item.name, item.n, item.k, count * item.count, item.router] for item, count in a.further],
        "head": [a.shape.head.n, a.shape.head.k],
        "parts": [[part.n, part.k, part.count, part.router] for part in a.parts],
        "rest": a.parameters - a.block_parameters, "parameters": a.parameters,
        "inner": max((footprint._inner_width(part) for _, part, _ in (*a.mlps, *a.mixers)), default=0),
        "notes": [str(note) for note in a.notes],
    }  # fmt: skip


# --- devices -----------------------------------------------------------------------------------------------------


def _fields(device: Device) -> dict[str, float]:
    """Key path -> number of a device's table, in the unit of the key, in the order of the file."""
    found: dict[str, float] = {}

    def walk(table: Mapping[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, Mapping):
                if prefix + key != "sources":
                    walk(value, f"{prefix}{key}.")
            elif key in NUMBERS and not isinstance(value, bool):
                found[prefix + key] = value

    walk(device.table, "")
    return found


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "k": choice.kernel, "c": choice.compute, "others": [list(one) for one in choice.others],
        "stands": choice.stands_in, "q": choice.quantizes_activation, "notes": [str(note) for note in choice.notes],
    }  # fmt: skip


def _own_choice(kernel: str) -> Choice:
    """What `predict` prices where a family is asked for by its name."""
    family = get_family(kernel)
    return Choice(kernel=kernel, quantizes_activation=family.activation_bytes == 1 or family.includes_quantize)


class Export:
    """Collects what the devices of a page need."""

    def __init__(self, schemes: Mapping[str, Scheme]) -> None:
        self.schemes = schemes
        self.fits = Fits()
        self.choices = Interned()
        self.families: dict[str, Any] = {}

    def device(self, device: Device) -> dict[str, Any]:
        """One device: its table, its kernels for every scheme, and where their parameters stand."""
        how = get_profile(PROFILE)
        choices: dict[str, int | str] = {}
        names: dict[str, None] = {"cublas_bf16": None}
        stands: dict[str, bool] = {}
        for name, scheme in self.schemes.items():
            try:
                found = choose_kernel(device, scheme, how)
            except ValueError as error:  # a device without the arithmetic: the page says the sentence
                choices[name] = str(error)
                continue
            choices[name] = self.choices(repr(found), lambda found=found: _choice(found))  # type: ignore[misc]
            for family in (found.kernel, *(other for other, _ in found.others)):
                names[family] = None
                stands[family] = stands.get(family, True) and bool(found.stands_in)
        own_engine = {name: _own_choice(family) for name, family in own_kernels(device, self.schemes).items()}
        for choice in own_engine.values():
            names[choice.kernel], stands[choice.kernel] = None, False
        for family in list(names):
            if get_family(family).grouped:
                names[get_family(family).grouped] = None
        for family in names:
            self._family(family)
        own = parameters.calibration_of(device)
        peaks = [[label, entry.get("input", label)] for label, entry in device.table["compute"]["peaks"].items()]
        texts = {key: field_value(device, key) for key in ("memory.name", "link.name", "on_chip.name", "far.name")}
        out: dict[str, Any] = {
            "title": device.title, "kind": device.kind, "vendor": device.vendor, "fuses": device.fuses_layers,
            "fields": _fields(device), "peaks": peaks, "choices": choices,
            "calibration": device.calibration, "calibrated": own is not None,
            "names": {key: text for key, text in texts.items() if text}, "notes": device.notes,
            "fits": {family: self._both(device, family) for family in names},
            **self._attention(device, None),
            "collectives": None if own is None or not own.collectives else device.calibration,
            "kin": None if own is None else _kin_name(device),
            "small": device.calibration if own is not None and own.small is not None else None,
            "latency": kernel.latency_share(device),
            "power": _power(device),
            "engine": {
                "constants": engine_constants(device),
                "choices": {name: self.choices(repr(c), lambda c=c: _choice(c)) for name, c in own_engine.items()},
                **(self._attention(device, served) if (served := own_attention(device)) else {}),
            },
        }  # fmt: skip
        mixtures = moe.mixtures_of(device)
        out["moe"] = {
            name: [
                {"fit": self.fits(m.roofline), "permute": m.permute, "active": m.active_s, "local": m.local_s,
                 "tile": m.tile}
                for m in mixtures[name]
            ]
            for family in stands if not stands[family]
            for name in ["_moe_".join(family.split("_", 1))]
            if name in mixtures
        }  # fmt: skip
        return out

    def _both(self, device: Device, family: str) -> list[int]:
        """Where the parameters of a family stand: one place, or two where they change with what bounds the unpacking
        of weights, that of a slow memory first."""
        ends = [get_device(device, {"memory.bandwidth_gbytes_per_s": edge}) for edge in (0.5, 1e8)]
        return list(dict.fromkeys(self.fits(parameters.kernel_parameters(d, family)) for d in ends))

    def _family(self, name: str) -> None:
        f = get_family(name)
        self.families[name] = {
            "title": f.title, "generation": f.generation, "compute": f.compute, "act": f.activation_bytes,
            "out": f.output_bytes, "includes": f.includes_quantize, "grouped": f.grouped,
        }  # fmt: skip

    def _attention(self, device: Device, name: str | None) -> dict[str, Any]:
        """Where the parameters of an attention kernel stand; of the device's own without a name."""
        general: dict[str, int] = {}
        exact: dict[str, int] = {}
        for phase in ("prefill", "decode"):
            for wide in (False, True):
                key = f"{phase}{'_wide' if wide else ''}"
                general[key] = self.fits(parameters.attention_parameters(device, phase, name, "calibrated", wide))
                for variant in VARIANTS:
                    found = parameters.measured_attention(device, phase, name, variant, wide)
                    if found is not None:
                        exact[key + variant] = self.fits(found)
        return {"attention": general, "exact": exact}


def _kin_name(device: Device) -> str | None:
    """The calibration whose collectives stand in for a device's own, as `kernel._kin` finds them."""
    for name in parameters.lenders(device):
        table = parameters.calibration_named(name)
        if parameters.is_kin(device, name) and table is not None and table.collectives:
            return name
    return None


def _power(device: Device) -> dict[str, Any] | None:
    """Whose power law is scaled to a device, and whether it is its own."""
    if device.power is None:
        return None
    own = parameters.calibration_of(device)
    if own is not None and own.power is not None:
        return {"of": device.calibration, "own": True}
    name = next((donor for donor in parameters.lenders(device) if donor in board.MEASURED), board.MEASURED[0])
    return {"of": name, "own": False}


def _laws() -> dict[str, Any]:
    """The power laws of measured boards, and the peaks that another board's are compared with."""
    found = {}
    for name in board.MEASURED:
        table, device = parameters.calibration_named(name), get_device(name)
        assert table is not None
        assert table.power is not None
        law = table.power
        values = ("limit_w", "idle_w", "busy_w", "byte_j", "weight_j", "attention_op_j", "vector_busy_w",
                  "vector_byte_j", "band", "loop_band", "origin")  # fmt: skip
        found[name] = {
            **{key: getattr(law, key) for key in values}, "op_j": {str(k): v for k, v in law.op_j.items()},
            "bandwidth": device.memory.bandwidth_bytes_per_s, "peak": device.peak_flop_per_s(sixteen_bit(device)),
        }  # fmt: skip
    return found


def _calibrated(devices: Sequence[Device]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves of element-wise kernels and of all-reduces, by calibration."""
    small, collectives = {}, {}
    names: Iterable[str] = dict.fromkeys(
        ("h200", *parameters.LENDERS, *(d.calibration for d in devices if d.calibration))
    )
    for name in names:
        table = parameters.calibration_named(name)
        if table is None:
            continue
        if table.small is not None:
            c = table.small
            small[name] = {"bytes": _numbers(c.bytes), "time": _numbers(c.time_s), "row": _numbers(c.row),
                           "row_s": _numbers(c.row_s), "gap": c.graph_gap_s}  # fmt: skip
        found = [
            {"library": c.library, "gpus": c.gpus, "bytes": _numbers(c.message_bytes), "time": _numbers(c.time_s),
             "band": list(c.band)}
            for c in table.collectives if c.op == "all_reduce"
        ]  # fmt: skip
        if table.collectives:
            collectives[name] = found
    return small, collectives


def _constants() -> dict[str, Any]:
    """Numbers of the law itself, so that the page states none of them a second time."""
    return {
        "correlation": prediction.CORRELATION, "composition": prediction.COMPOSITION,
        "transfer_correlation": prediction.TRANSFER_CORRELATION, "engines": prediction.ENGINES,
        "fused_p": execution.FUSED_P, "dataflow": kernel.DATAFLOW, "wide_group": attention_kernel.WIDE_GROUP,
        "lent": kernel.LENT, "lent_bandwidth": kernel.LENT_BANDWIDTH_BYTES_PER_S,
        "flash_mla": attention_kernel.FLASH_MLA,
        "transfer_band": [parameters.TRANSFER_BAND[False], parameters.TRANSFER_BAND[True]],
        "large_transfer": parameters.LARGE_TRANSFER, "regimes": REGIME_EDGES, "tiles": TILES, "near": WIDTH,
        "causal_tile": operators.CAUSAL_TILE, "tile_rows": operators.TILE_ROWS, "moe_step": moe.STEP,
        "moe_octaves": moe.MOST_OCTAVES,
        "reserve": footprint.RESERVE_BYTES, "unpacking": marlin.UNPACKING, "limit": board.LIMIT,
        "sharpness": power_module.SHARPNESS, "power_band": board.TRANSFER_BAND, "fused_band": board.FUSED_BAND,
        "split": dict(get_profile(PROFILE).split),
        "moe": {name: [f.weight_bits, f.compute] for name, f in moe.FORMATS.items()},
        "bits": {name: board.operand_bits(name) for name in _operand_names()},
    }  # fmt: skip


def _operand_names() -> list[str]:
    names = {peak.input for name in device_names() for peak in get_device(name).compute.peaks}
    return sorted(name for name in names | {"vector"} if name not in ("tf32", "float64"))


def export(devices: Sequence[Device] = (), models: Sequence[Architecture] = ()) -> dict[str, Any]:
    """Everything that the page computes with, as plain values.

    Arguments:
        devices, models: beyond those that are shipped; a name that is taken is refused by the caller.
    """
    schemes = {str(scheme.name): scheme for scheme in list_schemes() if "-kv" not in str(scheme.name)}
    known = [get_device(name) for name in device_names()] + list(devices)
    collect = Export(schemes)
    found = {device.name: collect.device(device) for device in known}
    small, collectives = _calibrated(known)
    shapes = [get_architecture(name) for name in architecture_names()] + list(models)
    return {
        "constants": _constants(),
        "ranges": {key: list(entry) for key, entry in NUMBERS.items()},
        "families": collect.families,
        "choices": collect.choices.values,
        "fits": collect.fits.fits.values,
        "corrections": collect.fits.corrections.values,
        "small": small, "collectives": collectives, "laws": _laws(),
        "schemes": {name: scheme_value(scheme) for name, scheme in schemes.items()},
        "kv": {kind: _tensor(get_scheme(f"bf16-kv{kind}").kv_cache) if kind else None for kind in KV_CACHES},
        "models": {a.name: model_value(a) for a in shapes},
        "devices": found,
        "engine": engine_value(),
    }  # fmt: skip
