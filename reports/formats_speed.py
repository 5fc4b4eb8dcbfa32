"""Speed of the codecs against ml_dtypes, torch (where installed) and a copy of the same traffic.

    python reports/formats_speed.py            # prints
    python reports/formats_speed.py --write    # and rewrites reports/formats_speed.md

16 Mi float32 elements, output arrays allocated beforehand for everyone who can take one. GB/s counts the bytes that
must cross: 4 + the code's size per element. The limit is a loop compiled the same way that reads and writes the same
bytes and does nothing else (one shift), timed in the same run with the same threads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numba as nb
import numpy as np
from _machine import describe, quiet_check, times

import qsim
from qsim._native.threads import for_chunks
from qsim._native.vectors import wide_vectors
from qsim.formats import FloatFormat, get_element_format, list_formats

COUNT = 1 << 24
MAIN = ("float8_e4m3fn", "float8_e5m2")


@nb.njit(nogil=True, cache=True)
def _narrow(source, target):  # type: ignore[no-untyped-def]
    wide_vectors()
    for i in range(source.size):
        target[i] = source[i] >> np.uint32(24)


@nb.njit(nogil=True, cache=True)
def _widen(source, target):  # type: ignore[no-untyped-def]
    wide_vectors()
    for i in range(source.size):
        target[i] = np.uint32(source[i]) << np.uint32(23)


def limit(loop: Callable, source: np.ndarray, target: np.ndarray) -> Callable[[], None]:
    return lambda: for_chunks(source.size, lambda a, b: loop(source[a:b], target[a:b]))


class Table:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def row(self, name: str, threads: int, traffic: int, best: float, median: float, base: float, floor: float) -> None:
        self.say(
            f"| {name} | {threads} | {best * 1e3:.2f} | {median * 1e3:.2f} | {COUNT / best / 1e6:.0f} "
            f"| {traffic / best / 1e9:.1f} | {floor / best:.0%} | {base / best:.1f}x |"
        )


def torch_calls(x: np.ndarray, codes: np.ndarray, name: str) -> tuple[Callable, Callable] | None:
    try:
        import torch
    except ImportError:
        return None
    kind = getattr(torch, name, None)
    if kind is None:
        return None
    tx, tc = torch.from_numpy(x), torch.from_numpy(codes).view(kind)
    target, back = torch.empty(COUNT, dtype=kind), torch.empty(COUNT)
    return (lambda: target.copy_(tx)), (lambda: back.copy_(tc))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite reports/formats_speed.md")
    parser.add_argument("--repeat", type=int, default=15)
    options = parser.parse_args()
    import ml_dtypes

    t = Table()
    t.say("# Speed of the codecs")
    t.say()
    for line in describe("numpy", "numba", "ml_dtypes", "torch"):
        t.say(f"{line}  ")
    t.say(f"Quiet check (median over best of a fixed loop, 1.0 is quiet): {quiet_check():.2f}")
    t.say()
    t.say("16 Mi elements of N(0, 1) times 10, float32. Limit: the same bytes moved by a loop that only shifts.")
    t.say("Ratio to ml_dtypes: its `astype` on one thread, the only way it runs, into a fresh array as it returns one.")
    t.say()
    x = (np.random.default_rng(0).standard_normal(COUNT, dtype=np.float32)) * np.float32(10)
    bits = x.view(np.uint32)
    byte, word, value = np.empty(COUNT, np.uint8), np.empty(COUNT, np.uint32), np.empty(COUNT, np.float32)
    head = "| threads | best ms | median ms | Melem/s | GB/s | of limit | ml_dtypes |"
    rule = "|---|---|---|---|---|---|---|---|"
    rate: dict[tuple[str, str, int], float] = {}
    threads = [n for n in (1, 2) if n <= nb.config.NUMBA_NUM_THREADS]
    limits: dict[tuple[str, int], float] = {}
    for n in threads:
        nb.set_num_threads(n)
        limits["encode", n] = times(limit(_narrow, bits, byte), repeat=options.repeat)[0]
        limits["decode", n] = times(limit(_widen, byte, word), repeat=options.repeat)[0]
    for name in MAIN:
        t.say(f"## {name}, saturating")
        t.say()
        t.say(f"| what {head}")
        t.say(rule)
        kind = getattr(ml_dtypes, name)
        codes = qsim.encode(x, name)
        typed = codes.view(kind)
        with np.errstate(all="ignore"):
            base = {
                "encode": times(lambda kind=kind: x.astype(kind), repeat=5),
                "decode": times(lambda typed=typed: typed.astype(np.float32), repeat=5),
            }
        for way in ("encode", "decode"):
            t.row(f"ml_dtypes {way}", 1, 5 * COUNT, *base[way], base[way][0], limits[way, 1])
        peer = torch_calls(x, codes, name)
        for n in threads:
            nb.set_num_threads(n)
            t.row(
                "*limit:* encode traffic",
                n,
                5 * COUNT,
                *[limits["encode", n]] * 2,
                base["encode"][0],
                limits["encode", n],
            )
            t.row(
                "*limit:* decode traffic",
                n,
                5 * COUNT,
                *[limits["decode", n]] * 2,
                base["decode"][0],
                limits["decode", n],
            )
            if peer:
                import torch

                torch.set_num_threads(n)
                for way, call in zip(("encode", "decode"), peer, strict=True):
                    t.row(
                        f"torch {way}", n, 5 * COUNT, *times(call, repeat=options.repeat), base[way][0], limits[way, n]
                    )
            ours = {
                "encode": lambda name=name: qsim.encode(x, name, out=byte),
                "decode": lambda name=name, codes=codes: qsim.decode(codes, name, out=value),
            }
            for way, call in ours.items():
                best, median = times(call, repeat=options.repeat)
                rate[name, way, n] = best
                t.row(f"**qsim {way}**", n, 5 * COUNT, best, median, base[way][0], limits[way, n])
            best, median = times(lambda name=name: qsim.cast(x, name, out=value), repeat=options.repeat)
            t.row("qsim cast (both, 8 B/element)", n, 8 * COUNT, best, median, sum(base[w][0] for w in base), 0.0)
            best, median = times(lambda name=name: qsim.encode(x, name), repeat=options.repeat)
            t.row("qsim encode into a new array", n, 5 * COUNT, best, median, base["encode"][0], limits["encode", n])
        t.say()
    t.say("## Every other format, against float8_e4m3fn (time over time, same threads; required at most 2)")
    t.say()
    t.say("| format | " + " | ".join(f"encode {n}t ms | x e4m3 | decode {n}t ms | x e4m3" for n in threads) + " |")
    t.say("|---|" + "---|" * 4 * len(threads))
    worst = 0.0
    for fmt in list_formats():
        if fmt.name in MAIN or not hasattr(fmt, "code_dtype"):
            continue
        element = get_element_format(fmt)
        scaled = np.clip(x, element.min, element.max) if not isinstance(element, FloatFormat) else x
        codes = qsim.encode(scaled, element)
        room = np.empty(COUNT, element.code_dtype)
        cells = []
        for n in threads:
            nb.set_num_threads(n)
            for way, call in (
                ("encode", lambda: qsim.encode(scaled, element, out=room)),  # noqa: B023
                ("decode", lambda: qsim.decode(codes, element, out=value)),  # noqa: B023
            ):
                best, _ = times(call, repeat=max(5, options.repeat // 2))
                ratio = best / rate["float8_e4m3fn", way, n]
                worst = max(worst, ratio)
                cells.append(f"{best * 1e3:.2f} | {ratio:.2f}")
        t.say(f"| {fmt.name} | " + " | ".join(cells) + " |")
    t.say()
    t.say(f"Slowest against float8_e4m3fn: {worst:.2f}x. Codes of 16 and 32 bits move 6 and 8 bytes, not 5.")
    t.say()
    t.say("## Blocks, float64 input, other rounding modes (new arrays, all threads)")
    t.say()
    t.say("| call | best ms | median ms | Melem/s |")
    t.say("|---|---|---|---|")
    rows = x.reshape(-1, 4096)
    wide = x.astype(np.float64)
    random = np.random.default_rng(1)
    calls: list[tuple[str, Callable]] = [
        (f'quantize_blocks(x, "{f}")', lambda f=f: qsim.formats.quantize_blocks(rows, f))
        for f in ("mxfp8_e4m3", "mxfp4", "mxint8", "nvfp4")
    ]
    calls.append(('encode(float64, "e4m3")', lambda: qsim.encode(wide, "e4m3", out=byte)))
    calls += [
        (f'encode(x, "e4m3", rounding="{r}")', lambda r=r: qsim.encode(x, "e4m3", rounding=r, out=byte))
        for r in ("nearest_away", "toward_zero", "to_odd")
    ]
    calls.append(
        ('encode(x, "e4m3", rounding="stochastic", rng=Generator)',
         lambda: qsim.encode(x, "e4m3", rounding="stochastic", rng=random, out=byte))
    )  # fmt: skip
    packed = qsim.formats.pack(byte & np.uint8(15), 4)
    calls.append(("pack(codes, 4)", lambda: qsim.formats.pack(byte & np.uint8(15), 4)))
    calls.append(("unpack(packed, 4)", lambda: qsim.formats.unpack(packed, 4)))
    for name, call in calls:
        best, median = times(call, repeat=5, warmup=1)
        t.say(f"| `{name}` | {best * 1e3:.1f} | {median * 1e3:.1f} | {COUNT / best / 1e6:.0f} |")
    if options.write:
        (Path(__file__).parent / "formats_speed.md").write_text("\n".join(t.lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
