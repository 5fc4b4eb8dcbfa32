"""What the first commands of a newcomer cost: with an empty cache of compiled code, and with a full one.

    python reports/first_use.py                         # prints the tables
    python reports/first_use.py --write                 # and writes reports/first_use.md
    python reports/first_use.py --only generate --top 20   # one command, more of its compiled functions

Each command runs in its own process: once with an empty NUMBA_CACHE_DIR, then again with what that left there. CPU
seconds (user and system, of the process and its children) change little with what else the machine does; wall seconds
do, so compare CPU seconds. One thread each for Numba and BLAS: threads that wait for work spin, which counts as CPU
time (--threads N for more). Compile time is CPU seconds of the compiling thread, as Numba's own events mark its start
and end; what a function compiles for others that it calls counts for those.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

COMMANDS = {
    "predict": ["predict", "llama-3-8b", "--device", "h100-sxm", "--scheme", "w4a16-g128", "--batch", "1"],
    "generate": ["generate", "def fibonacci(n):", "--scheme", "w4a16-g128"],
    "quantize": ["quantize", "tiny", "--method", "gptq", "--scheme", "w4a16-g128", "--out", "quantized"],
    "quick": ["study", "--quick"],
    "study": ["study"],
}
WANTED_S = {"predict": 2, "generate": 8, "quick": 60, "study": 240}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one command: seconds of wall and CPU, and CPU seconds and how often by compiled function."""

    wall_s: float
    cpu_s: float
    compiled: dict[str, tuple[int, float]]

    @property
    def compile_s(self) -> float:
        return sum(s for _, s in self.compiled.values())


def measure(arguments: list[str], cache: Path, threads: int) -> Cost:
    """Of a command of qsim, run in an empty folder with compiled code in `cache`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "compiled.json"
        work = Path(folder) / "work"
        work.mkdir()
        command = [sys.executable, str(Path(__file__).resolve()), "--child", str(log), *arguments]
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT),
                       "NUMBA_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}  # fmt: skip
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)  # the usage of this child and of those it waited for
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"qsim {' '.join(arguments)} failed: {said.decode()}")
        return Cost(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime,
                    compiled={k: tuple(v) for k, v in json.loads(log.read_text()).items()})  # fmt: skip


class Watch(importlib.abc.MetaPathFinder):
    """Listens to Numba's compiler once the program imports Numba, and not before: some commands never do."""

    EVENTS = "numba.core.event"

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.count: Counter[str] = Counter()
        self._open: list[list[float]] = []  # [start, seconds of what it compiled inside]

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.EVENTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def and_listen(module: Any) -> None:
            execute(module)
            watch = self

            class Listener(module.Listener):
                def on_start(self, event: Any) -> None:
                    watch._open.append([time.thread_time(), 0.0])

                def on_end(self, event: Any) -> None:
                    start, inside = watch._open.pop()
                    took = time.thread_time() - start
                    if watch._open:
                        watch._open[-1][1] += took
                    function = event.data["dispatcher"].py_func
                    name = f"{function.__module__}.{function.__qualname__}".replace(".<locals>", "")
                    watch.seconds[name] += took - inside
                    watch.count[name] += 1

            module.register("numba:compile", Listener())

        spec.loader.exec_module = and_listen  # type: ignore[method-assign]
        return spec


def child(log: str, arguments: list[str]) -> None:
    """Run a command of qsim in this process and write what it compiled."""
    watch = Watch()
    sys.meta_path.insert(0, watch)
    sys.argv = ["qsim", *arguments]
    from qsim.cli import main

    try:
        main()
    finally:
        Path(log).write_text(json.dumps({k: (watch.count[k], s) for k, s in watch.seconds.items()}))


def report(costs: dict[str, tuple[Cost, Cost]], top: int) -> list[str]:
    """The tables: seconds of each command, and the functions whose compilation takes longest."""
    lines = [
        "## Seconds",
        "",
        "| command | wanted | wall, empty cache | CPU, empty | of it compiling | functions | wall, full | CPU, full |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (empty, full) in costs.items():
        wanted = f"{WANTED_S[name]} s" if name in WANTED_S else ""
        times = sum(n for n, _ in empty.compiled.values())
        lines.append(
            f"| `qsim {' '.join(_shown(COMMANDS[name]))}` | {wanted} | {empty.wall_s:.1f} s | {empty.cpu_s:.1f} s | "
            f"{empty.compile_s:.1f} s | {times} | {full.wall_s:.1f} s | {full.cpu_s:.1f} s |"
        )
    for name, (empty, _) in costs.items():
        if not empty.compiled:
            continue
        ranked = sorted(empty.compiled.items(), key=lambda item: -item[1][1])
        lines += ["", f"## What `qsim {COMMANDS[name][0]}` compiles ({name})", "",
                  "| function | times | CPU |", "|---|---:|---:|"]  # fmt: skip
        lines += [f"| {function} | {times} | {s:.2f} s |" for function, (times, s) in ranked[:top]]
        rest = ranked[top:]
        if rest:
            lines.append(
                f"| {len(rest)} more | {sum(n for _, (n, _) in rest)} | {sum(s for _, (_, s) in rest):.2f} s |"
            )
    return lines


def _shown(arguments: list[str]) -> list[str]:
    return [f'"{a}"' if " " in a else a for a in arguments]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write reports/first_use.md")
    parser.add_argument("--only", action="append", choices=COMMANDS, help="measure only this command; repeatable")
    parser.add_argument("--top", type=int, default=12, help="so many compiled functions of each command")
    parser.add_argument("--threads", type=int, default=1, help="of Numba and of BLAS")
    arguments = parser.parse_args()
    from _machine import describe

    costs = {}
    for name in arguments.only or COMMANDS:
        with tempfile.TemporaryDirectory() as cache:
            empty, full = (measure(COMMANDS[name], Path(cache), arguments.threads) for _ in "ef")
            costs[name] = empty, full
    lines = ["# First use", "", *(f"{line}  " for line in describe("numpy", "numba", "llvmlite")), "",
             f"Threads: {arguments.threads}. {os.getloadavg()[0]:.0f} processes want the cores when the last command "
             "ends.", "",
             "CPU seconds are user and system of the process: compare those. Wall seconds depend on what else the "
             "machine does.", "",
             *report(costs, arguments.top)]  # fmt: skip
    print("\n".join(lines))
    if arguments.write:
        (HERE / "first_use.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
