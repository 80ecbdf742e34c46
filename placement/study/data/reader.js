// Readers place boxes with the mouse. The functions of the viewer of three planes stand before this script.

const FIRST_SIDE = 20, SIDES = [10, 60], NEAR = 9; // mm; pixels of the canvas around a handle
const TURN_ARM = 12; // mm from the box to the handle that turns it

// ---- geometry: what follows knows nothing of a page ------------------------------------------------------------------

const DEGREES = 180 / Math.PI;

// Intrinsic XYZ angles in degrees: R = Rx(a) Ry(b) Rz(c).
function rotationOf(angles) {
  const [sa, sb, sc] = angles.map((x) => Math.sin(x / DEGREES)), [ca, cb, cc] = angles.map((x) => Math.cos(x / DEGREES));
  return [
    [cb * cc, -cb * sc, sb],
    [ca * sc + sa * sb * cc, ca * cc - sa * sb * sc, -sa * cb],
    [sa * sc - ca * sb * cc, sa * cc + ca * sb * sc, ca * cb],
  ];
}

function anglesOf(r) {
  const cosine = Math.hypot(r[0][0], r[0][1]), b = Math.atan2(r[0][2], cosine);
  const [a, c] = cosine > 1e-9
    ? [Math.atan2(-r[1][2], r[2][2]), Math.atan2(-r[0][1], r[0][0])]
    : [Math.atan2(r[2][1], r[1][1]), 0];
  return [a, b, c].map((x) => x * DEGREES + 0);
}

// Turn a rotation about an axis of the scanner, right-handed.
function turned(rotation, axis, radians) {
  const [i, j] = [(axis + 1) % 3, (axis + 2) % 3], s = Math.sin(radians), c = Math.cos(radians);
  const rows = rotation.map((row) => [...row]);
  for (let k = 0; k < 3; k++) {
    rows[i][k] = c * rotation[i][k] - s * rotation[j][k];
    rows[j][k] = s * rotation[i][k] + c * rotation[j][k];
  }
  return rows;
}

function affineOf(box) {
  return box.rotation.map((row, i) => [...row.map((x, j) => x * box.size[j]), box.center[i]]);
}

function inBox(box, point) {
  const offset = point.map((x, i) => x - box.center[i]);
  return [0, 1, 2].every((j) =>
    Math.abs(box.rotation.reduce((sum, row, i) => sum + row[j] * offset[i], 0)) <= box.size[j] / 2);
}

// The two sides that lie most nearly in a plane, and the middles of their four faces, moved into the plane.
function facesIn(box, plane) {
  const [normal] = PLANES[plane];
  const sides = [0, 1, 2].sort((a, b) => Math.abs(box.rotation[normal][a]) - Math.abs(box.rotation[normal][b]));
  return sides.slice(0, 2).flatMap((side) =>
    [1, -1].map((sign) => ({ side, sign, at: box.center.map((x, i) => x + (sign * box.size[side] * box.rotation[i][side]) / 2) })));
}

function turnHandle(box, plane) {
  const [, , up] = PLANES[plane];
  const top = facesIn(box, plane).sort((a, b) => b.at[up] - a.at[up])[0];
  const reach = 1 + TURN_ARM / (box.size[top.side] / 2);
  return top.at.map((x, i) => box.center[i] + reach * (x - box.center[i]));
}

// Move one face to a point; the opposite one stays.
function stretched(box, side, sign, point) {
  const axis = box.rotation.map((row) => row[side]);
  const fixed = box.center.map((x, i) => x - (sign * box.size[side] * axis[i]) / 2);
  const length = sign * point.reduce((sum, x, i) => sum + (x - fixed[i]) * axis[i], 0);
  const kept = Math.min(SIDES[1], Math.max(SIDES[0], length)), size = [...box.size];
  size[side] = kept;
  return { ...box, size, center: fixed.map((x, i) => x + (sign * kept * axis[i]) / 2) };
}

function rowOf(name, expert, box) {
  const numbers = [...box.center, ...box.size, ...anglesOf(box.rotation)];
  // The twelve digits of tables of boxes, so that an accepted proposal comes back as it was.
  return [name, expert, ...numbers.map((x) => String(Number((Math.abs(x) < 1e-9 ? 0 : x).toPrecision(12))))].join("\t");
}

