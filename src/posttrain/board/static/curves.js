// Curves drawn by uPlot: one picture a measure, raw values thin, smoothed ones strong, held-out values as points, and the numbers as a table.
"use strict";

const MEASURES = [
  { key: "loss", names: ["loss"], word: "loss" },
  { key: "margins", names: ["rewards/margins"], word: "margins" },
  { key: "accuracies", names: ["rewards/accuracies"], word: "accuracies" },
  { key: "rewards", names: ["rewards/chosen", "rewards/rejected"], word: "rewards" },
  { key: "kl", names: ["kl"], word: "kl" },
  { key: "grad_norm", names: ["grad_norm"], word: "gradNorm" },
  { key: "learning_rate", names: ["learning_rate"], word: "learningRate" },
  { key: "tokens_per_second", names: ["tokens_per_second"], word: "tokensPerSecond" },
  { key: "memory_bytes", names: ["memory_bytes"], word: "memoryBytes", scale: 1e-9 },
];
const DASHES = [[], [8, 4], [2, 3], [10, 4, 2, 4], [5, 5], [14, 4], [3, 6], [1, 2]];
const HEIGHT = 220;

/** Colours of the reader's scheme. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { line: [1, 2, 3, 4, 5, 6, 0, 7].map((number) => of(`--s${number}`)), grid: of("--line"), text: of("--muted"), surface: of("--surface") };
}

/** Exponential moving average without the pull of its beginning; weight 0 leaves values as they are. */
function smoothed(values, weight) {
  let mean = 0;
  let known = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return mean / known;
  });
}

/** A number short enough for an axis or a table. */
function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return size >= 100 ? value.toFixed(0) : value.toPrecision(4).replace(/\.?0+$/, "");
}

/** Several lines over a common row of steps. */
function joined(lines) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const at = new Map(steps.map((step, place) => [step, place]));
  const columns = lines.map((line) => {
    const column = new Array(steps.length).fill(undefined);
    line.steps.forEach((step, place) => (column[at.get(step)] = line.values[place]));
    return column;
  });
  return [steps, ...columns];
}

/** The pictures of some sets of curves: {name: {train: columns, held_out: columns}}. */
class Curves {
  constructor(box) {
    this.box = box;
    this.words = box.dataset;
    this.sets = {};
    this.plots = new Map();
    this.hidden = new Set();
    new ResizeObserver(() => this.resize()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(true));
    document.getElementById("smooth").addEventListener("input", () => this.draw(true));
  }

  /** Add the records of a set to what is known of it. */
  extend(name, splits, fresh) {
    const set = fresh || !this.sets[name] ? (this.sets[name] = { train: { step: [] }, held_out: { step: [] } }) : this.sets[name];
    for (const [split, columns] of Object.entries(splits)) {
      const before = set[split].step.length;
      const first = columns.step[0];
      for (const key of new Set([...Object.keys(set[split]), ...Object.keys(columns)])) {
        const old = set[split][key] ?? new Array(before).fill(null);
        const kept = first === undefined ? old : old.filter((_, place) => set[split].step[place] < first);
        columns[`${key}.kept`] = kept;
      }
      const kept = columns["step.kept"] ?? set[split].step;
      for (const key of Object.keys(columns).filter((one) => !one.endsWith(".kept"))) {
        set[split][key] = (columns[`${key}.kept`] ?? new Array(kept.length).fill(null)).concat(columns[key]);
      }
      for (const key of Object.keys(set[split])) {
        while (set[split][key].length < set[split].step.length) set[split][key].push(null);
      }
    }
  }

  /** The lines of one measure, of all sets. */
  lines(measure) {
    const weight = Number(document.getElementById("smooth").value);
    const found = [];
    Object.entries(this.sets).forEach(([name, set], place) => {
      measure.names.forEach((column, part) => {
        for (const split of ["train", "held_out"]) {
          const raw = set[split]?.[column];
          if (!raw || !raw.some((value) => value !== null)) continue;
          const values = raw.map((value) => (value === null ? null : value * (measure.scale ?? 1)));
          const label = [name, measure.names.length > 1 ? column.split("/").pop() : "", this.words[split === "train" ? "wordTrain" : "wordHeldOut"]];
          const colour = measure.names.length > 1 ? part + place * measure.names.length : place;
          const line = { label: label.filter(Boolean).join(" \u00b7 "), steps: set[split].step, raw: values, colour };
          if (split === "train") {
            const smooth = measure.key === "learning_rate" ? 0 : weight;
            if (smooth > 0 && values.length > 3) found.push({ ...line, values, thin: true });
            found.push({ ...line, values: smoothed(values, smooth) });
          } else {
            found.push({ ...line, values, points: true });
          }
        }
      });
    });
    return found;
  }

