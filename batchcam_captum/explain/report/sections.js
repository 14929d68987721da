// All but the gallery: summary, maps by class, confusions, metrics, damaged samples, settings.

// Rows of text, the first cell of each the row's heading; numbers to the right.
const tableOf = (caption, heads, rows, { numbers = true } = {}) => {
  const numeric = (cell) => numbers && (/^[-−+]?[\d.,e+-]+( %)?$/.test(String(cell)) || cell === "none");
  const cell = (value, index) => index === 0
    ? make("th", { scope: "row" }, make("bdi", {}, value))
    : make("td", { class: numeric(value) ? "number" : null }, make("bdi", {}, value));
  const head = (text, index) =>
    make("th", { scope: "col", class: index > 0 && rows.length && rows.every((row) => numeric(row[index])) ? "number" : null }, text);
  return make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: 0 },
    make("table", {},
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...heads.map(head))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell))))));
};

// The first of the settings that there is.
const settingOf = (...names) => {
  const settings = new Map(data.settings);
  const found = names.map((name) => settings.get(name)).find((value) => value !== undefined && value !== "none");
  return found === undefined ? null : visible(found);
};

const fillSummary = () => {
  const counts = data.counts;
  byId("subtitle").textContent = (data.complete ? "Complete: " : "Not complete: ") +
    [`${whole(counts.written)} ${counts.written === 1 ? "sample" : "samples"} with maps`,
      counts.damaged ? `${whole(counts.damaged)} damaged` : null, counts.missing ? `${whole(counts.missing)} not written yet` : null].filter(Boolean).join(", ");
  const share = (part) => (counts.written ? ` (${percent(part / counts.written)})` : "");
  const facts = [
    ["Model", settingOf("about.model", "model", "model.class")], ["Layer", settingOf("layer")], ["Method", settingOf("method")], ["Targets", settingOf("targets")],
    ["Data", (settingOf("about.data") || "").split(/[\\/]/).pop() || null],
    ["Samples", whole(counts.samples)],
    ["Classes", whole(counts.classes)],
    ["Accuracy", data.accuracy === null ? "no labels" : percent(data.accuracy)],
    ["Dead maps", `${whole(counts.dead)}${share(counts.dead)}`, counts.dead ? () => showOnly({ map: "dead" }) : null],
    ["Damaged", whole(counts.damaged)],
    ["Maps", `${data.maps.of === 1 ? "one" : data.maps.of} a sample, ${data.maps.stored.join(" × ")}`],
  ];
  byId("facts").replaceChildren(...facts.filter(([, value]) => value !== null).map(([name, value, action]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, action
      ? make("button", { type: "button", class: "link", onclick: action, title: "Show them in the gallery" }, value)
      : make("bdi", {}, value)))));
  const notices = [];
  if (!data.complete) {
    notices.push(`This store is not complete: ${whole(counts.missing)} of ${whole(counts.samples)} samples are not written yet. All numbers are of those that are.`);
  }
  const several = (number, one, more) => `${whole(number)} ${number === 1 ? one : more}`;
  if (counts.notFinite) notices.push(`${several(counts.notFinite, "map has", "maps have")} numbers that are not finite, and ${counts.notFinite === 1 ? "is" : "are"} neither drawn nor counted.`);
  if (counts.unscored) notices.push(`${several(counts.unscored, "sample has", "samples have")} scores that are not finite, and no prediction: neither right nor wrong.`);
  byId("notices").replaceChildren(...notices.map((text) => make("p", { class: "notice" }, text)));
};

const MANY = 60;

