"""The served page: for this machine alone, and answered by the predictor."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hwmodels
from hwmodels.serving import Deployment, Workload
from qsim.evidence import expected_loss
from qsim.explore.live import LARGEST_QUESTION, Server

from .browser import opened

QUESTION = {
    "model": "llama-3-8b", "phase": "decode", "batch": 16, "context": 4096, "on": 0, "batches": [1, 16],
    "contexts": [256], "lines": [{"name": "fp8-rowwise"}],
    "cases": [{"device": "h100-sxm", "scheme": "w4a16-g128", "kv": "fp8", "tp": 2, "price": 2.5,
               "set": {"memory.bandwidth_gbytes_per_s": 6000}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def asked(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port), timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, {"Content-Type": "application/json", **named})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if "json" in str(answer.getheader("Content-Type")) else text


def question(server: Server, **changes: Any) -> tuple[int, Any]:
    return asked(server, "POST", "/answers", json.dumps({**QUESTION, **changes}).encode())


def test_answers_are_those_of_the_predictor(server: Server) -> None:
    status, found = question(server)
    assert status == 200
    p = hwmodels.predict(
        "h100-sxm", "llama-3-8b", "w4a16-g128-kvfp8", "decode", 16, 4096, tensor_parallel=2,
        overrides={"memory.bandwidth_gbytes_per_s": 6000},
    )  # fmt: skip
    step = found["steps"][0]["step"]
    assert (step["time"], step["low"], step["high"]) == (p.time_s, p.low_s, p.high_s)
    assert [r["name"] for r in step["rows"]] == [op.name for op in p.operators]
    assert step["largest"] == p.largest_batch
    at_16 = next(point for point in found["serving"][0] if point["batch"] == 16)
    assert at_16["cost"] == pytest.approx(p.cost_per_million_tokens(2.5), rel=1e-12)
    assert found["curves"]["lines"][0]["name"] == "fp8-rowwise"
    loss = expected_loss("llama-3-8b", "gptq", "w4a16-g128-kvfp8")
    assert found["losses"]["llama-3-8b"]["w4a16-g128-kvfp8"][0] == pytest.approx(loss.lost, abs=1e-3)


def test_the_page_shows_what_the_server_answers(server: Server, tmp_path: Path) -> None:
    fragment = "#model=llama-3-8b&phase=decode&batch=16&context=4096&a=h200,fp8-rowwise"
    dom = opened(f"{server.url}{fragment}", tmp_path, "--virtual-time-budget=20000")
    time_s = float(hwmodels.predict("h200", "llama-3-8b", "fp8-rowwise", "decode", 16, 4096).time_s)
    assert f'<p class="big">{1e3 * time_s:.3g} ms' in dom
    assert dom.count("<svg") >= 6


def test_a_case_that_serves_is_what_serve_says_of_it(server: Server) -> None:
    status, found = asked(server, "POST", "/served", json.dumps(QUESTION).encode())
    assert status == 200
    at_16 = next(point for point in found["curves"][0] if point["batch"] == 16)
    wanted = hwmodels.serving.serve(
        "llama-3-8b", "h100-sxm", "w4a16-g128-kvfp8", method="closed_form", price_per_hour=2.5,
        workload=Workload(concurrency=16, prompt=4096, output=found["output"], start="steady"),
        deployment=Deployment(tensor_parallel=2), overrides={"memory.bandwidth_gbytes_per_s": 6000},
    )  # fmt: skip
    assert at_16["user"] == pytest.approx(wanted.tokens_per_s_per_user, rel=1e-9)
    assert at_16["each"] == pytest.approx(wanted.tokens_per_s_per_gpu, rel=1e-9)
    assert at_16["cost"] == pytest.approx(wanted.cost_per_million_tokens, rel=1e-9)
    assert at_16["joule"] == pytest.approx(wanted.joules_per_million_tokens / 1e6, rel=1e-9)
    large = [{**QUESTION["cases"][0], "tp": 1, "device": "l4", "scheme": "bf16", "set": {}}]  # type: ignore[index]
    body = json.dumps({**QUESTION, "model": "llama-3-70b", "cases": large}).encode()
    found = asked(server, "POST", "/served", body)[1]
    assert found["curves"] == [None]
    assert "llama-3-70b with bf16-kvfp8 does not fit tp1 of l4" in found["refused"][0]


def test_what_cannot_be_answered_is_one_sentence(server: Server) -> None:
    impossible = [{**QUESTION["cases"][0], "tp": 3}]  # type: ignore[index]
    status, found = question(server, cases=impossible)
    assert status == 200
    assert "must divide the 32 heads" in found["steps"][0]["error"]
    for changes in (
        {"model": "/etc/passwd.json"}, {"batch": True}, {"batch": 1e9}, {"cases": []}, {"on": 7}, {"contexts": ["x"]},
        {"cases": [{**QUESTION["cases"][0], "device": "/tmp/x.toml"}]}, {"phase": "both"},  # type: ignore[index]
        {"cases": [{**QUESTION["cases"][0], "set": {"memory.bandwidth_gbytes_per_s": -1}}]}, {"batches": [1] * 1000},  # type: ignore[index]
    ):  # fmt: skip
        status, found = question(server, **changes)
        assert (status, list(found)) == (400, ["error"]), changes
    assert asked(server, "POST", "/answers", b"{not json")[0] == 400


def test_only_this_machine_under_its_own_address_is_answered(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_address[1]
    assert asked(server, "GET", "/")[0] == 200
    assert asked(server, "GET", "/", Host=f"localhost:{port}")[0] == 200
    for host in ("example.com", f"example.com:{port}", "127.0.0.1", f"127.0.0.1.example.com:{port}", ""):
        assert asked(server, "GET", "/", Host=host)[0] == 403, host
    body = json.dumps(QUESTION).encode()
    assert asked(server, "POST", "/answers", body, Origin="https://example.com")[0] == 403
    assert asked(server, "POST", "/answers", body, Content_Type="text/plain")[0] == 404
    assert asked(server, "GET", "/../../etc/passwd")[0] == 404
    assert asked(server, "POST", "/answers", b"x", Content_Length=str(LARGEST_QUESTION + 1))[0] == 413


def test_the_served_page_asks_this_server_and_no_other(server: Server) -> None:
    _, text = asked(server, "GET", "/")
    assert "connect-src 'self'" in text
    assert '"live":true' in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
