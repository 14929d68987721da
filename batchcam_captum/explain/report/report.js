"use strict";
// Draws the gallery from the JSON in the page: filters, sorting, pages, and the detail view.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const { samples } = data;
const [main, form, cards, dialog] = ["main", "filters", "cards", "dialog"].map(byId);
const PER_PAGE = 60;
let matches = samples;
let page = 1;
let opened = -1; // place of the detail view's sample among the matches

// Pictures and maps are in blocks of samples, all but the first behind this script: it runs before the file is read to its end.
const blocks = new Map();
const mediaOf = (sample) => {
  const number = Math.floor(sample.row / data.blockSize);
  if (!blocks.has(number)) blocks.set(number, JSON.parse(byId(`block-${number}`).textContent));
  return blocks.get(number)[sample.row % data.blockSize];
};

const bytesOf = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const decimal = (value) => {
  if (value === null) return "–";
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6) ? value.toExponential(2) : value.toFixed(3);
};
const className = (index) => (index < 0 ? "none" : data.classNames?.[index] || String(index));
const stateOf = (sample, map = 0) => (sample.peaks[map] === null ? "not finite" : sample.peaks[map] > 0 ? "alive" : "dead");
const mapWords = (sample, map = 0) =>
  ({ alive: `map of ${className(sample.targets[map])}`, dead: "dead map", "not finite": "map not finite" })[stateOf(sample, map)];
const outcomeOf = (sample) =>
  (sample.label < 0 || sample.prediction < 0 ? "unknown" : sample.label === sample.prediction ? "right" : "wrong");

// Create an element. Text is only ever set as text, never as markup.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

// ---- Maps

const view = { shared: false, cells: false };
const SIDE = 64; // pixels of a drawn map
const table = bytesOf(data.colors); // 256 colors: red, green, blue
// Colors as pixels of four bytes: opaque, and more opaque for larger values.
const [opaqueColors, heatColors] = [() => 255, (value) => value].map((alpha) => new Uint32Array(
  Uint8Array.from({ length: 1024 }, (_, i) => (i % 4 === 3 ? alpha(i >> 2) : table[3 * (i >> 2) + (i % 4)])).buffer));

// For each drawn pixel the cells it is made of and their weights: one cell, or four by Catmull-Rom, which goes through the
// cells' values and is smooth where bilinear interpolation shows diamonds (Keys 1981).
const weight = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);
const tapsOf = (cells) => Array.from({ length: SIDE }, (_, pixel) => {
  const at = ((pixel + 0.5) * cells) / SIDE - 0.5;
  if (view.cells) return [[Math.round(at), 1]];
  return [-1, 0, 1, 2].map((step) => Math.floor(at) + step)
    .map((cell) => [Math.min(Math.max(cell, 0), cells - 1), weight(Math.abs(at - cell))]);
});

// Draw bytes, 255 for the map's maximum.
const drawMap = (canvas, values, factor, colors) => {
  const [height, width] = data.mapSize;
  const wide = new Float32Array(height * SIDE); // resized along the rows
  tapsOf(width).forEach((taps, column) => {
    for (const [cell, part] of taps) {
      for (let row = 0; row < height; row++) wide[row * SIDE + column] += part * values[row * width + cell];
    }
  });
  const sums = new Float32Array(SIDE * SIDE);
  tapsOf(height).forEach((taps, row) => {
    for (const [cell, part] of taps) {
      for (let column = 0; column < SIDE; column++) sums[row * SIDE + column] += part * wide[cell * SIDE + column];
    }
  });
  canvas.width = canvas.height = SIDE;
  const pixels = Uint32Array.from(sums, (sum) => colors[Math.min(255, Math.max(0, Math.round(sum * factor)))]);
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), SIDE), 0, 0);
};

// A picture, a map, or both.
const pictureOf = (sample, { image = true, map = 0, opaque = false } = {}) => {
  const words = map === null ? "image" : mapWords(sample, map);
  const picture = make("span", { class: "picture", role: "img", "aria-label": `${sample.name}, ${words}` });
  const media = mediaOf(sample);
  if (image && media.image) picture.append(make("img", { alt: "", src: `data:image/webp;base64,${media.image}` }));
  if (map === null) return picture;
  if (stateOf(sample, map) === "alive") {
    const canvas = make("canvas", { class: opaque ? "" : "heat" });
    const cells = data.mapSize[0] * data.mapSize[1];
    const factor = view.shared ? sample.peaks[map] / data.top : 1;
    const values = bytesOf(media.maps).subarray(map * cells, (map + 1) * cells);
    drawMap(canvas, values, factor, opaque ? opaqueColors : heatColors);
    picture.append(canvas);
  } else picture.append(make("span", { class: "badge" }, words));
  return picture;
};

const drawLegend = () => {
  byId("legend").getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(opaqueColors.buffer), 256), 0, 0);
  byId("legend-text").textContent = view.shared ? "relu(map); the top is the 99th percentile of the maxima" : "relu(map) ÷ maximum of the map";
  byId("legend-top").textContent = view.shared ? decimal(data.top) : "1";
};

