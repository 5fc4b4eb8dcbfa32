// Predict first: a link may open the page with a question. The answer is computed from what is shown, never typed.
"use strict";

const Questions = (() => {
  const { digits, seconds } = Charts;
  const near = (guess, right, factor) => guess > 0 && Math.abs(Math.log(guess / right)) <= Math.log(factor);
  const two = (found) => found.steps.length > 1 && found.steps[0].step && found.steps[1].step;

  const ALL = {
    speedup: {
      ask: (s) => `Before you look: how many times as fast as A is B, at batch ${s.batch}?`, unit: "times",
      answer: (s, f) => (two(f) ? f.steps[0].step.time / f.steps[1].step.time : null),
      judge: (g, v) => near(g, v, 1.15), say: (v) => `${digits(v)} times`,
    },
    flip: {
      ask: () => "Before you look: from which batch on does another scheme lead than at batch 1?", unit: "batch",
      answer: (s, f) => f.views.speedup?.flip ?? null, judge: (g, v) => near(g, v, 1.5),
      say: (v) => `about batch ${digits(v, 2)}`, none: "in this range none does: the scheme that leads at batch 1 leads throughout",
    },
    share: {
      ask: () => "Before you look: which percentage of A's step goes into its largest group of operators?", unit: "percent",
      answer: (s, f) => { const step = f.steps[0].step; return step ? 100 * Views.largestShare(step) : null; },
      judge: (g, v) => Math.abs(g - v) <= 10, say: (v) => `${digits(v, 2)} %`,
    },
    fits: {
      ask: (s) => `Before you look: how many sequences of ${Views.power(s.context)} tokens fit on A?`, unit: "sequences",
      answer: (s, f) => f.steps[0].step?.largest ?? null, judge: (g, v) => near(g, v || 0.5, 1.3), say: (v) => `${v}`,
    },
    step: {
      ask: (s) => `Before you look: how many milliseconds does A's ${s.phase} step take?`, unit: "ms",
      answer: (s, f) => (f.steps[0].step ? 1e3 * f.steps[0].step.time : null), judge: (g, v) => near(g, v, 1.3),
      say: (v) => seconds(v / 1e3),
    },
    cast: {
      ask: (s) => `Before you look: what does ${Numbers.value(s, "f1")} make of ${Numbers.value(s, "x")}?`, unit: "value",
      answer: (s) => Numbers.cast(s), judge: (g, v) => g === v, say: (v) => String(v),
    },
    vanish: {
      ask: (s) => `Before you look: after how many products does the sum stand still, in an accumulator of ${Numbers.value(s, "bits")} bits?`, unit: "products",
      answer: (s) => Numbers.vanishes(s), judge: (g, v) => near(g, v, 1.25), say: (v) => `after ${v}`, none: "in this range it does not",
    },
    zeros: {
      ask: () => "Before you look: how many of the 32 values become 0 in MXFP4?", unit: "values",
      answer: (s) => Numbers.zeros(s), judge: (g, v) => Math.abs(g - v) <= 2, say: (v) => `${v}`,
    },
  };

  return { ALL };
})();
