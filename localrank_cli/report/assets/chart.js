// Draws the pictures: SVG made of elements, never of text from the data.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 340, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 44;

// A mark of its own for each layer, as in the figures: lines can be told apart in grey.
const around = (x, y, ...moves) => `M${x.toFixed(1)} ${y.toFixed(1)}${moves.join("")}z`;
const MARKS = [
  (x, y) => around(x, y, "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0"),
  (x, y) => around(x, y, "m-3 -3h6v6h-6"),
  (x, y) => around(x, y, "m0 -4l4 7h-8"),
  (x, y) => around(x, y, "m0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4"),
  (x, y) => around(x, y, "m0 4l4 -7h-8"),
  (x, y) => around(x, y, "m-1.4 -4.2h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8v-2.8h2.8"),
  (x, y) => around(x, y, "m0 -1.9l2.2 -2.2l1.9 1.9l-2.2 2.2l2.2 2.2l-1.9 1.9l-2.2 -2.2l-2.2 2.2l-1.9 -1.9l2.2 -2.2l-2.2 -2.2l1.9 -1.9"),
];
const MOST_MARKED = 14, BETWEEN = 70;

function markOf(index, count) { return MARKS[count <= MOST_MARKED ? index % MARKS.length : 0]; }

// The line and mark of a layer, for the legend and the values under the pointer.
function swatch(view, layer) {
  const colour = view.colour(layer);
  return element("svg", { class: "swatch", viewBox: "0 0 22 12", "aria-hidden": "true" },
    element("path", { d: "M0 6H22", stroke: colour, "stroke-width": 2 }), element("path", { d: view.mark(layer)(11, 6), fill: colour }));
}

// All points of a short line; of a long one, points so far apart, beginning elsewhere for each layer.
function marked(points, x, phase) {
  if (points.length <= 60) return points;
  let next = x.at(points[0].step) + phase * BETWEEN;
  return points.filter((p) => {
    const at = x.at(p.step);
    if (at < next) return false;
    while (next <= at) next += BETWEEN;
    return true;
  });
}

