// The law of hwmodels, line by line: how long a step takes, its band, what bounds it, memory, energy. It reads the
// parameters that qsim.explore.parameters exports and holds no number of its own; tests/explore holds it to Python.
"use strict";

const Law = (() => {
  let P = null; // the parameters
  let C = null; // their constants

  // --- small helpers -------------------------------------------------------------------------------------------

  const below = (a, x) => { // first index with a[i] >= x
    let low = 0, high = a.length;
    while (low < high) { const mid = (low + high) >> 1; if (a[mid] < x) low = mid + 1; else high = mid; }
    return low;
  };
  const beyond = (a, x) => { // first index with a[i] > x
    let low = 0, high = a.length;
    while (low < high) { const mid = (low + high) >> 1; if (a[mid] <= x) low = mid + 1; else high = mid; }
    return low;
  };
  const clip = (x, low, high) => Math.min(Math.max(x, low), high);
  const interpolate = (x, xs, ys) => { // linear, flat outside
    const n = xs.length;
    if (x <= xs[0]) return ys[0];
    if (x >= xs[n - 1]) return ys[n - 1];
    const i = beyond(xs, x) - 1;
    return ys[i] + (ys[i + 1] - ys[i]) * ((x - xs[i]) / (xs[i + 1] - xs[i]));
  };
  const ceilDiv = (a, b) => Math.ceil(a / b);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const LN2 = Math.LN2;

  // --- corrections of the soft roofline -------------------------------------------------------------------------

  function waveEfficiency(m, n, units, tile) {
    const rows = Math.min(tile[0], 2 ** Math.ceil(Math.log2(Math.max(m, 16))));
    const tiles = Math.ceil(m / rows) * Math.ceil(n / tile[1]);
    return tiles / (units * Math.ceil(tiles / units));
  }

  function cell(value, knots) {
    const at = clip(Math.log2(Math.max(value, 1e-300)), knots[0], knots[knots.length - 1]);
    const left = clip(beyond(knots, at) - 1, 0, knots.length - 2);
    return [left, (at - knots[left]) / (knots[left + 1] - knots[left])];
  }

  // Each of these gives a function of the first coordinate for two fixed others.
  function gridAt(g, a, b, units) {
    const [K0, K1, K2] = g.knots, Q = K1.length, R = K2.length;
    const [j, v] = cell(a, K1), [k, w] = cell(b, K2);
    const line = new Float64Array(K0.length);
    for (let i = 0; i < K0.length; i++) {
      const row = (i * Q + j) * R + k;
      const near = g.v[row] * (1 - v) + g.v[row + R] * v;
      const far = g.v[row + 1] * (1 - v) + g.v[row + R + 1] * v;
      line[i] = (near * (1 - w) + far * w) * g.unit;
    }
    const waves = g.waves && units !== null ? g.waves : null;
    return (x) => {
      const [i, u] = cell(x, K0);
      let total = line[i] * (1 - u) + line[i + 1] * u;
      if (waves) {
        for (let t = 0; t < waves.length; t++) {
          const row = waves[t];
          total += (row[i] * (1 - u) + row[i + 1] * u) * Math.log2(waveEfficiency(x, a, units, C.tiles[t]));
        }
      }
      return total;
    };
  }

  function surfaceAt(s, a, b, units) {
    const middle = (i) => (s.low[i] + s.high[i]) / 2;
    const u = (clip(Math.log2(a), s.low[0], s.high[0]) - middle(0)) / 2;
    const v = (clip(Math.log2(b), s.low[1], s.high[1]) - middle(1)) / 2;
    const features = [1, u, v, u * v, u * u, v * v], knots = s.knots, n = knots.length;
    const line = new Float64Array(n);
    for (let f = 0; f < features.length; f++) for (let i = 0; i < n; i++) line[i] += features[f] * s.c[f][i];
    const waves = s.waves && units !== null;
    return (x) => {
      const lx = Math.log2(Math.max(x, 1)), i = clip(beyond(knots, lx) - 1, 0, n - 2);
      const w = clip((lx - knots[i]) / (knots[i + 1] - knots[i]), 0, 1);
      let total = line[i] * (1 - w) + line[i + 1] * w;
      if (waves) {
        for (let t = 0; t < C.tiles.length; t++) {
          const row = s.c[6 + t];
          total += Math.log2(waveEfficiency(x, a, units, C.tiles[t])) * (row[i] * (1 - w) + row[i + 1] * w);
        }
      }
      return total;
    };
  }

  function nearness(part, a, b) {
    const u = Math.log2(a), v = Math.log2(b);
    return part.shapes.map(([n, k]) => Math.exp(-0.5 * (((u - n) / C.near[0]) ** 2 + ((v - k) / C.near[1]) ** 2)));
  }

  function nearAt(part, a, b) {
    const near = nearness(part, a, b), knots = part.knots, n = knots.length, line = new Float64Array(n);
    for (let s = 0; s < near.length; s++) for (let i = 0; i < n; i++) line[i] += near[s] * part.w[s][i];
    return (x) => {
      const lx = clip(Math.log2(Math.max(x, 1e-300)), knots[0], knots[n - 1]);
      const i = clip(beyond(knots, lx) - 1, 0, n - 2), share = (lx - knots[i]) / (knots[i + 1] - knots[i]);
      return line[i] * (1 - share) + line[i + 1] * share;
    };
  }

  const correctionOf = (i) => P.corrections[i];
  const firstKnots = (part) => (part.type === "grid" ? part.knots[0] : part.knots);
  const hasWaves = (part) => part.type !== "near" && !!part.waves;

  function partsOf(p) {
    const found = [];
    if (p.s !== undefined) found.push(correctionOf(p.s));
    if (p.b !== undefined) found.push(correctionOf(p.b[0]));
    if (p.n !== undefined) found.push(correctionOf(p.n));
    return found;
  }

  function correctionAt(p, a, b, units) {
    const lines = [];
    const on = (part, c) => (part.type === "grid" ? gridAt(part, a, c, units) : surfaceAt(part, a, c, units));
    if (p.s !== undefined) lines.push(on(correctionOf(p.s), b));
    if (p.b !== undefined) lines.push(on(correctionOf(p.b[0]), b * p.b[1]));
    if (p.n !== undefined) lines.push(nearAt(correctionOf(p.n), a, b));
    return (x) => { let total = 0; for (const line of lines) total += line(x); return total; };
  }

  function measuredAt(p, a, b) {
    if (p.s === undefined) return false;
    const part = correctionOf(p.s), edge = 1e-3, u = Math.log2(a), v = Math.log2(b);
    const [low, high] = part.type === "grid"
      ? [[part.knots[1][0], part.knots[2][0]], [part.knots[1].at(-1), part.knots[2].at(-1)]] : [part.low, part.high];
    return low[0] - edge <= u && u <= high[0] + edge && low[1] - edge <= v && v <= high[1] + edge;
  }

  function unique(values) {
    const sorted = Float64Array.from(values).sort();
    return sorted.filter((v, i) => i === 0 || v !== sorted[i - 1]);
  }

  // Sizes at which the correction of some parameters has a corner or a step, and which of them were measured.
  function sizesOf(p) {
    if (p.sizes) return p.sizes;
    const parts = partsOf(p);
    if (!parts.length) return (p.sizes = { sizes: [], knots: [], edges: [] });
    const knots = parts.flatMap((part) => Array.from(firstKnots(part)));
    const measured = unique(unique(knots.map((k) => 2 ** k)).map((v) => {
      const whole = Math.round(v);
      return Math.abs(v - whole) < 1e-3 * v ? whole : v;
    }));
    let all = Array.from(measured);
    if (parts.some(hasWaves)) {
      const step = Math.min(...C.tiles.map((t) => t[0])), rows = [];
      for (let e = 4; e < Math.log2(step); e++) rows.push(2 ** e);
      for (let r = step; r < measured.at(-1) + 1; r += step) rows.push(r);
      all = all.concat(rows.filter((r) => r > measured[0]));
    }
    const sizes = unique(all), edges = sizes.map((v) => Math.log2(v)), at = [];
    edges.forEach((e, i) => { if (knots.some((k) => Math.abs(e - k) < 1e-3)) at.push(i); });
    return (p.sizes = { sizes, knots: at, edges, measured: at.map((i) => sizes[i]) });
  }

  const AFTER = 1 + 1e-9;

  // Correction at both ends of every piece between sizes, and the least and largest time in it.
  function piecesOf(p, lineAt, softAt, falls, last) {
    const whole = sizesOf(p), knots = whole.knots.slice(0, last + 1), S = knots.at(-1) + 1;
    const steps = whole.knots.length < whole.sizes.length;
    const at = lineAt.at, after = steps ? lineAt.after : at;
    for (let i = lineAt.done; i < S; i++) {
      at[i] = lineAt.line(whole.sizes[i]);
      if (steps) after[i] = lineAt.line(whole.sizes[i] * AFTER);
    }
    lineAt.done = Math.max(lineAt.done, S);
    const times = new Float64Array(S), peaks = new Float64Array(S);
    for (let i = 0; i < S; i++) {
      const soft = softAt(whole.sizes[i]);
      times[i] = soft * Math.exp(at[i]);
      peaks[i] = after[i] > at[i] ? soft * Math.exp(after[i]) : times[i];
    }
    const left = new Float64Array(S + 1), right = new Float64Array(S + 1);
    const low = new Float64Array(S + 1), high = new Float64Array(S + 1).fill(Infinity);
    left[0] = at[0]; left[S] = at[S - 1]; right[S] = at[S - 1];
    for (let i = 1; i < S; i++) left[i] = after[i - 1];
    for (let i = 0; i < S; i++) right[i] = at[i];
    for (let i = 1, top = 0; i <= S; i++) { top = Math.max(top, peaks[i - 1]); low[i] = top; }
    if (falls) {
      const even = new Float64Array(S), of = new Int32Array(S), soFar = new Float64Array(S);
      for (let i = 0, k = 0; i < S; i++) {
        while (k + 1 < knots.length && knots[k + 1] <= i) k++;
        of[i] = clip(k, 0, knots.length - 2);
        const begin = whole.edges[knots[of[i]]], end = whole.edges[knots[of[i] + 1]];
        const share = (whole.edges[i] - begin) / (end - begin);
        even[i] = at[knots[of[i]]] * (1 - share) + at[knots[of[i] + 1]] * share;
        soFar[i] = knots[k] === i || i === 0 ? peaks[i] : Math.max(soFar[i - 1], peaks[i]);
      }
      for (let i = 1; i < S; i++) {
        const begin = times[knots[of[i - 1]]], end = times[knots[of[i - 1] + 1]];
        if (end < begin) { left[i] = even[i - 1]; right[i] = even[i]; low[i] = end; }
        else low[i] = Math.min(Math.max(soFar[i - 1], begin), end);
        high[i] = Math.max(begin, end);
      }
      low[S] = times[S - 1];
    }
    return { left, right, low, high, last };
  }

  function corrected(d, p, soft, softAt, size, a, b, falls, key) {
    const whole = sizesOf(p), edges = whole.edges;
    const last = Math.min(Math.max(1, below(whole.measured, size)), whole.knots.length - 1);
    const units = d.units, where = `${p.id}|${a}|${b}|${units}`;
    let lineAt = LINES.get(where);
    if (!lineAt) {
      if (LINES.size > 4000) LINES.clear();
      const n = whole.sizes.length;
      lineAt = { line: correctionAt(p, a, b, units), at: new Float64Array(n), after: new Float64Array(n), done: 0 };
      LINES.set(where, lineAt);
    }
    const kept = key === null ? undefined : d.pieces.get((key = `${where}|${key}|${falls}`));
    let t = kept;
    if (!t || t.last < last) {
      t = piecesOf(p, lineAt, softAt, falls, last);
      if (key !== null) d.pieces.set(key, t);
    }
    const lx = Math.log2(Math.max(size, 1e-300)), n = edges.length;
    const piece = below(edges, lx - 1e-12), inner = clip(piece, 1, n - 1);
    const share = clip((lx - edges[inner - 1]) / (edges[inner] - edges[inner - 1]), 0, 1);
    const time = soft * Math.exp(t.left[piece] * (1 - share) + t.right[piece] * share);
    return Math.min(Math.max(time, t.low[piece]), t.high[piece]);
  }
  const LINES = new Map();

  // --- one kernel ------------------------------------------------------------------------------------------------

  function softRoofline(compute, memory, p) {
    const top = Math.max(compute, memory), low = Math.min(compute, memory);
    return top * (1 + (low / top) ** p) ** (1 / p);
  }

  function limits(d, cost, peak, p, k) {
    let compute = cost.flop / (p.ec * peak) + k * (p.tau ?? 0);
    if (p.exp && d.expRate) compute += (p.exp * (cost.exp ?? 0)) / d.expRate;
    const tile = cost.tile ?? 1, keys = p.tile ?? C.causal_tile;
    const work = keys === C.causal_tile ? tile : 1 + ((tile - 1) * keys) / C.causal_tile;
    return [compute * work, cost.bytes / (p.em * d.bandwidth)];
  }

  function bandOf(p, x, shape) {
    if (!p.band) {
      const half = C.transfer_band[p.sixteen ? 1 : 0];
      return [1 - half, !p.sixteen && x > C.regimes[1] ? C.large_transfer : 1 + half];
    }
    const [low, high] = p.band[below(C.regimes, x)];
    if (p.n === undefined || !shape || !p.known) return [low, high];
    const share = Math.max(...nearness(correctionOf(p.n), shape[1], shape[2]));
    const near = p.known.map(Math.log);
    return [
      Math.exp(-Math.sqrt((1 - share) * Math.log(low) ** 2 + share * near[0] ** 2)),
      Math.exp(Math.sqrt((1 - share) * Math.log(high) ** 2 + share * near[1] ** 2)),
    ];
  }

  function estimate(d, cost, peak, p, x, shape, k = 0, costAt = null, key = null) {
    const [compute, memory] = limits(d, cost, peak, p, k);
    const floor = Math.max(cost.flop / peak, cost.bytes / d.bandwidth);
    let time = p.t0 + softRoofline(compute, memory, p.p);
    if (shape && sizesOf(p).sizes.length) {
      const softAt = (size) => p.t0 + softRoofline(...limits(d, costAt(size), peak, p, k), p.p);
      const falls = p.kind === "calibrated" && measuredAt(p, shape[1], shape[2]);
      time = corrected(d, p, time, softAt, shape[0], shape[1], shape[2], falls, key === null ? null : `${peak}|${key}`);
    }
    time = Math.max(time, floor, p.floor ?? 0);
    const [low, high] = bandOf(p, x, shape);
    return { time, low: Math.max(time * low, floor), high: time * high, compute, memory, kind: p.kind, origin: p.origin };
  }

  let nextId = 0;
  function derived(p, how, make) {
    p.made ??= {};
    return (p.made[how] ??= Object.assign(make(), { id: nextId++ }));
  }

  // Parameters for another kernel or device: the correction goes along only between devices of one kind.
  function transferred(p, kin, origin) {
    return derived(p, kin ? `kin ${origin}` : `far ${origin}`, () => {
      const { band, known, sizes, made, ...rest } = p;
      if (!kin) { delete rest.s; delete rest.b; delete rest.n; } else rest.sizes = sizes;
      return { ...rest, kind: "transferred", origin };
    });
  }

  function fitOf(d, family) {
    const places = d.fits[family];
    return P.fits[places.length === 1 ? places[0] : places[d.unpackingBound ? 1 : 0]];
  }

  // --- peaks ------------------------------------------------------------------------------------------------------

  function sixteenBit(d) {
    for (const name of ["bfloat16", "float16"]) if (d.peaks.has(name)) return name;
    throw new Error(`${d.name} has no 16-bit peak, which attention and lm_head run at`);
  }
  const peakOf = (d, name) => (name === "vector" ? d.vector || d.peaks.get(sixteenBit(d)) / 15 : d.peaks.get(name));
  function pricedFormat(d, family, compute, ideal = false) {
    const name = compute || family.compute;
    if (name === "vector") return ideal ? sixteenBit(d) : "vector";
    if (name === "bfloat16" || name === "float16") return sixteenBit(d);
    if (!d.peaks.has(name)) throw new Error(`${d.name} has no ${name} peak`);
    return name;
  }

  // --- costs ------------------------------------------------------------------------------------------------------

  function nbytes(part, n, k) {
    const count = n * k;
    let scales = 0;
    if (part.kind === "tensor") scales = 1;
    else if (part.kind === "channel" || part.kind === "token") scales = n;
    else if (part.kind === "group") scales = n * ceilDiv(k, part.columns);
    else if (part.kind === "block") scales = ceilDiv(n, part.rows) * ceilDiv(k, part.columns);
    const supers = part.super ? 2 * ceilDiv(count, part.super) : 0;
    let total = ceilDiv(count * part.bits, 8);
    if (part.scale) total += ceilDiv(scales * part.scale, 8) + part.extra + supers;
    if (part.zero) total += ceilDiv(scales * part.zero, 8) + (part.minimum ? supers : 0);
    return total;
  }
  const weightBytes = (s, n, k) => nbytes(s.weight, n, s.weight.super ? ceilDiv(k, s.weight.super) * s.weight.super : k);
  const kvBytes = (s, width) => ((8 * nbytes(s.kv, 4096, width)) / (4096 * width)) / 8;

  const gemmCost = (m, n, k, weight, operand, output) =>
    ({ flop: 2 * m * n * k, bytes: weight + operand * m * k + output * m * n });
  const groupedCost = (m, n, k, groups, weight, operand, output) => ({
    flop: 2 * groups * m * n * k, bytes: weight + groups * m * (operand * k + output * n),
    tile: 1 + C.tile_rows / 2 / m,
  });

  function pairs(tokens, window, chunked) {
    if (chunked) {
      const whole = Math.floor(tokens / window), rest = tokens - whole * window;
      return whole * ((window * (window + 1)) / 2) + (rest * (rest + 1)) / 2;
    }
    const short = Math.min(tokens, window);
    return (short * (short + 1)) / 2 + (tokens - short) * window;
  }

  // q, kv: heads of a query and of the cache; how: head, value, shared, kvBytes, window, chunked.
  function attentionCost(phase, batch, context, q, kv, seq, how) {
    const wide = how.head + (how.value ?? how.head), stored = how.shared ? how.head : wide;
    let count, tile = 1, bytes, cached = 0;
    if (phase === "prefill") {
      const s = seq ?? context;
      count = s * context - (s * s) / 2 + s / 2;
      tile = 1 + (s * C.causal_tile) / 2 / count;
      let kept = context - s;
      if (how.window != null) {
        count = pairs(context, how.window, how.chunked) - pairs(kept, how.window, how.chunked);
        tile = 1 + (s * C.causal_tile) / (context > how.window ? 1 : 2) / count;
        kept = Math.min(kept, how.window);
      }
      bytes = 2 * batch * s * (q * wide + kv * stored) + batch * kept * kv * stored * how.kvBytes;
    } else {
      const seen = how.window == null ? context : Math.min(context, how.window);
      count = seen;
      cached = batch * seen * kv * stored;
      bytes = cached * how.kvBytes + batch * q * wide * 2;
    }
    const heads = batch * q * count;
    return { flop: 2 * heads * wide, bytes, exp: heads, tile, cached };
  }

  // --- the operators of a step ------------------------------------------------------------------------------------

  function stepOperators(model, scheme, phase, batch, context, tp, how) {
    const ops = [], decode = phase === "decode", fresh = decode ? 1 : context, tokens = batch * fresh;
    const h = model.hidden, act = how.act, out = how.out;
    const quantized = scheme.act.q;
    const stored = quantized && how.separate ? act : 2;
    const quantizes = quantized && how.separate && scheme.act.dynamic, rereads = scheme.act.dynamic && how.separate;
    const product = (name, n, k, rows, calls, { groups = null, sixteen = false } = {}) => {
      let weight = sixteen ? 2 * n * k : weightBytes(scheme, n, k);
      if (groups !== null) weight *= groups;
      const [operand, output] = sixteen ? [2, 2] : [act, out];
      const cost = groups === null ? gemmCost(rows, n, k, weight, operand, output)
        : groupedCost(rows, n, k, groups, weight, operand, output);
      return { name, kind: "gemm", cost, calls, m: rows, n, k, head: sixteen, groups, weight, row: 0 };
    };
    const small = (name, bytes, calls, { row = 0, flop = 0, reread = 0, role = "" } = {}) =>
      ({ name, kind: "small", cost: { flop, bytes }, calls, row, reread: rereads ? reread : 0, role });
    const allReduce = (name, calls) => {
      if (tp > 1 && calls) ops.push({ name, kind: "all_reduce", cost: { flop: 0, bytes: tokens * h * 2 }, calls, row: 0 });
    };
    const scores = (name, calls, shape) => {
      const cost = attentionCost(phase, batch, context, shape.q, shape.kv, decode ? null : fresh, shape);
      ops.push({ name, kind: "attention", cost, calls, attention: shape, row: 0 });
    };
    const afterwards = (prefix, width, calls) => {
      if (quantizes) {
        ops.push(small(`${prefix}quantize_o`, tokens * width * (2 + act), calls, { row: width, reread: tokens * width * 2 }));
      }
    };

    for (const m of model.mixers) {
      const prefix = m.prefix, calls = m.count;
      if (m.normed) {
        ops.push(small(`${prefix}norm_qkv`, tokens * h * (2 + stored), m.normed,
          { row: h, flop: 5 * tokens * h, reread: tokens * h * 2 }));
      }
      if (m.type === "recurrent") {
        const first = m.linears.slice(0, -1), [name, n, k] = m.linears.at(-1);
        for (const [item, rows, inner] of first) ops.push(product(prefix + item, Math.floor(rows / tp), inner, tokens, calls));
        const made = (sum(first.map((item) => item[1])) * out + k * 2) / tp, width = Math.floor(k / tp);
        ops.push(small(`${prefix}state`, tokens * made + batch * m.state_elements * 2 * (decode ? 2 : 1) / tp, calls,
          { flop: tokens * (6 * m.state + 2 * m.conv_channels * m.conv_kernel) / tp }));
        afterwards(prefix, width, calls);
        ops.push(product(prefix + name, n, width, tokens, calls));
        allReduce(`${prefix}all_reduce_o`, calls);
        continue;
      }
      const heads = m.heads / tp;
      if (m.type === "attention") {
        const kv = m.shares_kv ? 0 : Math.max(1, Math.floor(m.kv_heads / tp)), d = m.head_dim;
        const values = m.keys_are_values ? 0 : m.value_dim;
        const n = (heads + kv) * d + kv * values + Math.floor(m.gate / tp);
        ops.push(product(prefix + (m.shares_kv ? "q" : "qkv"), n, m.inputs, tokens, calls));
        const rotated = tokens * (heads + kv) * d;
        ops.push(small(`${prefix}rope`, rotated * (out + 2), calls, { flop: 6 * rotated, role: "rope" }));
        if (kv) {
          const both = kvBytes(scheme, m.kv_heads * d) + kvBytes(scheme, m.kv_heads * m.value_dim);
          ops.push(small(`${prefix}kv_write`, tokens * kv * ((d + m.value_dim) / 2) * (2 + out + both), calls));
        }
      } else {
        const rope = m.rope_dim, rank = m.kv_rank, row = rank + rope;
        if (m.q_rank) ops.push(product(`${prefix}qkv_a`, m.q_rank + row, m.inputs, tokens, calls));
        else {
          ops.push(product(`${prefix}q`, heads * m.head_dim, m.inputs, tokens, calls));
          ops.push(product(`${prefix}kv_a`, row, m.inputs, tokens, calls));
        }
        const normed = m.q_rank + rank;
        ops.push(small(`${prefix}norm_latent`, tokens * normed * (out + stored), calls, { row: normed, flop: 5 * tokens * normed }));
        if (m.q_rank) ops.push(product(`${prefix}q_b`, heads * m.head_dim, m.q_rank, tokens, calls));
        const rotated = tokens * (heads + 1) * rope;
        ops.push(small(`${prefix}rope`, rotated * (out + 2), calls, { flop: 6 * rotated, role: "rope" }));
        ops.push(small(`${prefix}kv_write`, tokens * row * (2 + kvBytes(scheme, row)), calls));
        if (m.index_heads) {
          for (const [name, n, k] of m.linears) {
            if (name.startsWith("index_")) ops.push(product(prefix + name, n, k, tokens, calls));
          }
          const each = kvBytes(scheme, m.index_dim);
          ops.push(small(`${prefix}index_write`, tokens * m.index_dim * (2 + each), calls));
          scores(`${prefix}index_scores`, calls,
            { q: m.index_heads, kv: 1, head: m.index_dim, value: 0, shared: true, kvBytes: each, window: null });
        }
        const expanded = heads * (m.nope_dim + m.value_dim);
        if (decode) ops.push(product(`${prefix}absorb`, expanded, rank, tokens, calls, { sixteen: true }));
        else ops.push(product(`${prefix}kv_b`, expanded, rank, batch * context, calls));
      }
      scores(`${prefix}attention`, calls, attentionShape(m, phase, scheme, tp));
      const width = heads * m.value_dim;
      if (m.gate) ops.push(small(`${prefix}gate`, tokens * (Math.floor(m.gate / tp) * out + width * 4), calls));
      if (m.type === "latent" && m.gate) ops.push(product(`${prefix}gate_proj`, Math.floor(m.gate / tp), m.inputs, tokens, calls));
      afterwards(prefix, width, calls);
      ops.push(product(`${prefix}o`, h, width, tokens, calls));
      allReduce(`${prefix}all_reduce_o`, calls);
    }

    const groups = model.groups.filter((g) => g.mlps), layers = sum(groups.map((g) => g.count));
    const normed = sum(groups.filter((g) => !(g.parallel && g.norms < 2)).map((g) => g.count));
    if (normed) {
      ops.push(small("norm_mlp", tokens * h * (out + 2 + 2 + stored), normed,
        { row: h, flop: 5 * tokens * h, reread: tokens * h * 2 }));
    }
    const further = sum(groups.map((g) => g.count * Math.max(0, g.norms - Math.min(g.mixers, 1) - 1)));
    if (further) ops.push(small("norm_post", tokens * h * 4, further, { row: h, flop: 5 * tokens * h }));
    for (const mlp of model.mlps) {
      const prefix = mlp.prefix, calls = mlp.count, gate = mlp.gated ? 2 : 1, ffn = Math.floor(mlp.width / tp);
      if (mlp.type === "dense") {
        ops.push(product(`${prefix}gate_up`, gate * ffn, mlp.inputs, tokens, calls));
        ops.push(small(`${prefix}activation`, tokens * ffn * (gate * out + stored), calls,
          { row: quantizes ? ffn : 0, flop: 4 * tokens * ffn, reread: tokens * ffn * gate * out }));
        ops.push(product(`${prefix}down`, mlp.inputs, ffn, tokens, calls));
        continue;
      }
      const inner = mlp.latent || mlp.inputs, E = mlp.experts;
      const active = E === 1 ? 1 : E * (1 - (1 - mlp.per_token / E) ** tokens);
      const rows = Math.max((tokens * mlp.per_token) / active, 1), assigned = tokens * mlp.per_token;
      ops.push(product(`${prefix}router`, E, mlp.inputs, tokens, calls, { sixteen: true }));
      if (mlp.latent) ops.push(product(`${prefix}latent_in`, mlp.latent, mlp.inputs, tokens, calls));
      const routed = [
        product(`${prefix}gate_up`, gate * ffn, inner, rows, calls, { groups: active }),
        small(`${prefix}activation`, assigned * ffn * (gate * 2 + stored), calls, { row: quantizes ? ffn : 0 }),
        product(`${prefix}down`, inner, ffn, rows, calls, { groups: active }),
        small(`${prefix}combine`, assigned * inner * 2 + tokens * inner * 2, calls),
      ];
      const layer = { tokens, hidden: inner, inter: mlp.width, topk: mlp.per_token, experts: E, tp, gated: mlp.gated };
      const first = mlp.gated ? 2 / 3 : 1 / 2;
      routed.forEach((op, i) => { op.experts = { ...layer, share: [first, 0, 1 - first, 0][i] }; });
      ops.push(...routed);
      if (mlp.latent) ops.push(product(`${prefix}latent_out`, mlp.inputs, mlp.latent, tokens, calls));
      const shared = Math.floor(mlp.shared / tp);
      if (shared) {
        ops.push(product(`${prefix}shared_gate_up`, gate * shared, mlp.inputs, tokens, calls));
        ops.push(product(`${prefix}shared_down`, mlp.inputs, shared, tokens, calls));
      }
    }
    allReduce("all_reduce_down", layers);
    if (layers) ops.push(small("residual", tokens * h * (out + 4), layers));

    for (const [name, n, k, count, router] of model.further) {
      ops.push(product(name, n, k, tokens, count, { sixteen: router }));
    }
    const vocab = ceilDiv(model.head[0], tp);
    ops.push(small("norm_head", batch * h * 2 * 2, 1, { row: h }));
    ops.push(product("lm_head", vocab, model.head[1], batch, 1, { sixteen: true }));
    ops.push(small("sample", batch * vocab * 2, 1, { row: vocab }));
    return ops;
  }

  function attentionShape(m, phase, scheme, tp) {
    const heads = m.heads / tp;
    if (m.type === "attention") {
      const how = { q: heads, kv: Math.max(1, Math.floor(m.kv_heads / tp)), head: m.head_dim, value: null, shared: false,
        kvBytes: kvBytes(scheme, m.kv_heads * m.head_dim), window: m.window, chunked: m.window != null && m.kind === "chunked" };
      if (m.value_dim !== m.head_dim) how.value = m.value_dim;
      return how;
    }
    const window = m.index_heads ? m.index_topk : null;
    if (phase === "prefill") {
      return { q: heads, kv: heads, head: m.head_dim, value: m.value_dim, shared: false, kvBytes: 2, window };
    }
    const row = m.kv_rank + m.rope_dim;
    return { q: heads, kv: 1, head: row, value: m.kv_rank, shared: true, kvBytes: kvBytes(scheme, row), window };
  }

  // --- pricing them -----------------------------------------------------------------------------------------------

  function gemm(d, m, n, k, kernel, weight, compute, standsIn) {
    const family = P.families[kernel], peak = peakOf(d, pricedFormat(d, family, compute));
    const cost = gemmCost(m, n, k, weight, family.act, family.out);
    let p = fitOf(d, kernel);
    if (standsIn && p.kind !== "transferred") p = transferred(p, true, `${kernel} on ${d.calibration}, weights of another width`);
    const costAt = (size) => gemmCost(size, n, k, weight, family.act, family.out);
    return estimate(d, cost, peak, p, m, [m, n, k], k, costAt, `${weight}|${k}|${kernel}`);
  }

  function grouped(d, op, kernel, compute) {
    const { m, n, k, groups, weight } = op, twin = P.families[kernel].grouped, family = P.families[twin || kernel];
    const peak = peakOf(d, pricedFormat(d, family, compute));
    if (twin) {
      return estimate(d, groupedCost(m, n, k, groups, weight, family.act, family.out), peak, fitOf(d, twin), m, null);
    }
    const more = (groups - 1) * family.act * m * k;
    const large = gemmCost(m, n * groups, k, weight + more, family.act, family.out);
    const p = transferred(fitOf(d, kernel), false, `${kernel}, one large product`);
    return estimate(d, large, peak, p, m, null, k);
  }

  // A layer of experts with uniform routing at each quarter of an octave of tokens; more never take less time.
  function moeCurve(d, dtype, m, e) {
    const key = `moe|${m.fit}|${dtype}|${e.hidden}|${e.inter}|${e.topk}|${e.experts}|${e.tp}|${e.gated}`;
    let found = d.pieces.get(key);
    if (found) return found;
    const [bits, compute] = C.moe[dtype], peak = peakOf(d, compute), p = P.fits[m.fit], width = e.inter / e.tp;
    const weights = (e.gated ? 3 : 2) * e.hidden * width, between = e.hidden + (e.gated ? 2 : 1) * width;
    found = { time: [], compute: [], memory: [], floor: [] };
    let most = 0;
    for (let i = 0; i <= C.moe_octaves / C.moe_step; i++) {
      const tokens = 2 ** (i * C.moe_step), rows = tokens * e.topk;
      const active = Math.max(e.experts * (1 - (1 - e.topk / e.experts) ** tokens), 1);
      const whole = active * Math.ceil(rows / active / m.tile - 1e-9) * m.tile, bytes = (active * weights * bits) / 8;
      const c = (2 * whole * weights) / (p.ec * peak);
      const t = bytes / (p.em * d.bandwidth) + m.active * active + m.local * e.experts;
      const moved = 4 * tokens * e.hidden + 4 * rows * between;
      let time = p.t0 + (m.permute * moved) / d.bandwidth + softRoofline(c, t, p.p);
      if (p.s !== undefined) time *= Math.exp(correctionAt(p, width, active, null)(rows / active));
      const floor = Math.max((2 * rows * weights) / peak, bytes / d.bandwidth);
      most = Math.max(most, time, floor);
      for (const [name, value] of [["time", most], ["compute", c], ["memory", t], ["floor", floor]]) found[name].push(Math.log(value));
    }
    d.pieces.set(key, found);
    return found;
  }

  function moeEstimate(d, kernel, e) {
    const dtype = kernel.slice(kernel.indexOf("_moe_") + 5);
    const place = Math.log2(Math.max(e.tokens, 1)) / C.moe_step;
    let best = null;
    for (const m of d.moe[kernel]) {
      const curve = moeCurve(d, dtype, m, e), p = P.fits[m.fit], n = curve.time.length;
      const i = clip(Math.floor(place), 0, n - 2), share = clip(place - i, 0, 1);
      const at = (line) => Math.exp(line[i] * (1 - share) + line[i + 1] * share);
      const time = at(curve.time), [low, high] = bandOf(p, e.tokens, null);
      if (best && best.time <= time) continue;
      best = { time, low: Math.max(time * low, at(curve.floor)), high: time * high, compute: at(curve.compute),
        memory: at(curve.memory), kind: p.kind, origin: p.origin };
    }
    return best;
  }

  function fusedExperts(d, op, choice) {
    if (!op.experts || choice.stands || d.calibration === null) return null;
    let found = null;
    for (const family of [choice.k, ...choice.others.map((o) => o[0])]) {
      const cut = family.indexOf("_"), kernel = `${family.slice(0, cut)}_moe_${family.slice(cut + 1)}`;
      if (cut < 0 || d.moe[kernel] === undefined) continue;
      const est = moeEstimate(d, kernel, op.experts);
      if (!found || est.time < found.est.time) found = { est, families: [family] };
    }
    if (!found) return null;
    const share = op.experts.share, e = found.est;
    return { families: found.families, est: { ...e, time: e.time * share, low: e.low * share, high: e.high * share,
      compute: e.compute * share, memory: e.memory * share } };
  }

  function variantOf(how) {
    const cache = Math.abs(how.kvBytes - 1) < 0.005 ? "_kv8" : how.kvBytes === 2 ? "" : null;
    let heads = null;
    if (how.value !== null && how.value !== how.head) {
      const latent = how.shared ? how.head === 576 && how.value === 512 : how.head === 192 && how.value === 128;
      heads = latent && how.window == null ? "_mla" : null;
    } else if (how.window == null) heads = how.head === 128 ? "" : how.head === 64 ? "_d64" : null;
    else if (how.head === 64 && how.window === 128) heads = "_d64_w128";
    return cache === null || heads === null || (how.shared && heads !== "_mla") ? null : cache + heads;
  }

  function attention(d, phase, batch, seq, how, fresh) {
    const key = `${phase}|${batch}|${seq}|${JSON.stringify(how)}`;
    let found = d.attended.get(key);
    if (!found) d.attended.set(key, (found = attentionAnew(d, phase, batch, seq, how, fresh, null)));
    return found;
  }

  // `words` name the shape where its pieces are kept for the next context.
  function attentionAnew(d, phase, batch, seq, how, fresh, words) {
    const peak = peakOf(d, sixteenBit(d)), { q, kv } = how, wide = phase === "decode" && q > C.wide_group * kv;
    const variant = variantOf(how), base = `${phase}${wide ? "_wide" : ""}`;
    const place = variant === null ? undefined : d.exact[base + variant], exact = place !== undefined;
    let p = P.fits[exact ? place : d.attention[base]];
    if (!exact) {
      if (how.shared) p = flashMla();
      else if (how.value !== null || (how.window != null && phase === "prefill")) p = transferred(p, false, p.origin || p.name);
      if (how.window != null && phase === "decode") seq = Math.min(seq, how.window);
    }
    const heads = phase === "prefill" ? q : kv, seqOf = phase === "decode" ? null : fresh;
    const at = (rows) => {
      const cost = (context) => attentionCost(phase, rows, context, q, kv, seqOf === null ? null : Math.min(seqOf, context), how);
      return estimate(d, attentionCost(phase, rows, seq, q, kv, seqOf, how), peak, p, seq, [seq, rows * heads, q / kv], 0, cost,
        words === null || seqOf !== null ? null : `${words}|${rows}`);
    };
    const found = at(batch);
    if (p.kind === "calibrated" && !exact && variant !== "") {
      const half = C.transfer_band[1];
      return { ...found, kind: "transferred", low: Math.min(found.low, found.time * (1 - half)),
        high: Math.max(found.high, found.time * (1 + half)) };
    }
    if (p.kind !== "transferred" || p.s === undefined || correctionOf(p.s).type !== "grid") return found;
    const knots = correctionOf(p.s).knots[1], upTo = beyond(knots, Math.log2(batch * heads));
    let least = 0;
    for (let i = 0; i < upTo; i++) least = Math.max(least, at(2 ** knots[i] / heads).time);
    const up = Math.max(least / found.time, 1);
    return { ...found, time: found.time * up, low: found.low * up, high: found.high * up };
  }
  let flash = null;
  const flashMla = () => (flash ??= { id: nextId++, name: "flash_mla", t0: 5e-6, ec: C.flash_mla[0], em: C.flash_mla[1], p: 3,
    kind: "transferred", origin: "generic", sixteen: true });

  function smallKernel(d, bytes, row) {
    const floor = bytes / d.bandwidth, own = d.small !== null, curve = P.small[own ? d.small : C.lent];
    const reduced = row > 0 ? interpolate(row, curve.row, curve.row_s) : 0;
    let time = own ? curveTime(curve, bytes) + reduced
      : curveTime(curve, bytes * (C.lent_bandwidth / d.bandwidth)) + (d.latency - 1) * curve.time[0] + d.latency * reduced;
    time = Math.max(time, floor);
    const [half, kind] = own ? [0.25, "calibrated"] : [0.4, "transferred"];
    return { time, low: time * (1 - half), high: time * (1 + half), compute: 0, memory: floor, kind };
  }

  function curveTime(c, bytes) {
    const last = c.bytes.length - 1;
    return bytes > c.bytes[last] ? bytes * (c.time[last] / c.bytes[last])
      : Math.exp(interpolate(Math.log(Math.max(bytes, 1)), c.logBytes, c.logTime));
  }

  function allReduce(d, bytes, n) {
    const steps = 2 * (n - 1), wire = ((steps / n) * bytes) / d.link.bandwidth;
    const own = d.collectives === null ? [] : P.collectives[d.collectives].filter((c) => c.gpus === n);
    if (own.length) {
      let best = null;
      for (const c of own) { const time = curveTime(c, bytes); if (!best || time < best.time) best = { time, band: c.band }; }
      return { time: best.time, low: best.time * best.band[0], high: best.time * best.band[1], compute: 0, memory: wire,
        kind: "calibrated" };
    }
    const lent = d.calibration === null || !d.calibrated ? [] : P.collectives[d.collectives ?? d.kin] ?? [];
    const times = otherWidths(lent, n, bytes);
    const time = times.length ? Math.min(...times) : 5e-6 + steps * d.link.latency + wire;
    return { time, low: time * 0.6, high: time * 1.6, compute: 0, memory: wire, kind: "transferred" };
  }

  function otherWidths(collectives, n, bytes) {
    const libraries = new Map();
    for (const c of collectives) {
      if (!libraries.has(c.library)) libraries.set(c.library, new Map());
      libraries.get(c.library).set(c.gpus, c);
    }
    const times = [];
    for (const curves of libraries.values()) {
      const at = (width) => curveTime(curves.get(width), bytes);
      if (curves.has(n)) { times.push(at(n)); continue; }
      const under = [...curves.keys()].filter((w) => w < n), over = [...curves.keys()].filter((w) => w > n);
      if (under.length && over.length) {
        const low = Math.max(...under), high = Math.min(...over), share = Math.log(n / low) / Math.log(high / low);
        times.push(at(low) ** (1 - share) * at(high) ** share);
      } else {
        const near = under.length ? Math.max(...under) : Math.min(...over);
        times.push((at(near) * ((n - 1) / n)) / ((near - 1) / near));
      }
    }
    return times;
  }

  function products(d, op, choice) {
    if (op.head) return { est: gemm(d, op.m, op.n, op.k, "cublas_bf16", op.weight, null, false), families: ["cublas_bf16"] };
    let est = gemm(d, op.m, op.n, op.k, choice.k, op.weight, choice.c, !!choice.stands), families = [choice.k];
    for (const [kernel, compute] of choice.others) {
      const other = gemm(d, op.m, op.n, op.k, kernel, op.weight, compute, false);
      if (other.time < est.time) [est, families] = [other, [kernel]];
    }
    return { est, families };
  }

  const elements = (op) => (op.kind === "gemm" ? op.n * op.k * (op.groups ?? 1) : op.cost.cached ?? 0);

  function rowOf(d, op, est, families, choice) {
    let { time, low, high } = est;
    if (op.kind === "small") {
      const operator = op.role || op.name, name = operator === "activation" && op.row > 0 ? "quantize" : operator;
      const gap = ((C.split[name] ?? 1) - 1) * d.gap;
      if (gap) { time += gap; low += gap * 0.75; high += gap * 1.25; }
    }
    const n = op.calls, format = formatOf(d, op, families, choice);
    const row = { name: op.name, kind: op.kind, calls: n, time: time * n, low: low * n, high: high * n, flop: op.cost.flop * n,
      bytes: op.cost.bytes * n, compute: est.compute * n, memory: est.memory * n, fidelity: est.kind, families,
      formats: format === null ? [] : [format], peak: format === null ? 0 : peakOf(d, format), bandwidth: d.bandwidth,
      weights: elements(op) * n, shaped: op.kind === "gemm" && op.groups === null };
    return Object.assign(row, { bound: boundOf(row) });
  }

  function boundOf(row) {
    if (Math.max(row.compute, row.memory) < 0.5 * row.time) return "overhead";
    return row.compute > row.memory ? "compute" : "memory";
  }

  function formatOf(d, op, families, choice) {
    if (op.kind === "attention" || (op.kind === "gemm" && op.head)) return sixteenBit(d);
    if (op.kind !== "gemm") return null;
    const kernels = new Map([[choice.k, choice.c], ...choice.others]);
    const formats = families.map((name) =>
      pricedFormat(d, P.families[name], kernels.has(name) ? kernels.get(name) : choice.c));
    return formats.reduce((a, b) => (peakOf(d, b) > peakOf(d, a) ? b : a));
  }

  function kernelRows(d, ops, choice, phase, batch, context, tp) {
    const rows = [], fresh = phase === "decode" ? 1 : context;
    for (const op of ops) {
      const fused = fusedExperts(d, op, choice);
      if (fused) { if (op.experts.share) rows.push(rowOf(d, op, fused.est, fused.families, choice)); continue; }
      let est, families = [];
      if (op.kind === "attention") est = attention(d, phase, batch, context, op.attention, fresh);
      else if (op.kind === "small") {
        const again = d.onChip !== null && op.reread > d.onChip ? op.reread : 0;
        est = smallKernel(d, op.cost.bytes + again, op.row);
      } else if (op.kind === "all_reduce") est = allReduce(d, op.cost.bytes, tp);
      else if (op.groups !== null) {
        est = grouped(d, op, choice.k, choice.c);
        families = [P.families[choice.k].grouped || choice.k];
      } else ({ est, families } = products(d, op, choice));
      rows.push(rowOf(d, op, est, families, choice));
    }
    return rows;
  }

  function fusedRows(d, ops, choice, model, scheme, tp) {
    const inside = pricedFormat(d, P.families[choice.k], choice.c, true), chips = chipsOf(d, model, scheme);
    const share = Math.max(1, chips / model.layers), bandwidth = d.bandwidth * share, rows = [];
    let left = d.capacity;
    for (const head of [false, true]) {
      const mine = ops.filter((op) => (op.kind === "gemm" || op.kind === "attention") && (op.name === "lm_head") === head);
      const calls = head ? 1 : model.layers, work = new Map();
      for (const op of mine) {
        const format = op.kind === "attention" || op.head ? sixteenBit(d) : inside;
        work.set(format, (work.get(format) ?? 0) + op.cost.flop * op.calls);
      }
      const flop = sum([...work.values()]), least = sum([...work].map(([f, v]) => v / (peakOf(d, f) * share)));
      const bytes = sum(mine.map((op) => (op.kind === "gemm" ? op.weight : op.cost.bytes) * op.calls));
      const compute = least / C.dataflow[0];
      let memory = bytes / (C.dataflow[1] * bandwidth);
      if (d.far) {
        const behind = Math.max(bytes - left, 0);
        left = Math.max(left - bytes, 0);
        memory += behind / (C.dataflow[1] * d.far.bandwidth);
      }
      let time = softRoofline(compute, memory, C.fused_p) + calls * (d.layerOverhead ?? 0);
      if (d.hop && !head) time += chips * d.hop;
      const row = { name: head ? "lm_head" : "fused layers", kind: "fused", calls, time, low: time * 0.6, high: time * 1.4, flop,
        bytes, compute, memory, fidelity: "transferred", families: ["dataflow"], formats: [...work.keys()],
        peak: flop / least, bandwidth, weights: sum(mine.map((op) => elements(op) * op.calls)), shaped: false };
      rows.push(Object.assign(row, { bound: boundOf(row) }));
    }
    for (const op of ops) if (op.kind === "all_reduce") rows.push(rowOf(d, op, allReduce(d, op.cost.bytes, tp), [], choice));
    return rows;
  }

  function totals(rows) {
    let time = 0;
    for (const r of rows) time += r.time;
    // sums of the errors and of their squares on both sides, of calibrated and of transferred operators
    const sums = { calibrated: [0, 0, 0, 0], transferred: [0, 0, 0, 0] }, tags = new Set();
    for (const r of rows) {
      const s = sums[r.fidelity], down = r.time - r.low, up = r.high - r.time;
      s[0] += down; s[1] += down * down; s[2] += up; s[3] += up * up;
      if (r.time > 0.1 * time) tags.add(r.fidelity);
    }
    const tag = tags.has("transferred") ? "transferred" : tags.has("calibrated") ? "calibrated" : rows[0].fidelity;
    const side = (i) => {
      let variance = (C.composition * time) ** 2;
      for (const [kind, c] of [["calibrated", C.correlation], ["transferred", C.transfer_correlation]]) {
        variance += c * sums[kind][i] ** 2 + (1 - c) * sums[kind][i + 1];
      }
      return Math.sqrt(variance);
    };
    let low = Math.max(time - side(0), 0.05 * time), high = time + side(2);
    if (tag === "transferred" && rows.every((r) => r.kind !== "fused")) {
      low = time * Math.exp(-Math.hypot(Math.log(time / low), Math.log(C.engines[0])));
      high = time * Math.exp(Math.hypot(Math.log(high / time), Math.log(C.engines[1])));
    }
    return { time, low, high, tag };
  }

  // --- memory ------------------------------------------------------------------------------------------------------

  function modelBytes(model, s) {
    let total = 2 * model.rest;
    for (const [n, k, count, router] of model.parts) total += count * (router ? 2 * n * k : weightBytes(s, n, k));
    return total;
  }
  const chipsOf = (d, model, s) => (d.kind === "asic-sram" ? Math.max(1, Math.ceil(modelBytes(model, s) / (0.9 * d.capacity))) : 1);

  function deviceWeights(model, s, tp) {
    let share = modelBytes(model, s) / tp;
    for (const m of model.mixers) {
      if (m.type !== "latent") continue;
      const shapes = Object.fromEntries(m.linears.map(([name, n, k]) => [name, [n, k]]));
      const replicated = sum(["qkv_a", "kv_a"].filter((name) => shapes[name]).map((name) => weightBytes(s, ...shapes[name])));
      const [n, k] = shapes.kv_b, absorbed = s.weight.q ? (2 * n * k) / tp : 0;
      share += m.count * (replicated * (1 - 1 / tp) + absorbed);
    }
    return share;
  }

  function cacheBytes(model, s, context, batch, tp) {
    let total = 0;
    for (const m of model.mixers) {
      if (!m.widths.length) continue;
      const kept = m.window == null ? context : Math.min(context, m.window);
      const shards = m.type === "attention" ? Math.min(tp, m.kv_heads) : 1;
      const alike = m.widths.every((w) => w === m.widths[0]);
      const row = alike ? m.count * sum(m.widths) * kvBytes(s, m.widths[0])
        : sum(m.widths.map((w) => m.count * w * kvBytes(s, w)));
      total += (batch * kept * row) / shards;
    }
    return total;
  }

  function footprint(d, model, s, batch, context, tokens, tp) {
    const chips = chipsOf(d, model, s), width = 6 * model.hidden + model.inner;
    const out = {
      weights: deviceWeights(model, s, tp) / chips,
      cache: (cacheBytes(model, s, context, batch, tp) + (model.state * batch) / tp) / chips,
      activations: (tokens * width * 2) / tp / chips,
      reserve: chips > 1 ? 0 : Math.min(C.reserve, 0.1 * d.capacity),
      capacity: d.capacity + (d.far ? d.far.capacity : 0), chips,
    };
    out.total = out.weights + out.cache + out.activations + out.reserve;
    out.fits = out.total <= out.capacity;
    return out;
  }

  function largestBatch(d, model, s, context, tp) {
    const one = footprint(d, model, s, 1, context, 1, tp);
    const most = Math.floor((one.capacity - one.weights - one.reserve) / (one.cache + one.activations));
    return Math.max(0, most);
  }

  // What to change when a model does not fit: batch, devices, or a smaller scheme.
  function whatWouldFit(d, model, s, batch, context, tp) {
    const hints = [], most = largestBatch(d, model, s, context, tp);
    if (most) hints.push({ words: `batch ${most}`, set: { batch: most } });
    for (const more of [2, 4, 8, 16]) {
      if (more > tp && model.heads % more === 0 && d.link && footprint(d, model, s, batch, context, batch, more).fits) {
        hints.push({ words: `tensor parallel ${more}`, set: { tp: more } });
        break;
      }
    }
    for (const name of ["fp8-tensor", "w4a16-g128"]) {
      const smaller = P.schemes[name];
      if (footprint(d, model, smaller, batch, context, batch, tp).fits && modelBytes(model, smaller) < modelBytes(model, s)) {
        hints.push({ words: `scheme ${name}`, set: { scheme: name, kv: "" } });
        break;
      }
    }
    return hints;
  }

  // --- energy ------------------------------------------------------------------------------------------------------

  function powerLaw(d) {
    if (!d.power) return null;
    const law = P.laws[d.power.of], limit = C.limit * d.boardW;
    if (d.power.own) return { ...law, limit_w: d.changed.has("power.board_w") ? limit : law.limit_w, kind: "calibrated" };
    const more = limit / law.limit_w, perByte = (more * law.bandwidth) / d.bandwidth;
    const perOp = (more * law.peak) / peakOf(d, sixteenBit(d)), band = d.fuses ? C.fused_band : C.power_band;
    return { limit_w: limit, idle_w: d.idleW ?? more * law.idle_w, busy_w: more * law.busy_w, byte_j: perByte * law.byte_j,
      weight_j: perByte * law.weight_j, op_j: Object.fromEntries(Object.entries(law.op_j).map(([b, j]) => [b, perOp * j])),
      attention_op_j: perOp * law.attention_op_j, vector_busy_w: more * law.vector_busy_w,
      vector_byte_j: perByte * law.vector_byte_j, band, loop_band: band, kind: "transferred",
      origin: `${d.power.of} by share of power` };
  }

  function energyOf(d, rows, step, chips, tp) {
    const law = powerLaw(d);
    if (!law) return null;
    const limited = (w) => law.limit_w * (1 + Math.max(w / law.limit_w, 1e-6) ** -C.sharpness) ** (-1 / C.sharpness);
    let total = 0, low = 0, high = 0, busy = 0;
    for (const r of rows) {
      const seconds = Math.max(r.time, 1e-12) * chips;
      const moved = r.bytes / seconds, weights = r.weights / seconds, ops = r.flop / seconds;
      let watts;
      if (r.kind === "attention") {
        watts = limited(law.idle_w + law.busy_w + law.byte_j * moved + law.weight_j * weights + law.attention_op_j * ops);
      } else if (r.kind === "gemm" || r.kind === "fused") {
        const bits = Math.min(...r.formats.map((f) => C.bits[f]));
        watts = limited(law.idle_w + law.busy_w + law.byte_j * moved + law.weight_j * weights + law.op_j[bits] * ops);
      } else watts = limited(law.idle_w + law.vector_busy_w + law.vector_byte_j * moved);
      const joules = watts * r.time, loops = r.kind === "attention" || (r.kind === "gemm" && !r.shaped);
      const [down, up] = r.kind === "fused" ? C.fused_band : loops ? law.loop_band : law.band;
      total += joules; low += joules * down; high += joules * up; busy += r.time;
    }
    const waiting = law.idle_w * Math.max(step.time - busy, 0);
    total += waiting; low += waiting; high += waiting;
    const under = Math.hypot(Math.log(total / low), Math.log(step.time / step.low));
    const over = Math.hypot(Math.log(high / total), Math.log(step.high / step.time));
    const all = chips * tp;
    return { joules: all * total, low: all * total * Math.exp(-under), high: all * total * Math.exp(over),
      watts: total / step.time, kind: law.kind, origin: law.origin };
  }

  // --- what the page calls -------------------------------------------------------------------------------------------

  function load(parameters) {
    P = parameters;
    C = P.constants;
    P.fits.forEach((p) => { p.id = nextId++; });
    const logs = (c) => { c.logBytes = c.bytes.map(Math.log); c.logTime = c.time.map(Math.log); };
    Object.values(P.small).forEach(logs);
    Object.values(P.collectives).forEach((list) => list.forEach(logs));
  }

  // Why a value of a device's field is refused; null where it is plausible.
  function refusal(path, value) {
    const key = path.split(".").at(-1), range = P.ranges[key];
    if (typeof value !== "number" || !Number.isFinite(value)) return `${path} must be a number`;
    if (value <= 0) return `${path} must be above 0`;
    if (value < range[1] || value > range[2]) return `${path} = ${value} is outside ${range[1]} to ${range[2]}, the plausible range`;
    return null;
  }

  // A device with some fields changed, in SI units.
  function device(name, overrides = {}) {
    const base = P.devices[name];
    if (!base) throw new Error(`there is no device ${name}`);
    const fields = { ...base.fields, ...overrides };
    const si = (path) => (fields[path] === undefined ? null : fields[path] * P.ranges[path.split(".").at(-1)][0]);
    const peaks = new Map();
    for (const [label, format] of base.peaks) {
      if (!peaks.has(format)) peaks.set(format, si(`compute.peaks.${label}.dense_tflops`));
    }
    const clock = base.peaks.length ? si(`compute.peaks.${base.peaks[0][0]}.clock_mhz`) : null;
    const units = fields["compute.units"] ?? null, each = si("compute.exp_per_clock_per_unit");
    const bandwidth = si("memory.bandwidth_gbytes_per_s"), donor = base.small ?? "h200";
    const has = (path) => fields[path] !== undefined;
    return {
      name, title: base.title, kind: base.kind, vendor: base.vendor, fuses: base.fuses, calibration: base.calibration,
      calibrated: base.calibrated, fits: base.fits, attention: base.attention, exact: base.exact, moe: base.moe, engine: base.engine,
      collectives: base.collectives, kin: base.kin, small: base.small, latency: base.latency, power: base.power, choices: base.choices, fields,
      changed: new Set(Object.keys(overrides)), peaks, units, bandwidth, capacity: si("memory.capacity_gbytes"),
      vector: si("compute.vector_tflops"), expRate: units === null || each === null || clock === null ? null : units * each * clock,
      onChip: si("on_chip.capacity_mbytes"), boardW: fields["power.board_w"] ?? null, idleW: si("power.idle_w"),
      far: has("far.capacity_gbytes")
        ? { capacity: si("far.capacity_gbytes"), bandwidth: si("far.bandwidth_gbytes_per_s") } : null,
      link: has("link.latency_us")
        ? { bandwidth: si("link.bandwidth_gbytes_per_s_per_direction"), latency: si("link.latency_us") } : null,
      layerOverhead: si("layer_overhead_us"), hop: si("hop_latency_us"), gap: P.small[donor].gap * (base.small === null ? base.latency : 1),
      unpackingBound: bandwidth > C.unpacking * (units || 1), pieces: new Map(), attended: new Map(),
    };
  }

  // A device as the serving engine runs it: its own kernels for the schemes that it has some for, its own attention.
  function engine(d) {
    const { choices, attention: general, exact } = d.engine;
    return { ...d, choices: { ...d.choices, ...choices }, attention: general ?? d.attention, exact: exact ?? d.exact,
      pieces: new Map(), attended: new Map() };
  }

  // A scheme with a format of the KV cache; "" keeps its own.
  function scheme(name, kv = "") {
    const base = P.schemes[name];
    if (!base) throw new Error(`there is no scheme ${name}`);
    return kv ? { ...base, kv: P.kv[kv] } : base;
  }

  function choiceOf(d, name) {
    const at = d.choices[name];
    if (typeof at === "string") throw new Error(at);
    return P.choices[at];
  }

  // The model, the scheme, and what lists the operators of a step; refusals are errors.
  function prepared(d, modelName, schemeName, kv, tp) {
    const model = P.models[modelName], s = scheme(schemeName, kv);
    if (!model) throw new Error(`there is no model ${modelName}`);
    if (tp > 1 && model.recurrent) throw new Error(`tensor parallel must be 1 for ${modelName}: how recurrent layers are split is not priced`);
    if (model.heads % tp) throw new Error(`tensor parallel must divide the ${model.heads} heads of ${modelName}: got ${tp}`);
    if (tp > 1 && !d.link) throw new Error(`${d.name} has no link: tensor parallel must be 1`);
    const choice = choiceOf(d, schemeName), family = P.families[choice.k];
    const priced = choice.q || !s.act.q ? s : { ...s, act: { q: false, dynamic: false, bits: 16 } };
    const how = { act: family.act, out: family.out, separate: choice.q && !family.includes };
    return { model, s, choice, operators: (phase, batch, context) => stepOperators(model, priced, phase, batch, context, tp, how) };
  }

  // Seconds of attention in a step, as a function of phase, batch and context, which need not be whole.
  function attending(d, modelName, schemeName, kv, tp) {
    if (d.fuses) return () => 0; // it is in the fused layers
    const { operators } = prepared(d, modelName, schemeName, kv, tp);
    const of = (phase) => operators(phase, 1, 1).filter((op) => op.kind === "attention")
      .map((op) => [op.attention, op.calls, JSON.stringify(op.attention)]);
    const shapes = { decode: of("decode"), prefill: of("prefill") };
    return (phase, batch, context) => sum(shapes[phase].map(([how, calls, words]) =>
      calls * attentionAnew(d, phase, batch, context, how, phase === "decode" ? 1 : context, words).time));
  }

  // A step: time with its band, operators, memory, energy. d is of `device`; all else by name or number.
  // `light` leaves out all but the time and its band.
  function predict(d, modelName, schemeName, kv, phase, batch, context, tp = 1, light = false) {
    const { model, s, choice, operators } = prepared(d, modelName, schemeName, kv, tp), ops = operators(phase, batch, context);
    const rows = d.fuses ? fusedRows(d, ops, choice, model, s, tp) : kernelRows(d, ops, choice, phase, batch, context, tp);
    const step = totals(rows);
    if (light) return step;
    const tokens = phase === "decode" ? batch : batch * context;
    const memory = footprint(d, model, s, batch, context, tokens, tp);
    const notes = [...choice.notes, ...(choice.stands && !d.fuses ? [choice.stands] : [])];
    if (model.longest && context > model.longest) {
      notes.push(`context ${context} is beyond the ${model.longest} positions of ${modelName}: priced as if it reached`);
    }
    const shares = {};
    for (const r of rows) shares[r.bound] = (shares[r.bound] ?? 0) + r.time;
    return { ...step, rows, memory, tokens, tp, chips: memory.chips, kernel: choice.k, notes, phase, batch, context,
      energy: energyOf(d, rows, step, memory.chips, tp), rate: tokens / step.time,
      bound: Object.keys(shares).reduce((a, b) => (shares[b] > shares[a] ? b : a)),
      largest: largestBatch(d, model, s, context, tp) };
  }

  // How many times faster `of` is than `over`; two bands combine as independent errors of the logarithm.
  function speedup(of, over) {
    const value = over.time / of.time;
    const down = Math.hypot(Math.log(over.time / over.low), Math.log(of.high / of.time));
    const up = Math.hypot(Math.log(over.high / over.time), Math.log(of.time / of.low));
    return { value, low: value * Math.exp(-down), high: value * Math.exp(up) };
  }

  const cost = (price, step) => ((price * step.tp * step.chips) / 3600) * (step.time / step.tokens) * 1e6;

  return { load, device, engine, scheme, predict, attending, speedup, refusal, whatWouldFit, largestBatch, footprint, modelBytes, cost,
    get parameters() { return P; } };
})();
