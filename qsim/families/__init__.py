"""Families of decoders as plain values: what a `config.json` describes, and what it weighs.

`read_config` turns the config of any known family into a `Shape`: every layer's mixers and MLPs, embeddings and head,
from which parameters, cache and state are counted exactly. What is not known is refused. A family is one value in a
file of `known/`; a new one is a new file.
"""

from .blocks import Attention, Experts, Latent, Linear, Mixer, Mlp, Recurrent
from .config import Config
from .family import BlockTensors, Family, MlpTensors, Tensors
from .keys import FACTS, is_harmless, repeats
from .numerics import Numerics
from .read import Reading, families, load_config, model_types, open_config, read_config, register_family
from .shape import Layer, Shape

__all__ = [
    "FACTS",
    "Attention", "BlockTensors", "Config", "Experts", "Family", "Latent", "Layer", "Linear", "Mixer", "Mlp",
    "MlpTensors", "Numerics", "Reading",
    "Recurrent", "Shape", "Tensors", "families", "is_harmless", "load_config", "model_types",
    "open_config", "read_config", "register_family", "repeats",
]  # fmt: skip
