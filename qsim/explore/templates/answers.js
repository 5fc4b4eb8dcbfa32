// What the views need of a state: computed by the law here, or asked of the predictor where the page is live.
"use strict";

const Answers = (() => {
  const BATCHES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256];
  const CONTEXTS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072];
  const USUAL = ["w4a16-g128", "fp8-rowwise", "w8a8-channel-token", "nvfp4", "fp8-weight-only", "w8a16-channel"];
  const devices = new Map();

  function deviceOf(c) {
    const key = JSON.stringify([c.device, c.set]);
    if (!devices.has(key)) {
      if (devices.size > 24) devices.delete(devices.keys().next().value);
      devices.set(key, Law.device(c.device, c.set));
    }
    return devices.get(key);
  }

  // The schemes whose speed-up is drawn: those of the comparison first, then the usual ones.
  function linesOf(state) {
    const found = [];
    const add = (scheme, kv) => {
      const name = Views.nameOf({ scheme, kv });
      if (name !== "bf16" && found.length < 5 && !found.some((f) => f.name === name)) found.push({ name, scheme, kv });
    };
    state.cases.forEach((c) => add(c.scheme, c.kv));
    USUAL.forEach((name) => add(name, ""));
    return found;
  }

  function questionOf(state) {
    const batches = BATCHES.includes(state.batch) || state.batch > 256 ? BATCHES : [...BATCHES, state.batch].sort((a, b) => a - b);
    return { model: state.model, phase: state.phase, batch: state.batch, context: state.context, cases: state.cases,
      on: state.on, lines: linesOf(state), batches, contexts: CONTEXTS };
  }

  const tried = (make) => { try { return make(); } catch (error) { return { error: error.message }; } };

  function local(q) {
    const steps = q.cases.map((c) => tried(() => ({ step: Law.predict(deviceOf(c), q.model, c.scheme, c.kv, q.phase, q.batch, q.context, c.tp) })));
    const base = q.cases.map((c) => tried(() => ({ time: Law.predict(deviceOf(c), q.model, "bf16", "", q.phase, q.batch, q.context, c.tp, true).time })).time ?? null);
    const at = q.cases[q.on], down = [...q.batches].reverse();
    const curve = (scheme, kv) => tried(() => {
      const found = down.map((b) => Law.predict(deviceOf(at), q.model, scheme, kv, q.phase, b, q.context, at.tp, true)).reverse();
      return { times: found.map((f) => f.time), low: found.map((f) => f.low), high: found.map((f) => f.high) };
    });
    const curves = { batches: q.batches, base: curve("bf16", ""), lines: q.lines.map((l) => ({ name: l.name, ...curve(l.scheme, l.kv) })) };
    const limits = { contexts: q.contexts, curves: q.cases.map((c, i) => (steps[i].step
      ? q.contexts.map((context) => Law.largestBatch(deviceOf(c), Law.parameters.models[q.model], Law.scheme(c.scheme, c.kv), context, c.tp)) : null)) };
    const serving = q.cases.map((c, i) => (steps[i].step ? servingOf(steps[i].step.largest, q, (b) =>
      Law.predict(deviceOf(c), q.model, c.scheme, c.kv, "decode", b, q.context, c.tp), c) : null));
    return { steps, base, curves, limits, serving };
  }

  function servingOf(largest, q, predict, c) {
    const found = [];
    for (const b of servedBatches(largest, q.batch)) {
      const p = predict(b), devices = c.tp * p.chips;
      found.push({ batch: b, user: 1 / p.time, each: b / p.time / devices, cost: c.price === null ? null : Law.cost(c.price, p),
        joule: p.energy ? p.energy.joules / b : null });
    }
    return found;
  }

  // Doublings up to the largest batch, and the batch that is looked at where it fits.
  function servedBatches(largest, batch) {
    const found = [];
    for (let b = 1; b <= Math.min(largest, 1024); b *= 2) found.push(b);
    if (batch <= largest && batch <= 1024 && !found.includes(batch)) found.push(batch);
    return found.sort((a, b) => a - b);
  }

  async function asked(path, q) {
    const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(q) });
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error ?? `the predictor answered ${answer.status}`);
    return found;
  }

  // Users against devices when each case serves; a case that cannot has no curve, and the sentence of its refusal.
  function workloads(q) {
    const found = q.cases.map((c) => tried(() => ({ points: Serving.curve(deviceOf(c), c, q.model, q.context) })));
    return { output: Law.parameters.engine.output, curves: found.map((f) => f.points ?? null), refused: found.map((f) => f.error ?? null) };
  }

  const live = (q) => asked("/answers", q);
  const served = (q) => asked("/served", q);

  return { questionOf, local, workloads, live, served, deviceOf };
})();
