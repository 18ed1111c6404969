"use strict";
// A comparison: how far apart the tensors are, and how many elements of each by how much.
(() => {
  const { rows } = wn.data, table = document.getElementById("differing");
  const MEASURES = { "ulps": "ulps", "max abs": "max |a−b|", "SNR dB": "SNR, dB" };
  const place = document.getElementById("overview");
  if (place) {
    const there = Object.keys(MEASURES).filter((name) => rows.some((row) => row[name] > 0));
    let measure = there[0];
    const short = (value) => (value >= 1e6 ? value.toExponential().replace("+", "") : wn.digits(value));

    function overview(width) {
      const shown = wn.rows(table).map((row) => rows[row.dataset.row]);
      const drawn = shown.map((row, x) => ({ row, x, value: row[measure] })).filter((each) => each.value > 0);
      document.getElementById("overview-note").textContent =
        `${drawn.length} of ${wn.counted(shown.length, "tensor")}${measure === "SNR dB" ? "; more decibels are nearer" : ", logarithmic axis"}`;
      return Plot.plot({
        width, height: Math.min(300, Math.max(200, width * 0.3)), marginLeft: 64, marginRight: 12, marginBottom: 12, marginTop: 12,
        ariaLabel: `${MEASURES[measure]} of ${drawn.length} tensors`,
        x: { domain: [-0.5, Math.max(shown.length - 0.5, 0.5)], axis: null },
        y: { type: measure === "SNR dB" ? "linear" : "log", label: null, grid: true, nice: true },
        marks: [
          Plot.axisY({ tickSize: 0, tickFormat: short, fill: "var(--soft)", ticks: 5 }),
          Plot.dot(drawn, { x: "x", y: "value", r: 3, fill: "var(--accent)" }),
          Plot.tip(drawn, Plot.pointer({
            x: "x", y: "value", fill: "var(--raised)", stroke: "var(--line)", lineWidth: 32,
            title: ({ row }) => [row.name, ...there.map((name) => `${MEASURES[name]} ${wn.digits(row[name])}`)].join("\n"),
          })),
        ],
      });
    }

    const again = wn.chart(place, overview);
    table.addEventListener("arranged", () => requestAnimationFrame(again));
    const choice = document.getElementById("measures");
    wn.choices(choice, there.map((name) => [name, MEASURES[name]]), (name) => { measure = name; again(); });
  }

  // -- the elements of a tensor by their distance: 0, 1, 2 to 3, 4 to 7, …
  const ends = (step) => (step < 2 ? `${step}` : `${2 ** (step - 1)} to ${2 ** step - 1}`);
  function histogram(spread) {
    const first = spread.findIndex(Boolean);
    const bars = spread.map((count, step) => ({ count, step })).filter(({ step }) => step >= first);
    return (width) => Plot.plot({
      width, height: 150, marginLeft: 56, marginRight: 12, marginBottom: 34, marginTop: 8,
      ariaLabel: "Numbers of elements by their distance in ulps",
      x: { type: "band", label: "ulps apart", tickFormat: (step) => (step < 2 ? `${step}` : `${wn.digits(2 ** (step - 1))}+`),
           ticks: bars.filter((_, at) => at % Math.ceil(bars.length / (width / 60)) === 0).map(({ step }) => step) },
      y: { label: null, grid: true },
      marks: [
        Plot.barY(bars, { x: "step", y: "count", fill: "var(--accent)", insetLeft: 0.5, insetRight: 0.5,
          title: ({ count, step }) => `${wn.counted(count, "element")}\n${ends(step)} ulps apart`,
          tip: { fill: "var(--raised)", stroke: "var(--line)", format: { x: false, y: false } } }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
      ],
    });
  }
  if (table) {
    wn.openRows(table, (row) => {
      const { spread, why } = rows[row.dataset.row];
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      if (!spread.length) {
        caption.textContent = why === "bits" ? "Elements that are no floats are compared bit for bit." : "Tensors of another shape or dtype are not compared by element.";
        figure.append(caption);
        return [figure];
      }
      const box = document.createElement("div");
      box.className = "chart";
      caption.textContent = `${wn.counted(d3.sum(spread), "element")} by distance`;
      figure.append(caption, box);
      wn.chart(box, histogram(spread));
      return [figure];
    });
  }
})();
