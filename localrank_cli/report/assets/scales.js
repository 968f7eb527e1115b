// Scales, numbers and colours.
const VIRIDIS = ["440154", "482475", "414487", "355f8d", "2a788e", "21918c", "22a884", "44bf70", "7ad151", "bddf26", "fde725"]
  .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const below = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const mix = VIRIDIS[below].map((part, i) => Math.round(part + (place - below) * (VIRIDIS[below + 1][i] - part)));
  return `rgb(${mix.join(",")})`;
}

// Light to dark by depth; on dark paper the dark end stays light enough to be seen.
function depthColour(index, count) {
  const [first, last] = dark.matches ? [0.95, 0.38] : [0.82, 0];
  return viridis(count > 1 ? first + (last - first) * index / (count - 1) : (first + last) / 2);
}

function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(size >= 1000 ? 5 : 4)));
}

// A tolerance: two that differ must not look the same. Nine digits, as the table's labels have.
function exact(value) {
  const text = short(value), digits = Number(value.toPrecision(9));
  return Number(text) === digits ? text : String(digits);
}

function power(value) {
  const exponent = Math.round(Math.log10(value));
  if (value < 1e5) return String(value);
  return "10" + [...String(exponent)].map((digit) => SUPERSCRIPTS[digit]).join("");
}

// From steps to pixels: log where they span two decades, with zero shown left of the first.
function stepScale(values, left, right) {
  const positive = values.filter((v) => v > 0);
  const low = Math.min(...values), high = Math.max(...values);
  const least = Math.min(...positive);
  const log = positive.length > 0 && low >= 0 && high / least >= 100;
  const pad = 10, start = left + pad, end = right - pad;
  if (low === high) return { at: () => (start + end) / 2, ticks: [low], text: String, broken: null };
  if (!log) {
    const at = (v) => start + (v - low) / (high - low) * (end - start);
    return { at, ticks: niceTicks(low, high, (end - start) / 80).filter((t) => t >= low), text: (v) => String(v), broken: null };
  }
  const zero = values.includes(0) ? Math.max(34, (end - start) * 0.1) : 0;
  const width = Math.log(high / least) || 1;
  const at = (v) => v <= 0 ? start : start + zero + Math.log(v / least) / width * (end - start - zero);
  let ticks = [];
  for (let e = Math.ceil(Math.log10(least) - 1e-9); 10 ** e <= high * (1 + 1e-9); e += 1) ticks.push(10 ** e);
  const every = Math.ceil(ticks.length / Math.max(2, (end - start) / 64));
  ticks = ticks.reverse().filter((_, i) => i % every === 0).reverse();
  if (zero) ticks = [0, ...ticks.filter((t) => at(t) - start > 26)];
  return { at, ticks, text: power, broken: zero ? start + zero / 2 : null };
}

function niceTicks(low, high, most) {
  const raw = (high - low) / Math.max(2, most), base = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * base).find((s) => s >= raw);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function valueScale(measure, values, top, bottom) {
  const high = Math.max(...values), positive = values.filter((v) => v > 0);
  if (measure.kind === "length" && positive.length === values.length && high / Math.min(...positive) >= 100) {
    const low = Math.min(...positive) / 1.2, most = high * 1.2, ticks = [];
    for (let e = Math.ceil(Math.log10(low)); 10 ** e <= most; e += 1) ticks.push(10 ** e);
    return { at: (v) => bottom - Math.log(v / low) / Math.log(most / low) * (bottom - top), ticks, low };
  }
  const low = Math.min(0, ...values), most = measure.kind === "share" ? 1 : (high * 1.05 || 1);
  return { at: (v) => bottom - (v - low) / (most - low) * (bottom - top), ticks: niceTicks(low, most, 6), low };
}
