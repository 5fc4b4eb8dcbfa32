"""Times of an engine's steps as tables: what a step costs for any number of rows, tokens and contexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qsim.families import Experts
from qsim.notes import Note

from ..predicted import Prediction
from ..prediction import predict
from ..timing.families import ATTENTION, FAMILIES
from ..timing.parameters import calibration_of, measured_parameters
from ..workload.footprint import footprint
from .constants import generation_of
from .kept import check_quantized, following, sixteen_bit_bytes
from .policy import EnginePolicy

if TYPE_CHECKING:
    from qsim.scheme import Scheme

    from ..device.device import Device
    from ..workload.architecture import Architecture
    from .deployment import Deployment

Array = np.ndarray[Any, np.dtype[np.float64]]
COLUMNS = 28
"""Contexts at which decode attention is tabulated; it is nearly linear in them."""
PIECES = 512
FIRST_CONTEXT = 64.0
REPLACED = ("vllm_fp8_block",)
"""Measured without DeepGEMM, which vLLM takes for 128x128 blocks where it is installed: 2 to 5 times as slow."""
BARE_BELOW = 512
"""Tokens below which FP8 products of an engine that fuses the quantisation are priced like cuBLAS's on an H200, at this
device's peaks: the tables' kernels, which hold it, take up to twice as long there (1280 x 8192 at 4 tokens on a B200:
11 us with it, 8.5 us in 16 bit). Above, products are bound by arithmetic, which the tables measured."""
TUNED = ("trtllm", "cublas", "sglang")
"""First parts of the names of the families that an engine that tunes over libraries picks of."""
HEAD = ("norm_head", "lm_head", "sample")
PER_TOKEN_BYTES = 2e9
"""Held back beside weights and cache for activations and graphs: what vLLM's profiling run finds, about."""


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """Seconds of the parts of a step of one engine.

    Attributes:
        linear: (tokens + 1,) everything that depends on the tokens of a step alone: products, norms, all-reduces,
            experts. A step with decode rows and prompt tokens reads its weights once.
        head: (tokens + 1,) logits and sampling of the rows that get a token.
        decode: (rows + 1, columns) decode attention; contexts grow geometrically from `first` by exp(`ratio`).
        prompt: (pieces,) attention of a prompt up to so many tokens, at multiples of `spacing`; a piece of it costs the
            difference. fixed: what attention of prompts costs a step beyond that.
        padded: (rows + 1,) decode rows that a CUDA graph runs for so many.
        kv_tokens: that the cache of one engine holds, of one rank's sequences. kv_bytes: of one token, on all devices
            of the engine.
        generation: of the device. fidelity: of a step, as in `Prediction`; low, high: factors of its 80 % band.
        power_w: of all devices of the engine, in the mean over a decode step; None where it is unknown.
        mixtures: layers of experts.
        notes: what was assumed. kernel: of the linear layers. weights_bytes, capacity_bytes: of one device.
    """

    linear: Array
    head: Array
    decode: Array
    prompt: Array
    padded: np.ndarray[Any, np.dtype[np.int64]]
    spacing: float
    fixed: float
    first: float
    ratio: float
    kv_tokens: float
    kv_bytes: float
    generation: str
    fidelity: str
    low: float
    high: float
    power_w: float | None
    notes: tuple[str, ...]
    kernel: str
    weights_bytes: float
    capacity_bytes: float
    mixtures: int = 0

    def arrays(self, cached: float) -> tuple[Any, ...]:
        """What `loop.run` takes; `cached` tokens of each prompt are in the cache before."""
        return (
            self.linear, self.head, self.decode, self.padded, self.prompt, self.spacing, self.fixed, self.first,
            self.ratio, float(cached),
        )  # fmt: skip


def engine_kernels(policy: EnginePolicy, device: Device, scheme: Scheme) -> tuple[str, ...]:
    """Families of products that an engine's linear layers are priced with, the fastest of them at each size.

    `vllm` and `sglang` run their own kernels where those were measured on the device. `fastest` stands for an engine
    that tunes over libraries (TensorRT-LLM): its own tables, cuBLAS and, for small products, SGLang's table, which
    calls the same libraries. TensorRT-LLM's own tables of FP8 and NVFP4 hold the quantisation of the activations as a
    kernel of its own, which its compiled models fuse with the one before: `tabulate` prices small FP8 products like
    cuBLAS's, and NVFP4 takes the fastest of all tables. None found means `stack="best"`, and so does a table of a
    kernel that its engine replaces where it serves (`REPLACED`).
    """
    wanted = [scheme]
    if scheme.activation.is_quantized and not scheme.activation.dynamic:
        wanted.append(scheme.replace(activation=replace(scheme.activation, dynamic=True)))
    for one in wanted:
        able = [
            family.name
            for family in FAMILIES.values()
            if family.runs is not None
            and family.runs(one)
            and measured_parameters(device, family.name) is not None
            and not (family.stands_in is not None and family.stands_in(one))
        ]
        own = [name for name in able if name.startswith(f"{policy.kernels}_") and name not in REPLACED]
        tuned = [name for name in able if name.startswith(TUNED)]
        if policy.kernels == "fastest" and one.weight.format.name == "nvfp4":
            return ()
        if policy.kernels == "fastest" and tuned:
            return tuple(tuned)
        if own:
            return tuple(own[:1])
    return ()


