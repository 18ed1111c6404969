"use strict";
// An inspection: all layers on one scale, the rows of each, and the tree of modules.
(() => {
  const { layers } = wn.data, table = document.getElementById("layers");
  const MEASURES = { g: "|g|", norm: "‖v‖", ratio: "|g|/‖v‖" };
  const [MIN, Q1, MEDIAN, MEAN, Q3, MAX] = [0, 1, 2, 3, 4, 5];

  // -- ticks of a logarithmic axis as plain numbers
  function ticks(low, high) {
    const decades = Math.log10(high / low);
    if (!(decades > 0)) return [low];
    if (decades < 0.7) return d3.ticks(low, high, 5);
    const steps = decades < 2.5 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(decades / 8)), found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every) {
      for (const step of steps) found.push(step * 10 ** power);
    }
    return found.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  }

  // -- all layers on one scale
  const place = document.getElementById("overview");
  if (place) {
    const there = Object.keys(MEASURES).filter((name) => layers.some((layer) => layer[name]));
    let measure = there[0];

    const parts = (name) => name.split(/[.:] ?/);
    function groups(drawn) {
      // The first part of the names in which they differ: runs of equal ones are a group.
      let depth = 0;
      const all = drawn.map(({ layer }) => parts(layer.name));
      while (depth < 8 && all.every((each) => each.length > depth + 1 && each[depth] === all[0][depth])) depth += 1;
      const runs = d3.groups(drawn.map((each, at) => ({ ...each, head: all[at][depth] ?? "" })), (each) => each.head);
      return runs.map(([head, members]) => ({ head, from: members[0].x, to: members.at(-1).x }));
    }

    function overview(width) {
      const shown = wn.rows(table).map((row) => layers[row.dataset.row]).filter((layer) => layer[measure]);
      const drawn = shown.map((layer, x) => ({ layer, x, of: layer[measure], bad: layer.odd.length > 0 }));
      const positive = drawn.flatMap(({ of }) => of.filter((value) => value > 0));
      const least = d3.min(positive) ?? 1, greatest = d3.max(positive) ?? 1;
      const hasZero = drawn.some(({ of }) => of[MIN] <= 0), edge = hasZero ? least / 2 : least;
      const marked = positive.length ? ticks(edge, greatest) : [];
      const clamp = (value) => Math.max(value, edge);
      document.getElementById("overview-note").textContent =
        `${wn.counted(drawn.length, "layer")}, logarithmic axis${hasZero ? "; 0 stands at the lower edge" : ""}`;
      const thick = Math.max(1, Math.min(9, (width - 60) / Math.max(drawn.length, 1) * 0.6));
      const colour = (each) => (each.bad ? "var(--alarm)" : "var(--accent)");
      const room = width / Math.max(drawn.length, 1);
      return Plot.plot({
        width, height: Math.min(320, Math.max(220, width * 0.35)), marginLeft: 48, marginRight: 8, marginBottom: 34, marginTop: 12,
        ariaLabel: `${MEASURES[measure]} of ${drawn.length} layers: least, quartiles and greatest`,
        x: { type: "linear", domain: [-0.5, Math.max(drawn.length - 0.5, 0.5)], axis: null },
        y: { type: "log", domain: [edge * 0.95, greatest * 1.05], label: null },
        marks: [
          Plot.gridY(marked, { stroke: "var(--line)", strokeOpacity: 1 }),
          Plot.axisY(marked, { text: wn.digits, tickSize: 0, fill: "var(--soft)" }),
          Plot.ruleX(groups(drawn).slice(1), { x: (d) => d.from - 0.5, stroke: "var(--line)" }),
          Plot.text(groups(drawn).filter((d) => (d.to - d.from + 1) * room > 7 * d.head.length + 4), {
            x: (d) => (d.from + d.to) / 2, frameAnchor: "bottom", dy: 18, text: "head", fill: "var(--soft)",
          }),
          Plot.ruleX(drawn, { x: "x", y1: (d) => clamp(d.of[MIN]), y2: (d) => clamp(d.of[MAX]), stroke: colour, strokeOpacity: 0.55, strokeWidth: Math.min(1, thick) }),
          Plot.ruleX(drawn, { x: "x", y1: (d) => clamp(d.of[Q1]), y2: (d) => clamp(d.of[Q3]), stroke: colour, strokeWidth: thick }),
          Plot.dot(drawn, { x: "x", y: (d) => clamp(d.of[MEDIAN]), r: Math.min(2, thick / 2), fill: "var(--raised)", stroke: colour, strokeWidth: 0.75 }),
          Plot.tip(drawn, Plot.pointerX({
            x: "x", y: (d) => clamp(d.of[MAX]), fill: "var(--raised)", stroke: "var(--line)", lineWidth: 32,
            title: ({ layer, of }) => [
              layer.name,
              `min ${wn.digits(of[MIN])}   q1 ${wn.digits(of[Q1])}   median ${wn.digits(of[MEDIAN])}`,
              `mean ${wn.digits(of[MEAN])}   q3 ${wn.digits(of[Q3])}   max ${wn.digits(of[MAX])}`,
              `${wn.counted(layer.rows, "row")}${layer.odd.length ? `; ${layer.odd.join(", ")}` : ""}`,
            ].join("\n"),
          })),
        ],
      });
    }

    const again = wn.chart(place, overview);
    place.addEventListener("click", () => {
      const pointed = place.querySelector("svg, figure")?.value;
      if (pointed) reveal(layers.indexOf(pointed.layer));
    });
    table.addEventListener("arranged", () => requestAnimationFrame(again));
    const choice = document.getElementById("measures");
    if (there.length < 2) choice.remove();
    else {
      for (const name of there) {
        const label = document.createElement("label"), input = document.createElement("input");
        Object.assign(input, { type: "radio", name: "measure", value: name, checked: name === measure });
        input.addEventListener("change", () => { measure = name; again(); });
        label.append(input, MEASURES[name]);
        choice.append(label);
      }
    }
  }

  // -- the rows of a layer, below it
  const element = (tag, text, css) => Object.assign(document.createElement(tag), { textContent: text ?? "", className: css ?? "" });

  function histogram([least, greatest, zeros, ...counts]) {
    const low = Math.log(least), step = (Math.log(greatest) - low) / counts.length;
    const bars = counts.map((count, at) => ({
      count, from: Math.exp(low + at * step), to: Math.exp(low + (at + 1) * step),
    }));
    const narrow = counts.length === 1;
    return (width) => Plot.plot({
      width, height: 120, marginLeft: 36, marginRight: 14, marginBottom: 22, marginTop: 8,
      ariaLabel: `Distribution over rows from ${wn.digits(least)} to ${wn.digits(greatest)}`,
      x: { type: "log", domain: narrow ? [least * 0.5, least * 2] : [least, greatest], label: null },
      y: { label: null },
      marks: [
        Plot.axisX(narrow ? [least] : ticks(least, greatest), { text: wn.digits, tickSize: 3, fill: "var(--soft)", stroke: "var(--line)" }),
        Plot.axisY(d3.ticks(0, d3.max(counts), 3).filter(Number.isInteger), { tickFormat: wn.digits, tickSize: 0, fill: "var(--soft)" }),
        Plot.rectY(bars, {
          x1: (d) => (narrow ? d.from * 0.97 : d.from), x2: (d) => (narrow ? d.from * 1.03 : d.to), y: "count",
          fill: "var(--accent)", insetLeft: 0.5, insetRight: 0.5,
          tip: { fill: "var(--raised)", stroke: "var(--line)", format: { x: false, x1: false, x2: false, y: false } },
          title: (d) => `${wn.counted(d.count, "row")}\n${wn.digits(d.from)} to ${wn.digits(d.to)}`,
        }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
      ],
    });
  }

  const PLACES = {
    dead: "dead: v is 0", zero: "dead: g is 0", negative: "negative g", nonfinite: "NaN or infinity",
  };
  function details(layer) {
    const found = layer.details ?? {}, charts = element("div", "", "spreads");
    for (const [name, sign] of Object.entries(MEASURES)) {
      if (!found[name]) continue;
      const figure = document.createElement("figure"), box = element("div", "", "chart"), zeros = found[name][2];
      figure.append(element("figcaption", `${sign} over ${wn.counted(layer.rows, "row")}${zeros ? `, ${zeros} of them 0` : ""}`), box);
      charts.append(figure);
      wn.chart(box, histogram(found[name]));
    }
    const places = element("dl", "", "facts places");
    for (const [name, words] of Object.entries(PLACES)) {
      if (!found[name]) continue;
      places.append(element("dt", words, name === "negative" ? "" : "alarm"), element("dd", found[name], "mono"));
    }
    for (const [name, sign] of Object.entries(MEASURES)) {
      const of = layer[name];
      if (!of) continue;
      places.append(element("dt", sign), element("dd",
        `min ${wn.digits(of[MIN])}, quartiles ${wn.digits(of[Q1])}, ${wn.digits(of[MEDIAN])}, ${wn.digits(of[Q3])}, max ${wn.digits(of[MAX])}; mean ${wn.digits(of[MEAN])}`));
    }
    if (!charts.hasChildNodes() && !places.hasChildNodes()) return [element("p", "There are no magnitudes of its rows.", "soft")];
    return [charts, places];
  }

  const toggle = table && wn.openRows(table, (row) => details(layers[row.dataset.row]));

  function reveal(at) {
    const row = document.getElementById(`layer-${at}`);
    if (row.hidden) wn.clear(table);
    if (!row.isOpen) toggle(row);
    row.scrollIntoView({ block: "center" });
    row.querySelector("button").focus({ preventScroll: true });
  }

  // -- links to layers, and the tree of modules
  for (const link of document.querySelectorAll("a[data-layer]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      event.stopPropagation();
      reveal(Number(link.dataset.layer));
    });
  }
  const named = () => {
    const at = Number(location.hash.match(/^#layer-(\d+)$/)?.[1] ?? NaN);
    if (at < layers.length) reveal(at);
  };
  addEventListener("hashchange", named);
  requestAnimationFrame(named);
  const setAll = (open) => { for (const each of document.querySelectorAll(".tree details")) each.open = open; };
  document.getElementById("unfold")?.addEventListener("click", () => setAll(true));
  document.getElementById("enfold")?.addEventListener("click", () => setAll(false));
})();
