// Small charts as SVG text: scales, axes, lines with bands, bars. Colours are variables of the page's style sheet, so
// that light, dark and print each have theirs; every text that comes from outside is escaped.
"use strict";

const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const Charts = (() => {
  const round = (v) => Math.round(v * 10) / 10;

  // Numbers for people: three digits, thousands apart.
  function digits(v, n = 3) {
    if (!Number.isFinite(v)) return "∞";
    if (v === 0) return "0";
    const a = Math.abs(v);
    if (a >= 10000) return Math.round(v).toLocaleString("en").replace(/,/g, "\u202f");
    if (a >= 10 ** (n - 1)) return String(Math.round(v));
    if (a < 1e-4) return v.toExponential(n - 1);
    return String(Number(v.toPrecision(n)));
  }

  function seconds(v) {
    if (v >= 1) return `${digits(v)} s`;
    return v >= 1e-4 ? `${digits(v * 1e3)} ms` : `${digits(v * 1e6)} µs`;
  }

  const bytes = (v) => (v >= 1e9 ? `${digits(v / 1e9)} GB` : `${digits(v / 1e6)} MB`);

  function scale(kind, low, high, from, to) {
    const f = kind === "log" ? Math.log10 : (v) => v, a = f(low), b = f(high);
    const s = (v) => from + ((f(v) - a) / (b - a || 1)) * (to - from);
    return Object.assign(s, { kind, low, high });
  }

  function ticks(s, most) {
    if (s.kind === "log") {
      if (s.base2) {
        const found = [], step = Math.ceil(Math.log2(s.high / s.low) / most) || 1;
        for (let e = Math.ceil(Math.log2(s.low) - 1e-9); 2 ** e <= s.high * 1.0001; e += step) found.push(2 ** e);
        return found;
      }
      const first = Math.ceil(Math.log10(s.low) - 1e-9), last = Math.floor(Math.log10(s.high) + 1e-9), found = [];
      const step = Math.max(1, Math.ceil((last - first + 1) / most));
      for (let e = first; e <= last; e += step) found.push(10 ** e);
      if (found.length >= 3) return found;
      const more = [];
      for (let e = first - 1; e <= last; e++) for (const m of [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= s.low * 0.9999 && v <= s.high * 1.0001) more.push(v);
      }
      return more;
    }
    const span = s.high - s.low, raw = span / most, size = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * size).find((v) => v >= raw) ?? size, found = [];
    for (let v = Math.ceil(s.low / step - 1e-9) * step; v <= s.high + 1e-9 * span; v += step) found.push(Number(v.toPrecision(12)));
    return found;
  }

  const text = (x, y, words, { size = 12, anchor = "start", color = "var(--ink2)", weight = 400, halo = false, turn = 0 } = {}) =>
    `<text x="${round(x)}" y="${round(y)}" style="font-size:${size}px;fill:${color};font-weight:${weight}${
      halo ? ";paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round" : ""}" text-anchor="${anchor}"${
      turn ? ` transform="rotate(${turn} ${round(x)} ${round(y)})"` : ""}>${escaped(words)}</text>`;

  const line = (x1, y1, x2, y2, color = "var(--grid)", width = 1, dash = "") =>
    `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" style="stroke:${color};stroke-width:${width}${
      dash ? `;stroke-dasharray:${dash}` : ""}"/>`;

  const path = (points, color, width = 2, dash = "") =>
    `<path d="M${points.map(([x, y]) => `${round(x)} ${round(y)}`).join("L")}" style="fill:none;stroke:${color};stroke-width:${width}${
      dash ? `;stroke-dasharray:${dash}` : ""};stroke-linejoin:round"/>`;

  const area = (points, color, opacity = 0.16) =>
    `<path d="M${points.map(([x, y]) => `${round(x)} ${round(y)}`).join("L")}Z" style="fill:${color};opacity:${opacity}"/>`;

  const rect = (x, y, w, h, color, more = "") =>
    `<rect x="${round(x)}" y="${round(y)}" width="${round(Math.max(w, 0))}" height="${round(Math.max(h, 0))}" style="fill:${color}${more}"/>`;

  // A marker of one of eight shapes, so that series are told apart without colour.
  function marker(kind, x, y, r, color, title = "") {
    const p = (points) => `<path d="M${points.map(([a, b]) => `${round(x + a * r)} ${round(y + b * r)}`).join("L")}Z" style="fill:${color};stroke:var(--paper);stroke-width:1">`;
    const inner = title ? `<title>${escaped(title)}</title>` : "";
    const shape = [
      () => `<circle cx="${round(x)}" cy="${round(y)}" r="${round(r)}" style="fill:${color};stroke:var(--paper);stroke-width:1">${inner}</circle>`,
      () => `${p([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]])}${inner}</path>`,
      () => `${p([[0, -1.25], [1.1, 0.8], [-1.1, 0.8]])}${inner}</path>`,
      () => `${p([[0, -1.3], [1.1, 0], [0, 1.3], [-1.1, 0]])}${inner}</path>`,
      () => `${p([[0, 1.25], [1.1, -0.8], [-1.1, -0.8]])}${inner}</path>`,
      () => `${p([[-0.35, -1.1], [0.35, -1.1], [0.35, -0.35], [1.1, -0.35], [1.1, 0.35], [0.35, 0.35], [0.35, 1.1], [-0.35, 1.1], [-0.35, 0.35], [-1.1, 0.35], [-1.1, -0.35], [-0.35, -0.35]])}${inner}</path>`,
    ];
    return shape[kind % shape.length]();
  }

  // A frame with axes. Returns its scales and the SVG so far.
  function frame({ width, height, left = 52, right = 12, top = 14, bottom = 42, x, y, xLabel, yLabel, xTick = digits, yTick = digits,
    xMost = 6, yMost = 5, gridX = false }) {
    const sx = scale(x.kind ?? "linear", x.low, x.high, left, width - right);
    const sy = scale(y.kind ?? "linear", y.low, y.high, height - bottom, top);
    sx.base2 = x.base2; sy.base2 = y.base2;
    let out = "";
    for (const v of ticks(sy, yMost)) {
      out += line(left, sy(v), width - right, sy(v)) + text(left - 6, sy(v) + 4, yTick(v), { anchor: "end", size: 11 });
    }
    for (const v of ticks(sx, xMost)) {
      if (gridX) out += line(sx(v), top, sx(v), height - bottom);
      out += line(sx(v), height - bottom, sx(v), height - bottom + 4, "var(--plot2)");
      out += text(sx(v), height - bottom + 17, xTick(v), { anchor: "middle", size: 11 });
    }
    out += line(left, height - bottom, width - right, height - bottom, "var(--plot2)");
    out += text((left + width - right) / 2, height - 6, xLabel, { anchor: "middle" });
    out += text(13, (top + height - bottom) / 2, yLabel, { anchor: "middle", turn: -90 });
    return { sx, sy, out, left, right: width - right, top, bottom: height - bottom };
  }

  // Texts at the right end of lines, moved apart so that none covers another.
  function ends(labels, x, low, high, gap = 14) {
    const sorted = labels.map((l) => ({ ...l, at: l.y })).sort((a, b) => a.at - b.at);
    for (let i = 1; i < sorted.length; i++) sorted[i].at = Math.max(sorted[i].at, sorted[i - 1].at + gap);
    let over = sorted.length ? sorted.at(-1).at - high : 0;
    for (let i = sorted.length - 1; i >= 0 && over > 0; i--) {
      sorted[i].at = Math.min(sorted[i].at, high - (sorted.length - 1 - i) * gap);
    }
    for (const l of sorted) l.at = Math.max(l.at, low);
    return sorted.map((l) => (Math.abs(l.at - l.y) > 5 ? line(x - 6, l.y, x - 1, l.at - 1, "var(--line)") : "")
      + text(x + 1, l.at + 4, l.words, { size: 12, color: l.color, weight: l.weight ?? 600 })).join("");
  }

  // Names of points, each where it covers neither another name nor a point: right or left, above or below; one that
  // finds no room is left out, since the point says it too.
  function names(labels, points, f) {
    const placed = [], size = 11;
    const hits = (b) => placed.some((p) => b.x < p.x + p.wide && p.x < b.x + b.wide && Math.abs(p.y - b.y) < size + 1)
      || points.some(([x, y]) => x > b.x - 4 && x < b.x + b.wide + 4 && y > b.y - size - 2 && y < b.y + 5);
    let out = "";
    for (const l of labels) {
      const wide = l.words.length * 6.2;
      const tries = [[9, -7], [9, 15], [-9 - wide, -7], [-9 - wide, 15], [9, -21], [9, 29], [-9 - wide, -21], [-9 - wide, 29]];
      const box = tries.map(([dx, dy]) => ({ x: l.x + dx, y: l.y + dy, wide }))
        .find((b) => b.x >= f.left && b.x + wide <= f.right + 16 && b.y - size >= f.top && b.y <= f.bottom && !hits(b));
      if (!box) continue;
      placed.push(box);
      out += text(box.x, box.y, l.words, { size, halo: true, color: l.color });
    }
    return out;
  }

  const svg = (width, height, title, body) =>
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${
      escaped(title)}" style="font-family:system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif">${body}</svg>`;

  return { digits, seconds, bytes, scale, ticks, text, line, path, area, rect, marker, frame, ends, names, svg, round };
})();