// ---- the page --------------------------------------------------------------------------------------------------------

class Reader {
  constructor(element, data) {
    Object.assign(this, { element, cases: data.cases, columns: data.columns, storage: `reader ${data.key}`, index: 0 });
    this.boxes = this.cases.map((one) => one.box && { ...one.box, rotation: rotationOf(one.box.angles) });
    this.touched = this.cases.map(() => false);
    this.restore();
    this.sliders = AXES.map((_, axis) => element.querySelector(`input[data-axis="${axis}"]`));
    for (const slider of this.sliders) slider.addEventListener("input", () => this.draw());
    this.canvases = Object.keys(PLANES).map((plane) => [plane, element.querySelector(`[data-plane=${plane}] canvas`)]);
    for (const [plane, canvas] of this.canvases) {
      canvas.addEventListener("pointerdown", (event) => this.grab(plane, canvas, event));
      canvas.addEventListener("pointermove", (event) => this.drag(plane, canvas, event));
      canvas.addEventListener("pointerup", () => this.release());
      canvas.addEventListener("pointercancel", () => this.release());
      canvas.addEventListener("wheel", (event) => this.scroll(plane, event), { passive: false });
    }
    this.find("previous").addEventListener("click", () => this.show(this.index - 1));
    this.find("next").addEventListener("click", () => this.show(this.index + 1));
    this.find("accept").addEventListener("click", () => this.accept());
    this.find("remove").addEventListener("click", () => this.remove());
    this.find("export").addEventListener("click", () => this.download());
    this.find("expert").addEventListener("input", () => (this.keep(), this.tell()));
    this.numbers().forEach((field, i) => field.addEventListener("change", () => this.enter(i)));
  }

  find(role) {
    return this.element.querySelector(`[data-role=${role}]`);
  }

  numbers() {
    return [...this.element.querySelectorAll("[data-number]")];
  }

  get box() {
    return this.boxes[this.index];
  }

  values() {
    return this.box ? [...this.box.center, ...this.box.size, ...anglesOf(this.box.rotation)] : [];
  }

  get position() {
    return this.sliders.map((slider, axis) => this.geometry.centers[axis][slider.value]);
  }

  // A browser that keeps nothing for files is as good, until the page is closed.
  restore() {
    try {
      const stored = JSON.parse(localStorage.getItem(this.storage));
      if (!stored || stored.boxes.length !== this.cases.length) return;
      Object.assign(this, { boxes: stored.boxes, touched: stored.touched });
      this.find("expert").value = stored.expert;
    } catch { /* nothing was kept */ }
  }

  keep() {
    const { boxes, touched } = this;
    try {
      localStorage.setItem(this.storage, JSON.stringify({ boxes, touched, expert: this.find("expert").value }));
    } catch { /* see restore */ }
  }

  async show(index) {
    if (index < 0 || index >= this.cases.length) return;
    this.index = index;
    const one = this.cases[index], length = one.shape.reduce((a, b) => a * b);
    for (const layer of one.layers) {
      layer.codes ??= await unpack(layer.data, length, layer.bits);
      if (layer.kind !== "mask") layer.colors = colorsOf(layer, null);
    }
    // Readers are faster than browsers unpack.
    if (this.index !== index) return;
    this.geometry = geometryOf(one.shape, one.affine);
    for (const [plane, canvas] of this.canvases) {
      const [width, height] = sizeOf(this.geometry, plane);
      Object.assign(canvas, { width, height });
      canvas.closest("figure").style.flexGrow = width;
    }
    this.sliders.forEach((slider, axis) => (slider.max = this.geometry.centers[axis].length - 1));
    this.go(this.box ? this.box.center : one.start);
    this.element.dataset.state = "ready";
  }

  go(point) {
    this.sliders.forEach((slider, axis) => {
      const place = Math.floor((point[axis] - this.geometry.low[axis]) / this.geometry.steps[axis]);
      slider.value = Math.min(this.geometry.centers[axis].length - 1, Math.max(0, place));
    });
    this.draw();
  }

