"""What knows the machine: LLVM's types and Numba's threads. Nothing here knows a number format or a model."""

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