function element(name, attributes, ...children) {
  const made = name in { svg: 1, path: 1, line: 1, circle: 1, g: 1, text: 1, rect: 1 }
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== null && value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function frame(width, height, x, y, yLabel) {
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img" });
  const bottom = height - BOTTOM;
  for (const tick of y ? y.ticks : []) {
    const at = y.at(tick);
    svg.append(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    svg.append(element("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, short(tick)));
  }
  svg.append(element("path", { class: "axis", d: `M${LEFT} ${bottom}H${width - RIGHT}` }));
  for (const tick of x.ticks) {
    svg.append(element("path", { class: "axis", d: `M${x.at(tick)} ${bottom}v5` }));
    svg.append(element("text", { x: x.at(tick), y: bottom + 19, "text-anchor": "middle" }, x.text(tick)));
  }
  if (x.broken !== null) svg.append(element("path", { class: "axis", d: `M${x.broken - 5} ${bottom + 5}l4 -10m3 10l4 -10` }));
  svg.append(element("text", { x: (LEFT + width - RIGHT) / 2, y: height - 6, "text-anchor": "middle" }, "training step"));
  if (yLabel) svg.append(element("text", { transform: `translate(13 ${(TOP + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  return svg;
}

function defined(line) {
  return line.steps.map((step, i) => ({ step, y: line.values[i], error: line.errors ? line.errors[i] : null })).filter((p) => p.y !== null);
}

function drawCourse(lines, width, scales, view) {
  const x = stepScale(scales.steps, LEFT, width - RIGHT);
  const y = valueScale(view.measure, scales.values, TOP, HEIGHT - BOTTOM);
  const svg = frame(width, HEIGHT, x, y, view.label);
  for (const line of lines) {
    const points = defined(line);
    if (!points.length) continue;
    const colour = view.colour(line.layer), faded = view.single !== null && view.single !== line.layer ? " faded" : "";
    const place = (p, shift) => `${x.at(p.step).toFixed(1)} ${y.at(Math.max(p.y + shift * (p.error || 0), y.low)).toFixed(1)}`;
    if (points.some((p) => p.error > 0)) {
      const upper = points.map((p) => place(p, 1)), lower = points.map((p) => place(p, -1)).reverse();
      svg.append(element("path", { class: "band" + faded, d: `M${[...upper, ...lower].join("L")}Z`, fill: colour, "fill-opacity": 0.22 }));
    }
    const d = "M" + points.map((p) => place(p, 0)).join("L");
    svg.append(element("path", { class: "line" + faded, d, stroke: colour, "data-layer": line.layer }));
    if (points.length <= 60 || view.hasMarks) {
      const dots = marked(points, x, view.phase(line.layer)).map((p) => view.mark(line.layer)(x.at(p.step), y.at(Math.max(p.y, y.low)))).join("");
      svg.append(element("path", { class: "dots" + faded, d: dots, fill: colour }));
    }
    const hit = element("path", { class: "hit", d });
    hit.addEventListener("click", () => view.choose(line.layer));
    svg.append(hit);
  }
  svg.append(element("line", { class: "cursor", x1: 0, x2: 0, y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }));
  return { svg, x };
}

function drawHeat(lines, width, scales, view) {
  const row = Math.max(4, Math.min(26, 420 / lines.length)), height = TOP + row * lines.length + BOTTOM;
  const x = stepScale(scales.steps, LEFT, width - RIGHT);
  const svg = frame(width, height, x, null, "");
  const named = Math.ceil(lines.length / 16);
  lines.forEach((line, index) => {
    const points = defined(line), y = TOP + index * row, places = points.map((p) => x.at(p.step));
    const faded = view.single !== null && view.single !== line.layer ? " faded" : "";
    points.forEach((point, i) => {
      const from = i ? (places[i - 1] + places[i]) / 2 : LEFT;
      const to = i + 1 < points.length ? (places[i] + places[i + 1]) / 2 : width - RIGHT;
      svg.append(element("rect", { class: "cell" + faded, x: from.toFixed(1), y, width: (to - from + 0.4).toFixed(1), height: row, fill: viridis(point.y / line.max) }));
    });
    const name = line.layer.length > 7 ? "…" + line.layer.slice(-6) : line.layer;
    if (index % named === 0) svg.append(element("text", { x: LEFT - 6, y: y + row / 2 + 4, "text-anchor": "end" }, name));
  });
  svg.append(element("line", { class: "cursor", x1: 0, x2: 0, y1: TOP, y2: height - BOTTOM, visibility: "hidden" }));
  return { svg, x };
}

// Values under the pointer, or at the step that the arrow keys have reached.
function explore(drawn, lines, width, view) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const { svg, x } = drawn, cursor = svg.querySelector(".cursor"), tip = document.getElementById("tip");
  let index = -1;
  const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  const show = (at, left, top) => {
    index = at;
    const place = x.at(steps[at]);
    cursor.setAttribute("x1", place); cursor.setAttribute("x2", place); cursor.setAttribute("visibility", "visible");
    const shown = lines.filter((line) => view.single === null || line.layer === view.single);
    const rows = shown.slice(0, 14).map((line) => {
      const i = line.steps.indexOf(steps[at]), error = i >= 0 && line.errors ? line.errors[i] : null;
      return element("span", {}, swatch(view, line.layer), line.layer, element("em", {}, i < 0 ? "–" : short(line.values[i]) + (error ? ` ± ${short(error)}` : "")));
    });
    if (shown.length > 14) rows.push(element("span", {}, `and ${shown.length - 14} more; click one to highlight it`));
    tip.replaceChildren(element("b", {}, `step ${steps[at]}`), ...rows);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(left + 14, window.innerWidth - box.width - 6))}px`;
    tip.style.top = `${Math.max(4, Math.min(top + 14, window.innerHeight - box.height - 6))}px`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * width;
    const nearest = steps.reduce((best, step, i) => Math.abs(x.at(step) - at) < Math.abs(x.at(steps[best]) - at) ? i : best, 0);
    show(nearest, event.clientX, event.clientY);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: index + 1, ArrowLeft: index < 0 ? 0 : index - 1, Home: 0, End: steps.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect(), at = Math.max(0, Math.min(steps.length - 1, moves[event.key]));
    show(at, box.left + x.at(steps[at]) / width * box.width, box.top + 20);
  });
}
