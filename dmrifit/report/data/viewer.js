// Three planes through volumes of one grid, drawn on canvases. No library, no network.
"use strict";

const PLANES = { axial: [2, 0, 1], coronal: [1, 0, 2], sagittal: [0, 1, 2] }; // normal, across, up: axes of the world
const AXES = ["x", "y", "z"];
const PIXELS = 480; // along the longest side of the field
const MOST_PIXELS = 2048; // there, however thin voxels are
const HINT = "Click a voxel, or move with the arrow keys; what is under the pointer is written here.";
const TALLEST = { alone: 560, withSignals: 300 }; // pixels of the screen that the planes may be high
// The brightest first, because scans are dark; a dark line inside keeps them apart from bright voxels.
const OUTLINES = ("56b4e9e69f00cc79a7009e73f0e442d55e000072b29467bd98df8aff9896" +
  "17becf8c564bc5b0d5bcbd22f7b6d2aec7e8d62728ffbb78c49c94dbdb8d").match(/.{6}/g).map((hex) => hex.match(/../g).map((x) => parseInt(x, 16)));

const DOUBTED = [185, 190, 198];

// ---- numbers: what follows knows nothing of a page ----------

function inverseOf(a) {
  const [[p, q, r, t], [u, v, w, s], [x, y, z, o]] = a;
  const det = p * (v * z - w * y) - q * (u * z - w * x) + r * (u * y - v * x);
  const m = [
    [(v * z - w * y) / det, (r * y - q * z) / det, (q * w - r * v) / det],
    [(w * x - u * z) / det, (p * z - r * x) / det, (r * u - p * w) / det],
    [(u * y - v * x) / det, (q * x - p * y) / det, (p * v - q * u) / det],
  ];
  return m.map((row) => [...row, -(row[0] * t + row[1] * s + row[2] * o)]);
}

// The box around all voxels in mm, the size of a pixel, and where each axis may be cut: a whole number of pixels fits
// the smallest edge of a voxel, so that voxels along the scanner's axes are drawn alike.
function geometryOf(shape, affine) {
  const low = [0, 0, 0], high = [0, 0, 0], edges = [0, 1, 2].map((j) => Math.hypot(...affine.map((row) => row[j])));
  const centers = [], steps = [];
  for (let i = 0; i < 3; i++) {
    low[i] = high[i] = affine[i][3];
    for (let j = 0; j < 3; j++) {
      const ends = [-0.5 * affine[i][j], (shape[j] - 0.5) * affine[i][j]];
      low[i] += Math.min(...ends);
      high[i] += Math.max(...ends);
    }
  }
  const extent = Math.max(...[0, 1, 2].map((i) => high[i] - low[i])), edge = Math.min(...edges);
  const pixel = Math.max(edge / Math.max(1, Math.round((edge * PIXELS) / extent)), extent / MOST_PIXELS);
  for (let i = 0; i < 3; i++) {
    const across = affine[i].slice(0, 3).map(Math.abs);
    const count = Math.max(1, Math.round((high[i] - low[i]) / edges[across.indexOf(Math.max(...across))]));
    steps[i] = (high[i] - low[i]) / count;
    centers[i] = Array.from({ length: count }, (_, k) => low[i] + (k + 0.5) * steps[i]);
  }
  return { shape, affine, inverse: inverseOf(affine), low, high, pixel, centers, steps };
}

function sizeOf(geometry, plane) {
  const [, across, up] = PLANES[plane];
  return [across, up].map((i) => Math.max(1, Math.round((geometry.high[i] - geometry.low[i]) / geometry.pixel)));
}

// The patient's right is at the left of axial and coronal planes, the front at the right of sagittal ones.
function flipped(plane) {
  return plane !== "sagittal";
}

// From a pixel (column, row) to mm; the first row is the highest.
function worldOf(geometry, plane, position, column, row) {
  const [normal, across, up] = PLANES[plane], point = [0, 0, 0];
  point[normal] = position[normal];
  const aside = (column + 0.5) * geometry.pixel;
  point[across] = flipped(plane) ? geometry.high[across] - aside : geometry.low[across] + aside;
  point[up] = geometry.high[up] - (row + 0.5) * geometry.pixel;
  return point;
}

function pixelOf(geometry, plane, point) {
  const [, across, up] = PLANES[plane];
  const aside = flipped(plane) ? geometry.high[across] - point[across] : point[across] - geometry.low[across];
  return [aside / geometry.pixel - 0.5, (geometry.high[up] - point[up]) / geometry.pixel - 0.5];
}

