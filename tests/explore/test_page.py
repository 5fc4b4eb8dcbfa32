"""The page as one file in a real browser: it draws every view, sends nothing, and says what is wrong with a link."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hwmodels.serving import Deployment, Workload, serve
from qsim.cli import main
from qsim.errors import QsimError
from qsim.explore.page import Opened, render

from .browser import chromium, opened

LARGEST = 3_000_000

# after the page's own module: what it shows, and what is wrong with it, as JSON
PROBE = """
<script>
const wrong = window.wrong = [];
window.addEventListener("error", (e) => wrong.push(String(e.message)));
window.addEventListener("unhandledrejection", (e) => wrong.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => wrong.push(`${e.violatedDirective} ${e.blockedURI}`));
</script>
"""
REPORT = """
<script type="module">
const all = (q) => [...document.querySelectorAll(q)], text = (q) => all(q).map((e) => e.textContent);
const $ = (id) => document.getElementById(id);
const act = %s;
await act();
await new Promise((done) => setTimeout(done, 300));
parent.postMessage(JSON.stringify({
  wrong: window.wrong, says: text(".view .says"), commands: text(".case code"), hash: location.hash,
  note: $("note").hidden ? "" : $("note").textContent, big: text(".case .big"), drawn: all(".view .draw svg").length,
  why: text(".why").filter(Boolean), nofit: text(".nofit"), tab: $("numbers").hidden ? "speed" : "numbers",
  requests: performance.getEntriesByType("resource").map((r) => r.name), question: text("#question p"),
  numbers: text("#numbers .says, #n-block-says, #n-sum-says"), invalid: all("[aria-invalid=true]").length,
  wide: document.documentElement.scrollWidth <= innerWidth, injected: window.injected ?? null,
  names: window.names ?? [], saved: window.saved ?? [],
}), "*");
</script>
"""


FRAMES = """<!doctype html><meta charset="utf-8"><body><script>
const found = {};
for (const [name, address, width] of %s) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  const said = new Promise((done) => { addEventListener("message", (e) => done(JSON.parse(e.data)), { once: true }); });
  frame.src = address;
  document.body.append(frame);
  found[name] = await Promise.race([said, new Promise((done) => setTimeout(done, 20000, "no answer"))]);
  frame.remove();
}
document.body.innerHTML = `<pre id="out"></pre>`;
document.getElementById("out").textContent = JSON.stringify(found);
</script>"""
BAD = "%3Cimg src%3Dx onerror%3D%22window.injected%3D1%22%3E"
BAD_CASES = f"a=nothing,bf16&b=h100-sxm,{BAD},,0,-1,no.field%3A3"
TYPE = """() => {
  document.querySelector("details").open = true;
  const field = document.querySelector(".field input[type=number]");
  field.value = "VALUE"; field.dispatchEvent(new Event("input", { bubbles: true }));
}"""
GUESS = """() => { document.querySelector("#question input").value = "VALUE";
  document.querySelector("#question button").click(); }"""
SAVE = """async () => {
  await new Promise((done) => setTimeout(done, 200));
  const taken = [], make = URL.createObjectURL;
  URL.createObjectURL = (blob) => { taken.push(blob); return make(blob); };
  HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
  const names = window.names = [];
  for (const button of all(".get button")) button.click();
  await new Promise((done) => setTimeout(done, 2000));
  window.saved = await Promise.all(taken.map(async (blob) => [blob.type, (await blob.text()).slice(0, 3000)]));
}"""
WAIT = "() => new Promise((done) => setTimeout(done, 600))"
LARGE = "#model=llama-3-70b&batch=4&context=4096&a=h100-sxm,bf16"
SET = "memory.bandwidth_gbytes_per_s%3A3000"
TITLE = "</script><img src=x onerror='window.injected=1'>"
VISITS = {
    "first": ("", "() => {}", 1280),
    "moved": (f"#model=mistral-7b&phase=decode&batch=8&context=2048&a=a100-sxm-80gb,w4a16-g128,fp8,2,2.5,{SET}",
              "() => {}", 1280),
    "bad": (f"#model={BAD}&batch=-3&context=1e99&{BAD_CASES}&zzz=1&x=%E0%A4%A&tab={BAD}", "() => {}", 1280),
    "refused": ("", TYPE.replace("VALUE", "4e9"), 1280),
    "typed": ("", TYPE.replace("VALUE", "6700"), 1280),
    "large": (LARGE, "() => {}", 1280),
    "helped": (LARGE, '() => all(".nofit button").find((b) => b.textContent.includes("parallel")).click()', 1280),
    "split": ("#model=llama-3-8b&a=h100-sxm,bf16,,3", "() => {}", 1280),
    "asked": ("#question=speedup&a=h100-sxm,bf16&b=h100-sxm,bf16", GUESS.replace("VALUE", "3"), 1280),
    "cast": ("#tab=numbers&question=cast&x=0.3", GUESS.replace("VALUE", "0.3125"), 1280),
    "numbers": ("#tab=numbers&x=0.3&f1=float8_e4m3fn&f2=float4_e2m1fn&bits=10&product=1.5&many=4096", "() => {}", 360),
    "phone": ("", "() => {}", 360),
    "mine": ("", "() => {}", 1280),
    "saved": ("", SAVE, 1280),
    "served": ("#model=llama-3-70b&batch=4&context=2048&a=h200,fp8-rowwise,fp8,2,2.5&b=l4,bf16", WAIT, 1280),
}  # fmt: skip
"""What is opened -> the fragment, what is done there, and the width."""


@pytest.fixture(scope="module")
def size_and_visits(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any]]:
    """Bytes of the page, and what it shows at each of `VISITS`, all in one browser without a network."""
    chromium()
    folder = tmp_path_factory.mktemp("page")
    toml = (Path(__file__).parents[2] / "hwmodels/devices/h200.toml").read_text("utf-8")
    named = re.sub(r"^title = .*$", f'title = "{TITLE}"', toml, flags=re.MULTILINE)
    mine = folder / "it's mine.toml"
    mine.write_text(re.sub(r"^aliases = .*\n", "", named, flags=re.MULTILINE), "utf-8")
    page = render()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsim.explore.page.losses_of", lambda *_: {})  # seconds that are not about names
        pages = {"mine": render(Opened.of([str(mine)], []))}
    frames = []
    for name, (fragment, act, width) in VISITS.items():
        text = pages.get(name, page)
        text = text.replace("<head>", f"<head>{PROBE}", 1).replace("</body>", f"{REPORT % act}</body>", 1)
        (folder / f"{name}.html").write_text(text, "utf-8")
        frames.append([name, f"{name}.html{fragment}", width])
    index = folder / "index.html"
    index.write_text((FRAMES % json.dumps(frames)).replace("<script>", '<script type="module">'), "utf-8")
    more = ("--virtual-time-budget=300000", "--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files")
    dom = opened(index.as_uri(), folder, *more)
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-1500:]
    return len(page.encode()), json.loads(html.unescape(found[1]))


@pytest.fixture
def visits(size_and_visits: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return size_and_visits[1]


def test_the_page_opens_from_a_file_draws_every_view_and_asks_for_nothing(
    size_and_visits: tuple[int, dict[str, Any]],
) -> None:
    size, visits = size_and_visits
    found = visits["first"]
    assert size < LARGEST
    assert (found["requests"], found["note"], found["drawn"]) == ([], "", 6)
    assert all(re.search(r"\d", says) for says in found["says"])
    assert found["commands"][0] == (
        "qsim predict llama-3-8b --device h100-sxm --scheme bf16 --phase decode --batch 16 --context 4096"
    )
    assert {name: visit["wrong"] for name, visit in visits.items()} == {name: [] for name in VISITS}


def test_the_command_that_the_page_gives_prints_the_time_that_it_shows(visits: dict[str, Any]) -> None:
    found = visits["moved"]
    words = found["commands"][0].split()
    assert words[0] == "qsim"
    assert "--set" in words
    predicted = json.loads(CliRunner().invoke(main, [*words[1:], "--json"]).output)
    assert found["big"][0].startswith(f"{1e3 * predicted['time_s']:.3g} ms")


def test_a_malformed_link_opens_the_default_with_a_note_and_is_never_markup(visits: dict[str, Any]) -> None:
    found = visits["bad"]
    assert (found["injected"], found["drawn"]) == (None, 6)
    said = ("no model", "batch", "context", "no device", "no scheme", "tensor parallel", "no price", "no field", "zzz")
    assert [word for word in (*said, "is not text", "no page") if word not in found["note"]] == []
    assert found["commands"][0].startswith("qsim predict llama-3-8b")


def test_a_refused_field_stays_visible_and_says_why_and_the_last_right_value_counts(visits: dict[str, Any]) -> None:
    found, moved = visits["refused"], visits["typed"]
    assert found["invalid"] == 1
    assert "outside 0.5 to 100000000" in found["why"][0]
    assert "--set" not in found["commands"][0]
    assert moved["commands"][0].endswith("--set memory.bandwidth_gbytes_per_s=6700")
    assert moved["invalid"] == 0
    assert "6700" in moved["hash"]


def test_what_does_not_fit_says_by_how_much_and_offers_what_would(visits: dict[str, Any]) -> None:
    said = visits["large"]["nofit"][0]
    assert "too much" in said
    assert "tensor parallel" in said
    assert visits["helped"]["nofit"] == []
    assert "must divide the 32 heads" in visits["split"]["nofit"][0]


def test_a_link_opens_the_page_with_a_question_whose_answer_is_computed(visits: dict[str, Any]) -> None:
    assert visits["asked"]["question"][-1] == "Not quite. It is 1 times."
    assert visits["cast"]["question"][-1] == "Right. It is 0.3125."
    assert visits["cast"]["tab"] == "numbers"


def test_nothing_is_wider_than_a_phone(visits: dict[str, Any]) -> None:
    assert visits["phone"]["wide"]
    assert visits["numbers"]["wide"]


def test_the_second_tab_explains_a_rounding(visits: dict[str, Any]) -> None:
    found = visits["numbers"]
    assert found["numbers"][0].startswith("0.3 lies between 0.28125 and 0.3125")
    assert "stands still" in found["numbers"][-1]


def test_names_of_the_user_are_escaped(visits: dict[str, Any]) -> None:
    assert visits["mine"]["injected"] is None
    assert "it'\\''s mine.toml" in visits["mine"]["commands"][0]


def test_every_view_is_saved_as_svg_png_and_csv(visits: dict[str, Any]) -> None:
    found = visits["saved"]
    views = ("speedup", "breakdown", "roofline", "memory", "serving", "quality")
    assert sorted(found["names"]) == sorted(f"qsim-{v}.{kind}" for v in views for kind in ("svg", "png", "csv"))
    kinds = [kind for kind, _ in found["saved"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"image/svg+xml": 6, "image/png": 6, "text/csv": 6}
    for kind, text in found["saved"]:
        if kind == "image/svg+xml":
            assert text.startswith("<svg xmlns=")
            assert "var(" not in text
        elif kind == "text/csv":
            head, first = text.splitlines()[:2]
            assert len(first.split(",")) == len(head.split(",")) > 3


def test_the_page_serves_a_whole_workload_as_serve_does_and_says_which_case_cannot(visits: dict[str, Any]) -> None:
    said = visits["served"]["says"][4]
    runs = [
        serve(
            "llama-3-70b", "h200", "fp8-rowwise-kvfp8", method="closed_form", price_per_hour=2.5,
            workload=Workload(concurrency=users, prompt=2048, output=256, start="steady"),
            deployment=Deployment(tensor_parallel=2),
        )
        for users in (1, 256)
    ]  # fmt: skip
    one, many = runs
    assert many.joules_per_million_tokens is not None
    assert f"A gives one user {one.tokens_per_s_per_user:.3g} tokens/s, or with 256 in flight " in said
    money, joule = many.cost_per_million_tokens, many.joules_per_million_tokens / 1e6
    assert f"({many.tokens_per_s_per_user:.3g} for each user, {money:.3g} per million tokens, {joule:.3g} J" in said
    assert "tokens in and 256 out" in said
    assert "B cannot serve this: llama-3-70b with bf16 does not fit tp1 of l4" in said


def test_devices_and_models_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "h200.toml"
    copy.write_text((Path(__file__).parents[2] / "hwmodels/devices/h200.toml").read_text("utf-8"), "utf-8")
    with pytest.raises(QsimError, match="there is a device h200 already"):
        Opened.of([str(copy)], [])
    with pytest.raises(QsimError, match="at most 3"):
        Opened.of(["h200"] * 4, [])
    assert [c["device"] for c in Opened.of(["h200", "b200"], ["llama-3-70b"]).cases()] == ["h200", "b200"]
