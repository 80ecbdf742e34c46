// The signals of one voxel, the fitted curve and what is left of them, drawn as SVG; its values and doubts in words.
"use strict";

const FLAGS = { doubt: 1, low: 2, high: 4 };
const AT_BOUND = FLAGS.low | FLAGS.high;
const CURVE_POINTS = 121;
const LINE = 13;
const PLOT = { left: 52, right: 70, top: 20, gap: 22, bottom: 34, residuals: 0.32 };
const OPERATIONS = new Map([
  ["=Add", (a, b) => a + b], ["=Sub", (a, b) => a - b], ["=Mult", (a, b) => a * b], ["=Div", (a, b) => a / b], ["=Pow", (a, b) => a ** b],
  ["=Lt", (a, b) => a < b], ["=LtE", (a, b) => a <= b], ["=Gt", (a, b) => a > b], ["=GtE", (a, b) => a >= b],
  ["=Eq", (a, b) => a === b], ["=NotEq", (a, b) => a !== b], ["=And", (a, b) => a && b], ["=Or", (a, b) => a || b],
  ["=UAdd", (a) => a], ["=USub", (a) => -a], ["=Not", (a) => !a], ["exp", (a) => Math.exp(a)], ["log", (a) => Math.log(a)], ["sqrt", (a) => Math.sqrt(a)],
  ["=IfExp", (test, body, otherwise) => (test ? body : otherwise)],
]);

// ---- numbers ---------------------------------------------------------------------------------------------------------

// A formula whose operands stand before their sign: "S0 b =USub D =Mult exp =Mult" is no text that runs, but a list.
function evaluate(tokens, values) {
  const stack = [];
  for (const token of tokens) {
    const operation = OPERATIONS.get(token);
    if (operation) stack.push(operation(...stack.splice(-operation.length)));
    else stack.push(typeof token === "number" ? token : values.get(token));
  }
  return stack[0];
}

// The first three bytes of each number come as three planes.
function numbersOf(raw) {
  const count = raw.length / 3, bits = new Uint32Array(count);
  for (let i = 0; i < count; i++) bits[i] = ((raw[i] << 24) | (raw[i + count] << 16) | (raw[i + 2 * count] << 8)) >>> 0;
  return new Float32Array(bits.buffer);
}

function recordOf(records, row) {
  const { n, b, parameters, numbers } = records, at = (column) => numbers[column * n + row], first = b.length + 1;
  return {
    signals: b.map((_, i) => at(i)),
    sigma: at(b.length),
    parameters: parameters.map((one, j) => {
      const [value, low, high, flags] = [0, 1, 2, 3].map((k) => at(first + 4 * j + k));
      return { ...one, value, low, high, flags };
    }),
    disagree: at(first + 4 * parameters.length) > 0,
    outcome: records.outcomes[at(first + 4 * parameters.length + 1)] ?? "",
    scatter: at(first + 4 * parameters.length + 2),
  };
}

// What the fit expects at b in s/mm² and an echo time in ms.
function expected(records, record, b, te) {
  if (!records.formula) return NaN;
  const values = new Map(record.parameters.map((one) => [one.name, one.value]));
  const signal = evaluate(records.formula, values.set("b", b / 1000).set("te", te));
  const floor = records.floor && record.sigma > 0 ? record.sigma * Math.sqrt(Math.PI / 2) : 0;
  return floor ? Math.hypot(signal, floor) : signal;
}

// Points, curve and residuals for each echo time.
function decaysOf(records, record) {
  const times = [...new Set(records.te ?? [0])].sort((a, b) => a - b), last = Math.max(...records.b);
  const grid = Array.from({ length: CURVE_POINTS }, (_, i) => (i * last) / (CURVE_POINTS - 1));
  return times.map((te) => {
    const at = records.b.map((_, i) => i).filter((i) => !records.te || records.te[i] === te);
    const b = at.map((i) => records.b[i]), signals = at.map((i) => record.signals[i]), counts = at.map((i) => records.counts[i]);
    const residuals = b.map((value, i) => signals[i] - expected(records, record, value, te));
    return { te: records.te && te, b, signals, residuals, counts, grid, curve: grid.map((value) => expected(records, record, value, te)) };
  });
}

