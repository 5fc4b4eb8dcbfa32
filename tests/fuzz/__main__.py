"""`python -m tests.fuzz --count 100000`: the fuzz without its bound, every fault on the way reported."""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections import Counter

from .run import run
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every place where a file or an array becomes a value.")
    parser.add_argument("--count", type=int, default=100_000, help="inputs in all (default 100000)")
    parser.add_argument("--only", nargs="*", metavar="TARGET", help="names of targets")
    args = parser.parse_args()
    chosen = [t for t in TARGETS if not args.only or t.name in args.only]
    each = args.count / sum(t.share for t in chosen)
    total: Counter[str] = Counter()
    faults = 0
    warnings.simplefilter("error")
    for target in chosen:
        started = time.perf_counter()
        try:
            counts = run(target, round(each))
        except Exception:
            faults += 1
            counts = Counter()
            traceback.print_exc(limit=-6)
        total += counts
        took = time.perf_counter() - started
        print(
            f"{target.name:22} accepted {counts['accepted']:7} refused {counts['refused']:7}  {took:6.1f} s", flush=True
        )
    print(f"{total.total()} inputs: {total['accepted']} accepted, {total['refused']} refused in a sentence; "
          f"{faults} targets with a fault")  # fmt: skip
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
