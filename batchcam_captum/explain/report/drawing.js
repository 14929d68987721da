// Pictures and maps on canvases.

const table = bytesOf(data.colours); // 256 colours, red, green, blue
const options = { shared: false, cells: false };

// Of a map with 1 at its maximum: what its values are multiplied with.
const factorOf = (peak) => (options.shared && data.scale.value ? peak / data.scale.value : 1);

// Where the values come from: two neighbours and their mixing, with pixel centres aligned as in bilinear resizing.
const places = (size, from) => {
  const found = [];
  for (let i = 0; i < size; i++) {
    const place = ((i + 0.5) * from) / size - 0.5;
    const inside = Math.min(Math.max(options.cells ? Math.round(place) : place, 0), from - 1);
    const below = Math.floor(inside);
    found.push([below, Math.min(below + 1, from - 1), inside - below]);
  }
  return found;
};

const MAP_SIDE = { card: 64, large: 224 };

// Values (height × width bytes) in colour; where the map lies over a picture, the stronger a place the more opaque.
const drawMap = (canvas, values, height, width, factor, { opaque = false, side = MAP_SIDE.card } = {}) => {
  canvas.classList.toggle("cells", options.cells);
  const ratio = pictureRatio();
  canvas.width = Math.round(ratio >= 1 ? side : side * ratio);
  canvas.height = Math.round(ratio >= 1 ? side / ratio : side);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const down = places(canvas.height, height);
  const across = places(canvas.width, width);
  let at = 0;
  for (const [top, bottom, low] of down) {
    for (const [left, right, far] of across) {
      const upper = values[top * width + left] * (1 - far) + values[top * width + right] * far;
      const lower = values[bottom * width + left] * (1 - far) + values[bottom * width + right] * far;
      const value = Math.min(255, Math.round((upper * (1 - low) + lower * low) * factor));
      pixels.data[at] = table[3 * value];
      pixels.data[at + 1] = table[3 * value + 1];
      pixels.data[at + 2] = table[3 * value + 2];
      pixels.data[at + 3] = opaque ? 255 : value;
      at += 4;
    }
  }
  context.putImageData(pixels, 0, 0);
};

// Width ÷ height of a picture, or of a map where there are no pictures.
const pictureRatio = () => {
  const [height, width] = data.thumbnail ? data.thumbnail.size : data.maps.stored;
  return Math.min(4, Math.max(0.25, width / height));
};

const drawPicture = (canvas, sheet, row) => {
  if (!sheet) return;
  const [height, width] = data.thumbnail.size;
  const [tileHeight, tileWidth] = data.thumbnail.tile;
  const place = row % data.block;
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(
    sheet, (place % 4) * tileWidth, Math.floor(place / 4) * tileHeight, width, height, 0, 0, width, height);
};

const drawLegend = () => {
  const canvas = byId("legend");
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) pixels.data.set([table[3 * i], table[3 * i + 1], table[3 * i + 2], 255], 4 * i);
  context.putImageData(pixels, 0, 0);
  const shared = options.shared && data.scale.value;
  byId("legend-text").textContent = shared
    ? `relu(map), one scale; the top is the ${data.scale.percentile}th percentile of the maxima`
    : "relu(map) ÷ its maximum, each map for itself";
  byId("legend-top").textContent = shared ? figure(data.scale.value) : "1";
};

// In words what the picture of a row shows.
const described = (row) => {
  const words = [`Sample ${visible(pathOf(row) || idOf(row))}`, columns.predictions[row] < 0 ? "no prediction" : `predicted ${predictionOf(row)}`];
  if (Number.isFinite(columns.confidences[row])) words.push(`confidence ${percent(columns.confidences[row])}`);
  if (columns.labels[row] >= 0) words.push(`true class ${className(columns.labels[row])}`);
  words.push(mapWords(row, 0));
  return words.join(", ");
};
const mapWords = (row, map) => {
  const peak = peakOf(row, map);
  if (targetOf(row, map) < 0) return "no map";
  if (Number.isNaN(peak)) return "map without finite numbers";
  return peak === 0 ? "dead map" : `map of ${className(targetOf(row, map))}`;
};
