// What all figures share: an SVG as wide as its column, handles that are sliders, numbers in words.
const NS = "http://www.w3.org/2000/svg";
const make = (node, attributes, parent) => {
  for (const name in attributes) node.setAttribute(name, attributes[name]);
  if (parent) parent.append(node);
  return node;
};
const svg = (name, attributes, parent) => make(document.createElementNS(NS, name), attributes, parent);
const tag = (name, attributes, parent, text = "") => {
  const node = make(document.createElement(name), attributes, parent);
  node.textContent = text;
  return node;
};
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
// A minus sign, not a hyphen, and none before a zero.
const number = (v, digits) => v.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");

const LOG_2PI = Math.log(2 * Math.PI);
const logDensity = (x, loc, scale) => -0.5 * ((x - loc) / scale) ** 2 - Math.log(scale) - 0.5 * LOG_2PI;
const density = (x, loc, scale) => Math.exp(logDensity(x, loc, scale));

// Steps of 1, 2 or 5 times a power of ten, at most `most` of them in the range.
const niceStep = (range, most) => {
  const power = 10 ** Math.floor(Math.log10(range / most));
  return power * [1, 2, 5, 10].find(m => range / (power * m) <= most + 1e-9);
};
const ticks = (low, high, most) => {
  const step = niceStep(high - low, most), digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => [(first + i) * step, number((first + i) * step, digits)]);
};

class Figure {
  // `margin` in pixels: left, right, top, bottom; `draw` is called whenever anything has changed.
  constructor(root, given, margin, draw, heights = [230, 320]) {
    Object.assign(this, { root, given, margin, draw, heights, digits: given.digits, handles: [], top: 1 });
    this.svg = svg("svg", { role: "group", "aria-label": given.labels.alt }, root);
    this.back = svg("g", { "aria-hidden": "true" }, this.svg);
    this.front = svg("g", {}, this.svg);
    this.numbers = tag("div", { class: "bnn-numbers", "aria-live": "polite" }, root);
    this.buttons = tag("div", { class: "bnn-buttons" }, root);
    tag("p", { class: "bnn-hint" }, root, given.labels.hint);
  }

  // In pixels, so that text and handles keep their size on a phone.
  fit() {
    const [left, right, top, bottom] = this.margin, [low, high] = this.given.limits;
    this.width = this.root.clientWidth;
    this.height = Math.round(clamp(0.48 * this.width, ...this.heights));
    this.base = this.height - bottom;
    this.unit = (this.width - left - right) / (high - low);
    this.x = v => left + (v - low) * this.unit;
    this.y = d => this.base - (d / this.top) * (this.base - top);
    make(this.svg, { viewBox: `0 0 ${this.width} ${this.height}`, width: this.width, height: this.height });
  }

  start() {
    const again = () => {
      if (this.root.clientWidth === this.width || !this.root.clientWidth) return;
      this.fit();
      this.update();
    };
    new ResizeObserver(again).observe(this.root);
    again();
  }

  update() {
    this.back.replaceChildren();
    this.draw(this);
    for (const handle of this.handles) handle.place();
  }

  line(className, x1, y1, x2, y2) {
    return svg("line", { class: className, x1, y1, x2, y2 }, this.back);
  }

  text(className, x, y, anchor, text) {
    svg("text", { class: className, x, y, "text-anchor": anchor }, this.back).textContent = text;
  }

  axis(name = this.given.labels.density) {
    const [low, high] = this.given.limits;
    this.text("", 2, 12, "start", name);
    this.line("bnn-axis", this.x(low), this.base, this.x(high), this.base);
    for (const [v, text] of ticks(low, high, this.width / 56)) {
      this.line("bnn-axis", this.x(v), this.base, this.x(v), this.base + 5);
      this.text("", this.x(v), this.base + 20, "middle", text);
    }
  }

  // The graph of f; with `shade`, the area under it.
  graph(className, f, from, to, shade) {
    const [low, high] = this.given.limits, a = Math.max(from ?? low, low), b = Math.min(to ?? high, high);
    if (a >= b) return;
    const n = Math.max(2, Math.ceil((b - a) * this.unit / 1.5));
    const points = Array.from({ length: n + 1 }, (_, i) => a + (b - a) * i / n)
      .map(v => `${this.x(v).toFixed(1)} ${this.y(f(v)).toFixed(1)}`);
    const ends = shade ? [`${this.x(b).toFixed(1)} ${this.base}`, `${this.x(a).toFixed(1)} ${this.base}Z`] : [];
    svg("path", { class: className, d: "M" + [...points, ...ends].join("L") }, this.back);
  }

