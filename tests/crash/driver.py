"""Stops quantisation, conversion and study at every change that they make to the disk, and looks at what is left.

    python -m tests.crash.driver [--points N] [--random N] [--disks N] [--seed S] [SCENARIO ...]

For every command, new and replacing an older target, and for every one of its changes to a file or folder: the process
ends there, or the disk is full from there on, or Ctrl-C comes there. Then the target must be absent, the old one whole,
or the new one whole; nothing of the user's may be gone; and the same command must give the bytes of a run that nothing
stopped and leave nothing beside them. The same at random moments (SIGKILL from outside), and on file systems that are
really too small, where one may be mounted.

Each case is a process forked from one that has compiled everything. One that does not end in
time ends the run, with where it stood. Prints one JSON object; exit code 1 on a failure.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from .faults import KILLED, Watch, full_from, interrupt_at, kill_at
from .scenarios import REFUSALS, SCENARIOS, Scenario

REFUSED, STOPPED, FAULT = 2, 1, 70
LIMIT_S = 120
FAULTS = {"killed": (kill_at, {KILLED}), "disk full": (full_from, {REFUSED}), "Ctrl-C": (interrupt_at, {STOPPED})}


class Hung(Exception):
    """A process that did not end."""


def in_child(work: Callable[[], object], said: Path) -> int:
    """Run in a forked process; 0, or how it ended. Its traceback, if any, is in the file `said`.

    Raises:
        Hung: it did not end within `LIMIT_S`; the text says where it stood.
    """
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGALRM:
            raise Hung(f"not ended after {LIMIT_S} s: {said.read_text()}")
        return code
    code = FAULT
    try:
        with said.open("w") as stood:
            faulthandler.register(signal.SIGALRM, file=stood, chain=True)
            signal.alarm(LIMIT_S)
            code = ending(work, said)
    finally:
        os._exit(code)


def ending(work: Callable[[], object], said: Path) -> int:
    """0, or how it ended; the traceback is kept."""
    try:
        work()
    except BaseException as error:
        said.write_text(traceback.format_exc())
        interrupted = isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort"
        return STOPPED if interrupted else REFUSED if isinstance(error, REFUSALS) else FAULT
    return 0


class Case:
    """A command in one of its two forms, with what it gives when nothing stops it."""

    def __init__(self, scenario: Scenario, place: Path) -> None:
        self.scenario, self.place, self.failures, self.count = scenario, place, [], 0
        self.said = place / "said.txt"
        tempfile.tempdir = str(place)
        self.old: dict[str, str] | None = None
        if scenario.replaces:
            scenario.older(place / "older")
            self.old = scenario.state(place / "older")
        work = self.fresh()
        scenario.command(work / "out")
        self.new = scenario.state(work / "out")
        assert self.new is not None
        assert self.new != self.old
        self.changes = self.count_changes()

    def fresh(self, work: Path | None = None) -> Path:
        """An empty work folder, with the older target when there is one; temporary folders lie in it too."""
        work = self.place / "work" if work is None else work
        for old in work.iterdir() if work.exists() else ():
            shutil.rmtree(old)
        (work / "tmp").mkdir(parents=True)
        tempfile.tempdir = str(work / "tmp")
        if self.old is not None:
            shutil.copytree(self.place / "older", work / "out", symlinks=True)
        return work

    def count_changes(self) -> int:
        work, counted = self.fresh(), self.place / "count.txt"

        def run() -> None:
            watch = Watch(work, lambda count, event: None)
            self.scenario.command(work / "out")
            number = watch.count
            counted.write_text(str(number))

        start = time.perf_counter()  # here nothing is compiled any more
        assert in_child(run, self.said) == 0, self.said.read_text()
        self.time_s = time.perf_counter() - start
        return int(counted.read_text())

    def stop(self, kind: str, number: int) -> None:
        """One fault at one change."""
        fault, endings = FAULTS[kind]
        work = self.fresh()

        def run() -> None:
            Watch(work, fault(number))
            self.scenario.command(work / "out")

        self.said.write_text("")
        code = in_child(run, self.said)
        where = f"{self.scenario.label}: {kind} at change {number} of {self.changes}"
        if code not in endings and code != 0:  # 0: the fault came where its failing changes nothing, as in clean-up
            self.fail(where, f"ended with {code}: {self.said.read_text()}")
        self.look(where, work)

    def stop_at_random(self, moment_s: float) -> None:
        """SIGKILL from outside, at some moment."""
        work = self.fresh()
        child = os.fork()
        if not child:
            code = FAULT
            try:
                code = ending(lambda: self.scenario.command(work / "out"), self.said)
            finally:
                os._exit(code)
        time.sleep(moment_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self.look(f"{self.scenario.label}: killed after {moment_s:.4f} s", work)

    def on_a_disk(self, size: int, disk: Path) -> None:
        """A file system that is really too small, and then is not."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
        try:
            work = self.fresh(disk / "work")
            used = sum(p.stat().st_blocks * 512 for p in disk.rglob("*"))
            limit = f"remount,size={used + size}"
            subprocess.run(["mount", "-o", limit, str(disk)], check=True)
            code = in_child(lambda: self.scenario.command(work / "out"), self.said)
            where = f"{self.scenario.label}: a disk with {size} bytes left"
            if code not in (0, REFUSED):
                self.fail(where, f"ended with {code}: {self.said.read_text()}")
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            self.look(where, work)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def look(self, where: str, work: Path) -> None:
        """What is left, and what the same command makes of it."""
        self.count += 1
        out, state = work / "out", self.scenario.state
        try:
            found = state(out)
        except Exception:
            return self.fail(where, f"the target cannot be read: {traceback.format_exc()}")
        hidden = [state(p) for p in work.glob(".out.old-*")]
        if found is None and self.old is not None and self.old not in hidden:
            return self.fail(where, f"the older target is gone: {sorted(os.listdir(work))}")
        if found not in (None, self.old, self.new):
            return self.fail(where, f"the target is neither old nor new: {sorted(found or ())}")
        code = in_child(lambda: self.scenario.command(out), self.said)
        done = found == self.new and not self.scenario.replaces
        if code not in ((0, REFUSED) if done else (0,)):
            return self.fail(where, f"the same command then ended with {code}: {self.said.read_text()}")
        if state(out) != self.new:
            return self.fail(where, "the same command then gave other bytes")
        left = [str(p.relative_to(work)) for p in (*work.iterdir(), *(work / "tmp").iterdir())
                if p not in (out, work / "tmp")]  # fmt: skip
        left += [str(p.relative_to(work)) for p in out.rglob(".*")]
        if left:
            return self.fail(where, f"left behind: {left}")
        return None

    def fail(self, where: str, why: str) -> None:
        self.failures.append(f"{where}: {why}")


