// One sample in large: picture, map, overlay, its other maps, its highest scores.

const dialog = byId("dialog");
let opened = -1; // place in the matches

const largeFigure = (title, words, ...canvases) =>
  make("figure", {}, make("span", { class: "picture", role: "img", "aria-label": words }, ...canvases), make("figcaption", {}, title));

const bothCanvases = (block, row, map, { side, opaque = false } = {}) => {
  const image = make("canvas", { class: "image" });
  const heat = make("canvas", { class: opaque ? "heat opaque" : "heat" });
  if (!opaque) drawPicture(image, block.sheet, row);
  const values = mapOf(block, row, map);
  if (values.length && peakOf(row, map) > 0) drawMap(heat, values, mapHeight, mapWidth, factorOf(peakOf(row, map)), { side, opaque });
  return [image, heat];
};

const pairs = (list) => make("dl", { class: "pairs" }, ...list.flatMap(([name, value]) =>
  [make("dt", {}, name), make("dd", {}, make("bdi", {}, value))]));

const factsOf = (row) => {
  const list = [["Position", whole(columns.positions[row])]];
  if (data.ids) list.push(["Id", visible(idOf(row))]);
  if (pathOf(row)) list.push(["Path", visible(pathOf(row))]);
  list.push(["Predicted", columns.predictions[row] < 0 ? "none, as the scores are not finite" : `${predictionOf(row)} (${percent(columns.confidences[row])})`]);
  if (data.counts.labelled) list.push(["True class", className(columns.labels[row]) + (isKnown(row) ? (isRight(row) ? " ✓" : " ✗ not as predicted") : "")]);
  list.push(["Map explains", targetOf(row) < 0 ? "none" : className(targetOf(row))], ["Maximum of the map", isDead(row) ? "0 (dead)" : figure(peakOf(row))]);
  if (data.mapConfusion.length) list.push(["Nearest class map", columns.nearest[row] < 0 ? "none" : className(columns.nearest[row])]);
  for (const [name, values] of Object.entries(columns.metrics)) list.push([titleOf(name), figure(values[row])]);
  return pairs(list);
};

const scoresOf = (row) => {
  if (columns.predictions[row] < 0) return null; // NaN has no order
  const lines = [];
  for (let i = 0; i < topCount; i++) {
    const at = row * topCount + i;
    const share = Math.exp(columns.topScores[at] - columns.logSums[row]);
    lines.push([className(columns.topClasses[at]), figure(columns.topScores[at]), percent(share)]);
  }
  return tableOf("Highest scores", ["Class", "Score", "Softmax"], lines);
};

const mapsOf = (block, row) => {
  if (perSample < 2) return [];
  const list = make("ul", { class: "maps" });
  for (let map = 0; map < perSample; map++) {
    if (targetOf(row, map) < 0) continue;
    list.append(make("li", {}, largeFigure(className(targetOf(row, map)), mapWords(row, map), ...bothCanvases(block, row, map, { side: 96 }))));
  }
  const rest = data.maps.of - perSample;
  return [make("h3", {}, "All maps"), list,
    rest > 0 ? make("p", { class: "explained" }, `The ${perSample} maps of the highest scores; ${whole(rest)} more are in the store only.`) : null];
};

const fillDialog = async () => {
  const row = matches[opened];
  const mine = opened;
  const block = await blockOf(row);
  if (mine !== opened || row !== matches[opened]) return;
  byId("dialog-heading").replaceChildren(make("bdi", {}, visible(pathOf(row) || `Sample ${idOf(row)}`)));
  byId("dialog-previous").setAttribute("aria-disabled", opened === 0);
  byId("dialog-next").setAttribute("aria-disabled", opened === matches.length - 1);
  const side = MAP_SIDE.large;
  const figures = make("div", { class: "large" });
  if (data.thumbnail) {
    const image = make("canvas", { class: "image" });
    drawPicture(image, block.sheet, row);
    figures.append(largeFigure("Image", described(row), image));
  }
  figures.append(largeFigure("Map", mapWords(row, 0), ...bothCanvases(block, row, 0, { side, opaque: true })));
  if (data.thumbnail) figures.append(largeFigure("Overlay", `${mapWords(row, 0)}, over the image`, ...bothCanvases(block, row, 0, { side })));
  figures.classList.toggle("pixels", cards.classList.contains("pixels"));
  byId("dialog-body").replaceChildren(
    figures, make("div", { class: "columns" }, ...[factsOf(row), scoresOf(row)].filter(Boolean)), ...mapsOf(block, row).filter(Boolean));
};

const openSample = (place) => {
  opened = place;
  if (!dialog.open) dialog.showModal();
  fillDialog();
};

const stepSample = (step) => {
  if (matches[opened + step] !== undefined) openSample(opened + step);
};

const setUpDialog = () => {
  byId("dialog-close").addEventListener("click", () => dialog.close());
  byId("dialog-previous").addEventListener("click", () => stepSample(-1));
  byId("dialog-next").addEventListener("click", () => stepSample(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowLeft") stepSample(-1);
    else if (event.key === "ArrowRight") stepSample(1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    // Back to the card, on its page.
    const page = Math.floor(opened / PAGE) + 1;
    if (page !== state.page) turnTo(page);
    const place = opened % PAGE;
    opened = -1;
    cards.querySelectorAll("button")[place]?.focus();
  });
};
