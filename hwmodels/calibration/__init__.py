"""Fitted parameters of kernels as values and as TOML files, and the corrections between measured sizes."""
