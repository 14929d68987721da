// Which samples are shown, in which order; kept in the address, after #.

const form = byId("filters");
const state = { q: "", label: "", predicted: "", correct: "", nearest: "", map: "", low: "", high: "", sort: "", page: 1, theme: "" };
const FIELDS = Object.keys(state).filter((name) => name !== "page" && name !== "theme");

const counted = (values) => {
  const found = new Map();
  for (const value of values) found.set(value, (found.get(value) || 0) + 1);
  return [...found].sort(([a], [b]) => a - b);
};

const fillSelect = (name, values, missing) => {
  const select = form.elements[name];
  const found = counted(values);
  select.append(make("option", { value: "" }, "any"));
  for (const [index, times] of found) {
    select.append(make("option", { value: index }, `${index < 0 ? missing : className(index)} (${whole(times)})`));
  }
  select.parentElement.hidden = found.every(([index]) => index < 0);
};

const SORTS = new Map([["", ["order of the data set", null, 1]]]);
const fillSorts = () => {
  SORTS.set("least-confident", ["confidence, lowest first", columns.confidences, 1]);
  SORTS.set("most-confident", ["confidence, highest first", columns.confidences, -1]);
  const peaks = Float32Array.from({ length: count }, (_, row) => peakOf(row));
  SORTS.set("weakest", ["maximum of the map, lowest first", peaks, 1]);
  SORTS.set("strongest", ["maximum of the map, highest first", peaks, -1]);
  for (const [name, values] of Object.entries(columns.metrics)) {
    SORTS.set(`${name}-up`, [`${titleOf(name)}, lowest first`, values, 1]);
    SORTS.set(`${name}-down`, [`${titleOf(name)}, highest first`, values, -1]);
  }
  if (data.paths) SORTS.set("path", ["path", data.paths, 1]);
  for (const [value, [text]] of SORTS) form.elements.sort.append(make("option", { value }, text));
};

const setUpFilters = () => {
  fillSelect("label", columns.labels, "not known");
  fillSelect("predicted", columns.predictions, "none");
  fillSelect("nearest", columns.nearest, "none");
  fillSorts();
  form.elements.correct.parentElement.hidden = data.counts.labelled === 0;
  if (!data.counts.notFinite) form.elements.map.querySelector("[value=not-finite]").remove();
};

const plain = (text) => text.normalize("NFC").toLowerCase();
let texts = null;
const textOf = (row) => {
  texts ??= new Array(count);
  return (texts[row] ??= plain(`${idOf(row)}\n${pathOf(row)}`));
};

const numberOr = (text, otherwise) => (text === "" || Number.isNaN(Number(text)) ? otherwise : Number(text));

const matching = () => {
  const wanted = plain(state.q);
  const low = numberOr(state.low, -Infinity) / 100;
  const high = numberOr(state.high, Infinity) / 100;
  const bounded = state.low !== "" || state.high !== "";
  const found = [];
  for (let row = 0; row < count; row++) {
    if (state.label !== "" && columns.labels[row] !== Number(state.label)) continue;
    if (state.predicted !== "" && columns.predictions[row] !== Number(state.predicted)) continue;
    if (state.nearest !== "" && columns.nearest[row] !== Number(state.nearest)) continue;
    if (state.correct === "unknown" && isKnown(row)) continue;
    if (state.correct === "right" && !(isKnown(row) && isRight(row))) continue;
    if (state.correct === "wrong" && !(isKnown(row) && !isRight(row))) continue;
    if (state.map === "dead" && !isDead(row)) continue;
    if (state.map === "alive" && !(peakOf(row) > 0)) continue;
    if (state.map === "not-finite" && !Number.isNaN(peakOf(row))) continue;
    if (bounded && !(columns.confidences[row] >= low && columns.confidences[row] <= high)) continue;
    if (wanted && !textOf(row).includes(wanted)) continue;
    found.push(row);
  }
  const [, values, direction] = SORTS.get(state.sort) || SORTS.get("");
  if (values) found.sort((a, b) => compared(values[a], values[b], direction) || a - b);
  return found;
};
const compared = (a, b, direction) => {
  if (typeof a === "string") return a < b ? -direction : a > b ? direction : 0;
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // to the end, either way
  return direction * (a - b);
};

const readForm = () => {
  for (const name of FIELDS) state[name] = form.elements[name].value;
};
const showForm = () => {
  for (const name of FIELDS) form.elements[name].value = state[name];
  readForm(); // a class that there is not leaves its select empty
  for (const name of FIELDS) {
    if (form.elements[name].tagName === "SELECT" && form.elements[name].selectedIndex < 0) form.elements[name].value = state[name] = "";
  }
};

const keepInAddress = () => {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value !== "" && !(name === "page" && value === 1)) kept.set(name, value);
  }
  try {
    history.replaceState(null, "", `#${kept.size ? kept : ""}`);
  } catch {
    // some viewers have no history
  }
};
const readAddress = () => {
  const hash = location.hash.slice(1);
  if (!hash.includes("=")) return false;
  const kept = new URLSearchParams(hash);
  for (const name of FIELDS) state[name] = kept.get(name) ?? "";
  state.page = Math.max(1, Math.floor(numberOr(kept.get("page") ?? "", 1)));
  state.theme = ["light", "dark"].includes(kept.get("theme")) ? kept.get("theme") : "";
  return true;
};