// Which voxel a point is in, as a place in arrays whose last axis changes fastest; -1 outside.
function offsetOf(geometry, point) {
  const [nx, ny, nz] = geometry.shape;
  const [i, j, k] = geometry.inverse.map((row) =>
    Math.floor(row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3] + 0.5));
  return i >= 0 && j >= 0 && k >= 0 && i < nx && j < ny && k < nz ? (i * ny + j) * nz + k : -1;
}

function offsetsOf(geometry, plane, position) {
  const [width, height] = sizeOf(geometry, plane), [nx, ny, nz] = geometry.shape, m = geometry.inverse;
  const offsets = new Int32Array(width * height);
  const origin = worldOf(geometry, plane, position, 0, 0), right = worldOf(geometry, plane, position, 1, 0);
  const down = worldOf(geometry, plane, position, 0, 1);
  const start = m.map((row) => row[0] * origin[0] + row[1] * origin[1] + row[2] * origin[2] + row[3] + 0.5);
  const turned = (point) => m.map((row) => row.slice(0, 3).reduce((sum, x, i) => sum + x * (point[i] - origin[i]), 0));
  const a = turned(right), b = turned(down);
  for (let row = 0, place = 0; row < height; row++) {
    for (let column = 0; column < width; column++, place++) {
      const i = Math.floor(start[0] + column * a[0] + row * b[0]);
      const j = Math.floor(start[1] + column * a[1] + row * b[1]);
      const k = Math.floor(start[2] + column * a[2] + row * b[2]);
      offsets[place] = i >= 0 && j >= 0 && k >= 0 && i < nx && j < ny && k < nz ? (i * ny + j) * nz + k : -1;
    }
  }
  return offsets;
}

// Codes: 0 is no value, 1 to levels stand for low to high in equal steps.
function levelsOf(layer) {
  return 2 ** layer.bits - 1;
}

function valueOf(layer, code) {
  return code ? layer.low + ((code - 1) / (levelsOf(layer) - 1)) * (layer.high - layer.low) : NaN;
}

function codeOf(layer, value) {
  if (layer.edge && value === layer.threshold) return layer.edge;
  const share = layer.high > layer.low ? (value - layer.low) / (layer.high - layer.low) : 0;
  return 1 + Math.floor(share * (levelsOf(layer) - 1) + 0.5);
}

// Red, green, blue and whether it is shown, for each code.
function colorsOf(layer, map, limit) {
  const levels = levelsOf(layer), colors = new Uint8ClampedArray(4 * (levels + 1)), [black, white] = layer.window;
  const least = limit && limit.side === "above" ? codeOf(layer, limit.value) : 1;
  const most = limit && limit.side === "below" ? codeOf(layer, limit.value) : levels;
  for (let code = 1; code <= levels; code++) {
    const share = Math.min(1, Math.max(0, (valueOf(layer, code) - black) / (white - black)));
    const gray = Math.floor(255 * share + 0.5);
    for (let i = 0; i < 3; i++) colors[4 * code + i] = map ? map[3 * gray + i] : gray;
    colors[4 * code + 3] = code >= least && code <= most ? 255 : 0;
  }
  return colors;
}

// What is in doubt is gray, whatever its number says.
function paint(offsets, image, overlay, opacity) {
  const pixels = new Uint8ClampedArray(4 * offsets.length);
  for (let p = 0; p < offsets.length; p++) {
    const offset = offsets[p];
    pixels[4 * p + 3] = 255;
    if (offset < 0) continue;
    const under = image ? 4 * image.codes[offset] : 0, over = overlay ? 4 * overlay.codes[offset] : 0;
    const share = overlay && overlay.colors[over + 3] ? opacity : 0, isDoubted = overlay?.doubt?.[offset];
    for (let i = 0; i < 3; i++) {
      const below = image ? image.colors[under + i] : 0;
      pixels[4 * p + i] = blend(below, isDoubted ? DOUBTED[i] : share && overlay.colors[over + i], share);
    }
  }
  return pixels;
}

function blend(below, above, share) {
  return Math.floor((1 - share) * below + share * above + 0.5);
}

