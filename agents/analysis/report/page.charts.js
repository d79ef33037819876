"use strict";
// Draws every figure of the page, from its data-chart by uPlot or from its data-heat as a picture of cells.

const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3], [5, 5], [1, 4], [12, 4], [3, 2]];
const SVG = ["svg", "line", "text", "circle"];
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
const UNITS = [["hours", 3600], ["minutes", 60], ["seconds", 1]];
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function element(name, attributes = {}, ...children) {
  const made = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(text, label, act) {
  const made = element("button", { type: "button", "aria-label": label, title: label }, text);
  made.addEventListener("click", act);
  return made;
}

function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return value.toExponential(2);
  return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
}

function shortened(value) {
  return Math.abs(value) < 1e4 ? shown(value) : COMPACT.format(value);
}

function closest(values, wanted) {
  return values.reduce((best, value, i) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best), 0);
}

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function faint(color, share) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgba(${r}, ${g}, ${b}, ${share})`;
}

// From the first of so many steps, blue, to the last, orange.
function passing(part) {
  return `hsl(${Math.round(225 - 200 * part)} 75% ${dark.matches ? 65 : 42}%)`;
}

// The exponential moving average, without the pull of its start towards 0.
function smoothed(values, weight) {
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (value === null || !weight) return value;
    [sum, total] = [weight * sum + (1 - weight) * value, weight * total + (1 - weight)];
    return sum / total;
  });
}

function save(name, blob) {
  const link = element("a", { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function cell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// What every figure has: its data as a file, and itself as a picture.
class Figure {
  constructor(figure, caption) {
    Object.assign(this, { figure, caption, head: figure.querySelector("figcaption") });
    this.file = caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "figure";
    this.tools = element("span", { class: "tools" });
    this.head.append(this.tools);
    figure.chart = this;
  }

  offer() {
    const csv = () => save(`${this.file}.csv`, new Blob([this.csv()], { type: "text/csv" }));
    const png = () => this.png().toBlob((blob) => save(`${this.file}.png`, blob));
    this.tools.append(button("PNG", `${this.caption}: download as PNG`, png));
    this.tools.append(button("CSV", `${this.caption}: download as CSV`, csv));
  }

  csv() {
    return this.rows().map((row) => `${row.map(cell).join(",")}\n`).join("");
  }

  png() {
    const source = this.canvas();
    const ratio = source.width / Math.max(1, source.clientWidth);
    const names = this.named();
    const line = 18 * ratio;
    const canvas = element("canvas", { width: source.width, height: source.height + line * (names.length + 1.5) });
    const context = canvas.getContext("2d");
    context.fillStyle = themed("--panel");
    context.fillRect(0, 0, canvas.width, canvas.height);
    const write = (text, at, color, weight) => {
      context.font = `${weight} ${13 * ratio}px system-ui, sans-serif`;
      context.fillStyle = color;
      context.fillText(text, 6 * ratio, at, canvas.width - 12 * ratio);
    };
    write(this.caption, line, themed("--ink"), 600);
    names.forEach(([name, color], i) => write(`— ${name}`, line * (i + 2), color, 400));
    context.imageSmoothingEnabled = false;
    context.drawImage(source, 0, line * (names.length + 1.5));
    return canvas;
  }
}

class Chart extends Figure {
  // settings: what the controls of several charts have chosen; chosen(x): what a click does.
  constructor(figure, chart, settings = {}, chosen = null) {
    super(figure, chart.caption);
    Object.assign(this, { chart, settings, chosen, mark: chart.mark, hidden: new Set() });
    this.kind = chart.kind || "line";
    this.series = chart.series.filter((each) => each.y.some((y) => y !== null));
    this.owners = this.series.map((each, i) => i).filter((i) => this.series[i].of === undefined);
    this.holder = element("div", { class: "plot", role: "img", "aria-label": chart.label });
    this.readout = element("div", { class: "readout" });
    this.cursor = element("div", { class: "mark", hidden: "" });
    if (this.kind !== "bars") {
      this.tools.append(button("+", `${chart.caption}: zoom in`, () => this.zoom()));
      this.tools.append(button("↺", `${chart.caption}: show everything`, () => this.draw()));
    }
    this.offer();
    if (this.series.length > 1) figure.append(this.legend());
    if (chart.path) figure.append(element("div", { class: "scale" }, "first step", element("i", { class: "passing" }), "last step"));
    figure.append(this.holder, this.readout);
    new ResizeObserver(() => this.resize()).observe(this.holder);
    dark.addEventListener("change", () => this.draw());
  }

  // Legend and colors: a series that belongs to another is of that one's color and hidden with it.

  owner(i) {
    return this.series[i].of === undefined ? i : this.series.findIndex((each) => each.name === this.series[i].of);
  }

  // Which of the colors and dashes a series has.
  place(i) {
    return (this.series[i].hue ?? this.owners.indexOf(this.owner(i))) % 8;
  }

  color(i) {
    return themed(`--s${this.place(i)}`);
  }

  is_shown(i) {
    const single = this.series[i].of !== undefined;
    return !this.hidden.has(this.owner(i)) && !(single && this.settings.seeds === false);
  }

  legend() {
    const list = element("ul", { class: "legend" });
    this.series.forEach((each, i) => {
      if (each.of !== undefined) return;
      const toggle = button("", `${each.name}: show or hide`, () => {
        this.hidden[this.hidden.has(i) ? "delete" : "add"](i);
        toggle.setAttribute("aria-pressed", !this.hidden.has(i));
        this.draw();
      });
      toggle.setAttribute("aria-pressed", "true");
      const [place, style] = [this.place(i), DASHES[this.place(i)].length ? "dashed" : "solid"];
      const dash = { style: `border-top:3px ${style} var(--s${place})` };
      toggle.append(element("i", this.kind === "line" ? dash : { class: "block", style: `background:var(--s${place})` }), each.name);
      list.append(element("li", {}, toggle));
    });
    return list;
  }

  named() {
    return this.series.flatMap((each, i) => (each.of === undefined && !this.hidden.has(i) && this.series.length > 1 ? [[each.name, this.color(i)]] : []));
  }

  // What is drawn

  horizontal(series) {
    if (!(this.settings.time && series.t)) return series.x;
    return series.t.map((t) => (t === null ? null : t / this.unit[1]));
  }

  get unit() {
    const longest = Math.max(...this.series.flatMap((each) => each.t || [0]));
    return UNITS.find(([, seconds]) => longest >= 2 * seconds) || UNITS[2];
  }

  get over() {
    return this.settings.time && this.series.some((each) => each.t) ? `${this.unit[0]} of training` : this.chart.x;
  }

  logarithmic(values, wanted) {
    return Boolean(wanted) && values.some((value) => value > 0);
  }

  lines() {
    const { smooth = 0, logX, logY } = this.settings;
    const visible = this.series.map((each, i) => i).filter((i) => this.is_shown(i));
    this.logX = this.logarithmic(visible.flatMap((i) => this.horizontal(this.series[i])), logX);
    this.logY = this.logarithmic(visible.flatMap((i) => this.series[i].y), logY);
    const [tables, looks, bands] = [[], [{}], []];
    let left_out = 0;
    const add = (x, y, look) => {
      const usable = (k) => x[k] !== null && y[k] !== null && !(this.logX && x[k] <= 0) && !(this.logY && y[k] <= 0);
      const keys = x.map((_, k) => k).filter(usable);
      left_out += y.filter((value) => value !== null).length - keys.length;
      tables.push([keys.map((k) => x[k]), keys.map((k) => y[k])]);
      return looks.push({ ...look, points: { ...look.points, size: 5 } }) - 1;
    };
    for (const i of visible) {
      const each = this.series[i];
      const [x, color, single] = [this.horizontal(each), this.color(i), each.of !== undefined];
      if (each.low) {
        const edge = (y) => add(x, smoothed(y, smooth), { stroke: "transparent", width: 0, points: { show: false } });
        bands.push({ series: [edge(each.high), edge(each.low)], fill: faint(color, 0.17) });
      }
      if (smooth && !single) add(x, each.y, { stroke: faint(color, 0.3), width: 1, points: { show: false } });
      const look = { stroke: single ? faint(color, 0.45) : color, width: single ? 1 : 2, points: single ? { show: false } : {} };
      add(x, smoothed(each.y, smooth), { ...look, dash: DASHES[this.place(i)] });
    }
    this.rest = left_out ? `${left_out} values of 0 or less are left out on a logarithmic axis` : "";
    return { data: tables.length ? uPlot.join(tables) : [[]], series: tables.length ? looks : [{}], bands };
  }

  points() {
    const [{ x, y }] = this.series;
    const order = x.map((_, k) => k).filter((k) => x[k] !== null && y[k] !== null).sort((a, b) => x[a] - x[b]);
    const [xs, ys] = [order.map((k) => x[k]), order.map((k) => y[k])];
    const none = { stroke: "transparent", paths: () => null, points: { show: false } };
    const line = { stroke: themed("--quiet"), dash: [4, 4], width: 1, points: { show: false } };
    return this.chart.diagonal ? { data: [xs, ys, xs], series: [{}, none, line] } : { data: [xs, ys], series: [{}, none] };
  }

  bars() {
    const fill = (i) => ({ stroke: this.color(i), fill: faint(this.color(i), 0.75), width: 0, points: { show: false } });
    const paths = (i) => uPlot.paths.bars({ size: [0.8 / this.series.length, 60], align: this.series.length > 1 ? 2 * i - 1 : 0 });
    const data = [this.series[0].x, ...this.series.map((each, i) => (this.is_shown(i) ? each.y : each.y.map(() => null)))];
    return { data, series: [{}, ...this.series.map((_, i) => ({ ...fill(i), paths: paths(i) }))] };
  }

  // Dots in the order of time, colored by it.
  scatter(u) {
    const [{ x, y }] = this.series;
    const { ctx } = u;
    const at = (k) => [u.valToPos(x[k], "x", true), u.valToPos(y[k], "y", true)];
    const { left, top, width, height } = u.bbox;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    if (this.chart.path) {
      ctx.beginPath();
      x.forEach((_, k) => ctx.lineTo(...at(k)));
      ctx.strokeStyle = faint(themed("--ink"), 0.25);
      ctx.lineWidth = devicePixelRatio;
      ctx.stroke();
    }
    const radius = (x.length > 300 ? 2 : 3.5) * devicePixelRatio;
    x.forEach((_, k) => {
      if (x[k] === null || y[k] === null) return;
      ctx.beginPath();
      ctx.arc(...at(k), radius, 0, 2 * Math.PI);
      ctx.fillStyle = this.chart.path ? passing(k / Math.max(1, x.length - 1)) : faint(themed("--s0"), 0.5);
      ctx.fill();
    });
    ctx.restore();
  }

  draw() {
    const width = this.holder.clientWidth;
    if (!width || !this.series.length) return;
    this.u?.destroy();
    const { data, series, bands = [] } = this[{ line: "lines", points: "points", bars: "bars" }[this.kind]]();
    const height = this.chart.height || Math.round(Math.min(300, Math.max(200, width * 0.5)));
    this.u = new uPlot({ width, height, series, bands, ...this.options() }, data, this.holder);
    this.u.over.append(this.cursor);
    if (this.chosen) this.u.over.addEventListener("click", (event) => this.chosen(this.near(this.u.posToVal(event.offsetX, "x"))));
    this.readout.textContent = this.rest || "";
  }

  options() {
    const font = "11px system-ui, sans-serif";
    const axis = (label, size, values) => ({
      label, size, values, font, labelFont: font, labelSize: label ? 18 : 0, labelGap: 0, stroke: themed("--quiet"),
      grid: { stroke: themed("--grid"), width: 1 }, ticks: { stroke: themed("--line"), width: 1, size: 4 }, gap: 3,
    });
    const write = (format) => (u, values) => values.map((value) => (value === null ? "" : format(value)));
    const { ticks } = this.chart;
    const x = axis(this.over, 22, write(ticks ? (value) => ticks[value] ?? "" : shortened));
    const whole = this.series.every((each) => this.horizontal(each).every((value) => Number.isInteger(value)));
    if (whole && !this.logX) x.incrs = [0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((power) => [1, 2, 5].map((each) => each * 10 ** power));
    const widest = (u, values) => 14 + 6.5 * Math.max(1, ...(values || []).map((value) => value.length));
    const room = ticks ? 0.6 : this.kind === "bars" ? this.chart.series[0].x[1] - this.chart.series[0].x[0] || 0.5 : 0;
    const across = (u, low, high) => (low === high ? [low - 1, high + 1] : [low - room, high + room]);
    const inside = this.kind === "points" ? (u, low, high) => uPlot.rangeNum(low, high, 0.08, true) : across;
    const up = (u, low, high) => (low === high && low !== null ? [low - Math.max(1, Math.abs(low) / 10), high + Math.max(1, Math.abs(low) / 10)] : uPlot.rangeNum(low, high, 0.1, true));
    return {
      legend: { show: false },
      scales: {
        x: { time: false, distr: this.logX ? 3 : 1, ...(this.logX ? {} : { range: inside }) },
        y: { distr: this.logY ? 3 : 1, ...(this.logY ? {} : { range: this.kind === "bars" ? (u, low, high) => [0, high * 1.1 || 1] : up }) },
      },
      axes: [x, { ...axis(this.chart.y, widest, write(shortened)), side: 3 }],
      cursor: { drag: { x: true, y: true, uni: 25 }, points: { show: this.kind === "line" }, y: false },
      hooks: {
        setCursor: [(u) => this.point(u)],
        draw: [(u) => this.kind === "points" && this.scatter(u), () => this.show(this.mark)],
      },
    };
  }

  resize() {
    const width = this.holder.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.draw();
  }

  zoom() {
    const { u } = this;
    if (!u) return;
    const { min, max } = u.scales.x;
    const wanted = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : this.logX ? Math.sqrt(min * max) : (min + max) / 2;
    const part = (edge) => (this.logX ? Math.sqrt(wanted * edge) : (wanted + edge) / 2);
    u.setScale("x", { min: part(min), max: part(max) });
  }

  near(x) {
    const xs = this.horizontal(this.series[0]);
    return xs[closest(xs, x)];
  }

  point(u) {
    if (u.cursor.left < 0) {
      this.readout.textContent = this.rest || "";
      return;
    }
    const wanted = u.posToVal(u.cursor.left, "x");
    const values = this.series.flatMap((each, i) => {
      if (each.of !== undefined || this.hidden.has(i)) return [];
      const k = closest(this.horizontal(each), wanted);
      const name = this.series.length > 1 ? `${each.name} ` : "";
      const range = each.low && each.low[k] !== null ? ` (${shown(each.low[k])} to ${shown(each.high[k])})` : "";
      return [`${name}${shown(each.y[k])}${range}`];
    });
    const at = this.near(wanted);
    this.readout.textContent = `${this.over} ${this.chart.ticks?.[at] ?? shortened(at)}: ${values.join("; ")}`;
  }

  // A line across the chart, at the step that is looked at.
  show(x) {
    this.mark = x;
    const { u } = this;
    const place = u && x !== undefined && x !== null ? u.valToPos(x, "x") : -1;
    this.cursor.hidden = !(u && place >= 0 && place <= u.over.clientWidth);
    this.cursor.style.left = `${place}px`;
  }

  canvas() {
    if (!this.u) this.draw();
    return this.u ? this.u.ctx.canvas : element("canvas");
  }

  rows() {
    const head = ["series", this.chart.x, "seconds", this.chart.y || "value", "low", "high"];
    const rows = this.series.flatMap((each) => each.x.map((x, k) => {
      const name = each.of === undefined ? each.name : `${each.of}: ${each.name}`;
      return [name, this.chart.ticks?.[x] ?? x, each.t?.[k], each.y[k], each.low?.[k], each.high?.[k]];
    }));
    return [head, ...rows];
  }
}

// What applies to all charts of a block.
function controlled(block) {
  const settings = { time: false, logX: false, logY: false, smooth: 0, seeds: true };
  const figures = [...block.querySelectorAll("[data-chart]")];
  const charts = figures.map((figure) => new Chart(figure, JSON.parse(figure.dataset.chart), settings));
  const redraw = () => charts.forEach((chart) => chart.draw());
  const lines = charts.filter((chart) => chart.kind === "line").flatMap((chart) => chart.series);
  if (!lines.some((each) => each.x.length > 2)) return;
  const bar = element("div", { class: "chart-controls" });
  const check = (name, text, on = false) => {
    const box = element("input", { type: "checkbox" });
    box.checked = on;
    box.addEventListener("change", () => { settings[name] = box.checked; redraw(); });
    bar.append(element("label", {}, box, ` ${text}`));
  };
  if (lines.some((each) => each.t)) {
    const select = element("select", { "aria-label": "x axis" }, element("option", {}, "steps"), element("option", {}, "time"));
    select.addEventListener("change", () => { settings.time = select.value === "time"; redraw(); });
    bar.append(element("label", {}, "x axis ", select));
  }
  check("logX", "log x");
  check("logY", "log y");
  if (!lines.some((each) => each.t)) return void block.before(bar);
  const slider = element("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0 });
  slider.addEventListener("input", () => { settings.smooth = Number(slider.value); redraw(); });
  bar.append(element("label", {}, "smoothing ", slider));
  if (lines.some((each) => each.of !== undefined)) check("seeds", "single seeds", true);
  block.before(bar);
}

// Pictures of numbers

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

function scale(low, largest) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  repainted(() => paint(canvas, 65, 1, (x) => color(low < 0 ? (x - 32) * 4 : x * 2)));
  return element("div", { class: "scale" }, shown(low), canvas, shown(largest));
}

// (T, U) numbers as bytes: steps from left to right, a number a row.
class Heat extends Figure {
  constructor(figure, heat, chosen = null) {
    super(figure, heat.caption);
    Object.assign(this, { heat, all: new Int8Array(bytes(heat.data).buffer) });
    this.over = element("canvas", { class: "over-time", role: "img", "aria-label": heat.caption });
    this.over.style.height = `${Math.min(360, Math.max(96, heat.shown * 3))}px`;
    this.now = element("div", { class: "now" });
    this.steps = this.all.length / heat.shown;
    this.offer();
    figure.append(element("div", { class: "heat" }, this.over, this.now));
    figure.append(element("div", { class: "quiet" }, `steps from left to right; ${heat.rows}`), scale(heat.low, heat.largest));
    repainted(() => paint(this.over, this.steps, heat.shown, (step, unit) => color(this.all[step * heat.shown + unit])));
    this.now.hidden = !chosen;
    if (chosen) this.over.addEventListener("click", (event) => {
      const box = this.over.getBoundingClientRect();
      chosen(Math.floor(((event.clientX - box.left) / box.width) * this.steps));
    });
  }

  show(step) {
    this.now.style.left = `${(100 * (step + 0.5)) / this.steps}%`;
  }

  canvas() {
    const { clientWidth: width, clientHeight: height } = this.over;
    const canvas = element("canvas", { width: 2 * width, height: 2 * height });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.over, 0, 0, canvas.width, canvas.height);
    return Object.defineProperty(canvas, "clientWidth", { value: width });
  }

  named() {
    return [];
  }

  rows() {
    const { shown: count, largest } = this.heat;
    const names = Array.from({ length: count }, (_, i) => i);
    const row = (step) => names.map((i) => Number(((this.all[step * count + i] / 127) * largest).toPrecision(3)));
    return [["step", ...names], ...Array.from({ length: this.steps }, (_, step) => [step + 1, ...row(step)])];
  }
}

for (const block of document.querySelectorAll("[data-charts]")) controlled(block);
for (const figure of document.querySelectorAll("[data-heat]")) new Heat(figure, JSON.parse(figure.dataset.heat));
