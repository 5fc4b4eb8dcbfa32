"""Power of the board under sustained loops, by NVML (needs PyTorch with CUDA and nvidia-ml-py).

Every loop runs SECONDS long, the first third is dropped. `mean_w` is the energy counter's difference over the time
between its first and last change; `sampled_w` is the mean of the instantaneous reading, taken every 20 ms.

    python reports/h200_power.py OUT.csv [SECONDS_OF_A_LOOP] [LIMIT]
"""

import itertools
import sys
import threading
import time

import torch
from _gpu import DEV, START, Rows, guarded, name, rotation, turns

BF, E4M3 = torch.bfloat16, torch.float8_e4m3fn


class Meter:
    """Samples of power and clock, and the energy counter, while it is open."""

    def __init__(self):
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        self.device = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.samples, self.stop = [], threading.Event()

    def read(self):
        n = self.nvml
        try:
            field = n.nvmlDeviceGetFieldValues(self.device, [n.NVML_FI_DEV_POWER_INSTANT])[0]
            watts = field.value.uiVal / 1000 if field.nvmlReturn == 0 else float("nan")
        except Exception:
            watts = float("nan")
        clock = n.nvmlDeviceGetClockInfo(self.device, n.NVML_CLOCK_SM)
        average = n.nvmlDeviceGetPowerUsage(self.device) / 1000
        energy = n.nvmlDeviceGetTotalEnergyConsumption(self.device) / 1000
        return time.perf_counter(), watts, average, energy, clock, n.nvmlDeviceGetTemperature(self.device, 0)

    def watch(self):
        while not self.stop.is_set():
            self.samples.append(self.read())
            time.sleep(0.02)

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()

    def summary(self, since):
        """(mean W from energy, mean W sampled, mean W of the averaged reading, samples, mean MHz, last Celsius)."""
        seen = [s for s in self.samples if s[0] >= since]
        steps = [s for before, s in itertools.pairwise(seen) if s[3] != before[3]]
        mean = (steps[-1][3] - steps[0][3]) / (steps[-1][0] - steps[0][0]) if len(steps) > 1 else float("nan")
        average = [sum(s[i] for s in seen) / len(seen) for i in (1, 2, 4)]
        return mean, average[0], average[1], len(seen), average[2], seen[-1][5]


def product_calls(n, k, m, fmt):
    import h200_measure as base

    ws = [base.quant_weight(torch.randn(n, k, device=DEV, dtype=BF) * 0.02, fmt)
          for _ in range(rotation(n * k * (2 if fmt == "bf16" else 1)))]  # fmt: skip
    x = base.quant_act(torch.randn(m, k, device=DEV, dtype=BF), fmt)
    return [lambda w=w: base.product(x, w, fmt) for w in turns(ws, 4)]


def fused_calls(n, k, m):
    import h200_fused_measure as fused

    layer, _ = fused.make_layer(n, k, "w4a16_g128")
    tuning = fused.chosen(layer, [m])
    x = torch.randn(m, k, device=DEV, dtype=BF)
    return [fused.call_of(layer, w, x, tuning) for w in fused.copies_of(layer, rotation(n * k * 0.52))]


def read_calls(nbytes):
    xs = [torch.randn(nbytes // 4, device=DEV) for _ in range(2)]
    return [x.sum for x in xs]


def copy_calls(nbytes):
    xs = [torch.randint(0, 255, (nbytes,), device=DEV, dtype=torch.uint8) for _ in range(2)]
    return [lambda: xs[1].copy_(xs[0])]


def mixed_calls(fmt, m):
    """The four products of a layer of Llama-3-8B in turn."""
    calls = []
    for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)):
        calls += (fused_calls(n, k, m) if fmt == "w4a16" else product_calls(n, k, m, fmt))[:6]
    return calls


def loads():
    """(kernel, shape, calls) of every loop."""
    yield "idle", "", None
    for size in (1 << 30, 64 << 20):
        yield "read_sum_f32", f"{size} B", lambda size=size: read_calls(size)
    yield "copy_u8", f"{1 << 30} B", lambda: copy_calls(1 << 30)
    yield "read_in_l2_sum_f32", f"{16 << 20} B", lambda: read_calls(16 << 20)[:1]
    for fmt in ("bf16", "fp8", "fp8_row", "int8"):
        for n, k, m in ((8192, 8192, 8192), (4096, 4096, 4096), (28672, 4096, 2048), (28672, 4096, 512),
                        (28672, 4096, 256), (28672, 4096, 128), (28672, 4096, 64), (4096, 14336, 64)):  # fmt: skip
            yield f"gemm_{fmt}", f"{m}x{n}x{k}", lambda n=n, k=k, m=m, fmt=fmt: product_calls(n, k, m, fmt)
    for m in (1, 8, 32):
        yield "layer_bf16", f"{m} tokens", lambda m=m: mixed_calls("bf16", m)
        yield "layer_fp8_row", f"{m} tokens", lambda m=m: mixed_calls("fp8_row", m)
        yield "layer_w4a16_humming", f"{m} tokens", lambda m=m: mixed_calls("w4a16", m)
    for m in (64, 256, 2048):
        yield "gemm_w4a16_humming", f"{m}x28672x4096", lambda m=m: fused_calls(28672, 4096, m)
    yield "idle", "after", None


def main(path, seconds, limit):
    from _gpu import capture

    out = Rows(path, "device kernel shape call_s mean_w sampled_w averaged_w samples sm_mhz celsius seconds")

    def one(kernel, shape, make):
        if time.time() - START > limit:
            raise TimeoutError("time is up")
        calls = make() if make else None
        graph = capture(calls) if calls else None
        torch.cuda.synchronize()
        if graph:  # about 20 ms of work per batch, so that the queue never runs dry nor far ahead
            start = time.perf_counter()
            graph.replay()
            torch.cuda.synchronize()
            graph.replay()
            torch.cuda.synchronize()
            batch = max(1, int(0.02 / max(1e-5, (time.perf_counter() - start) / 2)))
        with Meter() as meter:
            begin = time.perf_counter()
            done, timed_from, counted = 0, begin, 0
            while time.perf_counter() - begin < seconds:
                if graph:
                    for _ in range(batch):
                        graph.replay()
                    torch.cuda.synchronize()
                    done += batch
                    if time.perf_counter() - begin < seconds / 3:
                        timed_from, counted = time.perf_counter(), done
                else:
                    time.sleep(0.05)
            end = time.perf_counter()
        call = (end - timed_from) / ((done - counted) * len(calls)) if graph else 0.0
        found = meter.summary(begin + seconds / 3)
        out.add(name(), kernel, shape, call, *(f"{v:.1f}" for v in found[:3]), found[3], f"{found[4]:.0f}", found[5],
                f"{seconds:.1f}")  # fmt: skip
        print(kernel, shape, [round(v, 1) for v in found], flush=True)

    for kernel, shape, make in loads():
        guarded(f"power {kernel} {shape}", one, kernel, shape, make)
        torch.cuda.empty_cache()
    print("done", out.count, "rows", flush=True)


if __name__ == "__main__":
    main(
        sys.argv[1],
        float(sys.argv[2]) if len(sys.argv) > 2 else 1.8,
        float(sys.argv[3]) if len(sys.argv) > 3 else 600.0,
    )