// Color the two outermost pixels of each region, and darken the next.
function outline(pixels, offsets, width, codes, colors) {
  const code = (p) => (offsets[p] < 0 ? 0 : codes[offsets[p]]), height = offsets.length / width;
  for (let row = 0, p = 0; row < height; row++) {
    for (let column = 0; column < width; column++, p++) {
      const own = code(p);
      if (!own) continue;
      const rim = [1, 2, 3].find((far) => !(column >= far && column + far < width && row >= far && row + far < height &&
        code(p - far) === own && code(p + far) === own && code(p - far * width) === own && code(p + far * width) === own));
      if (rim) pixels.set(rim < 3 ? colors[(own - 1) % colors.length] : [0, 0, 0], 4 * p);
    }
  }
}

// Where a plane cuts a box, whose sides are the columns of an affine: corners in order, or none.
function crossSection(affine, normal, at) {
  const corner = (bits) => affine.slice(0, 3).map((row) =>
    row[3] + [0, 1, 2].reduce((sum, j) => sum + row[j] * ((bits >> j) & 1 ? 0.5 : -0.5), 0));
  const points = [], [first, second] = [0, 1, 2].filter((i) => i !== normal);
  for (let bits = 0; bits < 8; bits++) {
    for (let j = 0; j < 3; j++) {
      if ((bits >> j) & 1) continue;
      const a = corner(bits), b = corner(bits | (1 << j)), share = (at - a[normal]) / (b[normal] - a[normal]);
      if (share >= 0 && share <= 1) points.push(a.map((x, i) => x + share * (b[i] - x)));
    }
  }
  if (points.length < 3) return [];
  const middle = [first, second].map((i) => points.reduce((sum, point) => sum + point[i], 0) / points.length);
  const angle = (point) => Math.atan2(point[second] - middle[1], point[first] - middle[0]);
  return points.sort((a, b) => angle(a) - angle(b));
}

// How many voxels are shown.
function shareOf(layer, limit) {
  if (!layer.counts) {
    layer.counts = new Float64Array(levelsOf(layer) + 1);
    for (const code of layer.codes) layer.counts[code]++;
  }
  const edge = codeOf(layer, limit.value);
  let sum = 0;
  for (let code = 1; code < layer.counts.length; code++) {
    if (limit.side === "above" ? code >= edge : code <= edge) sum += layer.counts[code];
  }
  return sum;
}

function written(value, digits = 3) {
  return String(Number(value.toPrecision(digits))).replace("-", "\u2212");
}

// No more digits than the steps of the codes carry.
function reading(layer, value) {
  if (value === 0) return "0";
  const step = (layer.high - layer.low) / (levelsOf(layer) - 1), third = Math.floor(Math.log10(Math.abs(value))) - 2;
  const place = Math.max(third, step > 0 ? Math.ceil(Math.log10(step) - 1e-9) : third);
  const rounded = Math.round(value / 10 ** place) * 10 ** place;
  return (place < 0 ? rounded.toFixed(-place) : String(Math.round(rounded))).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "\u2212");
}

function inMm(x) {
  return (Math.round(10 * x) / 10 + 0).toFixed(1).replace("-", "\u2212");
}

function describe(layer, code) {
  if (layer.kind === "mask") return code ? (layer.names[code - 1] ?? layer.name) : "";
  if (!code) return `${layer.name}: no value`;
  const end = code === 1 && layer.clipped[0] ? "\u2264 " : code === levelsOf(layer) && layer.clipped[1] ? "\u2265 " : "";
  return `${layer.name}: ${end}${reading(layer, valueOf(layer, code))}${layer.unit && ` ${layer.unit}`}`;
}

