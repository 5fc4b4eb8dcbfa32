"""Chunks of a flat array on several threads.

The compiled loops release the GIL, so plain threads run them side by side. Numba's own `prange` is not used here: its
default threading layer ends the process when two Python threads enter it at once.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

CHUNK = 1 << 19
"""Elements a thread takes at a time: large against the 10 us that handing it over costs."""

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()  # a forked child has neither the threads nor a sane lock


os.register_at_fork(after_in_child=_forget_pool)


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="qsim")
        return _pool


def for_chunks(count: int, work: Callable[[int, int], None], *, chunk: int = CHUNK) -> None:
    """Call `work(start, stop)` for consecutive pieces of range(count), on `numba.get_num_threads()` threads.

    The first exception of a piece is raised after the pieces already begun have ended.
    """
    import numba

    pieces = -(-count // chunk)
    threads = min(numba.get_num_threads(), pieces)
    if threads <= 1:
        for start in range(0, count, chunk):
            work(start, min(start + chunk, count))
        return
    ticket = itertools.count()  # next() on it is atomic

    def drain() -> None:
        while (i := next(ticket)) < pieces:
            work(i * chunk, min((i + 1) * chunk, count))

    helpers = [_get_pool().submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        for helper in helpers:
            helper.cancel()
        for helper in helpers:
            if not helper.cancelled():
                helper.result()
