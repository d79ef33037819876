"use strict";
// Draws the page's curves, each from its figure's data-chart, and steps through the episode in the element #data.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 5", "1 4", "12 4", "3 2"];
const SVG = ["svg", "path", "line", "text", "circle"];
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });

function element(name, attributes = {}, ...children) {
  const made = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
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

function shortened(steps) {
  return Math.abs(steps) < 1e4 ? shown(steps) : COMPACT.format(steps);
}

function closest(values, wanted) {
  return values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);
}

// Curves

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((each) => each * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}

function extent(series) {
  const ys = series.flatMap((each) => each.y).filter((y) => y !== null);
  let low = Math.min(...ys), high = Math.max(...ys);
  // A wide interval may not flatten the curves: it shows up to half their range beyond them.
  const room = (high - low) / 2 || Infinity;
  const edges = series.flatMap((each) => [...(each.low || []), ...(each.high || [])]).filter((y) => y !== null);
  [low, high] = [Math.max(Math.min(low, ...edges), low - room), Math.min(Math.max(high, ...edges), high + room)];
  const least = Math.max(1e-9, 1e-6 * Math.max(Math.abs(low), Math.abs(high)));
  const margin = high - low < least ? Math.max(1, Math.abs(low) / 10) : (high - low) * 0.05;
  return [low - margin, high + margin];
}

function look(i) {
  return { class: "curve", style: `stroke:var(--s${i % 8})`, "stroke-dasharray": DASHES[i % 8] };
}

class Plot {
  constructor(figure, chart, chosen) {
    Object.assign(this, { chart, chosen, holder: element("div"), readout: element("div", { class: "readout" }) });
    this.series = chart.series.filter((each) => each.y.some((y) => y !== null));
    if (this.series.length > 1) figure.append(this.legend());
    figure.append(this.holder, this.readout);
    new ResizeObserver(() => this.draw()).observe(this.holder);
    this.draw();
  }

  legend() {
    const entries = this.series.map((each, i) => {
      const line = element("line", { x1: 0, y1: 5, x2: 26, y2: 5, ...look(i) });
      return element("li", {}, element("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, line), each.name);
    });
    return element("ul", { class: "legend" }, ...entries);
  }

  draw() {
    const width = Math.max(240, Math.round(this.holder.clientWidth || 480));
    if (width === this.width) return;
    this.width = width;
    const height = this.chart.height || Math.round(Math.min(300, Math.max(190, width * 0.5)));
    const [left, right, top, bottom] = [52, width - 12, 8, height - 36];
    const xs = this.series.flatMap((each) => each.x);
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    if (x1 - x0 < 1e-9) [x0, x1] = [x0 - 1, x1 + 1];
    const [y0, y1] = extent(this.series);
    this.x = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
    this.y = (y) => top + ((y1 - y) / (y1 - y0)) * (bottom - top);
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.chart.label });
    const add = (name, attributes, ...children) => svg.appendChild(element(name, attributes, ...children));
    for (const y of ticks(y0, y1, 5)) {
      add("line", { class: "gridline", x1: left, x2: right, y1: this.y(y), y2: this.y(y) });
      add("text", { x: left - 6, y: this.y(y) + 4, "text-anchor": "end" }, shown(y));
    }
    for (const x of ticks(x0, x1, Math.max(3, width / 110))) {
      add("text", { x: this.x(x), y: bottom + 15, "text-anchor": "middle" }, shortened(x));
    }
    add("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
    add("text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, this.chart.x);
    const inside = { x: left, y: top, width: right - left, height: bottom - top };
    const clip = { ...inside, class: "clip", viewBox: Object.values(inside).join(" ") };
    add("svg", clip, ...this.series.flatMap((each, i) => this.curve(each, i)));
    this.cursor = add("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" });
    svg.addEventListener("pointermove", (event) => this.point(this.nearest(event)));
    svg.addEventListener("pointerleave", () => this.leave());
    if (this.chosen) svg.addEventListener("click", (event) => this.chosen(this.nearest(event)));
    this.holder.replaceChildren(svg);
    this.leave();
  }

  curve(series, i) {
    const measured = series.x.map((x, k) => k).filter((k) => series.y[k] !== null);
    const path = (keys, ys) => keys.map((k) => `${this.x(series.x[k])},${this.y(ys[k])}`);
    const fill = `fill:var(--s${i % 8})`;
    const made = [];
    const edges = series.low ? measured.filter((k) => series.low[k] !== null && series.high[k] !== null) : [];
    if (edges.length) {
      const around = [...path(edges, series.high), ...path([...edges].reverse(), series.low)];
      made.push(element("path", { class: "band", d: `M${around.join("L")}Z`, style: fill }));
    }
    made.push(element("path", { d: `M${path(measured, series.y).join("L")}`, ...look(i) }));
    if (measured.length > 40) return made;
    const dots = measured.map((k) => element("circle", { cx: this.x(series.x[k]), cy: this.y(series.y[k]), r: 2.2, style: fill }));
    return [...made, ...dots];
  }

  nearest(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const { x } = this.series[0];
    return x[closest(x.map(this.x), ((event.clientX - box.left) / box.width) * this.width)];
  }

  point(x) {
    const values = this.series.map((each) => {
      const k = closest(each.x, x);
      const name = this.series.length > 1 ? `${each.name} ` : "";
      const range = each.low && each.low[k] !== null ? ` (${shown(each.low[k])} to ${shown(each.high[k])})` : "";
      return `${name}${shown(each.y[k])}${range}`;
    });
    this.readout.textContent = `${this.chart.x} ${shortened(x)}: ${values.join("; ")}`;
    this.show(x);
  }

  leave(mark = this.mark) {
    this.readout.textContent = "";
    this.mark = mark;
    this.show(mark);
  }

  show(x) {
    this.cursor.setAttribute("visibility", x === undefined ? "hidden" : "visible");
    if (x !== undefined) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(x));
  }
}

