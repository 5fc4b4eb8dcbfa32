"""What lies below NumPy, once for the whole project: LLVM's vectors, aligned memory, threads, and BLAS's threads."""

from qsim._cache import FOLDER as _FOLDER  # noqa: F401  (before Numba is imported)