  draw(anew = false) {
    const colours = palette();
    let drawn = 0;
    for (const measure of MEASURES) {
      const lines = this.lines(measure);
      if (!lines.length) continue;
      drawn += 1;
      const data = joined(lines);
      const shape = lines.map((line) => line.label + (line.thin ? "~" : "")).join("|");
      let one = this.plots.get(measure.key);
      if (one && !anew && one.shape === shape) {
        one.plot.setData(data);
      } else {
        one?.plot.destroy();
        one = { ...(one ?? this.frame(measure)), shape };
        one.plot = new uPlot(this.options(measure, lines, colours, one.target), data, one.target);
        this.plots.set(measure.key, one);
      }
      this.tell(one, lines);
    }
    const empty = this.box.querySelector(".empty");
    if (drawn) empty?.remove();
    else if (!empty) this.box.append(Object.assign(document.createElement("p"), { className: "empty", textContent: this.words.empty }));
  }

  /** The place of a picture: a heading, the canvas, and the numbers. */
  frame(measure) {
    const title = this.words[`word${measure.word[0].toUpperCase()}${measure.word.slice(1)}`];
    const box = document.createElement("div");
    box.className = "curve";
    box.dataset.measure = measure.key;
    const heading = Object.assign(document.createElement("h3"), { textContent: title });
    const target = Object.assign(document.createElement("div"), { className: "plot" });
    target.setAttribute("role", "img");
    target.setAttribute("aria-label", title);
    const details = document.createElement("details");
    details.append(Object.assign(document.createElement("summary"), { textContent: this.words.wordTable }));
    const table = details.appendChild(document.createElement("table"));
    box.append(heading, target, details);
    const order = MEASURES.map((one) => one.key);
    const after = [...this.box.querySelectorAll(".curve")].find((one) => order.indexOf(one.dataset.measure) > order.indexOf(measure.key));
    this.box.insertBefore(box, after ?? null);
    return { target, table, title };
  }

  options(measure, lines, colours, target) {
    const axis = { stroke: colours.text, grid: { stroke: colours.grid, width: 1 }, ticks: { stroke: colours.grid, width: 1 }, font: "11px system-ui, sans-serif" };
    const many = Object.keys(this.sets).length > 1;
    return {
      width: Math.max(260, target.clientWidth),
      height: HEIGHT,
      cursor: { sync: { key: "steps" }, points: { size: 6 } },
      scales: { x: { time: false } },
      legend: { live: true },
      axes: [
        { ...axis, size: 34, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000] },
        { ...axis, size: 58, values: (_, ticks) => ticks.map(short) },
      ],
      series: [
        { label: this.words.wordXAxis },
        ...lines.map((line) => {
          const stroke = colours.line[line.colour % colours.line.length];
          return {
            label: line.thin ? "" : line.label,
            stroke: line.thin ? `${stroke}66` : stroke,
            width: line.thin ? 1 : line.points ? 1.2 : 2,
            dash: many || line.colour ? DASHES[line.colour % DASHES.length] : [],
            points: { show: Boolean(line.points), size: 7, fill: colours.surface },
            spanGaps: true,
            value: (_, value) => short(value),
          };
        }),
      ],
      hooks: { init: [(plot) => this.unlabel(plot, lines)] },
    };
  }

  /** Raw values have no line in the legend: theirs is that of the smoothed ones. */
  unlabel(plot, lines) {
    const rows = plot.root.querySelectorAll(".u-legend .u-series");
    lines.forEach((line, place) => (rows[place + 1].hidden = Boolean(line.thin)));
  }

  /** The numbers of a picture, for those who can't see it. */
  tell(one, lines) {
    const words = this.words;
    const cells = (kind, texts) => {
      const row = document.createElement("tr");
      row.append(...texts.map((text) => Object.assign(document.createElement(kind), { textContent: text })));
      return row;
    };
    const rows = lines
      .filter((line) => !line.thin)
      .map((line) => {
        const known = line.raw.filter((value) => value !== null);
        const least = known.reduce((a, b) => Math.min(a, b), Infinity);
        const most = known.reduce((a, b) => Math.max(a, b), -Infinity);
        return cells("td", [line.label, short(known.at(-1)), short(least), short(most)]);
      });
    one.table.replaceChildren(cells("th", ["", words.wordLast, words.wordLowest, words.wordHighest]), ...rows);
  }

  resize() {
    for (const { plot, target } of this.plots.values()) {
      const width = Math.max(260, target.clientWidth);
      if (Math.abs(plot.width - width) > 2) plot.setSize({ width, height: HEIGHT });
    }
  }
}
