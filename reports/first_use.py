"""What a command costs the first time, when nothing is compiled, and what of it Numba takes.

    python reports/first_use.py            # prints the tables
    python reports/first_use.py --write    # and writes reports/first_use.md

Every command runs in a process of its own, with an empty folder as NUMBA_CACHE_DIR and then with the same one. CPU
seconds are those of the process and its children: on a machine that others use too, they say more than wall time.
A function's own time leaves out the functions that were compiled for it; a function that calls others optimises them
once more, so own time is not that of its text alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "generate, w4a16-g128": ["generate", "def f(", "--max-new-tokens", "16", "--scheme", "w4a16-g128"],
    "generate": ["generate", "def f(", "--max-new-tokens", "16"],
    "predict": ["predict", "llama-3-8b", "--scheme", "w4a16-g128"],
}
TOP = 12  # functions listed of each command


def record(command: list[str]) -> None:
    """Run `python -m qsim` with these arguments in this process, then write what was compiled as JSON to stderr."""
    from numba.core import event

    class Compilations(event.Listener):  # type: ignore[misc]
        """(own, whole, name) of every function, in CPU seconds of this thread; functions compile within others."""

        def __init__(self) -> None:
            self.open: list[list[Any]] = []
            self.done: list[tuple[float, float, str]] = []

        def on_start(self, event: Any) -> None:
            function = event.data["dispatcher"]
            name = f"{function.__module__}.{function.__qualname__}"
            self.open.append([name, time.thread_time(), 0.0])

        def on_end(self, event: Any) -> None:
            name, start, within = self.open.pop()
            whole = time.thread_time() - start
            self.done.append((whole - within, whole, name))
            if self.open:
                self.open[-1][2] += whole

    seen = Compilations()
    event.register("numba:compile", seen)
    sys.argv = ["qsim", *command]
    try:
        runpy.run_module("qsim", run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code:
            raise
    Path(os.environ["FIRST_USE_RESULT"]).write_text(json.dumps(sorted(seen.done, reverse=True)))


def measure(command: list[str], cache: str) -> tuple[float, float, list[list[Any]]]:
    """Wall and CPU seconds of a command in a fresh process, and its compilations."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        env = os.environ | {"NUMBA_CACHE_DIR": cache, "FIRST_USE_RESULT": str(result)}
        env["PYTHONPATH"] = str(HERE.parent)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, str(HERE / "first_use.py"), "--record", json.dumps(command)], env=env,
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall, cpu, json.loads(result.read_text())


def report(names: list[str]) -> str:
    """The tables, as Markdown."""
    sys.path.insert(0, str(HERE))
    from _machine import describe

    rows, details = [], []
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("empty", "full"):
                wall, cpu, compiled = measure(COMMANDS[name], cache)
                total = sum(one[0] for one in compiled)
                rows.append(f"| {name} | {kind} | {wall:.1f} | {cpu:.1f} | {len(compiled)} | {total:.1f} |")
                if kind == "empty" and compiled:
                    lines = [f"| `{what}` | {own:.2f} | {whole:.2f} |" for own, whole, what in compiled[:TOP]]
                    details += [f"\n### {name}\n\n| function | own, s | with what it calls, s |\n|---|---|---|", *lines]
    return "\n".join([
        "# First use\n", *(f"* {line}" for line in describe("numpy", "numba", "llvmlite")), "",
        "`python reports/first_use.py --write`, see its docstring for what is counted.\n",
        "| command | Numba's cache | wall, s | CPU, s | compilations | in compilation, CPU s |",
        "|---|---|---|---|---|---|",
        *rows, *details, "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(COMMANDS), help=f"of: {', '.join(COMMANDS)}")
    parser.add_argument("--write", action="store_true", help="write first_use.md beside this script")
    parser.add_argument("--record", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.record:
        record(json.loads(given.record))
        return
    text = report(given.names)
    print(text)
    if given.write:
        (HERE / "first_use.md").write_text(text)


if __name__ == "__main__":
    main()
