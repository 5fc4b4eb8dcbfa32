// The state of the page and its form as a link: what is after the # of the address is a case.
"use strict";

const State = (() => {
  const LIMITS = { batch: [1, 65536], context: [1, 4194304] };

  function standard(config) {
    return { tab: "speed", model: config.model, phase: "decode", batch: 16, context: 4096, on: 0, question: "", numbers: {},
      cases: config.cases.map((c) => ({ kv: "", tp: 1, price: null, set: {}, ...c })) };
  }

  function caseText(c) {
    const set = Object.entries(c.set).map(([k, v]) => `${k}:${v}`);
    return [c.device, c.scheme, c.kv, c.tp, c.price ?? "", ...set].map((v) => encodeURIComponent(v)).join(",");
  }

  function toText(s) {
    const parts = s.tab === "speed" ? [] : [`tab=${s.tab}`];
    parts.push(`model=${encodeURIComponent(s.model)}`, `phase=${s.phase}`, `batch=${s.batch}`, `context=${s.context}`);
    s.cases.forEach((c, i) => parts.push(`${"abc"[i]}=${caseText(c)}`));
    if (s.on) parts.push(`on=${"abc"[s.on]}`);
    if (s.question) parts.push(`question=${s.question}`);
    for (const [k, v] of Object.entries(s.numbers)) parts.push(`${k}=${encodeURIComponent(v)}`);
    return parts.join("&");
  }

  function count(text, name, wrong, was) {
    const v = Number(text), [low, high] = LIMITS[name];
    if (/^\d+$/.test(text) && v >= low && v <= high) return v;
    wrong.push(`${name} “${text}” is no whole number from ${low} to ${high}, so ${was} is shown`);
    return was;
  }

  function caseOf(text, P, wrong, was) {
    let parts;
    try { parts = text.split(",").map(decodeURIComponent); } catch { wrong.push(`“${text}” is no case`); return null; }
    const [device, scheme, kv = "", tp = "1", price = "", ...set] = parts;
    if (!Object.hasOwn(P.devices, device)) { wrong.push(`there is no device “${device}”`); return null; }
    const c = { device, scheme, kv, tp: 1, price: null, set: {} };
    if (!Object.hasOwn(P.schemes, scheme ?? "")) { wrong.push(`there is no scheme “${scheme}”, so bf16 is shown`); c.scheme = "bf16"; }
    if (!Object.hasOwn(P.kv, kv)) { wrong.push(`there is no KV cache “${kv}”, so 16 bit is shown`); c.kv = ""; }
    if (/^\d+$/.test(tp) && Number(tp) >= 1 && Number(tp) <= 1024) c.tp = Number(tp); else wrong.push(`tensor parallel “${tp}” is no whole number, so 1 is shown`);
    if (price !== "") { if (Number(price) > 0 && Number(price) < 1e9) c.price = Number(price); else wrong.push(`“${price}” is no price`); }
    for (const item of set) {
      const cut = item.lastIndexOf(":"), path = item.slice(0, cut), value = Number(item.slice(cut + 1));
      if (!Object.hasOwn(P.devices[device].fields, path)) wrong.push(`${device} has no field “${path}”`);
      else { const why = Law.refusal(path, value); if (why) wrong.push(why); else c.set[path] = value; }
    }
    return c;
  }

  // The state of a fragment, and sentences on what in it could not be read.
  function fromText(text, config, P) {
    const s = standard(config), wrong = [], found = [];
    for (const part of text.replace(/^#/, "").split("&").filter(Boolean)) {
      const cut = part.indexOf("="), key = cut < 0 ? part : part.slice(0, cut), raw = cut < 0 ? "" : part.slice(cut + 1);
      let value;
      try { value = decodeURIComponent(raw); } catch { wrong.push(`“${raw}” is not text`); continue; }
      if (key === "tab") { if (["speed", "numbers"].includes(value)) s.tab = value; else wrong.push(`there is no page “${value}”`); }
      else if (key === "model") { if (Object.hasOwn(P.models, value)) s.model = value; else wrong.push(`there is no model “${value}”, so ${s.model} is shown`); }
      else if (key === "phase") { if (["decode", "prefill"].includes(value)) s.phase = value; else wrong.push(`there is no phase “${value}”`); }
      else if (key === "batch" || key === "context") s[key] = count(value, key, wrong, s[key]);
      else if (key === "a" || key === "b" || key === "c") { const c = caseOf(raw, P, wrong); if (c) found.push(c); }
      else if (key === "on") s.on = Math.max(0, "abc".indexOf(value));
      else if (key === "question") { if (Object.hasOwn(Questions.ALL, value)) s.question = value; else wrong.push(`there is no question “${value}”`); }
      else if (Object.hasOwn(Numbers.STANDARD, key)) s.numbers[key] = value;
      else wrong.push(`“${key}” is not known`);
    }
    if (found.length) s.cases = found;
    if (s.on >= s.cases.length) s.on = 0;
    return { state: s, wrong };
  }

  return { standard, toText, fromText, LIMITS };
})();