def engine_attention(policy: EnginePolicy, device: Device) -> str | None:
    """The engine's own attention where it was measured on the device."""
    own = calibration_of(device)
    name = policy.attention
    if not name or name not in ATTENTION or own is None:
        return None
    return name if any(key.split(".")[0].startswith(name) for key in own.attention) else None


def token_grid(most: int) -> Array:
    """Tokens at which a step is priced, from 1 to `most`: every one of the first, then in a geometric series."""
    small = np.arange(1, min(most, 16) + 1)
    return np.unique(np.concatenate([small, np.round(np.geomspace(min(16, most), most, 44))])).astype(np.float64)


def _spread(at: Array, values: Any, most: int) -> Array:
    """Values at every whole number from 0, linear between those known; nothing costs nothing."""
    seconds = np.interp(np.arange(most + 1), at, np.broadcast_to(values, at.shape))
    seconds[0] = 0.0
    return seconds


def _padded(graph_rows: Sequence[int], rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    count = np.arange(rows + 1)
    if not graph_rows:
        return count
    sizes = np.array(graph_rows)
    at = np.minimum(np.searchsorted(sizes, count), sizes.size - 1)
    return np.where((count > sizes[-1]) | (count == 0), count, np.minimum(sizes[at], rows))


def _sum(prediction: Prediction, which: Any) -> Any:
    return sum(op.time_s for op in prediction.operators if which(op))


Takes = Callable[[str], bool]
"""Whether an operator, by its name, is counted."""


def _linear(
    device: Device, arch: Architecture, scheme: Scheme, at: Array, deployment: Deployment, how: Mapping[str, Any],
    takes: Takes,
) -> tuple[Any, Any, Prediction]:  # fmt: skip
    """Seconds of what depends on tokens alone, of the head, and the prediction, at `at` tokens of a rank."""
    tp, ranks = deployment.tensor_parallel, deployment.attention_data_parallel
    flat = predict(device, arch, scheme, "decode", at, 2.0, tensor_parallel=tp, **how)
    head = _sum(flat, lambda op: op.name in HEAD)
    inside = {"all_reduce_down", "norm_mlp", "residual"} | {
        prefix + name
        for prefix, mlp, _ in arch.mlps
        if isinstance(mlp, Experts)
        for name in ("router", "gate_up", "activation", "down", "combine", "shared_gate_up", "shared_down")
    }
    counted = lambda op: op.kind != "attention" and op.name not in HEAD and takes(op.name)  # noqa: E731
    if ranks == 1:
        return _sum(flat, counted), head, flat
    own = _sum(flat, lambda op: counted(op) and op.name not in inside)
    # every device sees the tokens of all ranks in the experts, gathered before and scattered after
    wide = predict(device, arch, scheme, "decode", at * ranks, 2.0, tensor_parallel=tp * ranks, **how)
    return own + _sum(wide, lambda op: counted(op) and op.name in inside), head, flat


def _kernels(names: Sequence[str]) -> list[dict[str, Any]]:
    """Arguments of `predict` for each of an engine's kernels."""
    return [{"kernel": name} for name in names] or [{"stack": "best"}]


def tabulate(
    device: Device,
    architecture: Architecture,
    scheme: Scheme,
    policy: EnginePolicy,
    deployment: Deployment,
    *,
    rows: int,
    context: float,
    quantized: str = "all",
) -> StepTable:
    """Tabulate the predictor for one engine, for up to `rows` sequences at once of up to `context` tokens.

    `quantized` says which layers follow the scheme (`kept.QUANTIZED`); the others are in 16 bit.

    With attention data parallelism it is one rank's table, with pipeline parallelism that of one group of sequences,
    which passes all stages in turn.

    Raises:
        QsimError: as `predict`.
    """
    check_quantized(quantized, architecture)
    follow = following(architecture, quantized)
    wide = 1.0 if policy.speculation is None else policy.speculation.verified
    rows, context = max(rows, 2), max(float(context), 512.0)
    tokens = int(max(policy.token_budget, np.ceil(rows * wide), 2) + np.ceil(rows * wide))
    at = token_grid(tokens)
    how: dict[str, Any] = {"attention_kernel": engine_attention(policy, device)}
    names = engine_kernels(policy, device, scheme)
    takes: Takes = (lambda _: True) if follow is None else follow.__contains__
    found = [_linear(device, architecture, scheme, at, deployment, how | one, takes) for one in _kernels(names)]
    every = [np.broadcast_to(one[0], at.shape) for one in found]
    if (
        policy.kernels == "fastest"
        and names
        and "cublas_fp8" not in names
        and names[0].endswith(("_fp8", "_fp8_static"))
    ):
        bare = _linear(device, architecture, scheme, at, deployment, how | {"kernel": "cublas_fp8"}, takes)
        every.append(np.where(at < BARE_BELOW, np.broadcast_to(bare[0], at.shape), np.inf))
    linear = np.min(every, axis=0)
    if follow is not None:
        plain = scheme.replace(weight="bfloat16", activation="bfloat16", compute=None)
        rest = [
            _linear(device, architecture, plain, at, deployment, how | one, lambda name: name not in follow)[0]
            for one in _kernels(engine_kernels(policy, device, plain))
        ]
        linear = linear + np.min([np.broadcast_to(one, at.shape) for one in rest], axis=0)
    here = int(np.searchsorted(at, min(rows, 32)))
    _, head, flat = min(found, key=lambda one: float(np.broadcast_to(one[0], at.shape)[here]))
    how |= {"kernel": names[0]} if names else {"stack": "best"}
    how["tensor_parallel"] = deployment.tensor_parallel
    few = np.append(at[at < rows], float(rows))
    ratio = np.log(context / FIRST_CONTEXT) / (COLUMNS - 2)
    columns = FIRST_CONTEXT * np.exp(ratio * np.arange(COLUMNS))
    grid = predict(device, architecture, scheme, "decode", few[:, None], columns[None, :], **how)
    is_attention = lambda op: op.kind == "attention"  # noqa: E731
    attention = np.broadcast_to(_sum(grid, is_attention), (few.size, COLUMNS))
    long = np.geomspace(16.0, context, 40)
    prompts = [predict(device, architecture, scheme, "prefill", n, long, **how) for n in (1, 8)]
    single, several = (np.broadcast_to(_sum(p, is_attention), long.shape) for p in prompts)
    marginal = np.maximum.accumulate((several - single) / 7.0)
    spacing = 1.05 * context / (PIECES - 1)
    last = (marginal[-1] - marginal[-2]) / (long[-1] - long[-2])
    places = spacing * np.arange(PIECES)
    prompt = np.interp(places, np.append(0.0, long), np.append(0.0, marginal))
    held = footprint(device, architecture, scheme, batch=1, context=context, tensor_parallel=deployment.tensor_parallel)
    more = sixteen_bit_bytes(architecture, scheme, quantized) / deployment.engine_gpus
    spare = _spare_bytes(device, architecture, scheme, policy, deployment) - more
    time, low, high = (np.broadcast_to(v, at.shape)[here] for v in (flat.time_s, flat.low_s, flat.high_s))
    stages = deployment.pipeline_parallel
    return StepTable(
        linear=_spread(at, linear, tokens), head=_spread(at, head, tokens), padded=_padded(policy.graph_rows, rows),
        decode=np.stack([_spread(few, attention[:, c], rows) for c in range(COLUMNS)], axis=1),
        prompt=prompt + last * np.maximum(places - long[-1], 0.0), spacing=float(spacing),
        fixed=float(np.median(np.maximum(single - marginal, 0.0)[:5])), first=FIRST_CONTEXT, ratio=float(ratio),
        # all groups of a pipeline share the cache of its stages, each of which holds its layers' part
        kv_tokens=max(0.0, spare) * context / float(held.kv_cache_bytes),
        kv_bytes=float(held.kv_cache_bytes) / context * deployment.tensor_parallel,
        generation=generation_of(device.calibration or device.name), fidelity=flat.fidelity,
        low=float(low / time), high=float(high / time),
        power_w=_power_w(flat, here, deployment),
        notes=_notes(flat.notes, deployment), kernel=flat.kernel,
        weights_bytes=float(held.weights_bytes) / stages + more,
        capacity_bytes=float(held.capacity_bytes),
        mixtures=sum(count for _, mlp, count in architecture.mlps if isinstance(mlp, Experts)),
    )  # fmt: skip


def _power_w(step: Prediction, here: int, deployment: Deployment) -> float | None:
    """Watts of all devices of an engine in a decode step of some 32 rows."""
    energy = step.energy
    if energy is None:
        return None
    return float(np.broadcast_to(energy.power_w, np.shape(step.batch))[here]) * deployment.engine_gpus


def _spare_bytes(
    device: Device, arch: Architecture, scheme: Scheme, policy: EnginePolicy, deployment: Deployment
) -> float:
    """Bytes of one device that the cache of one group of sequences may take."""
    shared = deployment.tensor_parallel * deployment.attention_data_parallel
    alone = footprint(device, arch, scheme, batch=1, context=1, tensor_parallel=deployment.tensor_parallel)
    split = footprint(device, arch, scheme, batch=1, context=1, tensor_parallel=shared)
    experts = any(isinstance(mlp, Experts) for _, mlp, _ in arch.mlps)
    weights = split.weights_bytes if experts else alone.weights_bytes
    # each of the groups has its share of what the stages hold together, and each stage its layers of a group
    return (
        float(alone.capacity_bytes) * policy.memory_share
        - float(weights) / deployment.pipeline_parallel
        - PER_TOKEN_BYTES
    )


def _notes(notes: Sequence[str], deployment: Deployment) -> tuple[str, ...]:
    kept = [note for note in notes if getattr(note, "code", "") != "does_not_fit"]
    if deployment.expert_parallel > 1:
        kept.append(Note("expert_parallel", "experts over devices are priced as if each were split, evenly loaded"))
    return tuple(kept)