def chosen(count: int, points: int | None, rng: random.Random) -> list[int]:
    """Numbers from 1 to `count`: all, or some spread over them and different from seed to seed."""
    if points is None or points >= count:
        return list(range(1, count + 1))
    return sorted({1 + int((i + rng.random()) * count / points) for i in range(points)})


def can_mount(place: Path) -> str:
    """Why no file system can be mounted, or nothing."""
    if shutil.which("mount") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "mounting a small file system needs root"
    place.mkdir(exist_ok=True)
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], capture_output=True, text=True
    )
    if tried.returncode:
        return f"a file system cannot be mounted here: {tried.stderr.strip()}"
    subprocess.run(["umount", str(place)], check=True)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", help="; ".join(s.name for s in SCENARIOS))
    parser.add_argument("--points", type=int, help="changes at which each fault strikes; all of them without it")
    parser.add_argument("--random", type=int, default=20, help="moments of a SIGKILL from outside")
    parser.add_argument("--disks", type=int, default=12, help="sizes of a file system that is too small")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # Numba's question for its number of threads takes a lock that forked processes share, unless they are not forked by
    # default: one that is killed while it holds it would stop all later ones.
    multiprocessing.set_start_method("spawn")
    rng = random.Random(given.seed)
    report: dict = {"seed": given.seed, "cases": {}, "failures": [], "skipped": []}
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        disk = Path(folder) / "disk"
        refusal = can_mount(disk) if given.disks else "not asked for"
        report["skipped"] += [refusal] if refusal else []
        for kind in SCENARIOS:
            if given.scenarios and kind.name not in given.scenarios:
                continue
            base = Path(folder) / kind.name
            base.mkdir()
            kind(base, False).inputs()
            for replaces in (False, True):
                place = base / ("replacing" if replaces else "new")
                place.mkdir()
                case = Case(kind(base, replaces), place)
                try:
                    stop_everywhere(case, given, rng, None if refusal else disk)
                except Hung as error:  # the next would hang as well
                    sys.exit(f"{case.scenario.label}: {error}")
                report["cases"][case.scenario.label] = {"changes": case.changes, "stops": case.count}
                report["failures"] += case.failures
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["failures"] else 0


def stop_everywhere(case: Case, given: argparse.Namespace, rng: random.Random, disk: Path | None) -> None:
    """Every fault at the changes asked for, then random moments, then small disks where one may be mounted."""
    for fault in FAULTS:
        for number in chosen(case.changes, given.points, rng):
            case.stop(fault, number)
    for _ in range(given.random):
        case.stop_at_random(rng.random() * 1.2 * case.time_s)
    if disk is not None:
        size = sum(p.stat().st_blocks * 512 for p in (case.place / "work").rglob("*"))
        for i in range(given.disks):
            case.on_a_disk(4096 + int(size * 2 * (i + rng.random()) / given.disks), disk)


if __name__ == "__main__":
    sys.exit(main())
