"""Pieces of work on several threads.

The compiled loops release the GIL, so plain threads run them side by side. Numba's own `prange` is not used for this:
its default threading layer ends the process when two Python threads enter it at once.
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
_inside = threading.local()


def after_fork(forget: Callable[[], None]) -> None:
    """Call this in every child that is forked from now on: it has neither its parent's threads nor sane locks."""
    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(after_in_child=forget)


def _forget_pool() -> None:
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


after_fork(_forget_pool)


def _get_pool() -> ThreadPoolExecutor:
    """Threads that stay for the next call: starting them takes as long as a small product."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="qsim")
        return _pool


def for_each(count: int, work: Callable[[int], None], *, threads: int | None = None) -> None:
    """Call `work(i)` for every i of range(count), each taken by the next of several threads that is free.

    Pieces that call this themselves run theirs in turn: the threads are taken.

    The first exception of a piece is raised after the pieces already begun have ended.

    Arguments:
        threads: at most so many, the caller's among them; None is `numba.get_num_threads()`.
    """
    if threads is None:
        import numba

        threads = numba.get_num_threads()
    threads = 1 if getattr(_inside, "a_piece", False) else min(threads, count)
    if threads <= 1:
        for i in range(count):
            work(i)
        return
    ticket = itertools.count()  # next() on it is atomic

    def drain() -> None:
        _inside.a_piece = True
        try:
            while (i := next(ticket)) < count:
                work(i)
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


def for_chunks(count: int, work: Callable[[int, int], None], *, chunk: int = CHUNK) -> None:
    """Call `work(start, stop)` for consecutive pieces of range(count), as `for_each` does."""
    for_each(-(-count // chunk), lambda i: work(i * chunk, min((i + 1) * chunk, count)))
