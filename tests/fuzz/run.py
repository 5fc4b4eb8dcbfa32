"""Running a target over many examples, and what counts as a fault."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

from qsim.errors import QsimError

from .targets import Target, check_sentence

BYTES = 2 << 30  # of address space that one example may add
SECONDS = 120  # for one example, which may compile kernels on a loaded machine; a hang has no end


@contextmanager
def _within_memory(more: int) -> Iterator[None]:
    """Let the process grow by so many bytes and no further: a file that asks for terabytes is a MemoryError."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _within_time(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: Any) -> None:
        raise AssertionError(f"one example took more than {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one(target: Target, example: Any, counts: Counter[str]) -> None:
    """Give one example to a target; a value or one sentence is right."""
    folder, refusal = Path(tempfile.mkdtemp(prefix="fuzz-")), None
    try:
        with _within_time(SECONDS), _within_memory(BYTES):
            try:
                target.use(example, folder)
            except QsimError as error:
                refusal = str(error)
    finally:
        shutil.rmtree(folder)
    counts["accepted" if refusal is None else "refused"] += 1
    if refusal is not None:
        check_sentence(refusal)
        assert target.names_file in refusal, f"{refusal}: which file?"


def run(target: Target, examples: int, *, shrink: bool = True, derandomize: bool = False) -> Counter[str]:
    """So many examples of a target; the number of accepted and refused ones.

    Raises:
        Exception: whatever a fault raised, on the smallest example that hypothesis finds.
    """
    counts: Counter[str] = Counter()
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]

    @settings(
        max_examples=max(1, round(examples * target.share)), deadline=None, database=None, phases=phases,
        derandomize=derandomize, suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(target.examples)
    def check(example: Any) -> None:
        one(target, example, counts)

    check()
    return counts
