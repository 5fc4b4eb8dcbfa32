"""GGUF, the one file of llama.cpp: every tensor in blocks of its own type, beside the config and the tokenizer.

Q8_0, Q5_0, Q4_0 and MXFP4 hold the codes and scales of schemes one to one, so that a quantised model is written and
read without a change. Tensors of the other types are read as float32; Q4_K, Q6_K and those above are also written, by
rounding to nearest.

    w4a16-g32-sym -> Q4_0, w5a16-g32-sym -> Q5_0, w8a16-g32-sym -> Q8_0, mxfp4-weight-only -> MXFP4

`types` lists the types, `file` reads and writes the container, `tensors` is between blocks and schemes.
"""

from ..layout import Layout
from .tensors import refuses

LAYOUT = Layout(
    name="gguf",
    says="one file for llama.cpp: Q4_0, Q5_0, Q8_0 and MXFP4 as they are, any type by rounding",
    refuses=refuses,
    container="gguf",
    order=60,
)
