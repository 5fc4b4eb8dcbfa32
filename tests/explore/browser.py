"""A headless Chromium that opens one page and hands back what the page computed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "qsim" / "explore" / "templates"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage")  # fmt: skip


def chromium() -> str:
    """The command of the browser; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    return found


def opened(url: str, folder: Path, *more: str, seconds: float = 120) -> str:
    """The document of a page after its scripts ran."""
    command = [chromium(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *more, "--dump-dom", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def computed(scripts: Sequence[str], data: Any, body: str, folder: Path) -> Any:
    """What `body`, the body of a function of `data`, returns in the browser after the page's scripts.

    Arguments:
        scripts: files of the page's module, in order.
    """
    source = "\n".join((PAGE / name).read_text("utf-8") for name in scripts)
    text = json.dumps(data).replace("<", "\\u003c")
    page = folder / "page.html"
    page.write_text(
        f"""<!doctype html><meta charset="utf-8"><pre id="out">nothing was computed</pre>
<script type="application/json" id="data">{text}</script>
<script>
window.onerror = (m, f, l) => {{ document.getElementById("out").textContent = `${{m}} (line ${{l}})`; }};
</script>
<script>
{source}
const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("out").textContent = JSON.stringify((() => {{ {body} }})());
</script>""",
        "utf-8",
    )
    dom = opened(page.as_uri(), folder)
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    said = html.unescape(found[1])
    assert said.startswith(("{", "[", '"')), said
    return json.loads(said)
