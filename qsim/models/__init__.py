"""Decoders in NumPy: load a checkpoint, run it, generate, and measure what quantisation has cost.

    model = load("tiny")                         # or a folder of Hugging Face files
    model.logits(tokens)                         # (T, vocabulary)
    evaluate(model, tiny_text("test"))           # bits per byte, with its standard error

Names load their part on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
from qsim.lazy import on_first_use

_LAZY = {
    "AttentionMath": "attention",
    "EagerRun": "eager",
    "Evaluation": "evaluation",
    "Generation": "generation",
    "KVCache": "cache",
    "Linear": "linear",
    "Model": "model",
    "ModelConfig": "config",
    "Reference": "evaluation",
    "RopeScaling": "rope",
    "complete": "generation",
    "evaluate": "evaluation",
    "generate": "generation",
    "hadamard": "transforms",
    "list_profiles": "profiles",
    "load": "loading",
    "rotate": "transforms",
    "run_eager": "eager",
    "with_outliers": "variants",
    "with_profile": "profiles",
    "with_scheme": "variants",
    "tiny_text": "loading",
}

if TYPE_CHECKING:
    from .attention import AttentionMath
    from .cache import KVCache
    from .config import ModelConfig
    from .eager import EagerRun, run_eager
    from .evaluation import Evaluation, Reference, evaluate
    from .generation import Generation, complete, generate
    from .linear import Linear
    from .loading import load, tiny_text
    from .model import Model
    from .profiles import list_profiles, with_profile
    from .rope import RopeScaling
    from .transforms import hadamard, rotate
    from .variants import with_outliers, with_scheme

__all__ = [
    "AttentionMath",
    "EagerRun",
    "Evaluation",
    "Generation",
    "KVCache",
    "Linear",
    "Model",
    "ModelConfig",
    "Reference",
    "RopeScaling",
    "complete",
    "evaluate",
    "generate",
    "hadamard",
    "list_profiles",
    "load",
    "rotate",
    "run_eager",
    "tiny_text",
    "with_outliers",
    "with_profile",
    "with_scheme",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that exists
    __getattr__, __dir__ = on_first_use(__name__, _LAZY)