  pointOf(plane, canvas, event) {
    const place = canvas.getBoundingClientRect();
    const column = ((event.clientX - place.left) / place.width) * canvas.width - 0.5;
    const row = ((event.clientY - place.top) / place.height) * canvas.height - 0.5;
    return { column, row, world: worldOf(this.geometry, plane, this.position, column, row) };
  }

  grab(plane, canvas, event) {
    const at = this.pointOf(plane, canvas, event), { box } = this;
    const isNear = (point) => {
      const [column, row] = pixelOf(this.geometry, plane, point);
      return Math.hypot(column - at.column, row - at.row) <= NEAR;
    };
    canvas.setPointerCapture(event.pointerId);
    if (!box) {
      this.change({ center: at.world, size: [FIRST_SIDE, FIRST_SIDE, FIRST_SIDE], rotation: rotationOf([0, 0, 0]) });
      this.held = { kind: "move", from: at.world, box: this.box };
      this.go(at.world);
      return;
    }
    const [normal] = PLANES[plane], isCut = crossSection(affineOf(box), normal, this.position[normal]).length > 0;
    const face = isCut && facesIn(box, plane).find((one) => isNear(one.at));
    if (isCut && isNear(turnHandle(box, plane))) this.held = { kind: "turn", from: at.world, box };
    else if (face) this.held = { kind: "stretch", face, box };
    else if (inBox(box, at.world)) this.held = { kind: "move", from: at.world, box };
    else {
      this.held = { kind: "look" };
      this.go(at.world);
    }
  }

  drag(plane, canvas, event) {
    if (!this.held || !(event.buttons & 1)) return;
    const { world } = this.pointOf(plane, canvas, event), { kind, box, from, face } = this.held;
    if (kind === "look") this.go(world);
    else if (kind === "move") this.change({ ...box, center: box.center.map((x, i) => x + world[i] - from[i]) });
    else if (kind === "stretch") this.change(stretched(box, face.side, face.sign, world));
    else {
      const [normal] = PLANES[plane], [i, j] = [(normal + 1) % 3, (normal + 2) % 3];
      const angle = (point) => Math.atan2(point[j] - box.center[j], point[i] - box.center[i]);
      this.change({ ...box, rotation: turned(box.rotation, normal, angle(world) - angle(from)) });
    }
  }

  release() {
    if (this.held && this.held.kind !== "look") this.go(this.box.center);
    this.held = null;
  }

  scroll(plane, event) {
    event.preventDefault();
    const slider = this.sliders[PLANES[plane][0]];
    slider.value = Number(slider.value) + (event.deltaY < 0 ? 1 : -1);
    this.draw();
  }

  change(box) {
    this.boxes[this.index] = box;
    this.touched[this.index] = true;
    this.keep();
    this.draw();
  }

  accept() {
    if (this.box) this.change(this.box);
  }

  remove() {
    this.boxes[this.index] = null;
    this.touched[this.index] = false;
    this.keep();
    this.draw();
  }

  // Fields show one decimal, so that only the one that was typed into is read.
  enter(typed) {
    const { value } = this.numbers()[typed], values = this.values();
    values[typed] = value === "" ? NaN : Number(value);
    const size = values.slice(3, 6).map((x) => Math.min(SIDES[1], Math.max(SIDES[0], x)));
    if (!this.box || ![...values, ...size].every(Number.isFinite)) return this.tell();
    this.change({ center: values.slice(0, 3), size, rotation: rotationOf(values.slice(6)) });
    this.go(this.box.center);
  }

  draw() {
    const { geometry, position, box } = this, { layers } = this.cases[this.index];
    const image = layers.find((layer) => layer.kind === "image"), mask = layers.find((layer) => layer.kind === "mask");
    for (const [plane, canvas] of this.canvases) {
      const offsets = offsetsOf(geometry, plane, position), context = canvas.getContext("2d", { willReadFrequently: true });
      const pixels = paint(offsets, image, null, 1);
      outline(pixels, offsets, canvas.width, mask.codes, [[...OUTLINES[5], 255]]);
      context.putImageData(new ImageData(pixels, canvas.width, canvas.height), 0, 0);
      if (box) this.drawBox(context, plane, box);
    }
    this.tell();
  }

