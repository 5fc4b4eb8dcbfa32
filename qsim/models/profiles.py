"""Outliers of published models, given to a small model without changing what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qsim.errors import QsimError, nearest

from .model import Model
from .variants import float_weight, grown, with_outliers

F32 = np.float32
_WALLS, _WALL_HEIGHT = 4, 256.0
_WIDER = 128  # channels that an MLP gets for its massive activations: a whole group of the usual schemes
_MASSIVE, _TYPICAL = 2000.0, 0.2
_FIT_TOKENS, _FIT_WINDOW = 8192, 256


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Outliers as one published model has them.

    Attributes:
        name: what it is called, after the model.
        says: what is set, in a sentence.
        sources: where the numbers are from.
    """

    name: str
    says: str
    sources: tuple[str, ...]
    make: Callable[[Model, int], Model] = field(repr=False)


def with_profile(model: Model, profile: str, *, seed: int = 0) -> Model:
    """The same function with the outliers of a published model.

    Arguments:
        model: with float weights.
        profile: a name of `list_profiles`:

            `opt-13b-like`: seven channels of every normed hidden state are about 100 times the typical one, for every
            token.
            `llama-2-7b-like`: the start token has one value of the MLP's inner state about 10000 times the typical
            one, in the second and in the last block but one. Its column of the down projection is 0, where a large
            model's next blocks read it.
            `llama-3-70b-like`: in the first two blocks a few columns of the weights behind norms are 256 times the
            others, for every row, and the norms are smaller by as much: activations have no outliers.
        seed: chooses the channels.

    Returns:
        The model with the profile in its name and notes. It computes the same: gains are powers of two, and added
        channels are multiplied by 0. What reads an enlarged channel has smaller weights there, which real models need
        not have: so rounding weights costs more here than there.

    Raises:
        ValueError: an unknown profile, quantised weights, a model whose norms no gain can be folded behind; for
            `llama-2-7b-like` one without tokenizer, or whose MLP has biases, experts or no gate.

    Source: the numbers are those of `qsim/evidence/activation_outliers.csv`: Dettmers et al. (arXiv:2208.07339), Xiao
    et al. (arXiv:2211.10438), Sun et al. (arXiv:2402.17762). Qin (arXiv:2408.15301) names the cause in Llama-3-70B,
    weights of the first blocks; the height of 256 is chosen here.
    """
    if profile not in PROFILES:
        raise QsimError(nearest("outlier profile", profile, PROFILES))
    found = PROFILES[profile]
    made = found.make(model, seed)
    return made.replace(
        name=f"{model.name} {profile}".strip(),
        notes=(*model.own_notes, f"synthetic outliers, {profile}: {found.says}; the model computes the same"),
    )


def list_profiles() -> tuple[str, ...]:
    """Names of the published outlier profiles that `with_profile` knows."""
    return tuple(PROFILES)


def _like_opt(model: Model, seed: int) -> Model:
    return with_outliers(model, channels=min(7, model.config.hidden_size), magnitude=100.0, seed=seed)


def _like_llama_3(model: Model, seed: int) -> Model:
    config = model.config
    count = min(_WALLS, config.hidden_size)
    chosen = np.sort(np.random.default_rng(seed).choice(config.hidden_size, count, replace=False))
    tensors: dict[str, Any] = {}
    for i in range(min(2, config.num_hidden_layers)):
        norms = [(s, names) for s, names in model.fold_groups(i) if s not in model.linears()]
        if not norms:
            raise QsimError(f"{config.architecture} of this kind has no norm that a gain can be folded behind "
                            f"(layer {i})")  # fmt: skip
        for norm, names in norms:
            tensors |= grown(model, norm, names, chosen, 1 / _WALL_HEIGHT)
    return model.replace(tensors=tensors)


