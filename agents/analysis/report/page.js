"use strict";
// Steps through the episode in the element #data.

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
    this.timeline("value", "Value (discounted return expected)", this.episode.values);
    this.timeline("reward", "Reward", this.episode.rewards);
    for (const part of memory) this.memory(part);
    if (byId("video")) this.film(byId("video"));
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
    const series = { "value (discounted return expected)": values, reward: rewards, "return so far": sums, "log-probability of the action": logs };
    for (const [name, numbers] of Object.entries(series)) {
      const number = element("div", { class: "big" });
      holder.append(quiet(name), number);
      this.views.push((step) => (number.textContent = shown(numbers[step])));
    }
  }

  timeline(name, caption, y) {
    const figure = element("figure", { class: "panel" }, element("figcaption", {}, caption));
    byId("timelines").append(figure);
    const series = [{ name, x: y.map((_, i) => i + 1), y }];
    const chart = { caption, series, x: "step", label: `${caption} at every step of the episode`, height: 190 };
    const plot = new Chart(figure, chart, {}, (step) => this.choose(step - 1));
    this.views.push((step) => plot.show(step + 1));
  }

  // The video is of this very episode: a frame is what its step is taken from.
  film(video) {
    this.views.push((step) => (video.currentTime = (step + 0.5) / Number(video.dataset.rate)));
  }

  memory(part) {
    const all = new Int8Array(bytes(part.data).buffer);
    const of = part.shown < part.total ? `${part.shown} of ${part.total}` : part.total;
    const columns = Math.ceil(Math.sqrt(part.shown * 2.2));
    const strip = element("canvas", { class: "strip", role: "img", "aria-label": `${part.name} after this step` });
    byId("remembered").append(quiet(`${part.name}: ${of} numbers`), strip, scale(-part.largest, part.largest));
    const caption = `${part.name} over the episode`;
    const figure = element("figure", { class: "panel" }, element("figcaption", {}, caption));
    byId("memories").append(figure);
    const heat = new Heat(figure, { ...part, caption, rows: "a number a row", low: -part.largest }, (step) => this.choose(step));
    const cells = () => paint(strip, columns, Math.ceil(part.shown / columns), (column, line) => {
      const unit = line * columns + column;
      return color(unit < part.shown ? all[this.at * part.shown + unit] : 0);
    });
    repainted(cells);
    this.views.push((step) => {
      cells();
      heat.show(step);
    });
  }
}

const recorded = JSON.parse(byId("data").textContent);
if (recorded) new Episode(recorded);
