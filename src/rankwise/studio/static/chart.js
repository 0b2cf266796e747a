// A line chart in SVG that follows its values: thin is each step, thick the mean of its neighbours, dots are
// validations. It is drawn at the width that it has, so its text never shrinks, and only once a frame.
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 14, top: 10, bottom: 24 };
const LOG_FROM = 20;

export function element(tag, attributes = {}, ...children) {
  const made = tag === tag.toLowerCase() && SHAPES.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const SHAPES = new Set(["svg", "path", "line", "circle", "text", "rect", "g"]);

export class Chart {
  constructor(place, { title, height = 160, format, smooth = false, fromZero = false }) {
    Object.assign(this, { height, format, smooth, fromZero, title });
    this.points = [];
    this.dots = [];
    this.readout = element("output", { class: "readout" });
    this.drawing = element("div", { class: "drawing", tabindex: "0", role: "img" });
    this.figure = element("figure", { class: "chart" }, element("figcaption", {}, element("span", {}, title), this.readout), this.drawing);
    place.append(this.figure);
    this.at = null;
    this.drawing.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.drawing.addEventListener("pointerleave", () => this.move(null));
    this.drawing.addEventListener("blur", () => this.move(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  show(points, dots = []) {
    this.points = points;
    this.dots = dots;
    this.draw();
  }

  key(event) {
    const last = this.points.length - 1;
    const stride = Math.max(1, Math.round(last / 50));
    const to = { ArrowLeft: (this.at ?? last + stride) - stride, ArrowRight: (this.at ?? -stride) + stride, Home: 0, End: last }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.move(Math.min(last, Math.max(0, to)));
  }

  point(x) {
    if (!this.scale || !this.points.length) return;
    const step = this.scale.step(x);
    let low = 0, high = this.points.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.points[middle][0] < step) low = middle + 1;
      else high = middle;
    }
    this.move(low);
  }

  move(at) {
    this.at = at;
    this.cursor?.remove();
    const point = at === null ? null : this.points[at];
    if (point && this.scale) {
      const x = this.scale.x(point[0]);
      this.cursor = element("g", { class: "cursor" }, element("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
      if (point[1] !== null) this.cursor.append(element("circle", { cx: x, cy: this.scale.y(point[1]), r: 3.5 }));
      this.drawing.firstChild?.append(this.cursor);
    }
    this.say();
  }

  say() {
    const point = this.at === null ? this.points.at(-1) : this.points[this.at];
    const value = point && point[1] !== null ? this.format(point[1]) : "–";
    this.readout.textContent = this.at === null ? value : `${value} at step ${point[0].toLocaleString("en")}`;
  }

  draw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.render();
    });
  }

  render() {
    const width = this.drawing.clientWidth, points = this.points.filter(([, value]) => value !== null);
    if (!width) return;
    const thick = this.smooth ? smoothed(points) : points;
    const values = [...(this.smooth ? inner(points) : points), ...this.dots].map(([, value]) => value);
    if (!values.length) {
      this.drawing.replaceChildren(element("svg", { width, height: this.height }));
      return;
    }
    const last = Math.max(1, points.at(-1)?.[0] ?? 1, this.dots.at(-1)?.[0] ?? 1);
    this.scale = scaleOf(values, last, width, this.height, this.fromZero);
    const { x, y } = this.scale, svg = element("svg", { width, height: this.height, "aria-hidden": "true" });
    for (const tick of this.scale.ticks) {
      svg.append(element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
      svg.append(element("text", { x: MARGIN.left - 8, y: y(tick) + 4, "text-anchor": "end" }, this.format(tick)));
    }
    for (const tick of ticks(0, last, Math.max(2, Math.floor(width / 90)), true)) {
      svg.append(element("text", { x: x(tick), y: this.height - 6, "text-anchor": "middle" }, tick.toLocaleString("en")));
    }
    if (this.smooth) svg.append(element("path", { class: "thin", d: path(points, x, y, width) }));
    svg.append(element("path", { class: "thick", d: path(thick, x, y, width) }));
    if (this.dots.length > 1) svg.append(element("path", { class: "second", d: path(this.dots, x, y, width) }));
    if (points.length === 1) svg.append(element("circle", { class: "point", cx: x(points[0][0]), cy: y(points[0][1]), r: 3.5 }));
    for (const [step, value] of this.dots) svg.append(element("circle", { class: "dot", cx: x(step), cy: y(value), r: 3.5 }));
    this.drawing.replaceChildren(svg);
    const ends = points.length ? `from ${this.format(points[0][1])} to ${this.format(points.at(-1)[1])} over ${points.length} points` : "no points";
    this.drawing.setAttribute("aria-label", `${this.title}: ${ends}`);
    this.move(this.at === null ? null : Math.min(this.at, this.points.length - 1));
  }
}

function scaleOf(values, last, width, height, fromZero) {
  const low = fromZero ? 0 : Math.min(...values), high = Math.max(...values);
  const log = !fromZero && low > 0 && high / low > LOG_FROM;
  const [a, b] = log ? [Math.log10(low), Math.log10(high)] : [low, high];
  const edge = (b - a || Math.abs(a) || 1) * 0.06, bottom = fromZero ? a : a - edge, top = b + edge;
  const wide = width - MARGIN.left - MARGIN.right, tall = height - MARGIN.top - MARGIN.bottom;
  const within = (value) => Math.min(1, Math.max(0, ((log ? Math.log10(Math.max(value, 1e-300)) : value) - bottom) / (top - bottom)));
  const levels = log ? powers(10 ** bottom, 10 ** top) : ticks(bottom, top, Math.max(2, Math.floor(tall / 34)));
  return {
    ticks: levels, x: (step) => MARGIN.left + (wide * step) / last, y: (value) => MARGIN.top + tall * (1 - within(value)),
    step: (x) => ((x - MARGIN.left) / wide) * last,
  };
}

function ticks(low, high, most, whole = false) {
  const rough = (high - low) / most, size = 10 ** Math.floor(Math.log10(rough));
  let stride = [1, 2, 5, 10].map((one) => one * size).find((one) => one >= rough) ?? 10 * size;
  if (whole) stride = Math.max(1, Math.round(stride));
  const found = [];
  for (let at = Math.ceil(low / stride); at * stride <= high * (1 + 1e-9); at++) found.push(Number((at * stride).toPrecision(12)));
  return found;
}

function powers(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const one of [1, 2, 5]) if (one * 10 ** power >= low && one * 10 ** power <= high) found.push(Number((one * 10 ** power).toPrecision(6)));
  return found.length > 7 ? found.filter((one) => Number.isInteger(Math.log10(one))) : found;
}

// Without the highest of the first values, which would flatten all others.
function inner(points) {
  if (points.length < 40) return points;
  const values = points.map(([, value]) => value).sort((a, b) => a - b);
  const most = values[Math.floor(values.length * 0.995)];
  return points.filter(([, value]) => value <= most);
}

// The same average as in the reports: weights fall off to both sides over about a twentieth of the run.
function smoothed(points) {
  const keep = 1 - 1 / Math.max(1, points.length / 20);
  const faded = (list) => {
    let total = 0, weight = 0;
    return list.map((value) => [(total = keep * total + value), (weight = keep * weight + 1)]);
  };
  const values = points.map(([, value]) => value), before = faded(values), after = faded(values.toReversed()).toReversed();
  return points.map(([step], at) => [step, (before[at][0] + after[at][0] - values[at]) / (before[at][1] + after[at][1] - 1)]);
}

// At most two points a pixel: the lowest and the highest of those that share it.
function path(points, x, y, width) {
  const apart = Math.max(1, points.length / width), chosen = [];
  for (let begin = 0; begin < points.length; begin += apart) {
    const some = points.slice(Math.floor(begin), Math.max(Math.floor(begin) + 1, Math.floor(begin + apart)));
    const low = some.reduce((a, b) => (b[1] < a[1] ? b : a)), high = some.reduce((a, b) => (b[1] > a[1] ? b : a));
    chosen.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return chosen.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
}
