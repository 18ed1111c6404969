"use strict";
// Comparisons: of each, how far apart the tensors are, and how many elements of each by how much.
for (const [at, { noun, rows }] of wn.data.comparisons.entries()) {
  const table = document.getElementById(`differing-${at}`), place = document.getElementById(`overview-${at}`);
  const MEASURES = { "ulps": "ulps", "max abs": "max |a−b|", "SNR dB": "SNR, dB" };
  if (place) {
    const there = Object.keys(MEASURES).filter((name) => rows.some((row) => row[name] > 0));
    const short = (value) => (value >= 1e6 ? value.toExponential().replace("+", "") : wn.digits(value));
    let measure = there[0];

    const overview = (width) => {
      const shown = wn.rows(table).map((row) => rows[row.dataset.row]);
      const drawn = shown.map((row, x) => ({ row, x, value: row[measure] })).filter((each) => each.value > 0);
      document.getElementById(`overview-note-${at}`).textContent =
        `${drawn.length} of ${wn.counted(shown.length, noun)}${measure === "SNR dB" ? "; more decibels are nearer" : ", logarithmic axis"}`;
      return Plot.plot({
        width, height: Math.min(300, Math.max(200, width * 0.3)), marginLeft: 64, marginRight: 12, marginBottom: 12, marginTop: 12,
        ariaLabel: `${MEASURES[measure]} of ${wn.counted(drawn.length, noun)}`,
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
    };
    const again = wn.chart(place, overview);
    table.addEventListener("arranged", () => requestAnimationFrame(again));
    wn.choices(document.getElementById(`measures-${at}`), there.map((name) => [name, MEASURES[name]]), (name) => { measure = name; again(); });
  }
  if (table) {
    wn.openRows(table, (row) => {
      const { spread, why } = rows[row.dataset.row];
      return wn.distances(spread, why === "bits"
        ? "Elements that are no floats are compared bit for bit."
        : "Tensors of another shape or dtype are not compared by element.");
    });
  }
}
