"""The what-if page: written, timed in a headless Chromium, and pictured.

    python reports/explore.py [--write]

Prints how fast the page is; with --write it goes to reports/explore/timing.md, with the page (index.html) and its
picture (page.png). Chromium must be installed (Debian: apt-get install chromium).
"""

import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from _machine import describe

from qsim.explore.page import write_page

OUT = Path(__file__).parent / "explore"
UPDATES = 200
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip
# Moves sliders as a hand does and times each from the event until the page is laid out again.
PROBE = """
<script type="module">
await new Promise((done) => setTimeout(done, 1500));
const paint = performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null;
const ready = performance.getEntriesByName("update")[0];
document.querySelector("details").open = true;
const sliders = [...document.querySelectorAll("#shared input[type=range], .case .field input[type=range]")].slice(0, 8);
const times = [];
await fetch("/began", { method: "POST", body: "{}" });
let seed = 7, ended = 0;
for (let i = 0; i < COUNT; i++) {
  seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
  const one = sliders[i % sliders.length];
  one.value = String(seed % 1000);
  const began = performance.now();
  one.dispatchEvent(new Event("input", { bubbles: true }));
  document.body.getBoundingClientRect();
  times.push(performance.now() - began);
  await new Promise((done) => setTimeout(done, 5));
  ended = performance.now();
}
const found = { paint, ready: ready.startTime + ready.duration, times };
await fetch("/moved", { method: "POST", body: "{}" });
const served = () => performance.getEntriesByName("workloads").find((e) => e.startTime > ended);
while (!served()) await new Promise((done) => setTimeout(done, 50));
found.workloads = served().duration;
await fetch("/done", { method: "POST", body: JSON.stringify(found) });
</script>
""".replace("COUNT", str(UPDATES))


def browser() -> str:
    """The command of the browser."""
    command = shutil.which("chromium") or shutil.which("chromium-browser")
    if command is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    return command


def run(url: str, folder: Path, *more: str) -> str:
    """Chromium's standard output on a page."""
    profile = Path(tempfile.mkdtemp(dir=folder))
    command = [browser(), *FLAGS, f"--user-data-dir={profile}", *more, url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def cpu_s(pid: int) -> float:
    """Processor seconds of a process and all that it started; 0 where the system does not say."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        one = int(stat.parent.name)
        parents[one] = int(fields[1])
        seconds[one] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = {pid}
    while more := {one for one, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds.get(one, 0.0) for one in family)


def timed(page: Path, folder: Path) -> dict:
    """First paint, first drawing and the times of updates, in milliseconds; a server on this machine takes them."""
    text = page.read_text("utf-8").replace("connect-src 'none'", "connect-src 'self'", 1)
    body, found = text.replace("</body>", f"{PROBE}</body>", 1).encode(), queue.Queue()
    spent = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            spent[self.path] = cpu_s(process.pid)
            if self.path == "/done":
                found.put(said | {"cpu_s": spent["/moved"] - spent["/began"]})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [browser(), *FLAGS, f"--user-data-dir={folder / 'timed'}", "--window-size=1280,900",
                   "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_address[1]}/"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return found.get(timeout=120)
        finally:
            process.terminate()
            process.wait()
            server.shutdown()


def main() -> None:
    write = "--write" in sys.argv
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        page = OUT / "index.html" if write else folder / "index.html"
        size = write_page(page)
        load = os.getloadavg()[0]
        found = timed(page, folder)
        times = sorted(found["times"])
        quantile = times[int(0.95 * len(times))]
        version = run("about:blank", folder, "--version").strip()
        lines = [
            "# The what-if page", "", *describe("qsim"), f"Browser: {version}, headless, 1280 x 900",
            f"Load of the machine before: {load:.1f} processes", "",
            "| what | measured | wanted |", "|---|---|---|",
            f"| size of the page | {size / 1e6:.2f} MB | at most 3 MB |",
            f"| first paint | {found['paint']:.0f} ms | below 1500 ms |",
            f"| all views drawn | {found['ready']:.0f} ms | |",
            f"| update, median of {len(times)} | {statistics.median(times):.1f} ms | below 50 ms |",
            f"| update, 95th percentile | {quantile:.1f} ms | below 100 ms |",
            f"| update, processor time of the whole browser | {1e3 * found['cpu_s'] / len(times):.1f} ms | |",
            f"| served workloads of both cases | {found['workloads']:.0f} ms | |", "",
            "An update is a slider's event, from its dispatch until the page is laid out again: all cases, the",
            "curves of five schemes over thirteen batches, memory and serving curves are computed anew; views out of",
            "sight are drawn a moment later, and served workloads when the hand rests. Times by the clock grow with",
            "the load of the machine; processor time, which also holds those views and the frames, does not.",
        ]  # fmt: skip
        print("\n".join(lines))
        if write:
            (OUT / "timing.md").write_text("\n".join(lines) + "\n", "utf-8")
            run(page.as_uri(), folder, "--hide-scrollbars", "--window-size=1280,1290", "--virtual-time-budget=4000",
                f"--screenshot={OUT / 'page.png'}")  # fmt: skip


if __name__ == "__main__":
    main()
