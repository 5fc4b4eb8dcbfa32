"""What the scripts that record on a GPU share: settled times, rotated weights, rows written as they are made."""

import csv
import itertools
import json
import math
import statistics
import tempfile
import time
import traceback
from pathlib import Path

import torch

DEV = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU, where only the scripts are tried, everything is tiny
START = time.time()


def name():
    return torch.cuda.get_device_name() if DEV == "cuda" else "cpu"


def capture(calls):
    """A CUDA graph of the calls, each of the first two run once before on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def replay_times(graph, replays, calls):
    """Seconds of a call in every replay, the replays issued one after the other without waiting."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    marks[0].record()
    for i in range(replays):
        graph.replay()
        marks[i + 1].record()
    torch.cuda.synchronize()
    return [marks[i].elapsed_time(marks[i + 1]) * 1e-3 / calls for i in range(replays)]


def settled_time(calls, settle_s=0.02, timed_s=0.01):
    """(median, least, largest) seconds of a call: replays until the clock has adapted to the load, then the later ones.

    One graph holds `calls`, which rotate over copies of what must come from memory. At least five replays are timed.
    """
    if DEV == "cpu":
        start = time.perf_counter()
        calls[0]()
        return (time.perf_counter() - start,) * 3
    graph = capture(calls)
    graph.replay()
    torch.cuda.synchronize()
    one = replay_times(graph, 1, len(calls))[0] * len(calls)
    settle = max(1, math.ceil(settle_s / one))
    late = replay_times(graph, settle + max(5, min(200, math.ceil(timed_s / one))), len(calls))[settle:]
    return statistics.median(late), min(late), max(late)


def rotation(nbytes, most=24, total=300e6):
    """How many copies of something of `nbytes` exceed the L2 by far."""
    return 1 if DEV == "cpu" else max(1, min(most, math.ceil(total / nbytes)))


def turns(items, count):
    return list(itertools.islice(itertools.cycle(items), max(len(items), count)))


def busy(seconds):
    """Raise the clocks from idle."""
    if DEV == "cpu":
        return
    a = torch.randn(4096, 4096, device=DEV, dtype=torch.bfloat16)
    end = time.time() + seconds
    while time.time() < end:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()


def traced(run):
    """Kernel events of a call, in order."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        seen.export_chrome_trace(trace.name)
        with open(trace.name) as text:
            events = [e for e in json.load(text)["traceEvents"] if e.get("cat") == "kernel"]
    return sorted(events, key=lambda e: e["ts"])


class Rows:
    """A CSV file that is complete after every row."""

    def __init__(self, path, head):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "w", newline="")
        self.out = csv.writer(self.file)
        self.out.writerow(head.split())
        self.count = 0

    def add(self, *row):
        self.out.writerow([f"{v:.9f}" if isinstance(v, float) else v for v in row])
        self.file.flush()
        self.count += 1


def guarded(what, work, *args, **more):
    """Run a section; a failure is printed, and the rest goes on. True if it came through."""
    began = time.time()
    try:
        work(*args, **more)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        print("FAILED", what, type(error).__name__, str(error)[:300], f"at {Path(line.filename).name}:{line.lineno}",
              flush=True)  # fmt: skip
        return False
    finally:
        print(f"[{time.time() - START:6.1f} s] {what}: {time.time() - began:.1f} s", flush=True)
    return True
