// Encoding and decoding of small number formats, from the same values as qsim.formats; tests/explore holds it to
// qsim.encode on all 65,536 bfloat16 inputs of every format of at most 8 bits.
"use strict";

const Codec = (() => {
  const view = new DataView(new ArrayBuffer(8));

  // floor(log2(x)) of a positive number, from its bits.
  function exponentOf(x) {
    view.setFloat64(0, x);
    const field = (view.getUint16(0) >> 4) & 0x7ff;
    return field ? field - 1023 : exponentOf(x * 2 ** 64) - 64;
  }

  // Value of a magnitude code of a float format; the grid goes on above the largest finite code.
  function magnitude(f, code) {
    const field = Math.floor(code / 2 ** f.m), low = code - field * 2 ** f.m, least = (f.subnormals ? 1 : 0) - f.bias;
    if (f.subnormals && field === 0) return low * 2 ** (least - f.m);
    return (1 + low / 2 ** f.m) * 2 ** (field - f.bias);
  }

  function goesUp(fraction, high, rounding, negative) {
    switch (rounding) {
      case "nearest_even": return fraction > 0.5 || (fraction === 0.5 && high % 2 === 0);
      case "nearest_away": return fraction >= 0.5;
      case "toward_zero": return false;
      case "up": return !negative;
      case "down": return negative;
      default: throw new Error(`unknown rounding ${rounding}`);
    }
  }

  // What becomes of a number: its neighbours on the grid, which is taken and why, the code. Out-of-range values
  // saturate, NaN becomes the canonical one; code is null where the format has no code for a NaN.
  function explain(x, f, rounding = "nearest_even") {
    if (Number.isNaN(x)) return { code: f.nan, kind: "nan", value: f.nan === null ? null : NaN };
    if (f.type === "float") return explainFloat(x, f, rounding);
    return f.type === "int" ? explainInt(x, f, rounding) : explainTable(x, f, rounding);
  }

  function explainFloat(x, f, rounding) {
    const negative = x < 0 || Object.is(x, -0), a = Math.abs(x), top = f.max_magnitude;
    const tie = rounding === "nearest_even" && f.m === 0 && !f.subnormals ? "nearest_away" : rounding;
    const sign = negative ? f.sign : 0;
    const out = (position, more) => {
      const signed = position === 0 && !f.negative_zero ? 0 : sign;
      const code = signed + position;
      return { code, value: decode(code, f), ...more };
    };
    if (a === Infinity) return negative && !f.signed ? { code: 0, value: decode(0, f), kind: "saturated" } : out(top, { kind: "saturated" });
    const least = (f.subnormals ? 1 : 0) - f.bias;
    let low, high, fraction;
    if (a === 0) [low, high, fraction] = f.subnormals ? [0, 0, 0] : [-1, 0, 0];
    else {
      const e = exponentOf(a);
      if (e < least && !f.subnormals) [low, high, fraction] = [-1, 0, a / magnitude(f, 0)];
      else {
        const at = Math.max(e, least), scaled = a / 2 ** (at - f.m), whole = Math.floor(scaled);
        low = e < least ? whole : (e - least + (f.subnormals ? 1 : 0)) * 2 ** f.m + whole - 2 ** f.m;
        fraction = scaled - whole;
        high = fraction ? low + 1 : low;
      }
    }
    let position = high !== low && goesUp(fraction, high, tie, negative) ? high : low;
    if (low < 0 && a !== 0 && (tie === "nearest_even" || tie === "nearest_away")) position = high;
    const around = { low: Math.max(low, 0), high, fraction, negative,
      below: low < 0 ? 0 : magnitude(f, low), above: magnitude(f, high), tie: fraction === 0.5 };
    if (position < 0 || (negative && !f.signed && !(position === 0 && f.subnormals))) {
      return { code: 0, value: decode(0, f), kind: "saturated", ...around };
    }
    if (position > top) return out(top, { kind: "saturated", ...around });
    return out(position, { kind: high === low ? "exact" : "rounded", ...around });
  }

  function explainInt(x, f, rounding) {
    const mask = 2 ** f.bits, scaled = Math.abs(x) * 2 ** f.fraction_bits;
    const done = (integer, more) => { const code = (integer + mask) % mask; return { code, value: decode(code, f), ...more }; };
    if (scaled === Infinity) return done(x > 0 ? f.max_integer : f.min_integer, { kind: "saturated" });
    const low = Math.floor(scaled), fraction = scaled - low;
    const up = fraction > 0 && goesUp(fraction, low + 1, rounding, x < 0), size = up ? low + 1 : low, unit = 2 ** f.fraction_bits;
    const around = { low, high: fraction ? low + 1 : low, fraction, negative: x < 0, below: low / unit,
      above: (fraction ? low + 1 : low) / unit, tie: fraction === 0.5 };
    const integer = x < 0 ? -size : size;
    if (integer > f.max_integer || integer < f.min_integer) {
      return done(integer > 0 ? f.max_integer : f.min_integer, { kind: "saturated", ...around });
    }
    return done(integer, { kind: fraction ? "rounded" : "exact", ...around });
  }

  function explainTable(x, f, rounding) {
    const last = f.table.length - 1, high = f.table.findIndex((v) => v >= x);
    if (high < 0) return { code: last, value: f.table[last], kind: "saturated" };
    if (f.table[high] === x) return { code: high, value: x, kind: "exact", low: high, high, fraction: 0, below: x, above: x };
    if (high === 0) return { code: 0, value: f.table[0], kind: "saturated" };
    const a = f.table[high - 1], b = f.table[high], fraction = (x - a) / (b - a);
    let up;
    if (rounding === "nearest_away") up = fraction > 0.5 || (fraction === 0.5 && x > 0);
    else if (rounding === "toward_zero") up = x < 0;
    else if (rounding === "up" || rounding === "down") up = rounding === "up";
    else up = goesUp(fraction, high, rounding, false);
    const code = up ? high : high - 1;
    return { code, value: f.table[code], kind: "rounded", low: high - 1, high, fraction, below: a, above: b, tie: fraction === 0.5, signed: true };
  }

  function decode(code, f) {
    if (f.type === "table") return f.table[code];
    if (f.type === "int") {
      const integer = f.signed && code >= 2 ** (f.bits - 1) ? code - 2 ** f.bits : code;
      return integer / 2 ** f.fraction_bits;
    }
    if (code === f.nan) return NaN;
    const negative = f.signed && code >= f.sign, size = negative ? code - f.sign : code;
    if (size > f.max_magnitude + (f.inf ? 1 : 0)) return NaN;
    const value = size > f.max_magnitude ? Infinity : magnitude(f, size);
    return negative ? -value : value;
  }

  const encode = (x, f, rounding) => explain(x, f, rounding).code;

  // A block through an MX format (scale 2^e by OCP's rule, the default of qsim) or NVFP4 (an E4M3 scale under a float32
  // scale of the whole tensor).
  function block(values, b, formats, whole = values) {
    const element = formats[b.element], scaleFormat = formats[b.scale], amax = Math.max(0, ...values.map(Math.abs));
    if (b.tensor_scale) {
      const top = Math.max(0, ...whole.map(Math.abs));
      const tensor = top === 0 ? 1 : Math.max(Math.fround(top / (scaleFormat.max * element.max)), 2 ** -126);
      const code = amax === 0 ? 0 : Math.max(1, encode(amax / (element.max * tensor), scaleFormat));
      const scale = decode(code, scaleFormat);
      const codes = values.map((v) => (scale === 0 ? 0 : encode(v / (tensor * scale), element)));
      return { scale, scaleCode: code, tensor, amax, codes, values: codes.map((c) => decode(c, element) * scale * tensor) };
    }
    const e = amax === 0 ? -127 : Math.min(Math.max(exponentOf(amax) - element.emax, -127), 127), scale = 2 ** e;
    const codes = values.map((v) => encode(v / scale, element));
    return { scale, scaleCode: e + 127, tensor: null, amax, codes, values: codes.map((c) => decode(c, element) * scale) };
  }

  // A running sum plus the product a b, as the FP8 tensor cores of Hopper do it with 13 bits: both are cut at `bits` bits
  // below the larger exponent (a product's is the sum of its factors'), and so is their sum.
  function accumulate(sum, a, b, bits) {
    const cut = (v, unit) => Math.trunc(v / unit) * unit, product = a * b;
    if (product === 0) return sum;
    const e = exponentOf(Math.abs(a)) + exponentOf(Math.abs(b));
    const unit = 2 ** ((sum === 0 ? e : Math.max(e, exponentOf(Math.abs(sum)))) - bits);
    const made = cut(sum, unit) + cut(product, unit);
    return made === 0 ? 0 : cut(made, 2 ** (exponentOf(Math.abs(made)) - bits));
  }

  return { encode, decode, explain, block, accumulate, exponentOf };
})();
