"""Compiled functions that share their work among threads."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba import njit

from qsim._native.parallel import ALL, on_threads
from qsim._native.vectors import take_next


@njit
def _mark(thread, threads, next_one, done, limit):
    if on_threads(threads):
        return
    done[thread, 0] += 1
    i = take_next(next_one, 0)
    while i < done.shape[0]:
        if i >= limit:
            raise ValueError
        done[i, 1] += 1
        i = take_next(next_one, 0)


@njit
def _from_compiled_code(threads, next_one, done):
    _mark(ALL, threads, next_one, done, 100)


def _run(threads, limit=100):
    done = np.zeros((40, 2), np.int64)
    _mark(ALL, threads, np.zeros(1, np.int64), done, limit)
    return done


@pytest.mark.parametrize("threads", sorted({1, numba.config.NUMBA_NUM_THREADS}))
def test_every_thread_does_its_share_once_and_gets_all_arguments(threads):
    done = _run(threads)
    assert done[:, 0].tolist() == [1] * threads + [0] * (40 - threads)
    assert (done[:, 1] == 1).all()


@pytest.mark.parametrize("threads", sorted({1, numba.config.NUMBA_NUM_THREADS}))
def test_a_thread_that_raises_is_noticed(threads):
    with pytest.raises(MemoryError, match="a thread found no memory"):
        _run(threads, limit=20)


def test_one_thread_alone_does_only_its_own_share():
    done = np.zeros((40, 2), np.int64)
    _mark(7, 8, np.full(1, 40, np.int64), done, 100)
    assert done.sum() == done[7, 0] == 1


def test_compiled_code_may_start_the_threads_too():
    """A caller's constant for the thread must not be compiled into the function: it would call itself for ever."""
    done = np.zeros((40, 2), np.int64)
    _from_compiled_code(numba.get_num_threads(), np.zeros(1, np.int64), done)
    assert (done[:, 1] == 1).all()