const fillClasses = () => {
  const found = data.classMaps;
  if (!found.classes.length) return;
  const values = bytesOf(found.maps);
  const size = mapHeight * mapWidth;
  byId("classes").hidden = false;
  byId("classes-explained").textContent =
    `The mean of relu(map) ÷ maximum over the maps of each ${found.by === "label" ? "true" : "predicted"} class that are not dead. ` +
    "The maps are those of the predicted class where the store has them. The colour scale is that of the gallery, from 0 to 1.";
  const card = (index) => {
    const name = className(found.classes[index]);
    const canvas = make("canvas", { class: "heat opaque" });
    drawMap(canvas, values.subarray(index * size, (index + 1) * size), mapHeight, mapWidth, 1, { opaque: true });
    const alive = found.alive[index];
    return make("figure", {},
      make("button", {
        type: "button", class: "card", "aria-label": `${name}: mean of ${alive} maps, show its samples`,
        onclick: () => showOnly({ [found.by === "label" ? "label" : "predicted"]: String(found.classes[index]) }),
      }, make("span", { class: "picture", role: "img", "aria-label": `Mean map of ${name}` }, canvas)),
      make("figcaption", {}, make("bdi", { class: "class" }, name),
        make("span", { class: "name" }, `${whole(alive)} ${alive === 1 ? "map" : "maps"}, top ${figure(found.peaks[index], 2)}` + (found.dead[index] ? `, ${whole(found.dead[index])} dead` : ""))));
  };
  const show = (limit) => {
    const places = found.classes.map((_, index) => index).slice(0, limit);
    byId("prototypes").replaceChildren(...places.map(card));
    if (limit < found.classes.length) {
      byId("prototypes").append(make("button", { type: "button", class: "more", onclick: () => show(Infinity) }, `Show all ${whole(found.classes.length)} classes`));
    }
  };
  show(MANY);
};

const WIDEST = 30;

// Counts of [row class, column class]; a table where it can be read, and the most frequent mistakes.
const confusionOf = (title, words, rowWord, columnWord, triples, filters) => {
  const total = triples.reduce((sum, [, , times]) => sum + times, 0);
  const right = triples.reduce((sum, [row, column, times]) => sum + (row === column ? times : 0), 0);
  const made = [make("h3", {}, title), make("p", { class: "explained" }, `${words} On the diagonal: ${whole(right)} of ${whole(total)}, ${percent(right / total)}.`)];
  const used = [...new Set(triples.flatMap(([row, column]) => [row, column]))].sort((a, b) => (a < 0) - (b < 0) || a - b);
  const nameOf = (index) => (index < 0 ? "none" : className(index));
  const showThem = (row, column) => () => showOnly(filters(row, column));
  if (used.length <= WIDEST) {
    const times = new Map(triples.map(([row, column, value]) => [`${row} ${column}`, value]));
    const rows = used.filter((index) => index >= 0);
    const sums = new Map(rows.map((row) => [row, triples.reduce((sum, [own, , value]) => sum + (own === row ? value : 0), 0)]));
    const cell = (row, column) => {
      const value = times.get(`${row} ${column}`) || 0;
      const share = value / (sums.get(row) || 1);
      const made = make("td", { class: "number" + (row === column ? " diagonal" : "") }, value
        ? make("button", {
          type: "button", class: "link", onclick: showThem(row, column),
          "aria-label": `${whole(value)}: ${rowWord} ${nameOf(row)}, ${columnWord} ${nameOf(column)}, show them`,
        }, whole(value)) : make("span", { class: "zero" }, "0"));
      made.style.setProperty("--share", `${Math.round(60 * share)}%`);
      return made;
    };
    made.push(make("div", { class: "scroll", role: "region", "aria-label": title, tabindex: 0 },
      make("table", { class: "confusion" },
        make("caption", {}, `Rows: ${rowWord}. Columns: ${columnWord}. The deeper a cell, the larger its share of the row.`),
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, rowWord), ...used.map((column) => make("th", { scope: "col" }, make("bdi", {}, nameOf(column)))))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, nameOf(row))), ...used.map((column) => cell(row, column))))))));
  } else {
    const mistakes = triples.filter(([row, column]) => row !== column).sort((a, b) => b[2] - a[2]).slice(0, 50);
    made.push(make("div", { class: "scroll", role: "region", "aria-label": title, tabindex: 0 },
      make("table", {}, make("caption", {}, `The ${mistakes.length} most frequent mistakes, as ${used.length} classes are too many for a table of all.`),
        make("thead", {}, make("tr", {}, ...[rowWord, columnWord, "samples"].map((head) => make("th", { scope: "col" }, head)))),
        make("tbody", {}, ...mistakes.map(([row, column, value]) => make("tr", {},
          make("th", { scope: "row" }, make("bdi", {}, nameOf(row))), make("td", {}, make("bdi", {}, nameOf(column))),
          make("td", { class: "number" }, make("button", { type: "button", class: "link", onclick: showThem(row, column), "aria-label": `${whole(value)}, show them` }, whole(value)))))))));
  }
  return make("div", { class: "part" }, ...made);
};

