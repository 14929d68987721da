// What the file holds: columns of numbers, read at once, and blocks of pictures and maps, read when they are shown.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);

const bytesOf = (text) => {
  const joined = atob(text);
  const bytes = new Uint8Array(joined.length);
  for (let i = 0; i < joined.length; i++) bytes[i] = joined.charCodeAt(i);
  return bytes;
};
const integers = (text) => new Int32Array(bytesOf(text).buffer);
const floats = (text) => new Float32Array(bytesOf(text).buffer);

const columns = {
  positions: integers(data.columns.positions),
  labels: integers(data.columns.labels),
  predictions: integers(data.columns.predictions),
  nearest: integers(data.columns.nearest),
  targets: integers(data.columns.targets),
  topClasses: integers(data.columns.topClasses),
  confidences: floats(data.columns.confidences),
  peaks: floats(data.columns.peaks),
  topScores: floats(data.columns.topScores),
  logSums: floats(data.columns.logSums),
  metrics: Object.fromEntries(Object.entries(data.columns.metrics).map(([name, text]) => [name, floats(text)])),
};
const count = columns.positions.length;
const perSample = data.maps.shown;
const [mapHeight, mapWidth] = data.maps.size;
const topCount = count ? columns.topClasses.length / count : 0;

const idOf = (row) => (data.ids ? data.ids[row] : String(columns.positions[row]));
const pathOf = (row) => (data.paths ? data.paths[row] : "");
const peakOf = (row, map = 0) => columns.peaks[row * perSample + map];
const targetOf = (row, map = 0) => columns.targets[row * perSample + map];
const isDead = (row) => peakOf(row) === 0;
const isKnown = (row) => columns.labels[row] >= 0 && columns.predictions[row] >= 0;
const isRight = (row) => columns.labels[row] === columns.predictions[row];

// Controls and marks of direction would be invisible, or turn a name round: they are spelled out.
const visible = (text) =>
  String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
const className = (index) => {
  if (index < 0) return "not known";
  const name = data.classNames && data.classNames[index];
  return name === undefined || name === null || name === "" ? String(index) : visible(name);
};
// Where scores are not finite there is no prediction.
const predictionOf = (row) => (columns.predictions[row] < 0 ? "no prediction" : className(columns.predictions[row]));
const titleOf = (name) => visible(name).replaceAll("_", " ");
const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)} %` : "not known");
const figure = (value, digits = 3) => {
  if (value === null || !Number.isFinite(value)) return "none";
  const size = Math.abs(value);
  return size !== 0 && (size < 10 ** -digits || size >= 1e6) ? value.toExponential(digits - 1) : value.toFixed(digits);
};
const whole = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, ",");

// An element with attributes and children; text is only ever set as text.
const make = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

const parsed = new Promise((resolve) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", resolve);
  else resolve();
});

const kept = new Map();
const KEPT = 256;

// The block's pictures as one bitmap (null without), and its maps, (samples, perSample, mapHeight, mapWidth) bytes.
const blockOf = (row) => {
  const number = Math.floor(row / data.block);
  if (!kept.has(number)) kept.set(number, decoded(number));
  const found = kept.get(number);
  kept.delete(number); // to the end: the first is the one that was not used for longest
  kept.set(number, found);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
};

const decoded = async (number) => {
  // While the file is being read, an element may be there in part; once the next one is there, it is whole.
  if (document.readyState === "loading" && !byId(`block-${number + 1}`)) await parsed;
  const element = byId(`block-${number}`);
  if (!element) return { sheet: null, maps: new Uint8Array(0) };
  const [picture, maps] = element.textContent.split("\n");
  let sheet = null;
  if (picture) {
    try {
      sheet = await createImageBitmap(new Blob([bytesOf(picture)], { type: "image/jpeg" }));
    } catch (error) {
      console.warn(`block ${number}: ${error}`);
    }
  }
  return { sheet, maps: bytesOf(maps) };
};
const mapOf = (block, row, map = 0) => {
  const size = mapHeight * mapWidth;
  const begin = ((row % data.block) * perSample + map) * size;
  return block.maps.subarray(begin, begin + size);
};
