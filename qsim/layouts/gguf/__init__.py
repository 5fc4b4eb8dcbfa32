"""GGUF, the one file of llama.cpp: every tensor in blocks of its own type, beside the config and the tokenizer.

Most types hold the codes and scales of schemes one to one, so that a quantised model is written and read without a
change. Tensors of the others (IQ4_NL, IQ4_XS, TQ1_0, TQ2_0) are read as float32.

    w4a16-g32-sym -> Q4_0, w5a16-g32-sym -> Q5_0, w8a16-g32-sym -> Q8_0, mxfp4-weight-only -> MXFP4
    q4_1, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k -> the type of that name: see `qsim.scheme.superblock`

`types` lists the types, `file` reads and writes the container, `tensors` is between blocks and schemes.
"""

from ..layout import Layout
from .tensors import refuses

LAYOUT = Layout(
    name="gguf",
    says="one file for llama.cpp: Q4_0 to Q8_0, K-quants and MXFP4 as they are, any type by rounding",
    refuses=refuses,
    container="gguf",
    order=60,
)
