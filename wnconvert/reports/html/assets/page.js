"use strict";
// What every page has: the theme, copying, tables that sort and filter, charts that fit. A page's own script uses `wn`.
const wn = (() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const data = JSON.parse(document.getElementById("data").textContent);

  // -- the theme: as the system has it, or as the reader has chosen
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    show();
  });
  dark.addEventListener("change", show);
  show();

  // -- copying the text of an element
  for (const copier of document.querySelectorAll("button.copy")) {
    copier.addEventListener("click", async () => {
      const source = document.getElementById(copier.dataset.of);
      try {
        await navigator.clipboard.writeText(source.textContent);
        copier.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        copier.textContent = "Selected";
      }
      setTimeout(() => { copier.textContent = "Copy"; }, 1500);
    });
  }

  const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

  // -- tables: rows are `tr[data-row]`; what belongs to one stands below it, as `row.details`
  const number = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "").replace("%", "").replace("inf", "Infinity")));
  const byText = new Intl.Collator("en", { numeric: true }).compare;
  const rowsOf = (table) => [...table.tBodies[0].rows].filter((row) => "row" in row.dataset);

  function sort(table, head) {
    const at = head.cellIndex, numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;  // numbers begin with the largest
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rowsOf(table).map((row) => {
      const text = row.cells[at].textContent.trim();
      return [numeric ? number(text) : text, row];
    });
    const sign = down ? -1 : 1;
    keyed.sort(numeric
      ? ([a], [b]) => (Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : sign * (a - b))
      : ([a], [b]) => sign * byText(a, b));
    table.tBodies[0].append(...keyed.flatMap(([, row]) => (row.details ? [row, row.details] : [row])));
    table.dispatchEvent(new CustomEvent("arranged"));
  }

  for (const table of document.querySelectorAll("table.sorts")) {
    for (const head of table.tHead.rows[0].cells) {
      head.querySelector("button")?.addEventListener("click", () => sort(table, head));
    }
  }

  // A bar of tools names its table. A search looks into the name of a row, a select into the words of `data-NAME`.
  for (const tools of document.querySelectorAll(".tools[data-of]")) {
    const table = document.getElementById(tools.dataset.of);
    const search = tools.querySelector("input[type=search]"), selects = [...tools.querySelectorAll("select")];
    const said = tools.querySelector("output");
    const filter = () => {
      const words = search ? search.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
      let left = 0, all = 0;
      for (const row of rowsOf(table)) {
        const name = row.cells[0].textContent.toLowerCase();
        const fits = words.every((word) => name.includes(word))
          && selects.every((each) => !each.value || (row.dataset[each.name] ?? "").split("|").includes(each.value));
        row.hidden = !fits;
        if (row.details) row.details.hidden = !fits || !row.isOpen;
        left += fits;
        all += 1;
      }
      if (said) said.textContent = left === all ? counted(all, "row") : `${left.toLocaleString("en")} of ${counted(all, "row")}`;
      table.dispatchEvent(new CustomEvent("arranged"));
    };
    table.clear = () => {
      for (const each of [search, ...selects]) if (each) each.value = "";
      filter();
    };
    search?.addEventListener("input", filter);
    for (const each of selects) each.addEventListener("change", filter);
    filter();
  }

  // -- charts: drawn for the width that there is, and again when it changes
  const charts = new Map();
  const watcher = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = charts.get(target), width = Math.floor(target.clientWidth);
      if (chart && width && width !== chart.width) draw(target);
    }
  });
  function draw(place) {
    const chart = charts.get(place), hadFocus = place.contains(document.activeElement);
    chart.width = Math.floor(place.clientWidth);
    if (!chart.width) return;
    const made = chart.make(chart.width);
    place.replaceChildren(made);
    if (made.querySelector("[aria-label=tip]")) steer(made);
    if (hadFocus) made.focus({ preventScroll: true });
  }

  // -- what a chart tells of its marks is told by keys too: arrows go from mark to mark, as a pointer would
  const spoken = document.getElementById("spoken");
  function steer(made) {
    const marks = [...made.querySelectorAll("[aria-label=dot] circle, [aria-label=bar] rect, [aria-label=rect] rect")];
    if (!marks.length) return;
    let at = -1;
    made.tabIndex = 0;
    made.setAttribute("aria-description", "Arrow keys go from mark to mark.");
    const send = (kind, where) => made.dispatchEvent(new PointerEvent(kind, { bubbles: true, pointerType: "mouse", ...where }));
    const go = (to) => {
      at = Math.max(0, Math.min(marks.length - 1, to));
      const { left, top, width, height } = marks[at].getBoundingClientRect();
      send("pointermove", { clientX: left + width / 2, clientY: top + height / 2 });
      requestAnimationFrame(() => {
        spoken.textContent = [...made.querySelectorAll("[aria-label=tip] text tspan")].map((line) => line.textContent.replaceAll("\u200b", "").trim()).filter(Boolean).join(", ");
      });
    };
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    made.addEventListener("keydown", (event) => {
      if (event.key in steps) go(at < 0 && steps[event.key] < Infinity ? 0 : at + steps[event.key]);
      else if (event.key === "Escape") send("pointerleave");
      else if (event.key === "Enter") made.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      else return;
      event.preventDefault();
    });
    made.addEventListener("focus", () => { if (made.matches(":focus-visible")) go(Math.max(at, 0)); });
    made.addEventListener("blur", () => send("pointerleave"));
  }

  /** Draw what `make(width)` returns, an element of Plot, into a place; the returned function draws it anew. */
  function chart(place, make) {
    charts.set(place, { make, width: 0 });
    watcher.observe(place);  // which draws it, once the page stands
    return () => draw(place);
  }

  /** A number with four significant digits, as the tables have it. */
  const digits = (value) => (typeof value !== "number" ? String(value ?? "") : Number(value.toPrecision(4)).toString());
  const rows = (table) => rowsOf(table).filter((row) => !row.hidden);
  /** Show all rows of a table again. */
  const clear = (table) => table.clear();

  /** Let rows open: what `make(row)` returns stands below one. The returned function opens and closes a row. */
  function openRows(table, make) {
    function toggle(row) {
      row.isOpen = !row.isOpen;
      row.classList.toggle("open", row.isOpen);
      row.querySelector("button").setAttribute("aria-expanded", String(row.isOpen));
      if (!row.details) {
        const cell = document.createElement("td");
        cell.colSpan = row.cells.length;
        cell.append(...make(row));
        row.details = document.createElement("tr");
        row.details.className = "details";
        row.details.append(cell);
        row.after(row.details);
      }
      row.details.hidden = !row.isOpen;
    }
    for (const row of rowsOf(table)) {
      const name = row.querySelector("th"), button = document.createElement("button");
      button.textContent = name.textContent;
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      name.replaceChildren(button);
    }
    table.classList.add("opens");
    table.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-row]");
      if (row && getSelection().isCollapsed) toggle(row);
    });
    return toggle;
  }

  /** Radio buttons in a place, one for each [value, text]; `chosen(value)` is called when another is chosen. */
  function choices(place, pairs, chosen) {
    for (const [at, [value, text]] of pairs.entries()) {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: place.id, value, checked: at === 0 });
      input.addEventListener("change", () => chosen(value));
      label.append(input, text);
      place.append(label);
    }
  }

  /** How many elements are how far apart: 0, 1, 2 to 3, 4 to 7, … ulps; what opens below a row. */
  const ends = (step) => (step < 2 ? `${step}` : `${2 ** (step - 1)} to ${2 ** step - 1}`);
  const raised = (power) => `2${[...String(power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
  const start = (step) => (step < 2 ? `${step}` : `${step < 11 ? 2 ** (step - 1) : raised(step - 1)}+`);
  function distances(spread, otherwise) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    figure.append(caption);
    if (!spread.length) {
      caption.textContent = otherwise;
      return [figure];
    }
    const first = spread.findIndex(Boolean), box = document.createElement("div");
    const bars = spread.map((count, step) => ({ count, step })).filter(({ step }) => step >= first);
    caption.textContent = `${counted(d3.sum(spread), "element")} by distance`;
    box.className = "chart";
    figure.append(box);
    chart(box, (width) => Plot.plot({
      width, height: 150, marginLeft: 56, marginRight: 12, marginBottom: 34, marginTop: 8,
      ariaLabel: "Numbers of elements by their distance in ulps",
      x: { type: "band", label: "ulps apart", tickFormat: start,
           ticks: bars.filter((_, at) => at % Math.ceil(bars.length / (width / 48)) === 0).map(({ step }) => step) },
      y: { label: null, grid: true },
      marks: [
        Plot.barY(bars, { x: "step", y: "count", fill: "var(--accent)", insetLeft: 0.5, insetRight: 0.5,
          title: ({ count, step }) => `${counted(count, "element")}\n${ends(step)} ulps apart`,
          tip: { fill: "var(--raised)", stroke: "var(--line)", format: { x: false, y: false } } }),
        Plot.ruleY([0], { stroke: "var(--soft)" }),
      ],
    }));
    return [figure];
  }

  // -- what a link leads to is opened, where it lies in something closed
  function unfold(id) {
    const target = id ? document.getElementById(id) : null;
    for (let each = target?.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    return target;
  }
  document.addEventListener("click", (event) => {
    const link = event.defaultPrevented ? null : event.target.closest("a[href^='#']");
    if (link) unfold(link.hash.slice(1));
  });
  const hash = () => { unfold(location.hash.slice(1))?.scrollIntoView(); };
  addEventListener("hashchange", hash);
  requestAnimationFrame(hash);

  // -- on paper nothing can be opened: what is closed stands open there, and all charts are drawn
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
    for (const [place, each] of charts) if (!each.width) draw(place);
  });
  addEventListener("afterprint", () => {
    for (const each of closed) each.open = false;
    closed = [];
  });
  return { data, chart, counted, digits, rows, clear, openRows, choices, distances };
})();