const fillConfusions = () => {
  const made = [];
  if (data.mapConfusion.length) {
    const own = data.classMaps.by === "label" ? "true class" : "predicted class";
    made.push(confusionOf("Of the maps", `Which class's mean map each map is nearest to, by the cosine of centred maps. A map is part of its own class's mean, so ` +
      "that classes with few maps look better told apart than they are.",
    own, "nearest class map", data.mapConfusion,
    (row, column) => ({ [data.classMaps.by === "label" ? "label" : "predicted"]: String(row), nearest: String(column) })));
  }
  if (data.confusion.length) {
    made.push(confusionOf("Of the predictions", "What the model predicts.", "true class", "predicted class", data.confusion,
      (row, column) => ({ label: String(row), predicted: String(column) })));
  }
  byId("confusions").hidden = made.length === 0;
  byId("confusion-tables").replaceChildren(...made);
};

const fillMetrics = () => {
  const names = Object.keys(data.metrics);
  if (!names.length) return;
  byId("metrics").hidden = false;
  const cells = ({ count: samples, mean, median }) => [whole(samples), figure(mean), figure(median)];
  byId("metric-tables").replaceChildren(
    tableOf("Over all samples", ["Metric", "Samples", "Mean", "Median"], names.map((name) => [titleOf(name), ...cells(data.metrics[name])])),
    ...names.map((name) => make("details", {}, make("summary", {}, `${titleOf(name)} by class`),
      tableOf(`${titleOf(name)} by ${data.classMaps.by === "label" ? "true" : "predicted"} class`, ["Class", "Samples", "Mean", "Median"],
        data.metrics[name].by_class.map((one) => [className(one.class), ...cells(one)])))));
};

const fillDamaged = () => {
  const { count: total, rows } = data.damaged;
  if (!total) return;
  byId("damaged").hidden = false;
  byId("damaged-explained").textContent = `${whole(total)} ${total === 1 ? "sample" : "samples"} could not be read and ${total === 1 ? "has" : "have"} no map.` +
    (rows.length < total ? ` The first ${whole(rows.length)} are listed.` : "");
  byId("damaged-table").replaceChildren(tableOf("Damaged samples and why", ["Position", "Id", "Path", "Problem"],
    rows.map((row) => [whole(row.position), visible(row.ids), visible(row.paths), visible(row.problems)]), { numbers: false }));
};

const picturesWords = () => {
  if (!data.thumbnail || String(data.thumbnail.size) === String(data.thumbnail.stored)) return "";
  return ` Pictures have ${data.thumbnail.size.join(" × ")} pixels, those of the store ${data.thumbnail.stored.join(" × ")}.`;
};

const fillSettings = () => {
  const shown = ([name, value]) => [visible(name), visible(value)];
  const { shown: few, of, size, stored } = data.maps;
  byId("settings-tables").replaceChildren(
    make("p", { class: "explained" },
      `In this page maps are relu(map) ÷ maximum in 256 steps` + (String(size) === String(stored) ? "" : `, resized by area from ${stored.join(" × ")} to ${size.join(" × ")}`) +
      (few < of ? `; of ${whole(of)} maps a sample the ${few === 1 ? "first" : `${few} of the highest scores`}` : "") + ". The store has them raw." + picturesWords()),
    tableOf("Settings", ["Setting", "Value"], data.settings.map(shown), { numbers: false }),
    ...data.environments.map((one, index) => make("details", {}, make("summary", {}, data.environments.length === 1 ? "Machine and versions" : `Machine and versions ${index + 1}`),
      tableOf("Machine and versions", ["Name", "Value"], one.map(shown), { numbers: false }))));
};

const fillNavigation = () => {
  for (const section of document.querySelectorAll("main > section")) {
    if (section.hidden) continue;
    const heading = section.querySelector("h2").textContent;
    byId("navigation").append(make("li", {}, make("a", {
      href: `#${section.id}`,
      onclick: (event) => { // the address stays that of the filters
        event.preventDefault();
        section.scrollIntoView();
        const target = section.querySelector("h2");
        target.tabIndex = -1;
        target.focus({ preventScroll: true });
      },
    }, heading)));
  }
};