// Pictures of numbers

const dark = window.matchMedia("(prefers-color-scheme: dark)");

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// -127 blue, 0 the page's ground, 127 orange.
function color(value) {
  const [ground, blue, orange] = dark.matches
    ? [[20, 23, 26], [98, 178, 250], [255, 160, 82]]
    : [[255, 255, 255], [8, 81, 156], [179, 63, 0]];
  const far = value < 0 ? blue : orange;
  const part = Math.min(1, Math.abs(value) / 127) ** 0.8;
  return ground.map((each, i) => each + (far[i] - each) * part);
}

function paint(canvas, width, height, at) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) image.data.set([...at(x, y), 255], 4 * (y * width + x));
  }
  context.putImageData(image, 0, 0);
}

// In the colors of the page, which may change.
function repainted(draw) {
  draw();
  dark.addEventListener("change", draw);
}

function scale(largest) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  repainted(() => paint(canvas, 65, 1, (x) => color((x - 32) * 4)));
  return element("div", { class: "scale" }, shown(-largest), canvas, shown(largest));
}

// One episode

const byId = (id) => document.getElementById(id);
const quiet = (...children) => element("div", { class: "quiet" }, ...children);

class Episode {
  constructor(episode) {
    Object.assign(this, { episode, last: episode.steps - 1, at: 0, timer: null, views: [], slider: byId("step") });
    this.slider.max = this.last;
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    byId("previous").addEventListener("click", () => this.choose(this.at - 1));
    byId("next").addEventListener("click", () => this.choose(this.at + 1));
    byId("play").addEventListener("click", () => (this.timer ? this.stop() : this.start()));
    document.addEventListener("keydown", (event) => this.key(event));
    this.build();
    const linked = /^#step=(\d+)$/.exec(location.hash);
    this.go(linked ? Number(linked[1]) : 0);
  }

