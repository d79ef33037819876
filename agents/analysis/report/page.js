"use strict";
// Draws the page's curves, each from its figure's data-chart, and steps through the episode in the element #data.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 5", "1 4", "12 4", "3 2"];

// Elements

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  return filled(made, attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

function steps(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return Number((value / 1e6).toPrecision(4)) + "M";
  return size >= 1e4 ? Number((value / 1e3).toPrecision(4)) + "k" : shown(value);
}

// Curves

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((each) => each * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function extent(series) {
  const curve = series.flatMap((each) => each.y).filter((y) => y !== null);
  let low = Math.min(...curve), high = Math.max(...curve);
  const room = Math.max(high - low, 1e-9);
  // A wide interval may not flatten the curves: it shows up to half their range beyond them.
  const edges = series.flatMap((each) => [...(each.low || []), ...(each.high || [])]).filter((y) => y !== null);
  if (edges.length) {
    low = Math.max(Math.min(low, ...edges), low - room / 2);
    high = Math.min(Math.max(high, ...edges), high + room / 2);
  }
  if (high - low < 1e-9) [low, high] = [low - Math.max(1, Math.abs(low) / 10), high + Math.max(1, Math.abs(high) / 10)];
  const margin = (high - low) * 0.05;
  return [low - margin, high + margin];
}

function legend(series) {
  const list = element("ul", { class: "legend" });
  series.forEach((each, i) => {
    const line = drawn("line", { x1: 0, y1: 5, x2: 26, y2: 5, class: "curve", style: `stroke:var(--s${i % 8})`, "stroke-dasharray": DASHES[i % 8] });
    list.append(element("li", {}, drawn("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, line), each.name));
  });
  return list;
}

let clips = 0;

class Plot {
  constructor(figure, chart, chosen) {
    Object.assign(this, { figure, chart, chosen });
    this.series = chart.series.filter((each) => each.y.some((y) => y !== null));
    this.holder = element("div");
    this.readout = element("div", { class: "readout" });
    if (this.series.length > 1) figure.append(legend(this.series));
    figure.append(this.holder, this.readout);
    this.clip = `clip${clips++}`;
    new ResizeObserver(() => this.draw()).observe(this.holder);
    this.draw();
  }

  draw() {
    const width = Math.max(240, Math.round(this.holder.clientWidth || 480));
    if (width === this.width) return;
    this.width = width;
    const height = this.chart.height || Math.round(Math.min(300, Math.max(190, width * 0.5)));
    const xs = this.series.flatMap((each) => each.x);
    const [left, right, top, bottom] = [52, 12, 8, 36];
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    if (x1 - x0 < 1e-9) [x0, x1] = [x0 - 1, x1 + 1];
    const [y0, y1] = extent(this.series);
    this.x = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
    this.y = (y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
    this.area = { left, top, bottom: height - bottom };
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.chart.label });
    const box = { x: left, y: top, width: width - left - right, height: height - top - bottom };
    svg.append(drawn("clipPath", { id: this.clip }, drawn("rect", box)));
    for (const y of ticks(y0, y1, 5)) {
      svg.append(drawn("line", { class: "gridline", x1: left, x2: width - right, y1: this.y(y), y2: this.y(y) }));
      svg.append(drawn("text", { x: left - 6, y: this.y(y) + 4, "text-anchor": "end" }, shown(Number(y.toPrecision(10)))));
    }
    for (const x of ticks(x0, x1, Math.max(3, width / 110))) {
      svg.append(drawn("text", { x: this.x(x), y: height - bottom + 15, "text-anchor": "middle" }, steps(Number(x.toPrecision(10)))));
    }
    svg.append(drawn("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    svg.append(drawn("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, this.chart.x));
    const inside = drawn("g", { "clip-path": `url(#${this.clip})` });
    this.series.forEach((each, i) => inside.append(...this.line(each, i)));
    svg.append(inside);
    this.cursor = drawn("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.append(this.cursor);
    svg.addEventListener("pointermove", (event) => this.point(event));
    svg.addEventListener("pointerleave", () => this.leave());
    if (this.chosen) svg.addEventListener("click", (event) => this.chosen(this.nearest(event)));
    this.holder.replaceChildren(svg);
    if (this.mark !== undefined) this.moveTo(this.mark);
  }

  line(series, i) {
    const made = [];
    const whole = series.x.map((x, k) => k).filter((k) => series.y[k] !== null);
    if (series.low) {
      const edges = whole.filter((k) => series.low[k] !== null && series.high[k] !== null);
      const there = edges.map((k) => `${this.x(series.x[k])},${this.y(series.high[k])}`);
      const back = edges.reverse().map((k) => `${this.x(series.x[k])},${this.y(series.low[k])}`);
      if (there.length) made.push(drawn("path", { class: "band", d: `M${[...there, ...back].join("L")}Z`, style: `fill:var(--s${i % 8})` }));
    }
    const points = whole.map((k) => `${this.x(series.x[k])},${this.y(series.y[k])}`);
    made.push(drawn("path", { class: "curve", d: `M${points.join("L")}`, style: `stroke:var(--s${i % 8})`, "stroke-dasharray": DASHES[i % 8] }));
    if (points.length <= 40) {
      for (const point of points) {
        const [cx, cy] = point.split(",");
        made.push(drawn("circle", { cx, cy, r: 2.2, style: `fill:var(--s${i % 8})` }));
      }
    }
    return made;
  }

  nearest(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width;
    return this.series[0].x.reduce((best, each) => (Math.abs(this.x(each) - x) < Math.abs(this.x(best) - x) ? each : best));
  }

  point(event) {
    const x = this.nearest(event);
    this.say(x);
    this.show(x);
  }

  say(x) {
    const values = this.series.map((each) => {
      const k = each.x.reduce((best, value, j) => (Math.abs(value - x) < Math.abs(each.x[best] - x) ? j : best), 0);
      const name = this.series.length > 1 ? `${each.name} ` : "";
      const range = each.low && each.low[k] !== null ? ` (${shown(each.low[k])} to ${shown(each.high[k])})` : "";
      return `${name}${shown(each.y[k])}${range}`;
    });
    this.readout.textContent = `${this.chart.x} ${steps(x)}: ${values.join("; ")}`;
  }

  leave() {
    this.readout.textContent = "";
    if (this.mark === undefined) this.cursor.setAttribute("visibility", "hidden");
    else this.moveTo(this.mark);
  }

  moveTo(x) {
    this.mark = x;
    this.show(x);
  }

  show(x) {
    this.cursor.setAttribute("x1", this.x(x));
    this.cursor.setAttribute("x2", this.x(x));
    this.cursor.setAttribute("visibility", "visible");
  }
}

// Pictures of numbers

function bytes(text, signed) {
  const raw = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return signed ? new Int8Array(raw.buffer) : raw;
}

const dark = window.matchMedia("(prefers-color-scheme: dark)");

// -127 blue, 0 the page's ground, 127 orange.
function color(value) {
  const ground = dark.matches ? [20, 23, 26] : [255, 255, 255];
  const far = value < 0 ? (dark.matches ? [98, 178, 250] : [8, 81, 156]) : dark.matches ? [255, 160, 82] : [179, 63, 0];
  const part = Math.min(1, Math.abs(value) / 127) ** 0.8;
  return ground.map((each, i) => each + (far[i] - each) * part);
}

function paint(canvas, width, height, at) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) image.data.set([...at(x, y), 255], 4 * (y * width + x));
  }
  context.putImageData(image, 0, 0);
}

function scale(largest) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const draw = () => paint(canvas, 65, 1, (x) => color((x - 32) * 4));
  draw();
  dark.addEventListener("change", draw);
  return element("div", { class: "scale" }, shown(-largest), canvas, shown(largest));
}

// One episode

class Episode {
  constructor(episode) {
    this.episode = episode;
    this.last = episode.steps - 1;
    this.at = 0;
    this.timer = null;
    this.views = [];
    this.slider = document.getElementById("step");
    this.slider.max = this.last;
    this.place = document.getElementById("place");
    this.play = document.getElementById("play");
    const on = (id, act) => document.getElementById(id).addEventListener("click", act);
    on("previous", () => this.by(-1));
    on("next", () => this.by(1));
    on("play", () => (this.timer ? this.stop() : this.start()));
    this.slider.addEventListener("input", () => { this.stop(); this.go(Number(this.slider.value)); });
    document.addEventListener("keydown", (event) => this.key(event));
    this.build();
    const asked = /^#step=(\d+)$/.exec(location.hash);
    this.go(asked ? Number(asked[1]) : 0);
  }

  key(event) {
    const inside = event.target.closest("input, select, textarea, [contenteditable]");
    if (inside || event.altKey || event.ctrlKey || event.metaKey) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 };
    const here = event.target.closest("#episode");
    if (event.key === "ArrowLeft" || event.key === "ArrowRight" || (here && event.key in moves)) this.by(moves[event.key]);
    else if (here && event.key === "Home") this.by(-this.last);
    else if (here && event.key === "End") this.by(this.last);
    else return;
    event.preventDefault();
  }

  by(steps) {
    this.stop();
    this.go(this.at + steps);
  }

  go(step) {
    this.at = Math.max(0, Math.min(this.last, step));
    this.slider.value = this.at;
    this.slider.setAttribute("aria-valuetext", `step ${this.at + 1} of ${this.last + 1}`);
    this.place.textContent = `step ${this.at + 1} of ${this.last + 1}`;
    for (const view of this.views) view(this.at);
  }

  start() {
    if (this.at === this.last) this.go(0);
    this.play.textContent = "Pause";
    const pause = 1000 / Number(document.getElementById("speed").value);
    this.timer = setInterval(() => {
      if (this.at === this.last) this.stop();
      else this.go(this.at + 1);
    }, pause);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "Play";
  }

  build() {
    const { episode } = this;
    const seen = document.getElementById("seen");
    for (const part of episode.observations) this.part(part, seen, episode.observations.length > 1);
    this.part(episode.action, document.getElementById("done"), false, episode.action.probabilities);
    this.expected(document.getElementById("got"));
    this.timelines(document.getElementById("timelines"));
    const remembered = document.getElementById("remembered");
    for (const part of episode.memory) this.memory(part, remembered, document.getElementById("memories"));
    if (!episode.memory.length) remembered.append(element("p", { class: "quiet" }, "This agent carries no memory from step to step."));
  }

  part(part, holder, named, probabilities) {
    if (named) holder.append(element("h4", { class: "quiet" }, part.name));
    const views = { picture: "picture", choice: "choice", numbers: "bars" };
    this[views[part.kind]](part, holder, probabilities);
  }

  picture(part, holder) {
    const canvas = element("canvas", { class: "seen", role: "img", "aria-label": `${part.name}, a picture` });
    const all = bytes(part.data, false);
    const size = part.width * part.height * part.depth;
    holder.append(canvas);
    this.views.push((step) => paint(canvas, part.width, part.height, (x, y) => {
      const start = step * size + (y * part.width + x) * part.depth;
      return part.depth === 3 ? all.subarray(start, start + 3) : [all[start], all[start], all[start]];
    }));
  }

  choice(part, holder, probabilities) {
    const number = element("span", { class: "big" });
    holder.append(element("div", {}, number, element("span", { class: "quiet" }, ` of ${part.start} to ${part.start + part.n - 1}`)));
    this.views.push((step) => (number.textContent = part.values[step]));
    if (!probabilities) return;
    holder.append(element("div", { class: "quiet" }, "probability of each"));
    const rows = this.rows(holder, part.n, (i) => part.start + i);
    this.views.push((step) => rows.forEach((row, i) => {
      const p = probabilities[step][i];
      row.fill.style.cssText = `left:0;width:${100 * p}%`;
      row.text.textContent = p.toFixed(3);
      row.name.classList.toggle("taken", part.values[step] === part.start + i);
    }));
  }

  bars(part, holder) {
    const rows = this.rows(holder, part.values[0].length, (i) => i);
    if (part.total > rows.length) holder.append(element("p", { class: "quiet" }, `the first ${rows.length} of ${part.total} numbers`));
    const largest = part.largest || 1;
    this.views.push((step) => rows.forEach((row, i) => {
      const value = part.values[step][i];
      const half = (50 * Math.min(Math.abs(value), largest)) / largest;
      row.fill.style.cssText = `left:${value < 0 ? 50 - half : 50}%;width:${half}%`;
      row.text.textContent = shown(value);
    }));
  }

  rows(holder, count, name) {
    const list = element("div", { class: "bars" });
    holder.append(list);
    return Array.from({ length: count }, (_, i) => {
      const row = { name: element("span", {}, String(name(i))), fill: element("i"), text: element("span") };
      list.append(row.name, element("span", { class: "track", "aria-hidden": "true" }, row.fill), row.text);
      return row;
    });
  }

  expected(holder) {
    const { episode } = this;
    let sum = 0;
    const sums = episode.rewards.map((reward) => (sum += reward));
    const figures = [
      ["value expected", (step) => shown(episode.values[step])],
      ["reward got", (step) => shown(episode.rewards[step])],
      ["return so far", (step) => shown(sums[step])],
      ["log-probability of the action", (step) => shown(episode.log_probabilities[step])],
    ];
    for (const [name, value] of figures) {
      const number = element("div", { class: "big" });
      holder.append(element("div", { class: "quiet" }, name), number);
      this.views.push((step) => (number.textContent = value(step)));
    }
  }

  timelines(holder) {
    const { episode } = this;
    const x = episode.rewards.map((_, i) => i + 1);
    for (const [name, y] of [["value", episode.values], ["reward", episode.rewards]]) {
      const figure = element("figure", { class: "panel" }, element("figcaption", {}, name));
      holder.append(figure);
      const chart = { series: [{ name, x, y }], x: "step", label: `${name} at every step of the episode`, height: 170 };
      const plot = new Plot(figure, chart, (step) => { this.stop(); this.go(step - 1); });
      this.views.push((step) => plot.moveTo(step + 1));
    }
  }

  memory(part, holder, below) {
    const all = bytes(part.data, true);
    const title = part.shown < part.total ? `${part.name}: ${part.shown} of ${part.total} numbers` : `${part.name}: ${part.total} numbers`;
    const columns = Math.ceil(Math.sqrt(part.shown * 2.2));
    const lines = Math.ceil(part.shown / columns);
    const strip = element("canvas", { class: "strip", role: "img", "aria-label": `${part.name} after this step` });
    holder.append(element("div", { class: "quiet" }, title), strip, scale(part.largest));
    const cell = (step) => paint(strip, columns, lines, (column, line) => {
      const unit = line * columns + column;
      return color(unit < part.shown ? all[step * part.shown + unit] : 0);
    });
    const over = element("canvas", { class: "over-time", role: "img", "aria-label": `${part.name} over the episode` });
    over.style.height = `${Math.min(360, Math.max(96, part.shown * 3))}px`;
    const now = element("div", { class: "now" });
    const figure = element("figure", { class: "panel" }, element("figcaption", {}, `${part.name} over the episode`));
    figure.append(element("div", { class: "heat" }, over, now), element("div", { class: "quiet" }, "steps from left to right, a number a row"));
    below.append(figure);
    const whole = () => paint(over, this.last + 1, part.shown, (step, unit) => color(all[step * part.shown + unit]));
    over.addEventListener("click", (event) => {
      const box = over.getBoundingClientRect();
      this.stop();
      this.go(Math.floor(((event.clientX - box.left) / box.width) * (this.last + 1)));
    });
    whole();
    dark.addEventListener("change", () => { whole(); cell(this.at); });
    this.views.push((step) => {
      cell(step);
      now.style.left = `${(100 * (step + 0.5)) / (this.last + 1)}%`;
    });
  }
}

for (const figure of document.querySelectorAll("[data-chart]")) new Plot(figure, JSON.parse(figure.dataset.chart));
const recorded = JSON.parse(document.getElementById("data").textContent);
if (recorded) new Episode(recorded);
