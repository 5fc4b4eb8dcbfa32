"""How many threads BLAS may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .threads import after_fork

_lock = threading.Lock()
_depth = 0
_limit: Any = None
_found: Any = None


def _forget_lock() -> None:
    global _lock
    _lock = threading.Lock()


after_fork(_forget_lock)


@contextmanager
def one_blas_thread(wanted: bool = True) -> Iterator[None]:
    """Hold BLAS to one thread while small products alternate with compiled loops, or while several threads call it.

    OpenBLAS's workers spin for a tenth of a second after a product, and Numba's for milliseconds after a parallel loop.
    Where small products and loops alternate, each waits for a processor that the other's workers hold, which costs more
    than a second thread gains. Products of thousands of columns outlast the spinning: leave those alone.

    The limit is the process's. It may be entered again, and by several threads; the last to leave takes it back.

    Arguments:
        wanted: False changes nothing, so that a caller can decide by size.
    """
    global _depth, _limit
    if not wanted:
        yield
        return
    with _lock:
        _depth += 1
        if _depth == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _limit.restore_original_limits()
                _limit = None


def _controller() -> Any:
    """The BLAS libraries of NumPy and SciPy; found once, which takes milliseconds."""
    global _found
    if _found is None:
        import scipy.linalg  # noqa: F401  loads SciPy's own BLAS, so that it is found too
        from threadpoolctl import ThreadpoolController

        _found = ThreadpoolController()
    return _found
