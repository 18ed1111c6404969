"use strict";
// A run: the drift of all layers, the values at a step that is chosen, and the layers one by one.
(() => {
  const { steps, layers, moved } = wn.data, table = document.getElementById("layers");
  const slider = document.getElementById("step"), chosen = document.getElementById("chosen");
  const COLOURED = Math.min(6, moved), colours = d3.schemeTableau10;
  const first = layers.map(({ means }) => means.find((value) => value !== null));
  const points = (at) => steps
    .map((step, place) => ({ at, step, value: layers[at].means[place] }))
    .filter(({ value }) => value !== null);
  const relative = (at) => points(at).map((point) => ({ ...point, part: point.value / first[at] })).filter(({ part }) => Number.isFinite(part));
  const step = () => steps[slider.value];
  const narrow = (width) => Math.max(2, Math.floor(width / 110));

  const again = wn.chart(document.getElementById("drift"), (width) => {
    const shown = wn.rows(table).map((row) => Number(row.dataset.row));
    const grey = shown.filter((at) => at >= COLOURED).flatMap(relative), bright = shown.filter((at) => at < COLOURED);
    const all = shown.flatMap(relative);
    return Plot.plot({
      width, height: Math.min(360, Math.max(240, width * 0.38)), marginLeft: 48, marginRight: 12, marginBottom: 30, marginTop: 12,
      ariaLabel: `Drift of ${shown.length} layers over ${steps.length} steps`,
      x: { label: null, ticks: narrow(width), domain: d3.extent(steps) },
      y: { label: null, grid: true, nice: true, tickFormat: (part) => `${Math.round(part * 100)}%` },
      marks: [
        Plot.ruleX([step()], { stroke: "var(--soft)", strokeDasharray: "3,3" }),
        Plot.lineY(grey, { x: "step", y: "part", z: "at", stroke: "var(--soft)", strokeOpacity: 0.35, strokeWidth: 1 }),
        Plot.lineY(bright.flatMap(relative), { x: "step", y: "part", z: "at", stroke: ({ at }) => colours[at], strokeWidth: 1.75 }),
        Plot.dot(bright.flatMap(relative), { x: "step", y: "part", r: steps.length < 30 ? 3 : 1.5, fill: ({ at }) => colours[at] }),
        Plot.tip(all, Plot.pointer({
          x: "step", y: "part", fill: "var(--raised)", stroke: "var(--line)", lineWidth: 32,
          title: ({ at, step: here, value, part }) => `${layers[at].name}\nstep ${here.toLocaleString("en")}: ${wn.digits(value)}, ${(part * 100).toFixed(1)}% of the first`,
        })),
      ],
    });
  });

  function choose() {
    const place = Number(slider.value);
    chosen.textContent = `step ${steps[place].toLocaleString("en")}`;
    slider.setAttribute("aria-valuetext", chosen.textContent);
    for (const row of table.tBodies[0].rows) {
      const at = Number(row.dataset.row), value = layers[at].means[place];
      row.cells[4].textContent = value === null ? "" : wn.digits(value);
      row.cells[5].textContent = value === null || !first[at] ? "" : `${((value / first[at]) * 100).toFixed(2)}%`;
    }
  }
  choose();
  slider.addEventListener("input", () => { choose(); again(); });
  table.addEventListener("arranged", () => requestAnimationFrame(again));

  for (const place of document.querySelectorAll(".multiples .chart")) {
    const at = Number(place.dataset.layer);
    wn.chart(place, (width) => Plot.plot({
      width, height: 84, marginLeft: 52, marginRight: 8, marginBottom: 20, marginTop: 6,
      ariaLabel: `Mean |g| of ${layers[at].name}`,
      x: { label: null, ticks: 2, domain: d3.extent(steps) }, y: { label: null, ticks: 3, grid: true, tickFormat: wn.digits },
      marks: [Plot.lineY(points(at), { x: "step", y: "value", stroke: at < COLOURED ? colours[at] : "var(--accent)", strokeWidth: 1.5 })],
    }));
  }
})();