// ---- Filters, kept in the address after #

const plain = (text) => text.normalize("NFC").toLowerCase();
const TESTS = {
  q: (sample, value) => (sample.text ??= plain(`${sample.id}\n${sample.path}`)).includes(plain(value)),
  label: (sample, value) => sample.label === Number(value),
  predicted: (sample, value) => sample.prediction === Number(value),
  outcome: (sample, value) => outcomeOf(sample) === value,
  nearest: (sample, value) => sample.nearest === Number(value),
  map: (sample, value) => stateOf(sample) === value,
  low: (sample, value) => sample.confidence !== null && sample.confidence >= value / 100,
  high: (sample, value) => sample.confidence !== null && sample.confidence <= value / 100,
};

const filtersOf = () => [...new FormData(form)].filter(([, value]) => value !== "");

const sortValue = (sample, key) => (key === "peak" ? sample.peaks[0] : sample[key]);
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

// Select and sort the samples, and show a page of them.
const update = (wanted = 1) => {
  const filters = filtersOf();
  const tests = filters.filter(([name]) => name in TESTS);
  matches = samples.filter((sample) => tests.every(([name, value]) => TESTS[name](sample, value)));
  const sort = form.elements.sort.value;
  if (sort) {
    const key = sort.replace(/^-/, "");
    const missing = (sample) => sortValue(sample, key) === null; // last in either direction
    matches.sort((a, b) => missing(a) - missing(b) || (sort === key ? 1 : -1) * compare(sortValue(a, key), sortValue(b, key)) || a.position - b.position);
  }
  showPage(wanted);
};

const showPage = (wanted) => {
  const pages = Math.max(1, Math.ceil(matches.length / PER_PAGE));
  page = Math.max(1, Math.min(Math.floor(wanted) || 1, pages));
  const first = (page - 1) * PER_PAGE;
  const shown = matches.slice(first, first + PER_PAGE);
  cards.replaceChildren(...shown.map((sample, place) => make("li", {}, cardOf(sample, first + place))));
  byId("matches").textContent = shown.length
    ? `${matches.length.toLocaleString("en")} of ${samples.length.toLocaleString("en")} samples, ${first + 1} to ${first + shown.length} shown`
    : samples.length ? "No sample matches. Clear the filters to see all." : "The store contains no written sample yet.";
  byId("page").value = page;
  byId("page").max = byId("pages").textContent = pages;
  byId("previous").disabled = page === 1;
  byId("next").disabled = page === pages;
  const kept = new URLSearchParams(filtersOf());
  if (page > 1) kept.set("page", page);
  try {
    if (location.hash.includes("=") || kept.size) history.replaceState(null, "", `#${kept}`);
  } catch { /* not allowed inside some viewers */ }
};

// Set the filters to those of an address, such as "#label=3&page=2".
const readAddress = (hash) => {
  const kept = new URLSearchParams(hash.slice(1));
  form.reset();
  for (const field of form.elements) if (kept.has(field.name)) field.value = kept.get(field.name);
  update(kept.get("page"));
};

// ---- Cards and the detail view

const cardOf = (sample, place) => {
  const outcome = outcomeOf(sample);
  const card = make("button", { type: "button", class: `card ${outcome}`, "data-position": sample.position },
    pictureOf(sample),
    make("span", { class: "caption" },
      make("span", { class: "prediction" },
        make("bdi", {}, sample.prediction < 0 ? "no prediction" : className(sample.prediction)),
        make("span", { class: "muted" }, sample.confidence === null ? "" : `${Math.round(100 * sample.confidence)} %`)),
      ...(outcome === "wrong" ? [make("span", { class: "mistake" }, "✗ true: ", make("bdi", {}, className(sample.label)))] : []),
      make("bdi", { class: "muted name", title: sample.path || sample.id }, sample.name)));
  card.addEventListener("click", () => openSample(place));
  return card;
};

const figureOf = (title, sample, options) => make("figure", {}, pictureOf(sample, options), make("figcaption", {}, title));

// Long names may break after a separator.
const breakable = (text) => make("bdi", {}, ...text.split(/(?<=[\\/_.-])/).flatMap((part) => [part, make("wbr")]));
const pairsOf = (pairs) => make("dl", { class: "pairs" },
  ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, breakable(value))]));

const cellOf = (tag, text, i) => make(tag, { class: i ? "number" : "" }, make("bdi", {}, text));
const scoresOf = (sample) => make("div", { class: "scroll" }, make("table", {},
  make("thead", {}, make("tr", {}, ...["Class", "Score", "Softmax"].map((text, i) => cellOf("th", text, i)))),
  make("tbody", {}, ...sample.scores.map(([index, score, share]) => make("tr", {},
    ...[className(index), decimal(score), percent(share)].map((text, i) => cellOf(i ? "td" : "th", text, i)))))));