  drawBox(context, plane, box) {
    const [normal] = PLANES[plane], corners = crossSection(affineOf(box), normal, this.position[normal]);
    if (!corners.length) return;
    const pixel = (point) => pixelOf(this.geometry, plane, point).map((x) => x + 0.5);
    const line = (points, closed) => {
      context.beginPath();
      for (const point of points) context.lineTo(...pixel(point));
      if (closed) context.closePath();
      for (const [strokeStyle, lineWidth] of [["#000", 4], [`rgb(${OUTLINES[4]})`, 2]]) {
        Object.assign(context, { strokeStyle, lineWidth });
        context.stroke();
      }
    };
    line(corners, true);
    const handle = turnHandle(box, plane);
    line([facesIn(box, plane).sort((a, b) => b.at[PLANES[plane][2]] - a.at[PLANES[plane][2]])[0].at, handle], false);
    context.fillStyle = `rgb(${OUTLINES[4]})`;
    for (const { at } of facesIn(box, plane)) {
      const [x, y] = pixel(at);
      context.fillRect(x - 4, y - 4, 8, 8);
    }
    context.beginPath();
    context.arc(...pixel(handle), 5, 0, 2 * Math.PI);
    context.fill();
  }

  tell() {
    const { box, cases, index, touched } = this, n = touched.filter(Boolean).length;
    this.find("title").textContent = `Case ${index + 1} of ${cases.length}`;
    this.find("progress").textContent = `${n} of ${cases.length} boxes placed or accepted`;
    this.sliders.forEach((slider, axis) => {
      slider.previousElementSibling.textContent = `${AXES[axis]} = ${inMm(this.position[axis])} mm`;
    });
    let words = "Click into a plane to place a box.";
    if (box) {
      const volume = box.size.reduce((a, b) => a * b) / 1000;
      words = `${volume.toFixed(1)} mL${volume < 6 ? ", less than 6 mL" : ""}`;
      if (!touched[index]) words += "; a proposal: correct it, or accept it";
    }
    this.find("volume").textContent = words;
    const values = this.values();
    this.numbers().forEach((field, i) => {
      field.disabled = !box;
      field.value = box ? (values[i] + 0).toFixed(1) : "";
    });
    this.find("accept").disabled = !box || touched[index];
    this.find("remove").disabled = !box;
    this.find("previous").disabled = index === 0;
    this.find("next").disabled = index === cases.length - 1;
    // Names would tell readers whom they see, until all boxes are placed.
    this.find("table").value = this.table(n === cases.length);
    const hasName = Boolean(this.find("expert").value.trim());
    this.find("export").disabled = n < cases.length || !hasName;
    this.find("missing").textContent = hasName ? "" : "Enter your initials to export.";
    if (hasName && n < cases.length) this.find("missing").textContent = `${cases.length - n} cases lack a box.`;
  }

  // Proposals that nobody looked at are no reader's boxes.
  table(isNamed = true) {
    const expert = this.find("expert").value.trim().replace(/\s+/g, " ") || "reader";
    const order = this.cases.map((one, i) => [isNamed ? one.name : `case ${i + 1}`, i]).filter(([, i]) => this.touched[i]);
    if (isNamed) order.sort(([a], [b]) => (a < b ? -1 : 1));
    const rows = order.map(([name, i]) => rowOf(name, expert, this.boxes[i]));
    return [this.columns.join("\t"), ...rows].join("\n") + "\n";
  }

  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.table()], { type: "text/tab-separated-values" }));
    link.download = `boxes_${this.find("expert").value.trim().replace(/[^\p{L}\p{N}_-]+/gu, "_")}.tsv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

async function startReader(element) {
  const data = JSON.parse(element.querySelector("script[type='application/json']").textContent);
  element.reader = new Reader(element, data);
  try {
    await element.reader.show(0);
  } catch (error) {
    element.dataset.state = "failed";
    element.reader.find("missing").textContent = `This browser cannot draw the planes (${error.message}).`;
  }
}

if (typeof document !== "undefined") for (const element of document.querySelectorAll(".reader")) startReader(element);
