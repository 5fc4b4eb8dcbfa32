// The page: controls, state, and what is drawn when something changes.
"use strict";

const App = (() => {
  const { digits, seconds } = Charts;
  const $ = (id) => document.getElementById(id);
  const parse = (id) => JSON.parse($(id).textContent);
  const VIEWS = [
    ["speedup", "When does a narrower format pay?"], ["breakdown", "Where does the time go?"],
    ["roofline", "What limits each operator?"], ["memory", "What fits?"],
    ["serving", "What does a user get, and what does a device give?"], ["quality", "What is lost?"],
  ];
  const FIRST = ["memory.bandwidth_gbytes_per_s", "memory.capacity_gbytes", "link.bandwidth_gbytes_per_s_per_direction",
    "link.latency_us", "layer_overhead_us", "hop_latency_us"];
  let config, P, state, found = null, cards = [], asked = 0, linking = 0, drawing = 0, serving = 0;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [k, v] of Object.entries(attributes)) {
      if (k.startsWith("on")) element.addEventListener(k.slice(2), v);
      else if (k === "text") element.textContent = v;
      else if (v !== false && v !== null) element.setAttribute(k, v === true ? "" : v);
    }
    element.append(...children);
    return element;
  };
  const select = (names, current, label, onchange, words = (n) => n) => {
    const box = make("select", { "aria-label": label, onchange: (e) => onchange(e.target.value) });
    for (const name of names) box.append(make("option", { value: name, text: words(name) }));
    box.value = current;
    return box;
  };
  const labelled = (words, ...inputs) => make("label", {}, words, ...inputs);
  let unique = 0;

  // A slider and a number that say the same; a refused number stays visible and says why.
  function slide({ label, value, low, high, whole, refusal, apply }) {
    const id = `why${unique++}`, log = (v) => Math.log2(v / low) / Math.log2(high / low);
    const range = make("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": label });
    const number = make("input", { type: "number", step: "any", "aria-label": `${label}, exact`, "aria-describedby": id });
    const why = make("span", { class: "why", id, role: "status" });
    const show = (v) => { range.value = Math.round(1000 * log(Math.min(Math.max(v, low), high))); };
    range.addEventListener("input", () => {
      const raw = low * (high / low) ** (range.value / 1000), v = whole ? Math.max(1, Math.round(raw)) : Number(raw.toPrecision(4));
      number.value = v; number.setAttribute("aria-invalid", "false"); why.textContent = "";
      apply(v);
    });
    number.addEventListener("input", () => {
      const v = number.value === "" ? NaN : Number(number.value), said = refusal(v);
      number.setAttribute("aria-invalid", String(said !== null));
      why.textContent = said === null ? "" : `${said}; the last value that was right is shown`;
      if (said === null) { show(v); apply(v); }
    });
    const set = (v) => { number.value = v; show(v); number.setAttribute("aria-invalid", "false"); why.textContent = ""; };
    set(value);
    return { range, number, why, set };
  }

  function countRefusal(name) {
    const [low, high] = State.LIMITS[name];
    return (v) => (Number.isInteger(v) && v >= low && v <= high ? null : `${name} must be a whole number from ${low} to ${high}`);
  }

  // --- controls ---------------------------------------------------------------------------------------------------------

  function buildShared() {
    const bar = $("shared");
    bar.replaceChildren();
    bar.append(labelled("model", select(Object.keys(P.models), state.model, "model", (v) => { state.model = v; buildCases(); update(); })));
    const phases = make("div", { class: "segment", role: "group", "aria-label": "phase" });
    for (const phase of ["decode", "prefill"]) {
      phases.append(make("button", { type: "button", text: phase, "aria-pressed": String(state.phase === phase),
        title: phase === "decode" ? "one token for every sequence" : "the whole prompt at once", onclick: () => { state.phase = phase; buildShared(); bar.querySelector("[aria-pressed=true]").focus(); update(); } }));
    }
    bar.append(make("div", {}, make("label", { text: "phase" }), phases));
    for (const [name, most] of [["batch", 512], ["context", 131072]]) {
      const s = slide({ label: name, value: state[name], low: name === "batch" ? 1 : 64, high: most, whole: true, refusal: countRefusal(name),
        apply: (v) => { state[name] = v; update(); } });
      bar.append(make("div", {}, make("label", { text: name === "batch" ? "batch, sequences at once" : state.phase === "prefill" ? "prompt, tokens" : "context, tokens" }),
        make("div", { class: "slide" }, s.range, s.number), s.why));
    }
  }

  function buildCases() {
    const box = $("cases");
    box.replaceChildren();
    cards = state.cases.map((c, i) => buildCase(c, i));
    box.append(...cards.map((card) => card.element));
    $("add").hidden = state.cases.length >= 3;
  }

  function fieldWords(path) {
    const [, unit] = /_((?:g|m)bytes_per_s|(?:g|m)bytes|tflops|mhz|us|w)(?:_per_direction)?$/.exec(path) ?? [];
    const units = { gbytes_per_s: "GB/s", gbytes: "GB", mbytes: "MB", tflops: "TFLOP/s", mhz: "MHz", us: "µs", w: "W" };
    const words = path.replace(/^compute\.peaks\./, "peak ").replace(/^compute\./, "").replace(/[._]/g, " ")
      .replace(/ (dense tflops|(g|m)bytes per s( per direction)?|(g|m)bytes|tflops|mhz|us)$/, "").replace(/ w$/, "");
    return { words, unit: units[unit] ?? "" };
  }

  function buildCase(c, i) {
    const base = P.devices[c.device], mine = Views.COLORS[i];
    const refs = {};
    const remove = make("button", { type: "button", class: "x", text: "✕", title: "remove", "aria-label": `remove case ${Views.LETTERS[i]}`, hidden: state.cases.length < 2,
      onclick: () => { state.cases.splice(i, 1); state.on = 0; buildCases(); update(); } });
    const device = select(Object.keys(P.devices), c.device, "device", (v) => { c.device = v; c.set = {}; buildCases(); cards[i].element.querySelector("select").focus(); update(); }, (n) => `${n}: ${P.devices[n].title}`);
    const scheme = select(Object.keys(P.schemes), c.scheme, "scheme", (v) => { c.scheme = v; update(); });
    const kv = select(Object.keys(P.kv), c.kv, "KV cache", (v) => { c.kv = v; update(); }, (n) => n || "16 bit");
    const tp = select(widths(c), String(c.tp), "tensor parallel", (v) => { c.tp = Number(v); update(); });
    if (tp.value !== String(c.tp)) { tp.prepend(make("option", { value: String(c.tp), text: String(c.tp) })); tp.value = String(c.tp); }
    const price = make("input", { type: "number", min: 0, step: "any", placeholder: "per hour", "aria-label": "price per hour of a device" });
    if (c.price !== null) price.value = c.price;
    const priceWhy = make("span", { class: "why", role: "status" });
    price.addEventListener("input", () => {
      const v = price.value === "" ? null : Number(price.value), good = v === null || (v > 0 && v < 1e9);
      price.setAttribute("aria-invalid", String(!good || (price.value === "" && !price.validity.valid)));
      priceWhy.textContent = good ? "" : "a price must be above 0";
      if (good) { c.price = v; update(); }
    });
    refs.result = make("div", { "aria-live": "polite" });
    refs.command = make("code", { text: "" });
    const copy = make("button", { type: "button", class: "small copy", text: "Copy as command", onclick: () => copied(refs.command.textContent, "The command is copied") });
    const fields = Object.keys(base.fields).sort((a, b) => rank(a) - rank(b));
    const box = make("details", { open: Object.keys(c.set).length > 0 }, make("summary", { text: "Change the device" }));
    const inner = make("div", { class: "fields" }), further = make("details", { open: Object.keys(c.set).some((path) => rank(path) > 20) }, make("summary", { text: "Further fields" }));
    for (const path of fields) (rank(path) > 20 ? further : inner).append(buildField(c, path, base.fields[path]));
    if (further.childElementCount > 1) inner.append(further);
    box.append(inner);
    box.append(make("p", { class: "tools" }, make("button", { type: "button", class: "small", text: "Back to the device's own values", onclick: () => { c.set = {}; buildCases(); update(); } })));
    const element = make("section", { class: "case", style: `--mine:${mine}`, "aria-label": `case ${Views.LETTERS[i]}` },
      make("header", {}, make("span", { class: "letter", text: Views.LETTERS[i] }), device, remove),
      make("div", { class: "picks" }, labelled("scheme", scheme), labelled("KV cache", kv), labelled("devices", tp), labelled("price", price)), priceWhy,
      refs.result, box, refs.command, copy);
    return { element, refs };
  }

  const rank = (path) => { const i = FIRST.indexOf(path); return i >= 0 ? i : path.endsWith("dense_tflops") ? 10 : path.endsWith("capacity_mbytes") || path.startsWith("power") ? 20 : 30; };
  function widths(c) {
    const heads = P.models[state.model].heads, linked = P.devices[c.device].fields["link.latency_us"] !== undefined;
    return ["1", "2", "4", "8", "16"].filter((n) => n === "1" || (linked && heads % Number(n) === 0));
  }

  function buildField(c, path, own) {
    const { words, unit } = fieldWords(path), [, low, high] = P.ranges[path.split(".").at(-1)], changed = make("span", { class: "changed" });
    const say = (v) => { changed.textContent = v === own ? "" : `${digits(own, 4)} → ${digits(v, 4)} ${unit} (${digits(v / own)}×)`; };
    const whole = path === "compute.units";
    const s = slide({ label: `${words} ${unit}`, value: c.set[path] ?? own, low: Math.max(low, own / 8), high: Math.min(high, own * 8), whole,
      refusal: (v) => Law.refusal(path, v) ?? (whole && !Number.isInteger(v) ? `${path} must be a whole number` : null),
      apply: (v) => { if (v === own) delete c.set[path]; else c.set[path] = v; say(v); update(); } });
    say(c.set[path] ?? own);
    return make("div", { class: "field" }, make("label", { text: `${words}${unit ? `, ${unit}` : ""}`, title: path }), s.range, s.number, s.why, changed);
  }

  // --- what is shown -----------------------------------------------------------------------------------------------------

  function command(c) {
    const parts = ["qsim predict", word(state.model), `--device ${word(c.device)}`, `--scheme ${Views.nameOf(c)}`, `--phase ${state.phase}`, `--batch ${state.batch}`, `--context ${state.context}`];
    if (c.tp > 1) parts.push(`--tp ${c.tp}`);
    if (c.price !== null) parts.push(`--price ${c.price}`);
    for (const [path, v] of Object.entries(c.set)) parts.push(`--set ${path}=${v}`);
    return parts.join(" ");
  }
  const fileOf = (name) => config.files?.[name] ?? name;
  const word = (name) => (/^[\w./:@%+-]+$/.test(fileOf(name)) ? fileOf(name) : `'${fileOf(name).replace(/'/g, "'\\''")}'`);

  function showResult(box, shown, first) {
    box.replaceChildren();
    const c = shown.case;
    if (!shown.step) {
      box.append(make("p", { class: "nofit" }, make("b", { text: "Not possible: " }), shown.error));
      return;
    }
    const p = shown.step, m = p.memory;
    if (!m.fits) {
      const hints = Law.whatWouldFit(shown.device, P.models[state.model], Law.scheme(c.scheme, c.kv), state.batch, state.context, c.tp);
      const line = make("p", { class: "nofit" }, make("b", { text: `Does not fit: ${Charts.bytes(m.total - m.capacity)} too much. ` }),
        `It needs ${Charts.bytes(m.total)}, a device has ${Charts.bytes(m.capacity)}. ${hints.length ? "Would fit: " : "Nothing tried here would fit: a larger device is needed."}`);
      for (const hint of hints) {
        line.append(make("button", { type: "button", class: "small", text: hint.words, onclick: () => {
          if (hint.set.batch) { state.batch = hint.set.batch; buildShared(); } else Object.assign(c, hint.set);
          buildCases(); update();
        } }), " ");
      }
      box.append(line);
    }
    box.append(make("p", { class: "big" }, seconds(p.time), " ", make("small", { text: `${state.phase === "decode" ? "per token step" : "to read the prompts"}, 80 % band ${seconds(p.low)} to ${seconds(p.high)}` })));
    const facts = make("dl", { class: "facts" }), fact = (name, text, kind = "") => facts.append(make("dt", { text: name }), make("dd", { text, class: kind }));
    if (first && first !== shown) {
      const s = Law.speedup(p, first.step);
      fact("against A", `${digits(s.value)}× as fast (${digits(s.low)} to ${digits(s.high)}${s.low > 1 || s.high < 1 ? "" : ": not sure"})`, "gain");
    }
    fact("rate", `${digits(p.rate)} tokens/s${state.phase === "decode" ? `, ${digits(p.rate / state.batch)} for each user` : ""}`);
    fact("bound by", `${p.bound}, mostly`);
    fact("memory", `${Charts.bytes(m.total)} of ${Charts.bytes(m.capacity)}; room for ${digits(p.largest)} sequences`);
    if (p.energy) fact("energy", `${digits(p.energy.joules / p.tokens)} J per token (${digits(p.energy.low / p.tokens)} to ${digits(p.energy.high / p.tokens)})`);
    if (c.price !== null) fact("cost", `${digits(Law.cost(c.price, p))} per million tokens`);
    fact("known", p.tag);
    box.append(facts);
    for (const note of p.notes) box.append(make("p", { class: "fine", text: note }));
  }

  function widthOf(element) { return Math.round(Math.min(760, Math.max(280, element.clientWidth || 320))); }

  // Whether a view is in the window or just below it; the question on the flip needs the first one at any time.
  function visible(name) {
    const box = document.querySelector(`[data-view=${name}]`).getBoundingClientRect();
    return name === "speedup" || (box.top < innerHeight + 100 && box.bottom > -100);
  }

  function drawView(name, shown) {
    const card = document.querySelector(`[data-view=${name}]`), width = widthOf(card);
    const on = state.cases[state.on];
    let made = null;
    if (name === "speedup") {
      made = found.curves.base.times ? Views.speedup(found.curves, { width, batch: state.batch, phase: state.phase, device: on.device + (Object.keys(on.set).length ? " as changed" : ""), cases: state.cases }) : null;
    } else if (name === "memory") made = Views.memory(shown, { width, context: state.context, limits: found.limits });
    else if (name === "serving") made = Views.serving(shown, { width, curves: found.serving, context: state.context, served: found.served ?? null });
    else if (name === "quality") made = Views.quality(shown, { width, model: state.model, base: found.base, losses: (c) => lossOf(c) });
    else made = Views[name](shown, { width });
    found.views[name] = made;
    card.querySelector(".says").textContent = made ? made.says : "Nothing can be drawn of these cases.";
    card.querySelector(".draw").innerHTML = made ? made.svg : "";
    card.querySelector(".get").hidden = !made || !made.table.length;
  }

  function lossOf(c) {
    const row = (found.losses ?? config.losses)[state.model]?.[Views.nameOf(c)];
    if (!row) return null;
    const [lost, low, high, basis, method, fragile] = row;
    return { lost, low, high, basis: config.bases[basis], method: config.methods[method].replace("rtn", "rounding to nearest"), fragile: !!fragile };
  }

  function shownCases() {
    const labels = Views.labels(state.cases);
    return found.steps.map((s, i) => ({ ...s, case: state.cases[i], label: labels[i], i, device: Answers.deviceOf(state.cases[i]) }));
  }

  function draw() {
    const shown = shownCases(), first = shown[0].step ? shown[0] : null;
    shown.forEach((s, i) => { showResult(cards[i].refs.result, s, first); cards[i].refs.command.textContent = command(state.cases[i]); });
    const later = VIEWS.map(([name]) => name).filter((name) => !visible(name));
    for (const [name] of VIEWS) if (!later.includes(name)) drawView(name, shown);
    clearTimeout(drawing); // what is out of sight is drawn when the hand rests
    const now = found;
    drawing = setTimeout(() => { if (now.steps === found.steps) later.forEach((name) => drawView(name, shown)); }, 80);
    const picks = document.querySelector("[data-view=speedup] .of");
    picks.replaceChildren();
    if (state.cases.length > 1) {
      picks.append("on ", select(state.cases.map((_, i) => String(i)), String(state.on), "device of the curves", (v) => { state.on = Number(v); update(); }, (i) => `${Views.LETTERS[i]}: ${state.cases[i].device}`));
    }
  }

  function relink() {
    const link = `#${State.toText(state)}`;
    if (link !== location.hash) history.replaceState(null, "", link);
  }

  async function update() {
    const began = performance.now(), mine = ++asked;
    clearTimeout(linking); // a browser lets a page change its address only so often
    linking = setTimeout(relink, 150);
    if (state.tab === "numbers") Numbers.draw($("numbers"), state);
    else {
      const q = Answers.questionOf(state);
      if (config.live) {
        let answer;
        try { answer = await Answers.live(q); } catch (error) { if (mine === asked) say(`The predictor does not answer: ${error.message}. Is qsim explore still running?`); return; }
        if (mine !== asked) return; // another change came meanwhile
        found = { ...answer, views: {} };
      } else found = { ...Answers.local(q), views: {} };
      draw();
      clearTimeout(serving); // whole workloads take longer than a step: they come when the hand rests
      serving = setTimeout(async () => {
        const started = performance.now();
        const more = config.live ? await Answers.served(q).catch(() => null) : Answers.workloads(q);
        if (more === null || mine !== asked) return;
        found = { ...found, serving: more.curves, served: more };
        drawView("serving", shownCases());
        performance.measure("workloads", { start: started });
      }, 400);
    }
    ask();
    performance.measure("update", { start: began });
  }

  // --- question, notes, downloads -----------------------------------------------------------------------------------------

  function ask() {
    const box = $("question"), q = Questions.ALL[state.question];
    const numbers = ["cast", "vanish", "zeros"].includes(state.question);
    box.hidden = !q || numbers !== (state.tab === "numbers");
    const key = q ? `${state.question} ${q.ask(state)}` : "";
    $("speed").classList.toggle("asked", !box.hidden && box.dataset.answered !== key);
    $("numbers").classList.toggle("asked", !box.hidden && box.dataset.answered !== key);
    if (box.hidden) return;
    if (box.dataset.asked === key) return;
    box.dataset.asked = key;
    const guess = make("input", { type: "number", step: "any", "aria-label": `your answer, ${q.unit}` }), said = make("p", { role: "status" });
    const judge = () => {
      const right = q.answer(state, found);
      if (right === null) said.textContent = `The answer: ${q.none ?? "these cases have none"}.`;
      else {
        const words = guess.value === "" ? "" : q.judge(Number(guess.value), right) ? "Right. " : "Not quite. ";
        said.textContent = `${words}It is ${q.say(right)}.`;
      }
      box.dataset.answered = key;
      $(state.tab).classList.remove("asked");
    };
    box.replaceChildren(make("p", {}, make("strong", { text: q.ask(state) })), make("div", { class: "row" }, labelled(q.unit, guess),
      make("button", { type: "button", text: "Compare with the answer", onclick: judge }),
      make("button", { type: "button", class: "x", text: "No question, please", onclick: () => { state.question = ""; box.dataset.asked = ""; update(); } })), said);
  }

  function say(words) { $("said").textContent = words; setTimeout(() => { if ($("said").textContent === words) $("said").textContent = ""; }, 6000); }
  async function copied(text, words) {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = make("textarea", { "aria-hidden": "true" });
      area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    say(words);
  }

  function download(name, data, type) {
    const url = URL.createObjectURL(data instanceof Blob ? data : new Blob([data], { type }));
    const a = make("a", { href: url, download: name });
    a.click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  // The drawing with its colours written out, so that it stands alone.
  function standalone(svg) {
    const style = getComputedStyle(document.documentElement);
    return svg.replace(/var\((--[\w]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  }

  function csv(rows) {
    const cell = (v) => { const t = String(v ?? ""); return /[",\n]/.test(t) ? `"${t.replace(/"/g, '""')}"` : /^[=+@-]/.test(t) && typeof v === "string" ? `'${t}` : t; };
    const names = Object.keys(rows[0]);
    return [names.join(","), ...rows.map((r) => names.map((n) => cell(r[n])).join(","))].join("\n") + "\n";
  }

  function saved(name, kind) {
    const made = found.views[name];
    if (kind === "csv") { download(`qsim-${name}.csv`, csv(made.table), "text/csv"); return; }
    const svg = standalone(made.svg);
    if (kind === "svg") { download(`qsim-${name}.svg`, svg, "image/svg+xml"); return; }
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: image.width * 2, height: image.height * 2 }), context = canvas.getContext("2d");
      context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.scale(2, 2); context.drawImage(image, 0, 0);
      canvas.toBlob((blob) => download(`qsim-${name}.png`, blob));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  }

  function buildViews() {
    const box = $("views");
    for (const [name, title] of VIEWS) {
      const get = make("p", { class: "get" }, "Save as ");
      for (const kind of ["svg", "png", "csv"]) get.append(make("button", { type: "button", class: "small", text: kind.toUpperCase(), "aria-label": `save ${title} as ${kind.toUpperCase()}`, onclick: () => saved(name, kind) }), " ");
      box.append(make("section", { class: "view", "data-view": name, "aria-label": title }, make("span", { class: "of" }), make("h2", { text: title }), make("p", { class: "says" }), make("div", { class: "draw" }), get));
    }
  }

  function showTab(tab) {
    state.tab = tab;
    for (const name of ["speed", "numbers"]) {
      $(name).hidden = name !== tab;
      $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
      $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
    }
    update();
  }

  function read(text) {
    const { state: next, wrong } = State.fromText(text, config, P);
    state = next;
    $("question").dataset.asked = "";
    $("note").hidden = !wrong.length;
    $("note").textContent = wrong.length ? `Not all of the link could be read: ${wrong.join("; ")}.` : "";
    buildShared(); buildCases(); Numbers.build($("numbers"), state, update);
    showTab(state.tab);
  }

  function start() {
    config = parse("config");
    P = parse("parameters");
    Law.load(P);
    Numbers.init(config.formats);
    buildViews();
    for (const name of ["speed", "numbers"]) {
      $(`tab-${name}`).addEventListener("click", () => showTab(name));
      $(`tab-${name}`).addEventListener("keydown", (e) => {
        if (e.key === "ArrowLeft" || e.key === "ArrowRight") { const other = name === "speed" ? "numbers" : "speed"; showTab(other); $(`tab-${other}`).focus(); }
      });
    }
    $("add").addEventListener("click", () => { const last = state.cases.at(-1); state.cases.push({ ...last, scheme: "fp8-rowwise", set: { ...last.set } }); buildCases(); update(); });
    $("link").addEventListener("click", () => { relink(); copied(location.href, "The link to this case is copied"); });
    $("reset").addEventListener("click", () => { history.replaceState(null, "", location.pathname + location.search); read(""); });
    window.addEventListener("hashchange", () => { if (location.hash !== `#${State.toText(state)}`) read(location.hash); });
    let wide = innerWidth;
    window.addEventListener("beforeprint", () => { if (found) VIEWS.forEach(([name]) => drawView(name, shownCases())); });
    window.addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; update(); } });
    read(location.hash);
  }

  return { start, get state() { return state; }, get found() { return found; }, update };
})();
App.start();
