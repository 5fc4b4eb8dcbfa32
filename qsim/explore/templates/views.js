// The views: each makes, of the answers to a comparison, a chart, the sentence that says what to see, and the rows of a
// table. A sentence is made of the numbers that the chart shows.
"use strict";

const Views = (() => {
  const { digits, seconds, bytes } = Charts;
  const COLORS = ["var(--c1)", "var(--c2)", "var(--c3)"];
  const LETTERS = ["A", "B", "C"];
  const times = (v) => `${digits(v)}×`;
  const list = (words) => (words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
  const shortCount = (v) => (v >= 1e6 ? `${digits(v / 1e6)}M` : v >= 1000 ? `${digits(v / 1000)}k` : digits(v));
  const power = (v) => (v >= 1024 && v % 1024 === 0 ? `${v / 1024}k` : String(v));
  const nameOf = (c) => c.scheme + (c.kv ? `-kv${c.kv}` : "");
  const LIMITS = { memory: "reading memory", compute: "arithmetic", overhead: "launching kernels" };

  // What tells the cases of a comparison apart, in few words.
  function labels(cases) {
    const differs = (key) => cases.some((c) => key(c) !== key(cases[0]));
    const changed = (c) => Object.keys(c.set).length;
    return cases.map((c, i) => {
      const parts = [];
      if (differs((x) => x.device) || cases.length === 1) parts.push(c.device);
      if (differs(nameOf) || cases.length === 1) parts.push(nameOf(c));
      if (differs((x) => x.tp)) parts.push(c.tp === 1 ? "1 device" : `${c.tp} devices`);
      if (differs((x) => JSON.stringify(x.set)) && changed(c)) parts.push("changed");
      return parts.length ? parts.join(" ") : `${LETTERS[i]} ${c.device}`;
    });
  }

  const alive = (shown) => shown.map((s, i) => ({ ...s, i })).filter((s) => s.step);
  const legend = (shown, width, y) => {
    let x = 52, out = "", rows = 0;
    for (const s of shown) {
      const words = `${LETTERS[s.i]}  ${s.label}`, wide = 26 + words.length * 6.7;
      if (x + wide > width && x > 52) { x = 52; rows++; }
      out += Charts.marker(s.i, x + 6, y + rows * 17, 5, COLORS[s.i]) + Charts.text(x + 16, y + 4 + rows * 17, words, { color: "var(--ink)" });
      x += wide;
    }
    return { out, height: 20 + rows * 17 };
  };

  // (a) Operators on the roofline: where each lies, and how far below its roof.
  function roofline(shown, { width }) {
    const live = alive(shown), rows = [];
    for (const s of live) {
      for (const r of s.step.rows) {
        const share = r.time / s.step.time; // what takes next to no time would only stretch the axes
        if (r.formats.length && share > 0.004) rows.push({ ...r, i: s.i, share });
      }
    }
    if (!rows.length) return null;
    const top = legend(live, width, 10), height = Math.max(300, Math.min(380, width * 0.62)) + top.height;
    const roofs = [];
    for (const s of live) {
      const best = new Map();
      for (const r of rows.filter((one) => one.i === s.i)) for (const f of r.formats) {
        const chips = r.bandwidth / s.device.bandwidth, peak = (f === "vector" ? r.peak : s.device.peaks.get(f)) * chips;
        if (peak) best.set(f, { peak, bandwidth: r.bandwidth });
      }
      for (const [format, roof] of best) roofs.push({ ...roof, format, i: s.i });
    }
    const xs = rows.map((r) => r.flop / r.bytes), ys = rows.map((r) => r.flop / r.time);
    const ridges = roofs.map((r) => r.peak / r.bandwidth);
    const lowX = 10 ** Math.floor(Math.log10(Math.min(...xs) * 0.7)), highX = 10 ** Math.ceil(Math.log10(Math.max(...xs, ...ridges) * 1.6));
    const lowY = 10 ** Math.floor(Math.log10(Math.min(...ys) * 0.5)), highY = Math.max(...roofs.map((r) => r.peak)) * 2;
    const f = Charts.frame({ width, height, top: 8 + top.height, x: { kind: "log", low: lowX, high: highX }, y: { kind: "log", low: lowY, high: highY },
      xLabel: "arithmetic intensity, operations per byte", yLabel: "TFLOP/s reached", yTick: (v) => digits(v / 1e12), xMost: width < 420 ? 4 : 7, left: 56, right: 20 });
    let out = f.out + top.out;
    const merged = new Map(); // equal roofs of several cases are one line
    for (const r of roofs) {
      const key = `${r.peak}|${r.bandwidth}`, name = r.format.replace("float8_e4m3fn", "FP8").replace("bfloat16", "BF16");
      const m = merged.get(key) ?? { ...r, of: [], name };
      if (!m.of.includes(LETTERS[r.i])) m.of.push(LETTERS[r.i]);
      merged.set(key, m);
    }
    const words = [];
    for (const r of merged.values()) {
      const ridge = r.peak / r.bandwidth, startY = Math.max(lowX * r.bandwidth, lowY), color = r.of.length > 1 ? "var(--plot2)" : COLORS[r.i];
      out += Charts.path([[f.sx(startY / r.bandwidth), f.sy(startY)], [f.sx(ridge), f.sy(r.peak)], [f.sx(highX), f.sy(r.peak)]], color, 1.5, r.of.length > 1 ? "" : ["", "6 3", "2 3"][r.i]);
      words.push({ y: f.sy(r.peak) - 5, color, words: `${r.of.join(", ")}: ${r.name}, ${digits(r.peak / 1e12)} TFLOP/s` });
    }
    words.sort((a, b) => a.y - b.y).forEach((w, i) => {
      if (i) w.y = Math.max(w.y, words[i - 1].y + 13);
      out += Charts.text(f.left + 6, w.y, w.words, { size: 11, color: w.color, halo: true });
    });
    const named = [];
    for (const r of [...rows].sort((a, b) => a.share - b.share)) {
      const x = f.sx(r.flop / r.bytes), y = f.sy(r.flop / r.time), radius = 3 + 9 * Math.sqrt(r.share);
      out += Charts.line(x, f.sy(r.flop / r.high), x, f.sy(Math.min(r.flop / r.low, highY)), COLORS[r.i], 1.5);
      out += Charts.marker(r.i, x, y, radius, COLORS[r.i], `${LETTERS[r.i]} ${r.name}: ${digits(r.flop / r.time / 1e12)} TFLOP/s at ${digits(r.flop / r.bytes)} operations per byte, ${seconds(r.time)} of the step, ${r.bound}`);
      if (r.share > 0.1) named.push({ x: x + radius + 3, y: y + 4, r });
    }
    const placed = [];
    for (const n of named.reverse()) {
      const words = n.r.name, wide = words.length * 6.4;
      const left = n.x + wide > f.right, x = left ? n.x - wide - 22 : n.x;
      let y = n.y;
      const hits = () => placed.some((p) => Math.abs(p.y - y) < 12 && x < p.x + p.wide && p.x < x + wide);
      for (let tries = 0; tries < 6 && hits(); tries++) y += 12;
      const said = placed.some((p) => p.words === words && Math.abs(p.x - x) < 12 && Math.abs(p.y - y) < 28);
      if (said || hits()) continue; // one name for the markers of several cases at one place
      placed.push({ x, y, wide, words });
      out += Charts.text(x, y, words, { size: 11, color: "var(--ink)", halo: true });
    }
    const s = live[0], biggest = s.step.rows.filter((r) => r.formats.length).sort((a, b) => b.time - a.time)[0];
    const at = biggest.flop / biggest.bytes, ridge = biggest.peak / biggest.bandwidth, reach = biggest.flop / biggest.time;
    const roof = Math.min(biggest.peak, at * biggest.bandwidth);
    const says = `${LETTERS[s.i]}'s largest operator, ${biggest.name}, does ${digits(at)} operations for each byte that it moves; `
      + `${at < ridge ? "less" : "more"} than the ${digits(ridge)} at which arithmetic would be the limit, so ${at < ridge ? "the memory" : "arithmetic"} sets its roof, and it reaches ${digits((100 * reach) / roof, 2)} % of that.`;
    const table = rows.map((r) => ({ case: LETTERS[r.i], operator: r.name, flop_per_byte: r.flop / r.bytes, flop_per_s: r.flop / r.time,
      low_flop_per_s: r.flop / r.high, high_flop_per_s: r.flop / r.low, share: r.share, bound: r.bound }));
    return { svg: Charts.svg(width, height, "Operators on the roofline", out), says, table };
  }

  const GROUPS = [["attention", /attention|scores|absorb|kv_b/], ["QKV and output", /^(.*_)?(qkv|q|o|qkv_a|q_b|kv_a|gate_proj)$/],
    ["MLP", /gate_up|down$|router|latent_(in|out)/], ["lm_head", /lm_head/], ["all-reduce", /all_reduce/], ["fused layers", /fused layers/]];
  const groupOf = (name) => (GROUPS.find(([, pattern]) => pattern.test(name)) ?? ["norms, activations and other small kernels"])[0];

  // (b) Where the time of a step goes.
  function breakdown(shown, { width }) {
    const live = alive(shown);
    if (!live.length) return null;
    const names = [];
    const parts = live.map((s) => {
      const found = new Map();
      for (const r of s.step.rows) {
        const g = groupOf(r.name), p = found.get(g) ?? { time: 0, low: 0, high: 0, bounds: {} };
        p.time += r.time; p.low += r.low; p.high += r.high;
        p.bounds[r.bound] = (p.bounds[r.bound] ?? 0) + r.time;
        found.set(g, p);
        if (!names.includes(g)) names.push(g);
      }
      return found;
    });
    names.sort((a, b) => Math.max(...parts.map((p) => p.get(b)?.time ?? 0)) - Math.max(...parts.map((p) => p.get(a)?.time ?? 0)));
    const top = legend(live, width, 10), bar = 15, gap = 24, height = top.height + 14 + names.length * (live.length * (bar + 2) + gap) + 40;
    const most = Math.max(...parts.flatMap((p) => [...p.values()].map((v) => v.high)));
    const left = 8, right = width - 124, unit = most < 1e-3 ? [1e6, "µs"] : [1e3, "ms"];
    const sx = Charts.scale("linear", 0, most * 1.02, left, right);
    let out = top.out, y = top.height + 16;
    for (const v of Charts.ticks({ ...sx, low: 0, high: most * unit[0] }, width < 420 ? 3 : 5)) {
      out += Charts.line(sx(v / unit[0]), top.height + 6, sx(v / unit[0]), height - 36) + Charts.text(sx(v / unit[0]), height - 22, digits(v), { size: 11, anchor: v ? "middle" : "start" });
    }
    for (const name of names) {
      out += Charts.text(left, y + 2, name, { color: "var(--ink)", weight: 600 });
      y += 8;
      live.forEach((s, k) => {
        const p = parts[k].get(name);
        if (p) {
          const bound = Object.keys(p.bounds).reduce((a, b) => (p.bounds[b] > p.bounds[a] ? b : a));
          out += Charts.rect(left, y, sx(p.time) - left, bar, COLORS[s.i], ";opacity:.85");
          out += Charts.line(sx(p.low), y + bar / 2, sx(p.high), y + bar / 2, "var(--ink)", 1.2);
          out += Charts.text(Math.max(sx(p.high), sx(p.time)) + 5, y + 12, `${LETTERS[s.i]} ${digits(p.time * unit[0])} ${unit[1]}, ${bound}`, { size: 11 });
        }
        y += bar + 2;
      });
      y += gap - 8;
    }
    out += Charts.text(left, height - 6, `time of a step, ${unit[1]}; lines are 80 % bands`);
    const sentences = live.map((s, k) => {
      const [name, p] = [...parts[k]].sort((a, b) => b[1].time - a[1].time)[0];
      return `${LETTERS[s.i]} spends ${digits((100 * p.time) / s.step.time, 2)} % of its ${seconds(s.step.time)} in ${name === "MLP" ? "the MLP" : name}, and ${LIMITS[s.step.bound]} bounds most of the step`;
    });
    const table = live.flatMap((s) => s.step.rows.map((r) => ({ case: LETTERS[s.i], operator: r.name, calls: r.calls, time_s: r.time,
      low_s: r.low, high_s: r.high, bound: r.bound, kernel: r.families.join(" or "), fidelity: r.fidelity })));
    return { svg: Charts.svg(width, height, "Time of a step by operator", out), says: `${sentences.join("; ")}.`, table };
  }

  const OTHERS = ["var(--c4)", "var(--c5)", "var(--c6)", "var(--ink2)", "var(--c3)"];
  const DASH = ["", "7 3", "2 3", "7 3 2 3", "12 3"];

  // Colours of lines: a scheme that is a case has the colour of the case, others those that are left.
  function colorsOf(lines, cases) {
    let next = 0;
    return lines.map((l) => {
      const i = cases.findIndex((c) => nameOf(c) === l.name);
      return i >= 0 ? COLORS[i] : OTHERS[next++ % OTHERS.length];
    });
  }

  // Where two curves over batches change places, between the two batches around it.
  function crossings(batches, one, other) {
    const found = [];
    for (let i = 1; i < batches.length; i++) {
      const a = Math.log(one[i - 1] / other[i - 1]), b = Math.log(one[i] / other[i]);
      if (a * b < 0) found.push({ at: Math.exp(Math.log(batches[i - 1]) + (Math.log(batches[i] / batches[i - 1]) * a) / (a - b)), i, ahead: b > 0 });
    }
    return found;
  }

  // (c) Speed-up of each scheme over 16 bit against the batch, with the flip.
  function speedup(curves, { width, batch, phase, device, cases }) {
    const base = curves.base, batches = curves.batches, lines = curves.lines.filter((l) => l.times);
    if (!lines.length) return null;
    const height = Math.max(300, Math.min(400, width * 0.66)), right = 20 + 7 * Math.max(...lines.map((l) => l.name.length));
    const values = lines.map((l) => l.times.map((t, i) => base.times[i] / t));
    const band = lines.map((l) => l.times.map((t, i) => Law.speedup({ time: t, low: l.low[i], high: l.high[i] }, { time: base.times[i], low: base.low[i], high: base.high[i] })));
    const MARK = colorsOf(lines, cases), wide = 0;
    const most = Math.max(...values.flat(), Math.min(Math.max(...band[wide].map((b) => b.high)), 1.25 * Math.max(...values.flat())), 1.1), least = Math.min(...values.flat(), 0.9);
    const f = Charts.frame({ width, height, right, x: { kind: "log", base2: true, low: batches[0], high: batches.at(-1) },
      y: { low: Math.max(0, Math.floor(least * 4) / 4), high: Math.ceil(most * 4 + 0.4) / 4 }, xLabel: "batch, sequences at once",
      yLabel: "speed-up over bf16", yTick: (v) => times(v), xMost: width < 420 ? 4 : 8 });
    let out = f.out + Charts.line(f.left, f.sy(1), f.right, f.sy(1), "var(--plot2)", 1.2);
    const points = (k, key) => batches.map((b, i) => [f.sx(b), Charts.round(Math.min(Math.max(f.sy(band[k][i][key]), f.top), f.bottom))]);
    out += Charts.area([...points(wide, "high"), ...points(wide, "low").reverse()], MARK[wide]);
    lines.forEach((l, k) => {
      out += Charts.path(batches.map((b, i) => [f.sx(b), f.sy(values[k][i])]), MARK[k], 2.2, DASH[k]);
      const every = Math.max(1, Math.round(batches.length / 6));
      batches.forEach((b, i) => { if (i % every === k % every || i === batches.length - 1) out += Charts.marker(k, f.sx(b), f.sy(values[k][i]), 4, MARK[k], `${l.name} at batch ${b}: ${times(values[k][i])} (${times(band[k][i].low)} to ${times(band[k][i].high)})`); });
    });
    out += Charts.ends(lines.map((l, k) => ({ words: l.name, y: f.sy(values[k].at(-1)), color: MARK[k] })), f.right + 8, f.top + 6, f.bottom - 4);
    if (batch >= batches[0] && batch <= batches.at(-1)) {
      out += Charts.line(f.sx(batch), f.top, f.sx(batch), f.bottom, "var(--ink2)", 1, "2 3") + Charts.text(f.sx(batch), f.bottom - 6, `batch ${batch}`, { anchor: batch > 8 ? "end" : "start", size: 11, halo: true });
    }
    const leaderAt = (i) => values.reduce((best, v, k) => (v[i] > values[best][i] ? k : best), 0);
    const first = leaderAt(0), last = leaderAt(batches.length - 1);
    let says = "", flip = null;
    if (first !== last) {
      const found = crossings(batches, values[last], values[first]).filter((c) => c.ahead).at(-1);
      if (found) {
        flip = found.at;
        const x = f.sx(found.at), y = f.sy(values[first][found.i - 1] * (values[first][found.i] / values[first][found.i - 1]) ** (Math.log(found.at / batches[found.i - 1]) / Math.log(batches[found.i] / batches[found.i - 1])));
        out += Charts.line(x, f.top, x, f.bottom, "var(--ink)", 1.2) + `<circle cx="${Charts.round(x)}" cy="${Charts.round(y)}" r="7" style="fill:none;stroke:var(--ink);stroke-width:1.6"/>`;
        out += Charts.text(x + (x > (f.left + f.right) / 2 ? -6 : 6), f.top + 12, `flip at batch ${digits(found.at, 2)}`, { weight: 700, color: "var(--ink)", halo: true, anchor: x > (f.left + f.right) / 2 ? "end" : "start" });
        says = `On ${device}, ${lines[first].name} leads at batch ${batches[0]} with ${times(values[first][0])}; from batch ${Math.ceil(found.at)} on ${lines[last].name} is ahead of it, and at batch ${batches.at(-1)} it is ${times(values[last].at(-1))} as fast as bf16.`;
      }
    }
    if (!says) {
      const top = values[last].at(-1);
      says = `On ${device}, ${lines[first].name} is the fastest at batch ${batches[0]} (${times(values[first][0])}) and ${first === last ? "still" : lines[last].name} at batch ${batches.at(-1)} (${times(top)}): nothing flips in this range.`;
    }
    const slow = lines.filter((_, k) => values[k].at(-1) < 1).map((l) => l.name);
    if (slow.length) says += ` ${list(slow)} ${slow.length > 1 ? "are" : "is"} slower than 16 bit at batch ${batches.at(-1)}.`;
    const i = batches.indexOf(batch) >= 0 ? batches.indexOf(batch) : batches.length - 1, k = leaderAt(i), b = band[k][i];
    says += ` The shaded band, 80 % of ${lines[wide].name}, ${band[wide][0].low > 1 ? "lies above 1 at the smallest batch: that gain is sure" : "holds 1 at the smallest batch: that gain is not sure"}.`;
    const table = batches.flatMap((n, j) => lines.map((l, q) => ({ device, phase, batch: n, scheme: l.name, speedup: values[q][j],
      low: band[q][j].low, high: band[q][j].high, time_s: l.times[j] })));
    return { svg: Charts.svg(width, height, "Speed-up of each scheme against the batch", out), says, table, flip, leader: lines[k].name, gain: b };
  }

  // (d) Memory: what fits, and how many sequences at each context.
  function memory(shown, { width, context, limits }) {
    const live = alive(shown);
    if (!live.length) return null;
    const rowHeight = 46, barsTop = 26, chartTop = barsTop + live.length * rowHeight + 18, height = chartTop + 250;
    const most = Math.max(...live.map((s) => Math.max(s.step.memory.total, s.step.memory.capacity)));
    const left = 8, right = width - 14, sx = Charts.scale("linear", 0, most * 1.04, left, right);
    const kinds = [["weights", 1], ["cache", 0.62], ["activations", 0.36], ["reserve", 0.18]];
    let out = "", x = left;
    for (const [kind, opacity] of kinds) {
      out += Charts.rect(x, 4, 11, 11, "var(--ink)", `;opacity:${opacity}`) + Charts.text(x + 15, 14, kind === "cache" ? "KV cache" : kind, { size: 11 });
      x += 26 + (kind === "cache" ? 8 : kind.length) * 6.6;
    }
    live.forEach((s, k) => {
      const y = barsTop + k * rowHeight, m = s.step.memory;
      out += Charts.text(left, y + 10, `${LETTERS[s.i]}  ${bytes(m.total)} of ${bytes(m.capacity)}${m.fits ? "" : `: ${bytes(m.total - m.capacity)} too much`}`, { color: m.fits ? "var(--ink)" : "var(--bad)", weight: m.fits ? 400 : 700 });
      let at = 0;
      for (const [kind, opacity] of kinds) {
        out += Charts.rect(sx(at), y + 15, sx(at + m[kind]) - sx(at), 15, COLORS[s.i], `;opacity:${opacity}`);
        at += m[kind];
      }
      out += Charts.line(sx(m.capacity), y + 11, sx(m.capacity), y + 34, m.fits ? "var(--ink)" : "var(--bad)", 2.5);
    });
    const counts = limits.curves.flatMap((c) => c ?? []).filter((v) => v > 0), contexts = limits.contexts;
    let says = live.map((s) => {
      const m = s.step.memory;
      return m.fits ? `${LETTERS[s.i]} uses ${digits((100 * m.total) / m.capacity, 2)} % of each device and has room for ${shortCount(s.step.largest)} ${s.step.largest === 1 ? "sequence" : "sequences"} at this context`
        : `${LETTERS[s.i]} does not fit: ${bytes(m.total - m.capacity)} too much`;
    }).join("; ");
    if (counts.length) {
      const f = Charts.frame({ width, height: height, top: chartTop + 4, right: 30, x: { kind: "log", base2: true, low: contexts[0], high: contexts.at(-1) },
        y: { kind: "log", low: 1, high: 10 ** Math.ceil(Math.log10(Math.max(...counts) * 1.01)) }, xLabel: "context, tokens of each sequence", yLabel: "largest batch",
        xTick: power, yTick: shortCount, xMost: width < 420 ? 4 : 8 });
      out += f.out;
      for (const s of live) {
        const points = contexts.map((c, j) => [f.sx(c), limits.curves[s.i][j]]).filter((p) => p[1] >= 1).map(([a, v]) => [a, f.sy(v)]);
        if (points.length > 1) out += Charts.path(points, COLORS[s.i], 2.2, ["", "7 3", "2 3"][s.i]);
        if (points.length) out += Charts.text(points.at(-1)[0] + 5, points.at(-1)[1] + 4, LETTERS[s.i], { color: COLORS[s.i], weight: 700 });
      }
      if (context >= contexts[0] && context <= contexts.at(-1)) out += Charts.line(f.sx(context), f.top, f.sx(context), f.bottom, "var(--ink2)", 1, "2 3");
      const first = live.find((s) => s.step.memory.fits);
      if (first) {
        const gone = limits.contexts.find((c, j) => limits.curves[first.i][j] < first.step.batch && c > context);
        says += gone ? `. Its cache is the cliff: at ${power(gone)} tokens ${LETTERS[first.i]} no longer holds its batch of ${first.step.batch}` : `. ${LETTERS[first.i]} holds its batch of ${first.step.batch} up to ${power(contexts.at(-1))} tokens`;
      }
    }
    const table = live.flatMap((s) => contexts.map((c, j) => ({ case: LETTERS[s.i], context: c, largest_batch: limits.curves[s.i][j],
      weights_bytes: s.step.memory.weights, capacity_bytes: s.step.memory.capacity })));
    return { svg: Charts.svg(width, height, "Memory, and the largest batch at each context", out), says: `${says}.`, table };
  }

  // (e) Decode as a service: what a user gets against what a device gives, cost and energy.
  function serving(shown, { width, curves, context, served }) {
    const live = alive(shown).filter((s) => curves[s.i]?.length);
    const refused = alive(shown).filter((s) => served?.refused[s.i]).map((s) => ` ${LETTERS[s.i]} cannot serve this: ${served.refused[s.i]}.`).join("");
    if (!live.length) return refused ? { svg: "", says: refused.trim(), table: [] } : null;
    const top = legend(live, width, 10), height = Math.max(300, Math.min(380, width * 0.62)) + top.height;
    const all = live.flatMap((s) => curves[s.i]);
    const f = Charts.frame({ width, height, top: 8 + top.height, left: 60, x: { kind: "log", low: Math.min(...all.map((p) => p.user)) * 0.9, high: Math.max(...all.map((p) => p.user)) * 1.1 },
      y: { kind: "log", low: Math.min(...all.map((p) => p.each)) * 0.8, high: Math.max(...all.map((p) => p.each)) * 1.3 }, xLabel: "tokens/s that each user sees", yLabel: "tokens/s of each device",
      xTick: shortCount, yTick: shortCount, xMost: 5 });
    let out = f.out + top.out;
    const many = (n) => (served ? `${n} in flight` : `batch ${n}`);
    const labels = [], places = [];
    for (const s of live) {
      const points = curves[s.i];
      out += Charts.path(points.map((p) => [f.sx(p.user), f.sy(p.each)]), COLORS[s.i], 2.2, ["", "7 3", "2 3"][s.i]);
      points.forEach((p, j) => {
        const now = p.batch === s.step.batch;
        out += Charts.marker(s.i, f.sx(p.user), f.sy(p.each), now ? 7 : 3.5, COLORS[s.i], `${LETTERS[s.i]} ${many(p.batch)}: ${digits(p.user)} tokens/s for each user, ${digits(p.each)} for each device${p.joule ? `, ${digits(p.joule)} J per token` : ""}`);
        places.push([f.sx(p.user), f.sy(p.each)]);
        if (j === 0 || j === points.length - 1 || now) labels.push({ x: f.sx(p.user), y: f.sy(p.each), words: `${LETTERS[s.i]}, ${many(p.batch)}`, color: COLORS[s.i], now });
      });
    }
    out += Charts.names(labels.sort((a, b) => b.now - a.now), places, f);
    const sentences = live.map((s) => {
      const best = curves[s.i].reduce((a, b) => (b.each > a.each ? b : a)), one = curves[s.i][0];
      const money = best.cost !== null ? `, ${digits(best.cost)} per million tokens` : "", joule = best.joule !== null ? `, ${digits(best.joule)} J per token` : "";
      return `${LETTERS[s.i]} gives one user ${digits(one.user)} tokens/s, or ${served ? "with" : "at"} ${many(best.batch)} ${digits(best.each)} tokens/s from each device (${digits(best.user)} for each user${money}${joule})`;
    });
    const basis = served ? `Requests of ${power(context)} tokens in and ${served.output} out, as many in flight as marked, served as vLLM does: prefills and queues are in it, in the steady state.`
      : `These are decode steps alone at ${power(context)} tokens of context: whole requests, with prefills and queues, come when the hand rests.`;
    const says = `${sentences.join("; ")}. ${basis}${refused}`;
    const table = live.flatMap((s) => curves[s.i].map((p) => ({ case: LETTERS[s.i], batch: p.batch, tokens_per_s_per_user: p.user,
      tokens_per_s_per_device: p.each, first_token_s: p.ttft ?? "", cost_per_million_tokens: p.cost ?? "", joule_per_token: p.joule ?? "" })));
    return { svg: Charts.svg(width, height, "Tokens per second of a user against those of a device", out), says, table };
  }

  // (f) Expected loss beside speed.
  function quality(shown, { width, model, losses, base }) {
    const live = alive(shown).map((s) => ({ ...s, loss: losses(s.case) }));
    if (!live.length) return null;
    const known = live.filter((s) => s.loss && s.loss.lost !== null);
    const unknown = live.filter((s) => !known.includes(s)).map((s) => `${LETTERS[s.i]} (${nameOf(s.case)})`);
    const missing = unknown.length ? ` Nothing published is near enough to say what ${list(unknown)} would lose: qsim study measures it.` : "";
    if (!known.length) return { svg: "", says: missing.trim(), table: [] };
    const top = legend(live, width, 10), height = Math.max(260, Math.min(330, width * 0.55)) + top.height;
    const gains = known.map((s) => base[s.i] / s.step.time);
    const high = Math.max(...known.map((s) => s.loss.high), 1) * 1.1, low = Math.min(0, ...known.map((s) => s.loss.low)) - 0.2;
    const f = Charts.frame({ width, height, top: 8 + top.height, x: { low: Math.min(0.8, ...gains) * 0.95, high: Math.max(1.3, ...gains) * 1.08 }, y: { low, high },
      xLabel: "speed-up over bf16 on the same device", yLabel: "expected loss, % of score", xTick: times });
    let out = f.out + top.out + Charts.line(f.left, f.sy(0), f.right, f.sy(0), "var(--plot2)", 1.2);
    known.forEach((s, k) => {
      const x = f.sx(gains[k]);
      out += Charts.line(x, f.sy(s.loss.low), x, f.sy(s.loss.high), COLORS[s.i], 2);
      out += Charts.marker(s.i, x, f.sy(s.loss.lost), 7, COLORS[s.i], `${LETTERS[s.i]}: ${digits(s.loss.lost, 2)} %`);
      out += Charts.text(x + (x > f.right - 90 ? -11 : 11), f.sy(s.loss.lost) - 6, `${LETTERS[s.i]} ${nameOf(s.case)}`, { anchor: x > f.right - 90 ? "end" : "start", color: COLORS[s.i], weight: 600, halo: true });
    });
    const words = { exact: "nothing", measured: "measured", published: "published for this model", near: "published for its kin", law: "a law over models" };
    const says = known.map((s) => (s.loss.basis === "exact" ? `${LETTERS[s.i]} loses nothing: it is 16 bit`
      : `${LETTERS[s.i]}, by ${s.loss.method}, is expected to lose ${digits(s.loss.lost, 2)} % of an average score (80 % band ${digits(s.loss.low, 2)} to ${digits(s.loss.high, 2)}; ${words[s.loss.basis] ?? s.loss.basis})`
      + (s.loss.fragile ? ", and a collapse of this kind was published for a model of its class" : ""))).join("; ");
    const table = known.map((s, k) => ({ case: LETTERS[s.i], model, scheme: nameOf(s.case), method: s.loss.method, lost_percent: s.loss.lost,
      low: s.loss.low, high: s.loss.high, basis: s.loss.basis, speedup: gains[k] }));
    return { svg: Charts.svg(width, height, "Expected loss beside speed", out), says: `${says}.${missing}`, table };
  }

  function largestShare(step) {
    const groups = new Map();
    for (const r of step.rows) groups.set(groupOf(r.name), (groups.get(groupOf(r.name)) ?? 0) + r.time);
    return Math.max(...groups.values()) / step.time;
  }

  return { largestShare, roofline, breakdown, speedup, memory, serving, quality, labels, nameOf, COLORS, LETTERS, power, shortCount, list };
})();