  key(event) {
    const typing = event.target.closest("input, select, textarea, [contenteditable]");
    if (typing || event.altKey || event.ctrlKey || event.metaKey) return;
    const anywhere = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1 };
    const here = { ...anywhere, PageUp: this.at - 10, PageDown: this.at + 10, Home: 0, End: this.last };
    const step = (event.target.closest("#episode") ? here : anywhere)[event.key];
    if (step === undefined) return;
    this.choose(step);
    event.preventDefault();
  }

  choose(step) {
    this.stop();
    this.go(step);
  }

  go(step) {
    this.at = Math.max(0, Math.min(this.last, step));
    this.slider.value = this.at;
    byId("place").textContent = `step ${this.at + 1} of ${this.last + 1}`;
    this.slider.setAttribute("aria-valuetext", byId("place").textContent);
    for (const view of this.views) view(this.at);
  }

  start() {
    if (this.at === this.last) this.go(0);
    byId("play").textContent = "Pause";
    const advance = () => (this.at === this.last ? this.stop() : this.go(this.at + 1));
    this.timer = setInterval(advance, 1000 / Number(byId("speed").value));
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    byId("play").textContent = "Play";
  }

  build() {
    const { observations, action, memory } = this.episode;
    for (const part of this.episode.graphs || []) this.graph(part, byId("seen"));
    const views = { picture: this.picture, choice: this.choice, numbers: this.numbers };
    for (const part of observations) {
      if (observations.length > 1) byId("seen").append(element("h4", { class: "quiet" }, part.name));
      views[part.kind].call(this, part, byId("seen"));
    }
    views[action.kind].call(this, action, byId("done"));
    this.figures(byId("got"));
    for (const name of ["value", "reward"]) this.timeline(name, this.episode[`${name}s`]);
    for (const part of memory) this.memory(part);
    if (!memory.length) byId("remembered").append(quiet("This agent carries no memory from step to step."));
  }

  picture(part, holder) {
    const canvas = element("canvas", { class: "seen", role: "img", "aria-label": `${part.name}, a picture` });
    const all = bytes(part.data);
    holder.append(canvas);
    this.views.push((step) => paint(canvas, part.width, part.height, (x, y) => {
      const start = ((step * part.height + y) * part.width + x) * part.depth;
      return part.depth === 3 ? all.subarray(start, start + 3) : Array(3).fill(all[start]);
    }));
  }

  choice(part, holder) {
    const number = element("span", { class: "big" });
    holder.append(element("div", {}, number, element("span", { class: "quiet" }, ` of ${part.start} to ${part.start + part.n - 1}`)));
    this.views.push((step) => (number.textContent = part.values[step]));
    if (!part.probabilities) return;
    holder.append(quiet("probability of each"));
    this.bars(holder, part.n, part.start, (step, i) => {
      const p = part.probabilities[step][i];
      return { from: 0, to: p, text: p.toFixed(3), taken: part.values[step] === part.start + i };
    });
  }

  numbers(part, holder) {
    const count = part.values[0].length;
    this.bars(holder, count, 0, (step, i) => {
      const value = part.values[step][i];
      const end = 0.5 + Math.max(-0.5, Math.min(0.5, value / (2 * (part.largest || 1))));
      return { from: Math.min(0.5, end), to: Math.max(0.5, end), text: shown(value) };
    });
    if (part.total > count) holder.append(quiet(`the first ${count} of ${part.total} numbers`));
  }

  // Nodes on a circle: an area is a node's weight in what is encoded, a line's width that of its messages.
  graph(part, holder) {
    const svg = element("svg", { viewBox: "0 0 240 240", role: "img", "aria-label": "weights of the graph's nodes and links" });
    const heaviest = element("div", { class: "quiet" });
    holder.append(quiet("graph: weights of nodes and of messages along links"), svg, heaviest);
    const place = (i, n) => [120 + 96 * Math.sin((2 * Math.PI * i) / n), 120 - 96 * Math.cos((2 * Math.PI * i) / n)];
    this.views.push((step) => {
      const [nodes, links] = [part.nodes[step], part.links[step]];
      const n = nodes.reduce((last, weight, i) => (weight > 0 ? i + 1 : last), 1);
      const [most, widest] = [Math.max(...nodes, 1e-9), links.length ? links[0][2] : 1];
      const lines = links.map(([from, to, weight]) => {
        const [[x1, y1], [x2, y2]] = [place(from, n), place(to, n)];
        const style = `stroke:var(--s0);stroke-width:${(7 * weight) / widest};opacity:.6`;
        return element("line", { x1, y1, x2, y2, style });
      });
      const dots = nodes.flatMap((weight, i) => {
        if (!(weight > 0)) return [];
        const [x, y] = place(i, n);
        const dot = element("circle", { cx: x, cy: y, r: 3 + 13 * Math.sqrt(weight / most), style: "fill:var(--s1);opacity:.75" });
        return [dot, element("text", { x, y: y + 4, "text-anchor": "middle", style: "fill:var(--ink)" }, String(i))];
      });
      svg.replaceChildren(...lines, ...dots);
      const order = nodes.map((_, i) => i).filter((i) => nodes[i] > 0).sort((a, b) => nodes[b] - nodes[a]);
      const said = order.slice(0, 3).map((i) => `${i}: ${shown(nodes[i])}`);
      const along = links.slice(0, 3).map(([from, to, weight]) => `${from} → ${to}: ${shown(weight)}`);
      heaviest.textContent = `heaviest nodes ${said.join(", ")}; links ${along.join(", ") || "none"}`;
    });
  }

  bars(holder, count, first, at) {
    const list = element("div", { class: "bars" });
    holder.append(list);
    for (let i = 0; i < count; i++) {
      const [name, fill, text] = [element("span", {}, String(first + i)), element("i"), element("span")];
      list.append(name, element("span", { class: "track", "aria-hidden": "true" }, fill), text);
      this.views.push((step) => {
        const bar = at(step, i);
        fill.style.cssText = `left:${100 * bar.from}%;width:${100 * (bar.to - bar.from)}%`;
        text.textContent = bar.text;
        name.classList.toggle("taken", Boolean(bar.taken));
      });
    }
  }

  figures(holder) {
    const { values, rewards, log_probabilities: logs } = this.episode;
    let sum = 0;
    const sums = rewards.map((reward) => (sum += reward));
    const series = { "value expected": values, "reward got": rewards, "return so far": sums, "log-probability of the action": logs };
    for (const [name, numbers] of Object.entries(series)) {
      const number = element("div", { class: "big" });
      holder.append(quiet(name), number);
      this.views.push((step) => (number.textContent = shown(numbers[step])));
    }
  }

  timeline(name, y) {
    const figure = element("figure", { class: "panel" }, element("figcaption", {}, name));
    byId("timelines").append(figure);
    const chart = { series: [{ name, x: y.map((_, i) => i + 1), y }], x: "step", label: `${name} at every step of the episode`, height: 170 };
    const plot = new Plot(figure, chart, (step) => this.choose(step - 1));
    this.views.push((step) => plot.leave(step + 1));
  }

  memory(part) {
    const all = new Int8Array(bytes(part.data).buffer);
    const of = part.shown < part.total ? `${part.shown} of ${part.total}` : part.total;
    const columns = Math.ceil(Math.sqrt(part.shown * 2.2));
    const strip = element("canvas", { class: "strip", role: "img", "aria-label": `${part.name} after this step` });
    byId("remembered").append(quiet(`${part.name}: ${of} numbers`), strip, scale(part.largest));
    const over = element("canvas", { class: "over-time", role: "img", "aria-label": `${part.name} over the episode` });
    over.style.height = `${Math.min(360, Math.max(96, part.shown * 3))}px`;
    const now = element("div", { class: "now" });
    const figure = element("figure", { class: "panel" }, element("figcaption", {}, `${part.name} over the episode`));
    figure.append(element("div", { class: "heat" }, over, now), quiet("steps from left to right, a number a row"));
    byId("memories").append(figure);
    over.addEventListener("click", (event) => {
      const box = over.getBoundingClientRect();
      this.choose(Math.floor(((event.clientX - box.left) / box.width) * (this.last + 1)));
    });
    const cells = () => paint(strip, columns, Math.ceil(part.shown / columns), (column, line) => {
      const unit = line * columns + column;
      return color(unit < part.shown ? all[this.at * part.shown + unit] : 0);
    });
    repainted(cells);
    repainted(() => paint(over, this.last + 1, part.shown, (step, unit) => color(all[step * part.shown + unit])));
    this.views.push((step) => {
      cells();
      now.style.left = `${(100 * (step + 0.5)) / (this.last + 1)}%`;
    });
  }
}

for (const figure of document.querySelectorAll("[data-chart]")) new Plot(figure, JSON.parse(figure.dataset.chart));
const recorded = JSON.parse(byId("data").textContent);
if (recorded) new Episode(recorded);
