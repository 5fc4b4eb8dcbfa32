"""The paths of dot-product instructions: `vpdpbusd` (VNNI) and `vdpbf16ps` (BF16)."""
