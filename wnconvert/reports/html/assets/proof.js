"use strict";
// A proof: each output's largest difference beside what is allowed, and waveforms.
(() => {
  const { outputs, waves } = wn.data;
  const differing = outputs.filter(({ found }) => found > 0);
  const place = document.getElementById("overview"), table = document.getElementById("outputs");
  if (table) wn.openRows(table, (row) => wn.distances(outputs[row.dataset.row].spread, "Integers and bools must be equal."));
  if (differing.length) {
    wn.chart(place, (width) => Plot.plot({
      width, height: 54 + 22 * differing.length, marginLeft: Math.min(160, width * 0.3), marginRight: 12, marginBottom: 28, marginTop: 8,
      ariaLabel: "Largest difference of each output, and what was allowed",
      x: { type: "log", label: null, grid: true, nice: true, ticks: Math.max(2, Math.floor(width / 120)), tickFormat: (value) => value.toExponential(0) },
      y: { type: "band", domain: differing.map((_, at) => at), tickFormat: (at) => differing[at].name, label: null, tickSize: 0 },
      marks: [
        Plot.ruleY(differing, { y: (_, at) => at, x1: "found", x2: "allowed", stroke: "var(--line)", strokeWidth: 2 }),
        Plot.tickX(differing, { y: (_, at) => at, x: "allowed", stroke: "var(--ink)", strokeWidth: 2, inset: 3 }),
        Plot.dot(differing, { y: (_, at) => at, x: "found", r: 4, fill: ({ passed }) => (passed ? "var(--accent)" : "var(--alarm)"),
          title: ({ name, found, allowed }) => `${name}\nlargest difference ${wn.digits(found)}\nallowed there ${wn.digits(allowed)}`,
          tip: { fill: "var(--raised)", stroke: "var(--line)", format: { x: false, y: false } } }),
      ],
    }));
  } else place?.closest("figure").remove();

  const places = [...document.querySelectorAll(".wave")];
  for (const [at, wave] of waves.entries()) {
    const { low, high, samples, word } = wave, step = samples / low.length;
    const columns = low.map((each, column) => ({ x: (column + 0.5) * step, low: each, high: high[column] }));
    wn.chart(places[at], (width) => Plot.plot({
      width, height: 90, marginLeft: 56, marginRight: 8, marginBottom: 20, marginTop: 6,
      ariaLabel: `${word}: ${samples} samples`,
      x: { domain: [0, samples], label: null }, y: { label: null, ticks: 3, tickFormat: wn.digits, grid: true },
      marks: [
        step > 1
          ? Plot.areaY(columns, { x: "x", y1: "low", y2: "high", fill: "var(--accent)", stroke: "var(--accent)", strokeWidth: 0.5 })
          : Plot.lineY(columns, { x: "x", y: "low", stroke: "var(--accent)", strokeWidth: 1.25 }),
      ],
    }));
  }
})();