async function gunzip(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes come as gzip in base64; of more than 8 bits, the high bytes of all voxels come first.
async function unpack(text, length, bits) {
  const raw = await gunzip(text), size = length * (bits > 8 ? 2 : 1);
  if (raw.length !== size) throw new Error(`${raw.length} bytes instead of ${size}`);
  if (bits === 8) return raw;
  const codes = new Uint16Array(length);
  for (let i = 0; i < length; i++) codes[i] = 256 * raw[i] + raw[i + length];
  return codes;
}

// ---- the page ----------

class Viewer {
  constructor(element, data) {
    Object.assign(this, { element, data, layers: data.layers, geometry: geometryOf(data.shape, data.affine) });
    const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    this.maps = Object.fromEntries(Object.entries(data.colormaps).map(([name, text]) => [name, bytes(text)]));
    this.find("colors")?.replaceChildren(...Object.keys(this.maps).map((name) => new Option(name)));
    this.find("body").hidden = false;
    this.find("hover").textContent = HINT;
    this.limitHeight(data.records ? TALLEST.withSignals : TALLEST.alone);
    this.canvases = Object.keys(PLANES).map((plane) => [plane, element.querySelector(`[data-plane=${plane}] canvas`)]);
    for (const [plane, canvas] of this.canvases) {
      const [width, height] = sizeOf(this.geometry, plane);
      Object.assign(canvas, { width, height });
      canvas.closest("figure").style.flexGrow = width;
      canvas.addEventListener("pointerdown", (event) => this.point(plane, canvas, event));
      canvas.addEventListener("pointermove", (event) => this.hover(plane, canvas, event));
      canvas.addEventListener("pointerleave", () => (this.find("hover").textContent = HINT));
      canvas.addEventListener("keydown", (event) => this.press(plane, event));
    }
    this.sliders = AXES.map((_, axis) => element.querySelector(`input[data-axis="${axis}"]`));
    this.sliders.forEach((slider, axis) => {
      slider.max = this.geometry.centers[axis].length - 1;
      slider.addEventListener("input", () => this.draw());
    });
    for (const role of ["image", "opacity", "crosshair"]) this.find(role)?.addEventListener("input", () => this.draw());
    for (const box of this.all("outline")) box.addEventListener("input", () => this.draw());
    this.find("overlay")?.addEventListener("input", () => (this.choose(), this.draw()));
    for (const role of ["side", "colors"]) this.find(role)?.addEventListener("input", () => this.draw());
    for (const role of ["image", "overlay"]) {
      for (const end of ["low", "high"]) this.find(`${role}-${end}`)?.addEventListener("change", () => this.setWindow(role));
    }
    this.find("threshold")?.addEventListener("input", () => {
      const { low, high } = this.overlay;
      this.limit = low + (this.find("threshold").value / 1000) * (high - low);
      this.draw();
    });
    this.find("used")?.addEventListener("click", () => (this.choose(), this.draw()));
    this.find("point")?.addEventListener("input", (event) => this.go(data.points[event.target.value]));
    for (const button of document.querySelectorAll("[data-show]")) {
      button.addEventListener("click", () => this.showLayer(button.dataset.show));
    }
    this.choose();
    this.go(data.start);
  }

  // The planes lie beside each other, so that their common width limits how high the tallest is.
  limitHeight(most) {
    const sizes = Object.keys(PLANES).map((plane) => sizeOf(this.geometry, plane));
    const width = sizes.reduce((sum, size) => sum + size[0], 0), tallest = Math.max(...sizes.map((size) => size[1]));
    this.element.querySelector(".planes").style.maxWidth = `${Math.max(300, Math.round((most * width) / tallest))}px`;
  }

  showLayer(name) {
    const overlay = this.find("overlay"), option = [...(overlay?.options ?? [])].find((one) => one.text === name);
    if (!option) return;
    overlay.value = option.value;
    overlay.dispatchEvent(new Event("input"));
  }

  find(role) {
    return this.element.querySelector(`[data-role=${role}]`);
  }

  all(role) {
    return [...this.element.querySelectorAll(`[data-role=${role}]`)];
  }

  get image() {
    return this.layers[this.find("image")?.value];
  }

  get overlay() {
    return this.layers[this.find("overlay")?.value];
  }

  get map() {
    return this.maps[this.find("colors").value];
  }

  // An empty end is that of the page; ends in the wrong order are put back.
  setWindow(role) {
    const layer = this[role];
    layer.first ??= layer.window;
    const [low, high] = ["low", "high"].map((end, i) => {
      const field = this.find(`${role}-${end}`);
      return field.value === "" ? layer.first[i] : field.valueAsNumber;
    });
    if (low < high) layer.window = [low, high];
    this.draw();
  }

  get position() {
    return this.sliders.map((slider, axis) => this.geometry.centers[axis][slider.value]);
  }

  // An overlay starts with the threshold that was used, or shows all.
  choose() {
    if (!this.overlay) return;
    const { low, high, threshold } = this.overlay;
    this.limit = threshold ?? low;
    this.find("side").value = "above";
    this.find("threshold").value = high > low ? Math.round((1000 * (this.limit - low)) / (high - low)) : 0;
    this.find("used").textContent = threshold === null ? "show all" : `as used: ${written(threshold, 5)}`;
  }

  go(point) {
    if (!point) return;
    this.sliders.forEach((slider, axis) => {
      const place = Math.floor((point[axis] - this.geometry.low[axis]) / this.geometry.steps[axis]);
      slider.value = Math.min(this.geometry.centers[axis].length - 1, Math.max(0, place));
    });
    this.draw();
  }

  under(plane, canvas, event) {
    const place = canvas.getBoundingClientRect();
    const column = ((event.clientX - place.left) / place.width) * canvas.width - 0.5;
    const row = ((event.clientY - place.top) / place.height) * canvas.height - 0.5;
    return worldOf(this.geometry, plane, this.position, column, row);
  }

  point(plane, canvas, event) {
    this.go(this.under(plane, canvas, event));
  }

  hover(plane, canvas, event) {
    if (event.buttons & 1) this.point(plane, canvas, event);
    const point = this.under(plane, canvas, event), words = this.describeAt(point, (layer) => layer === this.image || layer === this.overlay);
    this.find("hover").textContent = `Pointer at ${point.map(inMm).join(", ")} mm: ${words}`;
  }

  describeAt(point, isTold) {
    const offset = offsetOf(this.geometry, point);
    const told = this.layers.filter((layer) => layer.kind === "mask" || isTold(layer));
    const boxes = this.data.boxes.filter((box) => !offsetOf(geometryOf([1, 1, 1], box.affine), point));
    return told.map((layer) => {
      const words = describe(layer, offset < 0 ? 0 : layer.codes[offset]);
      return words && layer.doubt?.[offset] ? `${words} (in doubt)` : words;
    }).concat(boxes.map((box) => box.name)).filter(Boolean).join("; ");
  }

  press(plane, event) {
    const [normal, across, up] = PLANES[plane], side = flipped(plane) ? -1 : 1;
    const moves = { ArrowRight: [across, side], ArrowLeft: [across, -side], ArrowUp: [up, 1], ArrowDown: [up, -1],
      PageUp: [normal, 1], PageDown: [normal, -1] };
    if (!moves[event.key]) return;
    event.preventDefault();
    const [axis, step] = moves[event.key];
    this.sliders[axis].value = Number(this.sliders[axis].value) + step;
    this.draw();
  }

  draw() {
    const { image, overlay, position, geometry } = this;
    const limit = overlay && { value: this.limit, side: this.find("side").value };
    if (image) image.colors = colorsOf(image, null);
    // A layer may be both below and above: the colors above are its own.
    const over = overlay && { ...overlay, colors: colorsOf(overlay, this.map, limit) };
    const shown = this.all("outline").filter((box) => box.checked).map((box) => box.value);
    const opacity = Number(this.find("opacity")?.value ?? 100) / 100;
    for (const [plane, canvas] of this.canvases) {
      const offsets = offsetsOf(geometry, plane, position);
      const context = canvas.getContext("2d", { willReadFrequently: true }); // pixels come from memory each time
      const pixels = paint(offsets, image, over, opacity);
      for (const key of shown.filter((key) => key[0] === "m")) {
        const layer = this.layers[key.slice(1)];
        outline(pixels, offsets, canvas.width, layer.codes, layer.colors.map((i) => [...OUTLINES[i % OUTLINES.length], 255]));
      }
      context.putImageData(new ImageData(pixels, canvas.width, canvas.height), 0, 0);
      for (const key of shown.filter((key) => key[0] === "b")) this.drawBox(context, plane, this.data.boxes[key.slice(1)]);
      if (this.find("crosshair").checked) this.drawCrosshair(context, plane);
    }
    this.tell(position, image, overlay, limit, opacity);
  }

  drawBox(context, plane, box) {
    const [normal] = PLANES[plane], points = crossSection(box.affine, normal, this.position[normal]);
    if (!points.length) return;
    context.beginPath();
    for (const point of points) context.lineTo(...pixelOf(this.geometry, plane, point).map((x) => x + 0.5));
    context.closePath();
    for (const [strokeStyle, lineWidth] of [["#000", 5], [`rgb(${OUTLINES[box.color % OUTLINES.length]})`, 3]]) {
      Object.assign(context, { strokeStyle, lineWidth });
      context.stroke();
    }
  }

  drawCrosshair(context, plane) {
    const [column, row] = pixelOf(this.geometry, plane, this.position).map((x) => Math.floor(x + 0.5));
    const { width, height } = context.canvas;
    context.fillStyle = "rgb(255 255 255 / 55%)";
    context.fillRect(0, row, width, 1);
    context.fillRect(column, 0, 1, height);
  }

  tell(position, image, overlay, limit, opacity) {
    this.sliders.forEach((slider, axis) => {
      const text = `${AXES[axis]} = ${inMm(position[axis])} mm`;
      slider.previousElementSibling.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    });
    const few = this.layers.filter((layer) => layer.kind !== "mask").length <= 8; // else only what is shown
    const words = this.describeAt(position, (layer) => few || layer === image || layer === overlay);
    this.find("values").textContent = `At ${position.map(inMm).join(", ")} mm: ${words}`;
    this.panel?.show(position, offsetOf(this.geometry, position));
    this.find("values").hidden = Boolean(this.panel?.record); // its table says the same, with intervals
    for (const [role, layer, map, share] of [["image-scale", image, null, 1], ["overlay-scale", overlay, overlay && this.map, image ? opacity : 1]]) {
      const scale = this.find(role);
      if (!scale) continue;
      scale.hidden = !layer;
      const ends = ["low", "high"].map((end) => this.find(role.replace("scale", end)));
      ends.forEach((field, i) => (field.value = layer ? Number(layer.window[i].toPrecision(4)) : ""));
      if (layer) this.drawScale(scale, layer, map, share);
    }
    const hasDoubt = this.find("has-doubt");
    if (hasDoubt) hasDoubt.hidden = !overlay?.doubt;
    for (const part of this.all("of-overlay")) part.hidden = !overlay;
    if (!overlay) return;
    const number = overlay.kind === "score" ? written(limit.value, 5) : reading(overlay, limit.value);
    const text = `${limit.side === "above" ? "\u2265" : "\u2264"} ${number}${overlay.unit && ` ${overlay.unit}`}`;
    this.find("limit").textContent = text;
    this.find("threshold").setAttribute("aria-valuetext", text);
    const volume = (shareOf(overlay, limit) * this.data.voxel) / 1000;
    this.find("amount").textContent = `${written(volume)} mL shown`;
  }

  // The colors of the planes: over black in the lowest row, over white in the highest.
  drawScale(scale, layer, map, share) {
    const canvas = scale.querySelector("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = canvas;
    const pixels = new Uint8ClampedArray(4 * width * height);
    for (let row = 0, p = 0; row < height; row++) {
      const below = height > 1 ? Math.round(255 * (1 - row / (height - 1))) : 0;
      for (let i = 0; i < width; i++, p += 4) {
        for (let k = 0; k < 3; k++) pixels[p + k] = blend(below, map ? map[3 * i + k] : i, share);
        pixels[p + 3] = 255;
      }
    }
    context.putImageData(new ImageData(pixels, width, height), 0, 0);
    const [low, high] = scale.querySelectorAll("span");
    low.textContent = written(layer.window[0]);
    high.textContent = `${written(layer.window[1])}${layer.unit && ` ${layer.unit}`}`;
  }
}

async function startViewer(element) {
  const data = JSON.parse(element.querySelector("script[type='application/json']").textContent);
  const length = data.shape.reduce((a, b) => a * b);
  try {
    for (const layer of data.layers) {
      layer.codes = await unpack(layer.data, length, layer.bits);
      layer.data = null;
    }
    for (const { name, codes } of data.layers.filter((layer) => layer.kind === "doubt")) {
      data.layers.find((layer) => layer.name === name).doubt = codes;
    }
    data.layers = data.layers.filter((layer) => layer.kind !== "doubt");
    const viewer = new Viewer(element, data);
    if (data.records) viewer.panel = await VoxelPanel.start(viewer);
    viewer.draw();
    element.viewer = viewer;
    element.querySelector("[data-role=instead]").hidden = true;
  } catch (error) {
    element.querySelector("[data-role=body]").hidden = true;
    element.querySelector("[data-role=failure]").textContent = `This browser cannot draw the planes (${error.message}).`;
  }
  element.dataset.state = element.viewer ? "ready" : "failed";
}

if (typeof document !== "undefined") {
  for (const element of document.querySelectorAll(".viewer")) startViewer(element);
} else {
  module.exports = { PLANES, codeOf, colorsOf, crossSection, describe, geometryOf, inverseOf, offsetOf, offsetsOf, outline,
    paint, pixelOf, reading, shareOf, sizeOf, unpack, valueOf, worldOf };
}
