// What is shown, and the controls that change it.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const state = { measure: data.measures[0].name, tolerance: data.tolerances[0], run: "", slide: null, single: null };
const SLIDERS = { "slider:atol": "any absolute (slider)", "slider:rtol": "any relative (slider)" };

function measure() { return data.measures.find((one) => one.name === state.measure); }
function sliding() { return measure().name === "local_rank" && state.tolerance in SLIDERS ? state.tolerance.slice(7) : null; }
function tableTolerance() { return state.tolerance in SLIDERS ? data.tolerances[0] : state.tolerance; }

function toleranceText() {
  const kind = sliding();
  return kind ? `${kind}=${exact(data.spectra[kind].grid[state.slide])}` : tableTolerance();
}

function linesOf(run, name, kind) {
  return run.layers.map((layer) => {
    const base = { layer: layer.name, steps: layer.steps, max: layer.max_rank };
    if (kind) {
      const kept = (data.spectra[kind].runs[run.name] || {})[layer.name] || {};
      const values = layer.steps.map((step) => step in kept ? kept[step][state.slide] : null);
      return { ...base, values, errors: null };
    }
    const key = data.measures.find((one) => one.name === name).uses_tolerance ? tableTolerance() : "";
    const found = (layer.values[name] || {})[key] || { y: layer.steps.map(() => null) };
    return { ...base, values: found.y, errors: found.e || null };
  });
}

function view() {
  const shown = measure(), text = shown.uses_tolerance ? `${shown.label} (${toleranceText()})` : shown.label;
  return {
    measure: shown, label: text, single: state.single,
    hasMarks: data.layers.length <= MOST_MARKED,
    colour: (layer) => depthColour(data.layers.indexOf(layer), data.layers.length),
    mark: (layer) => markOf(data.layers.indexOf(layer), data.layers.length),
    phase: (layer) => data.layers.indexOf(layer) / data.layers.length,
    choose: (layer) => { state.single = state.single === layer ? null : layer; render(); },
  };
}

function render() {
  const seen = view(), kind = sliding();
  const runs = data.runs.filter((run) => state.run === "" || run.name === state.run);
  const panels = runs.map((run) => ({ run, lines: linesOf(run, state.measure, kind) }));
  const every = panels.flatMap((panel) => panel.lines);
  const shown = every.flatMap((line) => defined(line).map((p) => p));
  const scales = { steps: every.flatMap((line) => line.steps), values: shown.flatMap((p) => [p.y + (p.error || 0), Math.max(p.y - (p.error || 0), Math.min(p.y, 1e-300))]) };
  if (!scales.values.length) scales.values = [0];
  if (seen.measure.kind !== "length") scales.values.push(0);
  else scales.values = shown.map((p) => p.y);
  find("tip").hidden = true;
  find("slider-box").hidden = kind === null;
  find("slider-value").textContent = kind ? toleranceText() : "";
  find("tolerance").disabled = !seen.measure.uses_tolerance;
  find("sentence").textContent = seen.measure.sentence;
  const label = seen.label.charAt(0).toUpperCase() + seen.label.slice(1);
  find("course-title").textContent = `${label} over training`;
  draw("course", panels, scales, seen, drawCourse);
  const ranks = seen.measure.kind === "rank";
  find("heat-section").hidden = !ranks;
  if (ranks) {
    find("heat-title").textContent = `${label} as a share of the largest possible rank`;
    heatScale();
    draw("heat", panels, scales, seen, drawHeat);
  }
  legend(seen);
  table(runs, kind);
  tellOfScrolling();
}

function heatScale() {
  const bar = element("i", {});
  bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(viridis).join(",")})`;
  find("scale").replaceChildren("0", bar, "1");
}

function draw(id, panels, scales, seen, how) {
  const place = find(id);
  place.replaceChildren(...panels.map(({ run }) => element("figure", {}, element("figcaption", {}, data.runs.length > 1 ? run.name : ""))));
  panels.forEach(({ run, lines }, index) => {
    const figure = place.children[index], width = Math.max(280, Math.round(figure.clientWidth));
    const drawn = how(lines, width, scales, seen);
    drawn.svg.setAttribute("aria-label", `${run.name}: ${seen.label} by layer and training step. Arrow keys read out values.`);
    explore(drawn, lines, width, seen);
    figure.append(drawn.svg);
  });
}

function legend(seen) {
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.layer : null;
  const buttons = data.layers.map((layer) => {
    const button = element("button", { type: "button", "aria-pressed": state.single === layer, "data-layer": layer }, swatch(seen, layer), layer);
    button.addEventListener("click", () => seen.choose(layer));
    return button;
  });
  find("legend").replaceChildren(element("span", {}, "Layer"), ...buttons);
  const again = focused && buttons.find((button) => button.dataset.layer === focused);
  if (again) again.focus();
}

function table(runs, kind) {
  find("table-title").textContent = `Summary: local rank at ${kind ? toleranceText() : tableTolerance()}`;
  const names = ["run", "layer", "size", "first", "peak", "at step", "last", "effective rank"];
  const cell = (tag, text, i) => element(tag, i < 2 ? { class: "word" } : {}, String(text));
  const rows = runs.flatMap((run) => {
    const effective = linesOf(run, "effective_rank", null);
    return linesOf(run, "local_rank", kind).map((line, index) => {
      const points = defined(line), soft = data.measures.some((m) => m.name === "effective_rank") ? defined(effective[index]) : [];
      if (!points.length) return [run.name, line.layer, run.layers[index].size, "–", "–", "–", "–", "–"];
      const peak = points.reduce((best, p) => p.y > best.y ? p : best);
      const course = soft.length ? `${soft[0].y.toFixed(1)} → ${soft[soft.length - 1].y.toFixed(1)}` : "–";
      return [run.name, line.layer, run.layers[index].size, points[0].y.toFixed(1), peak.y.toFixed(1), peak.step, points[points.length - 1].y.toFixed(1), course];
    });
  });
  find("summary").replaceChildren(
    element("thead", {}, element("tr", {}, ...names.map((name, i) => cell("th", name, i)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) => cell("td", text, i))))),
  );
}

// Say in words too that columns are hidden; the shade at the edge shows where.
function tellOfScrolling() {
  const box = find("summary").parentElement;
  find("scroll-hint").hidden = box.scrollWidth <= box.clientWidth;
}

function fill(select, choices, change) {
  select.replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", () => { change(select.value); render(); });
}

fill(find("measure"), data.measures.map((one) => [one.name, one.label]), (value) => { state.measure = value; });
const sliders = data.spectra ? Object.entries(SLIDERS) : [];
fill(find("tolerance"), [...data.tolerances.map((one) => [one, one]), ...sliders], (value) => {
  state.tolerance = value;
  const kind = value in SLIDERS ? value.slice(7) : null;
  if (!kind) return;
  const grid = data.spectra[kind].grid;
  find("slider").max = grid.length - 1;
  state.slide = Math.min(grid.length - 1, Math.max(0, grid.findIndex((one) => one >= 0.0099)));
  find("slider").value = state.slide;
});
fill(find("run"), [["", "all, side by side"], ...data.runs.map((run) => [run.name, run.name])], (value) => { state.run = value; });
find("run-box").hidden = data.runs.length < 2;
find("tolerance-box").hidden = data.tolerances.length < 2 && !data.spectra;
find("slider").addEventListener("input", (event) => { state.slide = Number(event.target.value); render(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { state.single = null; render(); } });
dark.addEventListener("change", render);
let width = window.innerWidth;
window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; render(); } });
render();
