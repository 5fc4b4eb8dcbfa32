"""Few tokens, on every path: packed words are decoded in registers, once for up to four tokens, and never expanded."""