def _like_llama_2(model: Model, seed: int) -> Model:
    """Two MLPs get a channel that only the start token reaches, and that nothing reads."""
    config = model.config
    names = [model.block_linears(i) for i in range(config.num_hidden_layers)]
    plain = config.is_gated and not any(config.sparse_layers) and not config.mlp_bias and config.hidden_act == "silu"
    if not plain or any(len(groups) != 4 or len(groups[2]) != 2 for groups in names):
        raise QsimError(f"llama-2-7b-like needs MLPs with separate gate and up projections, SiLU and no biases: "
                        f"{config.architecture} has others")  # fmt: skip
    if model.tokenizer is None:
        raise QsimError(f"llama-2-7b-like needs a tokenizer to find the start token's direction: "
                        f"{model.name or 'the model'} has none")  # fmt: skip
    blocks = sorted({min(1, config.num_hidden_layers - 1), max(config.num_hidden_layers - 2, 0)})
    found = _inputs(model, {names[i][2][0]: i for i in blocks} | {names[i][3][0]: i for i in blocks})
    tensors: dict[str, Any] = {}
    for i, groups in enumerate(names):
        (gate, up), (down,) = groups[2], groups[3]
        weights = {one: float_weight(model, one) for one in (gate, up, down)}
        rows = {one: np.zeros((_WIDER, config.hidden_size), F32) for one in (gate, up)}
        if i in blocks:
            x, start = found[gate]
            ratio = _MASSIVE / _TYPICAL * float(np.median(np.abs(found[down][0])))
            side = max(ratio, 1.0) ** 0.5
            place = int(np.random.default_rng(seed).integers(_WIDER))
            rows[gate][place] = side * _direction(x, np.where(start, 1.0, -0.5))
            rows[up][place] = ratio / side * _direction(x, np.where(start, 1.0, 0.0))
        for one in (gate, up):
            tensors[f"{one}.weight"] = np.concatenate([weights[one], rows[one]])
        tensors[f"{down}.weight"] = np.concatenate([weights[down], np.zeros((config.hidden_size, _WIDER), F32)], axis=1)
    wider = dataclasses.replace(config, intermediate_size=config.intermediate_size + _WIDER)
    return model.replace(config=wider, tensors=tensors)


def _inputs(model: Model, wanted: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What Linears read of the embedded calibration text, (M, K), and which rows are of the start token."""
    from .loading import tiny_text

    assert model.tokenizer is not None
    window = min(_FIT_WINDOW, model.config.max_position_embeddings)
    ids = np.asarray(model.tokenizer.encode(tiny_text("calibration")[: 8 * _FIT_TOKENS]))[:_FIT_TOKENS]
    ids = ids[: max(len(ids) // window, 1) * window].reshape(-1, min(window, len(ids)))
    start = model.config.bos_token_id
    ids[:, 0] = start = int(ids[0, 0]) if start is None else start
    seen: dict[str, list[np.ndarray]] = {}
    for part in np.array_split(ids, max(len(ids) // 8, 1)):
        model.logits(part, observe=lambda n, x: seen.setdefault(n, []).append(x.copy()) if n in wanted else None)
    return {name: (np.concatenate(parts), ids.reshape(-1) == start) for name, parts in seen.items()}


def _direction(x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The row whose product with each input is nearest to its target, float32 (K,); ridge regression, in which the
    start tokens weigh as much as all others."""
    rare = target == target.max()
    weight = np.where(rare, 1 / max(rare.sum(), 1), 1 / max((~rare).sum(), 1))[:, None]
    z = x.astype(np.float64)
    gram = z.T @ (z * weight)
    gram += 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram, z.T @ (target[:, None] * weight))[:, 0].astype(F32)


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            name="opt-13b-like", make=_like_opt,
            says="7 channels of every normed hidden state are about 100 times the typical one, for all tokens",
            sources=("arXiv:2208.07339", "arXiv:2211.10438"),
        ),
        Profile(
            name="llama-2-7b-like", make=_like_llama_2,
            says="the start token has a value about 10000 times the typical one at the input of two down projections",
            sources=("arXiv:2402.17762",),
        ),
        Profile(
            name="llama-3-70b-like", make=_like_llama_3,
            says="4 columns of the weights behind norms are 256 times the others in the first two blocks",
            sources=("arXiv:2408.15301",),
        ),
    )
}  # fmt: skip
"""By name."""
