// Formats and rounding: one number in two formats, a block under a shared scale, an accumulator of few bits.
"use strict";

const Numbers = (() => {
  const { digits } = Charts;
  const STANDARD = { x: "0.3", f1: "float8_e4m3fn", f2: "float4_e2m1fn", block: "32", outlier: "8", bits: "13", product: "1.5", many: "16384" };
  const ROLES = { s: "sign", e: "exponent", m: "mantissa", i: "integer" };
  let F = null; // formats
  let drawn = null;
  const init = (formats) => { F = formats; };

  const value = (s, key) => s.numbers[key] ?? STANDARD[key];
  const number = (s, key, low, high) => {
    const v = Number(value(s, key));
    return value(s, key).trim() !== "" && Number.isFinite(v) && v >= low && v <= high ? v : Number(STANDARD[key]);
  };
  const formatOf = (s, key) => (Object.hasOwn(F.elements, value(s, key)) ? value(s, key) : STANDARD[key]);
  const shown = (v) => (Object.is(v, -0) ? "-0" : Number.isNaN(v) ? "NaN" : v === null ? "no code" : String(Number(v.toPrecision(8))));

  const cast = (s) => Codec.explain(number(s, "x", -1e30, 1e30), F.elements[formatOf(s, "f1")]).value;

  function bitsOf(f, code) {
    const text = code.toString(2).padStart(f.bits, "0");
    return [...text].map((bit, i) => [bit, f.type !== "float" ? "i" : f.signed && i === 0 ? "s" : i < f.bits - f.m ? "e" : "m"]);
  }

  function decision(x, name, found) {
    if (found.code === null) return `${name} has no code for ${shown(x)}.`;
    if (found.kind === "nan") return "NaN stays NaN.";
    if (found.kind === "exact") return `${shown(x)} is a number of ${name}: nothing is lost.`;
    const error = Math.abs(found.value - x), percent = x ? ` (${digits((100 * error) / Math.abs(x), 2)} %)` : "";
    if (found.kind === "saturated") return `${shown(x)} is outside the range of ${name} and becomes its nearest end, ${shown(found.value)}: an error of ${digits(error)}${percent}.`;
    const sign = found.negative && !found.signed ? -1 : 1, a = shown(sign * found.below), b = shown(sign * found.above);
    const why = found.tie ? "exactly in the middle, so the even code wins" : `${digits(100 * found.fraction, 3)} % of the way from the first to the second, so the ${found.fraction > 0.5 ? "second" : "first"} is nearer`;
    return `${shown(x)} lies between ${a} and ${b}, ${why}: ${shown(found.value)}, an error of ${digits(error)}${percent}.`;
  }

  // Values of the format around x, on a line.
  function neighbourhood(x, f, found, color, width) {
    const all = [];
    for (let c = 0; c < 2 ** f.bits; c++) { const v = Codec.decode(c, f); if (Number.isFinite(v)) all.push(v); }
    const sorted = [...new Set(all)].sort((a, b) => a - b);
    let i = sorted.findIndex((v) => v >= x);
    if (i < 0) i = sorted.length - 1;
    const from = Math.max(0, Math.min(i - 4, sorted.length - 9)), some = sorted.slice(from, from + 9);
    const low = Math.min(some[0], x), high = Math.max(some.at(-1), x), pad = (high - low) * 0.04 || 1, height = 74;
    const sx = Charts.scale("linear", low - pad, high + pad, 26, width - 26);
    let out = Charts.line(8, 40, width - 8, 40, "var(--plot2)"), last = -1e9;
    for (const v of some) {
      const taken = v === found.value;
      out += Charts.line(sx(v), taken ? 27 : 33, sx(v), taken ? 53 : 47, taken ? color : "var(--ink2)", taken ? 4 : 1.5);
      const words = shown(v), wide = words.length * 3.4;
      if (sx(v) - wide > last + 4 || taken) { out += Charts.text(sx(v), 66, words, { size: 11, anchor: "middle", color: taken ? "var(--ink)" : "var(--ink2)", weight: taken ? 700 : 400, halo: true }); last = sx(v) + wide; }
    }
    const at = sx(x);
    out += `<path d="M${Charts.round(at)} 37l-5 -11h10Z" style="fill:var(--ink)"/>` + Charts.text(Math.min(Math.max(at, 30), width - 30), 20, shown(x), { anchor: "middle", color: "var(--ink)", weight: 600 });
    return Charts.svg(width, height, `${shown(x)} among its neighbours`, out);
  }

  // Bell-shaped numbers, the same ones each time, of which one is made an outlier.
  function blockValues(s) {
    const n = value(s, "block") === "16" ? 16 : 32, found = [];
    let seed = 12345;
    const next = () => { seed = (Math.imul(seed, 1103515245) + 12345) >>> 0; return (seed >>> 8) / 2 ** 24; };
    for (let i = 0; i < n; i++) found.push(Math.fround(Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())));
    found[5] = Math.fround(Math.sign(found[5]) * number(s, "outlier", 0.1, 1000));
    return found;
  }

  function inBlocks(values, name) {
    const b = F.blocks[name], out = [], scales = [];
    const tensor = values;
    for (let i = 0; i < values.length; i += b.size) {
      const found = Codec.block(values.slice(i, i + b.size), b, F.elements, tensor);
      out.push(...found.values);
      scales.push(found);
    }
    return { values: out, scales };
  }
  const zeros = (s) => inBlocks(blockValues({ ...s, numbers: { ...s.numbers, block: "32" } }), "mxfp4").values.filter((v) => v === 0).length;

  function blockChart(s, width) {
    const values = blockValues(s), height = 230, names = ["mxfp4", "nvfp4"], made = names.map((n) => inBlocks(values, n));
    const most = Math.max(...values.map(Math.abs)) * 1.1;
    const f = Charts.frame({ width, height, left: 46, y: { low: -most, high: most }, x: { low: -0.7, high: values.length - 0.3 }, xLabel: "element of the block", yLabel: "value", xMost: 8 });
    const slot = (f.right - f.left) / values.length;
    let out = f.out + Charts.line(f.left, f.sy(0), f.right, f.sy(0), "var(--plot2)");
    values.forEach((v, i) => {
      out += Charts.rect(f.sx(i) - slot * 0.32, Math.min(f.sy(v), f.sy(0)), slot * 0.64, Math.abs(f.sy(v) - f.sy(0)), "var(--line)");
      made.forEach((m, k) => { out += Charts.marker(k ? 3 : 0, f.sx(i) + (k ? slot * 0.14 : -slot * 0.14), f.sy(m.values[i]), Math.min(4, slot * 0.3), k ? "var(--c2)" : "var(--c1)", `${names[k]}: ${shown(m.values[i])} for ${shown(v)}`); });
    });
    const error = (m) => Math.sqrt(m.values.reduce((a, v, i) => a + (v - values[i]) ** 2, 0) / values.reduce((a, v) => a + v * v, 0));
    const gone = (m) => m.values.filter((v, i) => v === 0 && values[i] !== 0).length;
    const says = made.map((m, k) => `${names[k].toUpperCase()} (${k ? "diamonds" : "circles"}; ${m.scales.length === 1 ? "scale" : "scales"} ${m.scales.map((b) => shown(b.scale)).join(" and ")}${k ? `, times ${digits(m.scales[0].tensor)} for the tensor` : ""}) makes ${gone(m)} of ${values.length} values 0, with an error of ${digits(100 * error(m), 2)} % of the root mean square`).join("; ");
    return { svg: Charts.svg(width, height, "A block through MXFP4 and NVFP4", out), says: `${says}. One large value raises the scale, and its neighbours pay.` };
  }

  function sums(s) {
    const bits = Math.round(number(s, "bits", 3, 23)), f = F.elements.float8_e4m3fn, side = Codec.explain(Math.sqrt(number(s, "product", 1e-4, 1e5)), f).value;
    const product = side * side, many = Math.round(number(s, "many", 16, 65536)), points = [[0, 0]];
    let sum = 0, still = null;
    for (let i = 1; i <= many; i++) {
      const next = Codec.accumulate(sum, side, side, bits);
      if (next === sum && still === null) still = i - 1;
      sum = next;
      if (i % Math.max(1, Math.round(many / 200)) === 0 || i === many || i === still) points.push([i, sum]);
      if (still !== null) { points.push([many, sum]); break; }
    }
    return { bits, product, side, many, points, sum, still };
  }
  const vanishes = (s) => sums(s).still;

  function sumChart(s, width) {
    const r = sums(s), exact = r.product * r.many, height = 250;
    const f = Charts.frame({ width, height, left: 60, x: { low: 0, high: r.many }, y: { low: 0, high: exact * 1.05 || 1 }, xLabel: "products added", yLabel: "sum", xMost: 5 });
    let out = f.out + Charts.path([[f.sx(0), f.sy(0)], [f.sx(r.many), f.sy(exact)]], "var(--ink2)", 1.5, "5 4") + Charts.text(f.sx(r.many * 0.86) - 6, f.sy(exact * 0.9), "exact", { anchor: "end", size: 11 });
    out += Charts.path(r.points.map(([i, v]) => [f.sx(i), f.sy(v)]), "var(--c2)", 2.4);
    if (r.still !== null) out += `<circle cx="${Charts.round(f.sx(r.still))}" cy="${Charts.round(f.sy(r.sum))}" r="6" style="fill:none;stroke:var(--ink);stroke-width:1.6"/>` + Charts.text(f.sx(r.still) + 10, f.sy(r.sum) - 8, `stands still after ${r.still}`, { weight: 600, color: "var(--ink)", halo: true, anchor: f.sx(r.still) > f.right - 140 ? "end" : "start" });
    const lost = exact ? digits((100 * Math.abs(exact - r.sum)) / exact, 2) : 0;
    const says = r.still === null ? `${r.many} products of ${shown(r.side)} × ${shown(r.side)} add up to ${shown(r.sum)} of ${shown(exact)}: ${lost} % are lost.`
      : `Each product is ${shown(r.side)} × ${shown(r.side)} = ${shown(r.product)}. With ${r.bits} bits below the leading one the sum stands still at ${shown(r.sum)}, after ${r.still} products: the next one lies wholly below the last bit and is cut off. Of ${r.many} products ${lost} % are lost.`;
    return { svg: Charts.svg(width, height, "A sum in an accumulator of few bits", out), says };
  }

  // --- the page -----------------------------------------------------------------------------------------------------

  function build(root, state, changed) {
    const put = (key, v) => { state.numbers[key] = v; changed(); };
    const options = (names, current) => names.map((n) => `<option${n === current ? " selected" : ""}>${escaped(n)}</option>`).join("");
    const names = Object.keys(F.elements);
    root.innerHTML = `
<section class="numbers-part"><h2>One number in two formats</h2>
<p>A format has few numbers; every other one becomes one of its neighbours. Type a number, or drag it.</p>
<div class="row"><label>number <input type="text" inputmode="decimal" id="n-x" aria-describedby="n-x-why" value="${escaped(value(state, "x"))}"></label>
<label class="grow">drag <input type="range" id="n-drag" min="-1000" max="1000" step="1" aria-label="number, on a scale that is fine near 0"></label></div>
<span class="why" id="n-x-why" role="status"></span>
<div class="two">${[1, 2].map((k) => `<div><label>format <select id="n-f${k}">${options(names, formatOf(state, `f${k}`))}</select></label><div id="n-out${k}"></div></div>`).join("")}</div></section>
<section class="numbers-part"><h2>A block under one scale</h2>
<p>MXFP4 has one power of two for 32 numbers, NVFP4 an 8-bit number for 16 and one for the whole tensor. Bars are the numbers, marks what they become.</p>
<div class="row"><label>numbers <select id="n-block">${options(["16", "32"], value(state, "block"))}</select></label>
<label class="grow">size of the outlier <output id="n-outlier-is"></output><input type="range" id="n-outlier" min="-1" max="2.5" step="0.01"></label></div>
<p id="n-block-says"></p><div class="draw" id="n-block-draw"></div></section>
<section class="numbers-part"><h2>An accumulator of few bits</h2>
<p>Tensor cores add products of E4M3 numbers into a sum that keeps a fixed number of bits below its leading one: 13 on Hopper. Each product is cut at the last bit of the sum.</p>
<div class="row"><label class="grow">bits below the leading one <output id="n-bits-is"></output><input type="range" id="n-bits" min="3" max="23" step="1"></label>
<label class="grow">size of a product <output id="n-product-is"></output><input type="range" id="n-product" min="-3" max="4" step="0.05"></label>
<label>products <select id="n-many">${options(["256", "1024", "4096", "16384", "65536"], value(state, "many"))}</select></label></div>
<p id="n-sum-says"></p><div class="draw" id="n-sum-draw"></div></section>`;
    const at = (id) => root.querySelector(`#${id}`);
    at("n-x").addEventListener("input", (e) => put("x", e.target.value));
    at("n-drag").addEventListener("input", (e) => { const t = Number(e.target.value) / 1000; const v = Number((Math.sign(t) * (1000 ** Math.abs(t) - 1)).toPrecision(4)); at("n-x").value = String(v); put("x", String(v)); });
    for (const id of ["f1", "f2", "block", "many"]) at(`n-${id}`).addEventListener("change", (e) => put(id, e.target.value));
    at("n-outlier").addEventListener("input", (e) => put("outlier", String(Number((10 ** Number(e.target.value)).toPrecision(3)))));
    at("n-bits").addEventListener("input", (e) => put("bits", e.target.value));
    at("n-product").addEventListener("input", (e) => put("product", String(Number((10 ** Number(e.target.value)).toPrecision(3)))));
    at("n-outlier").value = Math.log10(number(state, "outlier", 0.1, 1000));
    at("n-bits").value = number(state, "bits", 3, 23);
    at("n-product").value = Math.log10(number(state, "product", 1e-4, 1e5));
    drawn = root;
  }

  function draw(root, state) {
    if (drawn !== root) return;
    const at = (id) => root.querySelector(`#${id}`), typed = value(state, "x").trim(), x = Number(typed);
    const wrong = typed === "" || !Number.isFinite(x) || Math.abs(x) > 1e30;
    at("n-x").setAttribute("aria-invalid", String(wrong));
    at("n-x-why").textContent = wrong ? `“${typed}” is no number between -1e30 and 1e30: ${STANDARD.x} is shown` : "";
    const v = wrong ? Number(STANDARD.x) : x;
    at("n-drag").value = Math.round(Math.sign(v) * Math.min(1, Math.log1p(Math.abs(v)) / Math.log(1000)) * 1000);
    for (const k of [1, 2]) {
      const name = formatOf(state, `f${k}`), f = F.elements[name], found = Codec.explain(v, f), box = at(`n-out${k}`);
      const bits = found.code === null ? "" : bitsOf(f, found.code).map(([b, role]) => `<span class="${role}" title="${ROLES[role]}">${b}</span>`).join("");
      box.innerHTML = `<div class="bits" aria-label="bits">${bits}</div><div class="value">${escaped(shown(found.value))}</div>
<p class="says">${escaped(decision(v, name, found))}</p><div class="draw">${neighbourhood(v, f, found, k === 1 ? "var(--c1)" : "var(--c2)", Math.max(260, box.clientWidth))}</div>
<p class="fine">${escaped(`${f.bits} bits, from ${shown(f.type === "table" ? f.table[0] : f.signed === false ? 0 : -f.max)} to ${shown(f.max)}`)}</p>`;
    }
    const width = Math.min(900, Math.max(260, at("n-block-draw").clientWidth)), block = blockChart(state, width), sum = sumChart(state, width);
    at("n-block-draw").innerHTML = block.svg; at("n-block-says").textContent = block.says;
    at("n-sum-draw").innerHTML = sum.svg; at("n-sum-says").textContent = sum.says;
    at("n-outlier-is").textContent = digits(number(state, "outlier", 0.1, 1000));
    at("n-bits-is").textContent = Math.round(number(state, "bits", 3, 23));
    at("n-product-is").textContent = shown(sums(state).product);
  }

  return { STANDARD, init, value, cast, vanishes, zeros, build, draw };
})();