  curve(className, loc, scale, from, to, shade) {
    this.graph(className, v => density(v, loc, scale), from, to, shade);
  }

  // A slider. `spec`: name, className, min, max, get, set, at (its point); where they differ from the axis, digits and
  // slope (change of the value for a unit of x); remove, where it can be.
  handle(spec) {
    const node = svg("g", { class: `bnn-handle ${spec.className}`, role: "slider", tabindex: 0, "aria-label": spec.name,
      "aria-valuemin": spec.min, "aria-valuemax": spec.max, "aria-orientation": "horizontal" }, this.front);
    svg("circle", { class: "bnn-reach", r: 16 }, node);
    svg("circle", { class: "bnn-dot", r: 7 }, node);
    const digits = spec.digits ?? this.digits, step = 10 ** -digits;
    // What is shown is what is used: values lie on the step that the numbers are printed with.
    const set = v => { spec.set(Number(clamp(v, spec.min, spec.max).toFixed(digits))); this.update(); };
    const keys = { ArrowLeft: -5, ArrowDown: -5, ArrowRight: 5, ArrowUp: 5, PageDown: -50, PageUp: 50 };
    let held = null;
    node.addEventListener("keydown", event => {
      const ends = { Home: spec.min, End: spec.max };
      if (event.key in keys) set(spec.get() + keys[event.key] * step);
      else if (event.key in ends) set(ends[event.key]);
      else if (spec.remove && (event.key === "Delete" || event.key === "Backspace")) spec.remove();
      else return;
      event.preventDefault();
    });
    node.addEventListener("pointerdown", event => {
      if (event.button) return;
      held = { x: event.clientX, v: spec.get(), slope: (spec.slope ? spec.slope() : 1) / this.unit };
      node.setPointerCapture(event.pointerId);
      node.focus();
      event.preventDefault();
    });
    node.addEventListener("pointermove", event => { if (held) set(held.v + (event.clientX - held.x) * held.slope); });
    for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => { held = null; });
    const place = () => {
      const [x, y] = spec.at();
      const text = number(spec.get(), digits);
      make(node, { transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "aria-valuenow": spec.get(),
        "aria-valuetext": text });
    };
    const handle = { node, place };
    this.handles.push(handle);
    return handle;
  }

  // Values that are added by a click on their strip, dragged, and taken away: at least `least`, at most `most`. `spec`:
  // name, y (the middle of the strip), least, most, spare (what takes the focus where none is left).
  points({ name, y, least, most, spare }) {
    const all = [], [low, high] = this.given.limits;
    const drop = point => {
      all.splice(all.indexOf(point), 1);
      this.handles.splice(this.handles.indexOf(point.handle), 1);
      point.handle.node.remove();
    };
    const add = v => {
      if (all.length >= most) return;
      const point = { value: Number(clamp(v, low, high).toFixed(this.digits)) };
      point.handle = this.handle({ name, className: "bnn-data", min: low, max: high, get: () => point.value,
        set: value => { point.value = value; }, at: () => [this.x(point.value), y()],
        remove: () => {
          if (all.length <= least) return;
          drop(point);
          (all.length ? all[all.length - 1].handle.node : spare()).focus();
          this.update();
        } });
      all.push(point);
    };
    this.svg.addEventListener("click", event => {
      if (!event.target.classList.contains("bnn-strip")) return;
      add(low + (event.clientX - this.svg.getBoundingClientRect().left - this.x(low)) / this.unit);
      this.update();
    });
    return {
      add,
      values: () => all.map(point => point.value),
      strip: () => svg("rect", { class: "bnn-strip", x: this.x(low), y: y() - 16, width: (high - low) * this.unit,
        height: 32, rx: 6 }, this.back),
      pop: () => drop(all[all.length - 1]),
      fill: values => {
        while (all.length) drop(all[0]);
        values.forEach(add);
      },
    };
  }

  // A number with its name and, before it, the line or the area that it belongs to.
  item(key, name, ink = key, className = "") {
    const box = tag("div", { class: `bnn-item ${className}` }, this.numbers);
    tag("span", { class: `bnn-key bnn-key-${ink}`, "aria-hidden": "true" }, box);
    const label = tag("span", { class: "bnn-name" }, box, name), value = tag("b", { "data-number": key }, box);
    return text => { value.textContent = text; return label; };
  }

  // What follows starts a new line.
  break() {
    tag("div", { class: "bnn-break" }, this.numbers);
  }

  button(name, act) {
    const node = tag("button", { type: "button" }, this.buttons, name);
    node.addEventListener("click", () => { act(); this.update(); });
    return node;
  }
}
