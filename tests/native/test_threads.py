"""Calls on Numba's threads."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numba import njit

from qsim._native.threads import on_threads


@njit
def _note(i: Any, times: Any, values: Any, factor: Any) -> None:
    times[i] += 1
    values[i] = factor * i


@njit
def _fail_at_three(i: Any, done: Any) -> None:
    if i == 3:
        raise MemoryError
    done[i] = True


_notes, _failing = on_threads(_note), on_threads(_fail_at_three)


@njit
def _run(times: Any, values: Any, factor: Any, tasks: Any) -> None:
    _notes(tasks, (times, values, factor))


@njit
def _run_failing(done: Any) -> None:
    _failing(done.shape[0], (done,))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 1000])
def test_every_task_is_called_once_with_its_number_and_the_arguments(tasks: int, threads: int) -> None:
    before = numba.get_num_threads()
    times, values = np.zeros(1001, np.int64), np.full(1001, -1.0)
    numba.set_num_threads(min(threads, before))
    try:
        _run(times, values, 2.5, tasks)
    finally:
        numba.set_num_threads(before)
    assert times.tolist() == [1] * tasks + [0] * (1001 - tasks)
    assert values[:tasks].tolist() == [2.5 * i for i in range(tasks)]


def test_a_task_that_fails_is_reported_and_the_others_are_done() -> None:
    done = np.zeros(8, np.bool_)
    with pytest.raises(MemoryError, match="_fail_at_three"):
        _run_failing(done)
    assert done.tolist() == [i != 3 for i in range(8)]
