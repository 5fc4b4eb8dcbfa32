"""Chunks of a flat array on several threads.

The compiled loops release the GIL, so plain threads run them side by side. Numba's own `prange` is not used here: its
default threading layer ends the process when two Python threads enter it at once.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

CHUNK = 1 << 19
"""Elements a thread takes at a time: large against the 10 us that handing it over costs."""

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_inside = threading.local()


def _forget_pool() -> None:
    global _pool, _lock, _blas_lock
    # a forked child has neither the threads nor sane locks
    _pool, _lock, _blas_lock = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_forget_pool)


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="qsim")
        return _pool


def for_chunks(count: int, work: Callable[[int, int], None], *, chunk: int = CHUNK) -> None:
    """Call `work(start, stop)` for consecutive pieces of range(count), on `numba.get_num_threads()` threads.

    Pieces that call this themselves run theirs in turn: the threads are taken.

    The first exception of a piece is raised after the pieces already begun have ended.
    """
    import numba

    pieces = -(-count // chunk)
    threads = 1 if getattr(_inside, "a_piece", False) else min(numba.get_num_threads(), pieces)
    if threads <= 1:
        for start in range(0, count, chunk):
            work(start, min(start + chunk, count))
        return
    ticket = itertools.count()  # next() on it is atomic

    def drain() -> None:
        _inside.a_piece = True
        try:
            while (i := next(ticket)) < pieces:
                work(i * chunk, min((i + 1) * chunk, count))
        finally:
            _inside.a_piece = False

    helpers = [_get_pool().submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        for helper in helpers:
            helper.cancel()
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


# --- BLAS ---------------------------------------------------------------------------------------------------

_blas_lock = threading.Lock()
_blas_depth = 0
_blas_limit: Any = None
_blas_found: Any = None


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
    global _blas_depth, _blas_limit
    if not wanted:
        yield
        return
    with _blas_lock:
        _blas_depth += 1
        if _blas_depth == 1:
            _blas_limit = _blas_controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _blas_lock:
            _blas_depth -= 1
            if _blas_depth == 0:
                _blas_limit.restore_original_limits()
                _blas_limit = None


def _blas_controller() -> Any:
    """The BLAS libraries of NumPy and SciPy; found once, which takes milliseconds."""
    global _blas_found
    if _blas_found is None:
        import scipy.linalg  # noqa: F401  loads SciPy's own BLAS, so that it is found too
        from threadpoolctl import ThreadpoolController

        _blas_found = ThreadpoolController()
    return _blas_found