const openSample = (place) => {
  const sample = matches[place];
  if (!sample) return;
  opened = place;
  byId("dialog-heading").replaceChildren(breakable(sample.name));
  byId("dialog-previous").disabled = place === 0;
  byId("dialog-next").disabled = place === matches.length - 1;
  const facts = [["Position", String(sample.position)]];
  if (sample.id !== sample.path && sample.id !== String(sample.position)) facts.push(["Id", sample.id]);
  if (sample.path) facts.push(["Path", sample.path]);
  facts.push(["Predicted", sample.prediction < 0 ? "none, the scores are not finite" : `${className(sample.prediction)} (${percent(sample.confidence)})`]);
  if (data.labeled) facts.push(["True class", sample.label < 0 ? "unknown" : className(sample.label)], ["Nearest class map", className(sample.nearest)]);
  facts.push(["Map explains", className(sample.targets[0])], ["Maximum of the map", decimal(sample.peaks[0])]);
  for (const name of data.metrics) facts.push([name.replaceAll("_", " "), decimal(sample[name])]);
  const several = sample.targets.map((target, map) => [target, map]).filter(([target]) => target >= 0);
  byId("dialog-body").replaceChildren(
    make("div", { class: "large" },
      ...(data.pictures ? [figureOf("Image", sample, { map: null })] : []),
      figureOf("Map", sample, { image: false, opaque: true }),
      ...(data.pictures ? [figureOf("Overlay", sample)] : [])),
    make("div", { class: "columns" }, pairsOf(facts), ...(sample.prediction < 0 ? [] : [scoresOf(sample)])),
    ...(several.length > 1 ? [make("h3", {}, "All maps"), make("div", { class: "cards" },
      ...several.map(([target, map]) => figureOf(className(target), sample, { map })))] : []));
  if (!dialog.open) dialog.showModal();
};

byId("dialog-close").addEventListener("click", () => dialog.close());
byId("dialog-previous").addEventListener("click", () => openSample(opened - 1));
byId("dialog-next").addEventListener("click", () => openSample(opened + 1));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { // back to the sample's card, on its page
  const wanted = Math.floor(opened / PER_PAGE) + 1;
  if (wanted !== page) showPage(wanted);
  cards.querySelectorAll("button")[opened % PER_PAGE]?.focus();
});

// ---- Controls

let waiting = 0;
form.addEventListener("input", (event) => {
  clearTimeout(waiting);
  waiting = setTimeout(update, event.target.tagName === "INPUT" ? 120 : 0);
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => readAddress(""));
byId("previous").addEventListener("click", () => showPage(page - 1));
byId("next").addEventListener("click", () => showPage(page + 1));
byId("page").addEventListener("change", (event) => showPage(event.target.value));

const drawClasses = () => {
  for (const canvas of document.querySelectorAll("canvas[data-map]")) drawMap(canvas, bytesOf(canvas.dataset.map), 1, opaqueColors);
};
byId("opacity").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--opacity", event.target.value / 100);
});
for (const name of ["shared", "cells"]) {
  byId(name).addEventListener("change", (event) => {
    view[name] = event.target.checked;
    drawLegend();
    drawClasses();
    showPage(page);
  });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || main.inert) return;
  if (dialog.open) {
    if (event.key === "ArrowLeft") openSample(opened - 1);
    if (event.key === "ArrowRight") openSample(opened + 1);
  } else if (!event.target.closest?.("input, select")) {
    if (event.key === "n") showPage(page + 1);
    if (event.key === "p") showPage(page - 1);
    if (event.key === "/") {
      event.preventDefault();
      byId("filter-panel").open = true;
      form.elements.q.focus();
    }
  }
});

// A link of the tables shows its samples in the gallery.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href*="="]');
  if (!link) return;
  event.preventDefault();
  readAddress(link.hash);
  byId("gallery").scrollIntoView();
  byId("gallery-heading").focus({ preventScroll: true });
});
window.addEventListener("hashchange", () => { if (location.hash.includes("=")) readAddress(location.hash); });

// ---- Start

// Small pictures are enlarged by whole factors, large ones are shown as they are.
const [height, width] = data.pictureSize;
const side = Math.max(height, width);
const enlarged = (most) => Math.max(1, Math.floor(most / side)) * side;
const style = document.documentElement.style;
style.setProperty("--card", `${side <= 48 ? enlarged(112) : Math.min(Math.max(side, 128), 224)}px`);
style.setProperty("--large", `${side <= 48 ? enlarged(224) : Math.min(3 * side, 320)}px`);
style.setProperty("--ratio", Math.min(4, Math.max(0.25, width / height)));
document.body.classList.toggle("pixels", side <= 48);
byId("shared-label").hidden = data.top === null;
byId("filter-panel").open = !window.matchMedia("(max-width: 640px)").matches;
drawLegend();
main.inert = document.readyState === "loading";
if (!location.hash.includes("=")) update(); // needs the first block alone
const images = [...cards.querySelectorAll("img")].slice(0, 16);
Promise.allSettled(images.map((image) => image.decode()))
  .then(() => requestAnimationFrame(() => setTimeout(() => performance.mark("first-pictures"))));
document.addEventListener("DOMContentLoaded", () => {
  main.inert = false;
  if (location.hash.includes("=")) readAddress(location.hash);
  drawClasses();
  document.body.dataset.ready = "";
});
