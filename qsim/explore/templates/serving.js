// Whole workloads: the closed form of hwmodels.serving, line by line, as the page's cases serve: vLLM's policy, whose
// steps mix prompts with decode rows, a closed loop, every length alike, no prefix cache and no drafts. Step times are
// of the law (law.js); sizes and constants are exported by qsim.explore.served; tests/explore holds it to Python.
"use strict";

const Serving = (() => {
  const between = (xs, ys, x) => { // linear, flat outside
    const last = xs.length - 1;
    if (x <= xs[0]) return ys[0];
    if (x >= xs[last]) return ys[last];
    let low = 0, high = last;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] <= x) low = mid; else high = mid; }
    return ys[low] + (ys[high] - ys[low]) * ((x - xs[low]) / (xs[high] - xs[low]));
  };
  const even = (x) => { // rounded, halves to the even one, as Python does
    const down = Math.floor(x), rest = x - down;
    return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
  };
  const running = (values) => { let most = -Infinity; return values.map((v) => (most = Math.max(most, v))); };

  // Seconds of the parts of a step of one engine (`steps.tabulate`), for contexts of up to `longest` tokens.
  function tabulate(d, c, modelName, longest) {
    const E = Law.parameters.engine, model = Law.parameters.models[modelName], s = Law.scheme(c.scheme, c.kv);
    const own = Law.engine(d), context = Math.max(longest, 512), at = E.tokens;
    const step = (tokens) => Law.predict(own, modelName, c.scheme, c.kv, "decode", tokens, 2, c.tp);
    const linear = [], head = [];
    let power = null;
    const here = at.findIndex((tokens) => tokens >= Math.min(E.rows, 32));
    for (let i = at.length - 1; i >= 0; i--) { // the largest first, whose pieces hold those of the others
      const found = step(at[i]);
      linear[i] = head[i] = 0;
      for (const r of found.rows) {
        if (E.head.includes(r.name)) head[i] += r.time;
        else if (r.kind !== "attention") linear[i] += r.time;
      }
      if (i === here && found.energy) power = found.energy.watts * c.tp;
    }
    const reading = Law.attending(own, modelName, c.scheme, c.kv, c.tp);
    const few = [...at.filter((tokens) => tokens < E.rows), E.rows];
    const ratio = Math.log(context / E.first_context) / (E.columns - 2), decode = [];
    for (let k = E.columns - 1; k >= 0; k--) {
      const column = E.first_context * Math.exp(ratio * k);
      decode[k] = few.map((rows) => reading("decode", rows, column));
    }
    const lengths = Array.from({ length: 40 }, (_, i) => 16 * (context / 16) ** (i / 39));
    lengths[39] = context;
    const single = lengths.map((n) => reading("prefill", 1, n));
    const marginal = running(lengths.map((n, i) => (reading("prefill", 8, n) - single[i]) / 7));
    const spacing = (1.05 * context) / (E.pieces - 1), last = (marginal[39] - marginal[38]) / (lengths[39] - lengths[38]);
    const prompt = Array.from({ length: E.pieces }, (_, i) => between([0, ...lengths], [0, ...marginal], spacing * i)
      + last * Math.max(spacing * i - context, 0));
    const apart = single.slice(0, 5).map((v, i) => Math.max(v - marginal[i], 0)).sort((a, b) => a - b);
    const held = Law.footprint(d, model, s, 1, context, 1, c.tp);
    const spare = held.capacity * E.memory_share - held.weights - E.per_token_bytes;
    const mixtures = model.mlps.reduce((n, mlp) => n + (mlp.type === "experts" ? mlp.count : 0), 0);
    return { at, linear, head, few, decode, ratio, prompt, spacing, fixed: apart[2], power, mixtures,
      tokens: (Math.max(0, spare) * context) / held.cache, weights: held.weights, capacity: held.capacity };
  }

  function padded(rows) { // rows of the CUDA graph that runs so many
    const E = Law.parameters.engine, sizes = E.graph_rows;
    if (rows === 0 || !sizes.length || rows > sizes.at(-1)) return rows;
    return Math.min(sizes.find((size) => size >= rows), E.rows);
  }

  function attention(t, rows, context) {
    const E = Law.parameters.engine, first = E.first_context, at = (k) => (rows === 0 ? 0 : between(t.few, t.decode[k], rows));
    if (context <= first) return (at(0) * Math.max(context, 1)) / first;
    const k = Math.min(Math.floor(Math.log(context / first) / t.ratio), E.columns - 2);
    const low = first * Math.exp(k * t.ratio), high = first * Math.exp((k + 1) * t.ratio);
    return at(k) + ((context - low) / (high - low)) * (at(k + 1) - at(k));
  }

  // Seconds of one step (`loop.step_s`): decode rows and their context; prompt tokens, their attention, prompts that end.
  function stepTime(t, host, rows, context, chunk, prefill, ending) {
    const seen = chunk === 0 ? padded(rows) : rows, most = Law.parameters.engine.most_tokens;
    const of = (values, tokens) => (tokens === 0 ? 0 : between(t.at, values, Math.min(tokens, most)));
    let total = of(t.linear, seen + chunk) + of(t.head, seen + ending);
    if (rows > 0) total += attention(t, seen, context);
    total += prefill + host.step + host.row * (rows + ending);
    return chunk > 0 ? total + host.prompt : total;
  }

  // Seconds from `offset` after the end of a step to the next end of one (`mean_field._until_next`).
  function untilNext(offset, plain, filled, share) {
    const mean = (1 - share) * plain + share * filled;
    const random = ((1 - share) * plain ** 2 + share * filled ** 2) / (2 * mean);
    let waited = 0, left = offset, chance = 1;
    for (let i = 0; i < Law.parameters.engine.steps_seen; i++) {
      waited += chance * share * (left <= filled ? filled - left : random);
      if (left <= plain) return waited + chance * (1 - share) * (plain - left);
      chance *= 1 - share;
      left -= plain;
    }
    return waited + chance * random;
  }

  // One engine in steady state (`mean_field.steady`): seconds per token and to the first one, requests per second.
  function steady(t, host, flight, prompt, output, places, inbound) {
    const E = Law.parameters.engine, busy = Math.min(flight, places), context = prompt + output / 2;
    const position = prompt / t.spacing, piece = Math.min(Math.floor(position), E.pieces - 2);
    const reading = t.prompt[piece] + (position - piece) * (t.prompt[piece + 1] - t.prompt[piece]) - t.prompt[0];
    const others = 1 - 1 / busy, time = (...of) => stepTime(t, host, ...of);
    let rows = Math.max(1, busy), token = 0, waited = 0, sent = 0;
    for (let turn = 0; turn < E.rounds; turn++) {
      const met = rows, low = Math.min(Math.floor(met), E.most_tokens, E.rows - 1), part = met - low, whole = even(met);
      let plain = 0;
      for (const [count, weight] of [[low, 1 - part], [low + 1, part]]) {
        if (weight > 0) plain += weight * time(Math.max(count, 1), context, 0, 0, 0);
      }
      const room = Math.max(E.token_budget - met, 1), pieces = Math.max(1, Math.ceil(prompt / room));
      const coming = sent * Math.max(plain, token) * others, share = 1 - Math.exp(-coming * pieces);
      const held = (coming * prompt) / Math.max(share, 1e-9), over = Math.max(held / room, 1);
      const ending = Math.max(1, even(coming / Math.max(share, 1e-9)));
      const filled = time(whole, context, Math.trunc(Math.min(held, room)),
        (coming * reading) / Math.max(share, 1e-9) / over + t.fixed, ending);
      const each = (1 - share) * plain + share * filled * over, longest = filled * over;
      let late = ((1 - share) * plain ** 2 + share * longest ** 2) / (2 * each);
      const beside = Math.max(coming, sent * others * 2 * late);
      const chunk = Math.trunc(Math.min(prompt / pieces + beside * prompt, room));
      const service = time(whole, context, chunk, reading / pieces + beside * reading + t.fixed, 1) * pieces;
      const used = Math.min((coming * prompt) / room, 0.95), ahead = (used / (2 * (1 - used))) * service;
      const moved = Math.abs(each - token);
      token = turn === 0 ? each : 0.5 * (token + each);
      late = inbound === 0 || flight <= 1 ? 0 : untilNext(inbound, plain, longest, share);
      sent = busy / (service + ahead + late + inbound + Math.max(output - 1, 0) * token);
      waited = service + ahead + late + Math.max(flight - places, 0) / sent;
      const fresh = Math.min(Math.max(0.5 * (rows + sent * Math.max(output - 1, 0) * token), 1), places);
      const still = moved < E.close * token && Math.abs(fresh - rows) < E.close * rows;
      rows = fresh;
      if (still) break;
    }
    return { token, first: waited + inbound, sent };
  }

  // Weights, or one request, that the devices cannot hold are an error (`served.check_fits`).
  function checkFits(d, c, modelName, t, longest) {
    const devices = `tp${c.tp} of ${d.name}`, scheme = c.scheme + (c.kv ? `-kv${c.kv}` : ""), bytes = (v, n) => (v / 1e9).toFixed(n);
    if (t.tokens < 1) {
      throw new Error(`${modelName} with ${scheme} does not fit ${devices}: its weights are ${bytes(t.weights, 1)} GB of each `
        + `device's ${bytes(t.capacity, 0)} GB, which leaves no room for a KV cache; take more devices for each engine or a `
        + "smaller scheme");
    }
    if (longest + 32 > t.tokens) {
      throw new Error(`a request of ${longest} tokens does not fit ${devices}: its KV cache holds ${t.tokens.toFixed(0)}; take `
        + "more devices for each engine, a smaller scheme or shorter requests");
    }
  }

  // A case at each number of requests in flight.
  function curve(d, c, modelName, context) {
    const E = Law.parameters.engine, output = E.output, longest = Math.ceil((context + output) * (1 + E.spread));
    const t = tabulate(d, c, modelName, longest), k = d.engine.constants;
    checkFits(d, c, modelName, t, longest);
    const host = { step: k.step_s + t.mixtures * k.expert_s, row: k.row_s, prompt: k.prompt_step_s };
    const each = context + (E.reserve_output ? 1 : 0.5) * output + E.block_tokens / 2;
    const places = Math.min(Math.max(Math.floor((t.tokens * (1 - E.watermark)) / each), 1), E.max_sequences, E.rows - 1);
    return E.in_flight.map((flight) => {
      const found = steady(t, host, flight, context, output, places, k.request_s + k.token_s * context), rate = found.sent * output;
      return { batch: flight, user: 1 / found.token, each: rate / c.tp, ttft: found.first,
        cost: c.price === null ? null : ((c.price * c.tp) / 3600 / rate) * 1e6, joule: t.power === null ? null : t.power / rate };
    });
  }

  return { curve };
})();