function ticksOf(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
  return ticks;
}

function decadesOf(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const k of [1, 2, 5]) if (k * 10 ** power >= low && k * 10 ** power <= high) ticks.push(k * 10 ** power);
  }
  return ticks;
}

function hasFlag({ flags, fixed, value }, flag) {
  return !fixed && Number.isFinite(value) && (flags & flag) > 0;
}

// A parameter at a bound, such as f at 0, may be well determined.
function isDoubted(parameter) {
  return hasFlag(parameter, FLAGS.doubt);
}

// Which parameters are at a bound or in doubt, in words.
function doubtsOf({ parameters, disagree }) {
  const names = (flag) => parameters.filter((one) => hasFlag(one, flag)).map((one) => one.name).join(", ");
  const words = [[FLAGS.low, "At the lower bound"], [FLAGS.high, "At the upper bound"], [FLAGS.doubt, "In doubt here"]];
  const sentences = words.filter(([flag]) => names(flag)).map(([flag, text]) => `${text}: ${names(flag)}.`);
  return disagree ? [...sentences, "Other values fit about as well (starts disagree)."] : sentences;
}

// ---- the page --------------------------------------------------------------------------------------------------------

function svgElement(parent, name, attributes, text) {
  const element = document.createElementNS(parent.namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

class VoxelPanel {
  constructor(viewer, records, ranks) {
    Object.assign(this, { viewer, records, ranks, decays: [] });
    this.svg = viewer.find("decay").querySelector("svg");
    viewer.find("decay").hidden = viewer.find("voxel").hidden = false;
    viewer.find("log").addEventListener("input", () => this.draw());
    viewer.find("nearest").addEventListener("click", () => this.goToNearest());
    viewer.find("copy").addEventListener("click", () => this.copy());
    new ResizeObserver(() => this.draw()).observe(this.svg.parentElement);
    viewer.find("stored").textContent = records.note && `${records.note[0].toUpperCase()}${records.note.slice(1)}.`;
  }

  static async start(viewer) {
    const { records, shape } = viewer.data, length = shape.reduce((a, b) => a * b);
    records.numbers = numbersOf(await gunzip(records.data));
    const present = await unpack(records.present, length, 8), ranks = new Int32Array(length).fill(-1);
    for (let offset = 0, row = 0; offset < length; offset++) if (present[offset]) ranks[offset] = row++;
    records.data = records.present = null;
    return new VoxelPanel(viewer, records, ranks);
  }

  show(position, offset) {
    const row = offset < 0 ? -1 : this.ranks[offset];
    this.record = row < 0 ? null : recordOf(this.records, row);
    this.decays = this.record ? decaysOf(this.records, this.record) : [];
    this.viewer.find("where").textContent = `Voxel at ${position.map(inMm).join(", ")} mm`;
    this.tell();
    this.draw();
  }

  tell() {
    const { record, viewer } = this, rows = [];
    for (const one of record?.parameters ?? []) {
      const bad = isDoubted(one), row = document.createElement("tr");
      const [low, high] = [one.low, one.high].map((end) => (Number.isFinite(end) ? written(end) : ""));
      const interval = !(low && high) ? "\u2013" : low === high && one.flags & AT_BOUND ? "at the bound" : `${low} to ${high}`;
      const cells = [`${one.fixed ? "\u25a0" : bad ? "\u25b2" : "\u25cf"} ${one.name}`,
        Number.isFinite(one.value) ? `${written(one.value)}${one.unit && ` ${one.unit}`}` : "\u2013", one.fixed ? "fixed" : interval];
      row.append(...cells.map((text, i) => Object.assign(document.createElement(i ? "td" : "th"), { textContent: text })));
      row.className = bad ? "doubted" : "";
      rows.push(row);
    }
    // The controls below stay where they are when a voxel has no values.
    const section = viewer.find("voxel");
    section.style.minHeight = `${section.offsetHeight}px`;
    viewer.find("voxel-values").replaceChildren(...rows);
    viewer.find("voxel-values").closest("table").hidden = !rows.length;
    const words = record ? [record.outcome, this.spread(), ...doubtsOf(record)] : ["No signals are stored here."];
    viewer.find("nearest").hidden = Boolean(record);
    viewer.find("copy").hidden = !rows.length;
    viewer.find("voxel-doubts").textContent = words.filter(Boolean).join(" ");
  }

  goToNearest() {
    const { geometry, position } = this.viewer, [, ny, nz] = geometry.shape;
    let nearest = null, least = Infinity;
    this.ranks.forEach((row, offset) => {
      if (row < 0) return;
      const place = [Math.floor(offset / (ny * nz)), Math.floor(offset / nz) % ny, offset % nz];
      const point = geometry.affine.map((a) => a[0] * place[0] + a[1] * place[1] + a[2] * place[2] + a[3]);
      const distance = Math.hypot(...point.map((x, i) => x - position[i]));
      if (distance < least) [nearest, least] = [point, distance];
    });
    this.viewer.go(nearest);
  }

  // The table stays selected, so that the reader sees what was copied; pages in a frame may not use the clipboard otherwise.
  copy() {
    getSelection().selectAllChildren(this.viewer.find("voxel-values").closest("table"));
    document.execCommand("copy");
  }

  // Of all volumes: those of one point differ from their mean by the scatter.
  spread() {
    const residuals = this.decays.flatMap((one) => one.residuals.map((rest, i) => [rest, one.counts[i]])).filter(([rest]) => Number.isFinite(rest));
    const largest = Math.max(...this.record.signals.filter(Number.isFinite));
    if (!residuals.length || !(largest > 0)) return "";
    const [squares, n] = residuals.reduce(([sum, all], [rest, count]) => [sum + count * rest * rest, all + count], [0, 0]);
    const rms = Math.hypot(Math.sqrt(squares / n), this.record.scatter), averaged = this.records.counts.some((count) => count > 1);
    return `Residuals (rms${averaged ? " of all volumes" : ""}): ${written((100 * rms) / largest, 2)} % of the largest mean signal.`;
  }

  draw() {
    const { svg, decays } = this, width = svg.clientWidth, height = svg.clientHeight;
    svg.replaceChildren();
    if (!width || !decays.length) return;
    const all = decays.flatMap((one) => [...one.signals, ...one.curve]).filter(Number.isFinite);
    const residuals = decays.flatMap((one) => one.residuals).filter(Number.isFinite);
    const right = width - PLOT.right, bottom = height - PLOT.bottom;
    const split = PLOT.top + (bottom - PLOT.top) * (1 - PLOT.residuals) - PLOT.gap / 2;
    const last = Math.max(...this.records.b) || 1, x = (b) => PLOT.left + ((right - PLOT.left) * b) / last;
    const log = this.viewer.find("log").checked, positive = all.filter((value) => value > 0);
    const top = 1.04 * Math.max(...all, 1e-30), base = log && positive.length ? 0.9 * Math.min(...positive) : Math.min(0, ...all);
    const height0 = split - PLOT.top, of = log ? Math.log : (value) => value;
    const y = (value) => split - (height0 * (of(value) - of(base))) / (of(top) - of(base));
    const reach = 1.15 * Math.max(...residuals.map(Math.abs), 1e-6 * top), middle = (split + PLOT.gap + bottom) / 2;
    const z = (value) => middle - ((bottom - split - PLOT.gap) / 2) * (value / reach);
    this.axes({ x, y, z, right, bottom, split, reach, last, ticks: log ? decadesOf(base, top) : ticksOf(base, top, 5) });
    decays.forEach((one, number) => {
      const group = this.group(number), shown = one.curve.map((value, i) => [one.grid[i], value]).filter(([, value]) => !log || value > 0);
      if (shown.length && shown.every(([, value]) => Number.isFinite(value))) {
        const path = shown.map(([b, value], i) => `${i ? "L" : "M"}${x(b).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        svgElement(group, "path", { d: path, class: "curve" });
      }
      one.b.forEach((b, i) => {
        const signal = one.signals[i], rest = one.residuals[i];
        if (Number.isFinite(signal) && (!log || signal > 0)) svgElement(group, "circle", { cx: x(b), cy: y(signal), r: 3.2 });
        if (!Number.isFinite(rest)) return;
        svgElement(group, "line", { x1: x(b), x2: x(b), y1: middle, y2: z(rest) });
        svgElement(group, "circle", { cx: x(b), cy: z(rest), r: 2.2 });
      });
    });
    this.label(x, y, log);
    svg.setAttribute("aria-label", `Signals of the voxel over b, ${all.length && residuals.length ? "the fitted curve, and residuals of up to " +
      written(Math.max(...residuals.map(Math.abs))) : "without a curve"}`);
  }

  axes({ x, y, z, right, bottom, split, reach, last, ticks }) {
    const text = (attributes, words) => svgElement(this.svg, "text", attributes, words);
    for (const tick of ticks) {
      svgElement(this.svg, "line", { x1: PLOT.left, x2: right, y1: y(tick), y2: y(tick), class: "grid-line" });
      text({ x: PLOT.left - 6, y: y(tick) + 4, "text-anchor": "end" }, written(tick));
    }
    for (const tick of [-reach / 1.15, 0, reach / 1.15]) {
      svgElement(this.svg, "line", { x1: PLOT.left, x2: right, y1: z(tick), y2: z(tick), class: "grid-line" });
      if (tick >= 0) text({ x: PLOT.left - 6, y: z(tick) + 4, "text-anchor": "end" }, tick ? `\u00b1${written(tick, 2)}` : "0");
    }
    for (const tick of ticksOf(0, last, right - PLOT.left < 320 ? 3 : 6)) {
      text({ x: x(tick), y: bottom + 15, "text-anchor": "middle" }, written(tick, 4));
    }
    text({ x: right, y: bottom + 30, "text-anchor": "end" }, "b in s/mm\u00b2");
    text({ x: PLOT.left + 4, y: split + PLOT.gap - 5 }, "residuals: signal \u2212 curve");
    text({ x: 0, y: PLOT.top - 9 }, "signal");
  }

  // What belongs to one echo time has its color, from the first to the last on one scale.
  group(number) {
    const group = svgElement(this.svg, "g", { class: "te" });
    group.style.setProperty("--te", number / Math.max(this.decays.length - 1, 1));
    return group;
  }

  // Echo times stand at the right ends of their curves, pushed apart where these meet; every second or third where all have no room.
  label(x, y, log) {
    const bottom = this.svg.clientHeight - PLOT.bottom, every = Math.ceil((this.decays.length * LINE) / (bottom - PLOT.top + LINE));
    const ends = this.decays.map((one, number) => ({ te: one.te, number, end: one.curve.at(-1) }))
      .filter((one) => one.number % every === 0 && one.te !== null && Number.isFinite(one.end) && (!log || one.end > 0)).sort((a, b) => a.end - b.end);
    let lowest = Infinity, highest = PLOT.top - LINE;
    for (const one of ends) one.place = lowest = Math.min(y(one.end) + 4, lowest - LINE);
    for (const one of ends.reverse()) one.place = highest = Math.max(one.place, highest + LINE);
    for (const { te, number, place } of ends) {
      svgElement(this.group(number), "text", { x: x(Math.max(...this.records.b)) + 6, y: place, class: "name" }, `TE ${written(te)} ms`);
    }
  }
}

if (typeof module !== "undefined") module.exports = { decadesOf, evaluate, numbersOf, ticksOf };
