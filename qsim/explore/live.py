"""The page served on this machine: every prediction is made by the Python predictor."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

import hwmodels
from hwmodels.device.device import Device
from hwmodels.device.load import device_names, get_device
from hwmodels.prediction import Prediction
from hwmodels.timing.execution import OperatorTime
from hwmodels.workload.architecture import Architecture, architecture_names, get_architecture
from hwmodels.workload.footprint import largest_batch
from qsim.errors import QsimError
from qsim.fields import Fields
from qsim.files import parse_json
from qsim.scheme import get_scheme

from .losses import losses_of
from .page import Opened, render
from .parameters import KV_CACHES
from .served import OUTPUT, curve

HOST = "127.0.0.1"
LARGEST_QUESTION = 1 << 16
"""Bytes of a question; the page's own are below 3000."""
LARGEST_COUNT = 1 << 22
"""Sequences, or tokens of one."""
MOST = 64
"""Batches, contexts or schemes of one question."""


class Predictor:
    """Answers the questions of the page.

    Arguments:
        devices, models: from files of the user, by name; they go before shipped ones.
    """

    def __init__(self, devices: Sequence[Device] = (), models: Sequence[Architecture] = ()) -> None:
        self._devices = {d.name: d for d in devices}
        self._models = {m.name: m for m in models}

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """What the views need of a state of the page, as `templates/answers.js` computes it for a page without a
        server.

        Raises:
            QsimError: a question that is not of the page's form.
        """
        q = Fields(question, "the question")
        model, phase = self._model(q), q.text("phase", choices=("decode", "prefill"))
        batch, context = q.integer("batch", 1, LARGEST_COUNT), q.integer("context", 1, LARGEST_COUNT)
        cases = [self._case(one) for one in _list(question, "cases")]
        on = q.integer("on", 0, len(cases) - 1)
        batches = np.array([float(v) for v in _numbers(question, "batches")])
        contexts = _numbers(question, "contexts")
        same: dict[str, Any] = {"model": model, "phase": phase, "context": context}
        steps = [_tried(lambda c=c: {"step": _step(_predict(c, c["scheme"], batch=batch, **same))}) for c in cases]
        base = [_tried(lambda c=c: {"time": float(_predict(c, "bf16", batch=batch, **same).time_s)}) for c in cases]
        at = cases[on]
        lines = [
            {"name": name, **_tried(lambda name=name: _curve(_predict(at, name, batch=batches, **same)))}
            for name in (str(line.get("name")) for line in _list(question, "lines") if isinstance(line, Mapping))
        ]
        limits = [self._limits(c, model, contexts) if "step" in s else None for c, s in zip(cases, steps, strict=True)]
        return {
            "steps": steps, "base": [b.get("time") for b in base],
            "curves": {"batches": batches.tolist(), "lines": lines,
                       "base": _tried(lambda: _curve(_predict(at, "bf16", batch=batches, **same)))},
            "limits": {"contexts": contexts, "curves": limits},
            "serving": [self._serving(c, s, model, batch, context) for c, s in zip(cases, steps, strict=True)],
            "losses": losses_of([model.name], dict.fromkeys(str(c["scheme"]) for c in cases)),
        }  # fmt: skip

    def served(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Users against devices when each case serves: prompts of the question's context with `OUTPUT` tokens after
        them, queues and prefills included, in the steady state of vLLM's policy. A case that cannot has no curve, and
        the sentence of its refusal.

        Raises:
            QsimError: a question that is not of the page's form.
        """
        q = Fields(question, "the question")
        model, context = self._model(q), q.integer("context", 1, LARGEST_COUNT)
        cases = [self._case(one) for one in _list(question, "cases")]
        found = [_tried(lambda c=c: {"points": _served(c, model, context)}) for c in cases]
        curves, refused = ([one.get(key) for one in found] for key in ("points", "error"))
        return {"output": OUTPUT, "curves": curves, "refused": refused}

    def _model(self, q: Fields) -> Architecture:
        """A model by its name: a path, which would be read, is none."""
        name = q.text("model", choices=(*self._models, *architecture_names()))
        return self._models.get(name) or get_architecture(name)

    def _case(self, case: Any) -> dict[str, Any]:
        c = Fields(case, "a case of the question")
        name, kv = c.text("device", choices=(*self._devices, *device_names())), c.text("kv", choices=KV_CACHES)
        overrides = Fields(c.table.get("set", {}), "the changes of a case").table
        return {
            "device": get_device(self._devices.get(name, name), overrides), "tp": c.integer("tp", 1, 1024),
            "scheme": c.text("scheme") + (f"-kv{kv}" if kv else ""), "price": c.number("price", 0, 1e9, None),
        }  # fmt: skip

    def _limits(self, case: Mapping[str, Any], model: Architecture, contexts: Sequence[int]) -> list[int]:
        scheme = get_scheme(case["scheme"])
        return [
            largest_batch(case["device"], model, scheme, context=length, tensor_parallel=case["tp"])
            for length in contexts
        ]

    def _serving(
        self, case: Mapping[str, Any], step: Mapping[str, Any], model: Architecture, batch: int, context: int
    ) -> list[dict[str, Any]] | None:
        if "step" not in step:
            return None
        most = min(step["step"]["largest"], 1024)
        served = sorted({*(1 << i for i in range(11) if 1 << i <= most), *([batch] if batch <= most else [])})
        if not served:
            return []
        at = np.array(served, dtype=float)
        p = _predict(case, case["scheme"], model=model, phase="decode", batch=at, context=context)
        devices, energy = p.tensor_parallel * p.chips, p.energy
        cost = None if case["price"] is None else p.cost_per_million_tokens(case["price"])
        return [
            {"batch": b, "user": 1 / float(p.time_s[i]), "each": b / float(p.time_s[i]) / devices,
             "cost": None if cost is None else float(cost[i]),
             "joule": None if energy is None else float(energy.energy_j[i]) / b}
            for i, b in enumerate(served)
        ]  # fmt: skip


def _served(case: Mapping[str, Any], model: Architecture, context: int) -> list[dict[str, Any]]:
    return curve(
        case["device"], model, get_scheme(case["scheme"]), context=context, tensor_parallel=case["tp"],
        price=case["price"],
    )  # fmt: skip


def _list(question: Mapping[str, Any], key: str) -> list[Any]:
    found = question.get(key)
    if not isinstance(found, list) or not 1 <= len(found) <= MOST:
        raise QsimError(f"the question: {key} must be a list of 1 to {MOST}")
    return found


def _numbers(question: Mapping[str, Any], key: str) -> list[int]:
    found = _list(question, key)
    if any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= LARGEST_COUNT for v in found):
        raise QsimError(f"the question: {key} must be whole numbers from 1 to {LARGEST_COUNT}")
    return found


def _tried(make: Any) -> dict[str, Any]:
    """What `make` gives, or the sentence of its refusal."""
    try:
        found: dict[str, Any] = make()
    except QsimError as error:
        return {"error": str(error)}
    return found


def _predict(case: Mapping[str, Any], scheme: str, *, model: Architecture, phase: str, batch: Any, context: int) -> Any:
    return hwmodels.predict(case["device"], model, scheme, phase, batch, context, tensor_parallel=case["tp"])


def _curve(p: Prediction) -> dict[str, Any]:
    return {"times": p.time_s.tolist(), "low": p.low_s.tolist(), "high": p.high_s.tolist()}


def _row(op: OperatorTime) -> dict[str, Any]:
    return {
        "name": op.name, "kind": op.kind, "calls": float(op.calls), "time": float(op.time_s), "low": float(op.low_s),
        "high": float(op.high_s), "flop": float(op.flop), "bytes": float(op.traffic_bytes),
        "compute": float(op.compute_s), "memory": float(op.memory_s), "fidelity": op.fidelity,
        "families": op.kernel.split(" or ") if op.kernel else [], "formats": list(op.formats),
        "peak": float(op.peak_flop_per_s), "bandwidth": float(op.bandwidth_bytes_per_s), "bound": str(op.bound),
    }  # fmt: skip


def _step(p: Prediction) -> dict[str, Any]:
    """A prediction of one batch and context in the page's words."""
    m, e = p.footprint, p.energy
    energy = None if e is None else {
        "joules": float(e.energy_j), "low": float(e.low_j), "high": float(e.high_j), "watts": float(e.power_w),
        "kind": e.fidelity, "origin": e.origin,
    }  # fmt: skip
    return {
        "time": float(p.time_s), "low": float(p.low_s), "high": float(p.high_s), "tag": p.fidelity,
        "rows": [_row(op) for op in p.operators], "bound": p.bound, "kernel": p.kernel, "rate": float(p.tokens_per_s),
        "notes": [str(note) for note in p.notes if getattr(note, "code", "") != "does_not_fit"], "energy": energy,
        "tokens": float(p.tokens), "tp": p.tensor_parallel, "chips": p.chips, "largest": p.largest_batch,
        "phase": p.phase, "batch": p.batch, "context": p.context,
        "memory": {
            "weights": m.weights_bytes, "cache": float(m.kv_cache_bytes), "activations": float(m.activations_bytes),
            "reserve": m.reserve_bytes, "capacity": m.capacity_bytes, "total": float(m.total_bytes),
            "fits": bool(m.fits), "chips": p.chips,
        },
    }  # fmt: skip


class Server(ThreadingHTTPServer):
    """The page and its answers on a free port of the loopback interface, for this machine's browsers alone."""

    daemon_threads = True

    def __init__(self, opened: Opened | None = None, *, port: int = 0) -> None:
        super().__init__((HOST, port), _Handler)  # first: a port that is taken is said at once
        opened = opened or Opened()
        self.predictor = Predictor(opened.own_devices, opened.own_models)
        self.page = render(opened, live=True).encode()
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a browser of this machine calls the server. Another name is another site's, whose address was made to
        point here."""
        port = self.server_address[1]
        return f"{HOST}:{port}", f"localhost:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path.split("?")[0] != "/":
            self._send(HTTPStatus.NOT_FOUND, b'{"error": "there is nothing here: open /"}', "application/json")
            return
        self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if self._refused():
            return
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").split(";")[0].strip()
        if self.path not in ("/answers", "/served") or kind != "application/json":
            self._fail(HTTPStatus.NOT_FOUND, "questions are JSON, posted to /answers or /served")
        elif not (length.isascii() and length.isdigit()) or int(length) > LARGEST_QUESTION:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a question has at most {LARGEST_QUESTION} bytes")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        try:
            question = parse_json(body.decode("utf-8", "replace"), "the question")
            if not isinstance(question, dict):
                raise QsimError("the question must be an object")
            with self.server.one_at_a_time:
                ask = self.server.predictor
                found = (ask.served if self.path == "/served" else ask.answer)(question)
        except QsimError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._send(HTTPStatus.OK, json.dumps(found).encode(), "application/json")

    def _refused(self) -> bool:
        """Refuse a request that another site's page made a browser send here."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in self.server.hosts and origin in (None, *(f"http://{name}" for name in self.server.hosts)):
            return False
        self._fail(HTTPStatus.FORBIDDEN, "this page is for browsers on this machine, under its own address")
        return True

    def _fail(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # the rest of the request is not read
        self._send(status, json.dumps({"error": why}).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store"),
                            ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
                            ("X-Frame-Options", "DENY")):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal shows the address, not every slider's move."""
