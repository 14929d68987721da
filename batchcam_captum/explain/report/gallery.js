// A page of cards at a time: only what is shown is decoded and in the document.

const PAGE = 60;
const cards = byId("cards");
let matches = [];
let turn = 0; // of drawing; what an older one has begun is given up
let current = 0; // the card that Tab leads to

const pageCount = () => Math.max(1, Math.ceil(matches.length / PAGE));
const shownRows = () => matches.slice((state.page - 1) * PAGE, state.page * PAGE);

const badge = (row) => {
  if (isDead(row)) return make("span", { class: "badge" }, "dead map");
  if (Number.isNaN(peakOf(row))) return make("span", { class: "badge" }, "map not finite");
  return null;
};

const cardOf = (row, place) => {
  const wrong = isKnown(row) && !isRight(row);
  const name = pathOf(row).split(/[\\/]/).pop() || idOf(row);
  const button = make("button", {
    type: "button", class: wrong ? "card wrong" : "card", tabindex: place === current ? 0 : -1, "data-row": row,
    onclick: () => openSample((state.page - 1) * PAGE + place),
    onfocus: () => setCurrent(place),
  },
  make("span", { class: "picture" },
    make("canvas", { class: "image", role: "img", "aria-label": described(row) }),
    make("canvas", { class: "heat", "aria-hidden": "true" }),
    badge(row)),
  make("span", { class: "caption", "aria-hidden": "true" },
    make("span", { class: "class" },
      make("bdi", {}, predictionOf(row)),
      make("span", { class: "confidence" }, Number.isFinite(columns.confidences[row]) ? `${Math.round(100 * columns.confidences[row])} %` : "")),
    wrong ? make("span", { class: "mistake" }, "✗ is ", make("bdi", {}, className(columns.labels[row]))) : null,
    make("bdi", { class: "name", title: visible(pathOf(row) || idOf(row)) }, visible(name))));
  return make("li", {}, button);
};

const setCurrent = (place) => {
  const buttons = cards.querySelectorAll("button");
  if (buttons[current]) buttons[current].tabIndex = -1;
  current = Math.max(0, Math.min(place, buttons.length - 1));
  if (buttons[current]) buttons[current].tabIndex = 0;
};

const drawCard = async (button, mine) => {
  const row = Number(button.dataset.row);
  const block = await blockOf(row);
  if (mine !== turn) return;
  const [image, heat] = button.querySelectorAll("canvas");
  drawPicture(image, block.sheet, row);
  const values = mapOf(block, row);
  if (values.length && peakOf(row) > 0) drawMap(heat, values, mapHeight, mapWidth, factorOf(peakOf(row)));
};

// When what is drawn now is on the screen; a page that is not looked at has no frames.
const painted = () => new Promise((resolve) => {
  if (document.hidden) resolve();
  else requestAnimationFrame(() => setTimeout(resolve));
});
const note = (name) => {
  if (!performance.getEntriesByName(name).length) performance.mark(name);
};

// What is in sight at once, the rest of the page after that.
const IN_SIGHT = 16;
const drawCards = async () => {
  const mine = ++turn;
  delete cards.dataset.drawn;
  const buttons = [...cards.querySelectorAll("button")];
  await Promise.all(buttons.slice(0, IN_SIGHT).map((button) => drawCard(button, mine)));
  await painted();
  note("first-pictures");
  await Promise.all(buttons.slice(IN_SIGHT).map((button) => drawCard(button, mine)));
  if (mine !== turn) return;
  cards.dataset.drawn = mine;
  await painted();
  note("first-page");
};

const showPage = (focus = false) => {
  state.page = Math.max(1, Math.min(state.page, pageCount()));
  current = 0;
  const rows = shownRows();
  cards.replaceChildren(...rows.map(cardOf));
  byId("page").value = state.page;
  byId("page").max = pageCount();
  byId("pages").textContent = whole(pageCount());
  const first = (state.page - 1) * PAGE + 1;
  byId("matches").textContent = matches.length === 0
    ? (count ? "No sample matches; clear the filters to see all." : "The store holds no written sample yet.")
    : `${whole(matches.length)} of ${whole(count)} samples, ${whole(first)} to ${whole(first + rows.length - 1)} shown`;
  for (const button of document.querySelectorAll("[data-page]")) {
    const back = button.dataset.page === "first" || button.dataset.page === "previous";
    // Not `disabled`, which would drop the focus of who has just pressed it.
    button.setAttribute("aria-disabled", back ? state.page === 1 : state.page === pageCount());
  }
  if (focus) cards.querySelector("button")?.focus();
  drawCards();
};

const turnTo = (which, focus = false) => {
  const before = state.page;
  const steps = { first: 1, previous: state.page - 1, next: state.page + 1, last: pageCount() };
  state.page = Math.max(1, Math.min(typeof which === "number" ? which : steps[which], pageCount()));
  if (state.page !== before) {
    keepInAddress();
    showPage(focus);
  }
};

const refresh = ({ keepPage = false } = {}) => {
  if (!keepPage) state.page = 1;
  matches = matching();
  showPage(cards.contains(document.activeElement));
  keepInAddress();
};

// From elsewhere in the page: show the samples of these filters alone.
const showOnly = (filters) => {
  for (const name of FIELDS) state[name] = name === "sort" ? state.sort : "";
  Object.assign(state, filters);
  showForm();
  refresh();
  byId("gallery-heading").scrollIntoView();
  byId("gallery-heading").focus({ preventScroll: true });
};

const acrossCards = () => {
  const items = [...cards.children];
  return Math.max(1, items.filter((item) => item.offsetTop === items[0].offsetTop).length);
};

const onCardKey = (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !event.target.closest(".card")) return;
  const buttons = cards.querySelectorAll("button");
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -acrossCards(), ArrowDown: acrossCards() };
  if (event.key in steps) {
    const place = current + steps[event.key];
    if (buttons[place]) buttons[place].focus();
  } else if (event.key === "Home") buttons[0].focus();
  else if (event.key === "End") buttons[buttons.length - 1].focus();
  else if (event.key === "PageDown") turnTo("next", true);
  else if (event.key === "PageUp") turnTo("previous", true);
  else return;
  event.preventDefault();
};

const setUpGallery = () => {
  document.documentElement.style.setProperty("--ratio", pictureRatio());
  cards.classList.toggle("pixels", Boolean(data.thumbnail) && Math.max(...data.thumbnail.size) < 48);
  cards.addEventListener("keydown", onCardKey);
  for (const button of document.querySelectorAll("[data-page]")) {
    button.addEventListener("click", () => turnTo(button.dataset.page));
  }
  byId("page").addEventListener("change", (event) => {
    turnTo(numberOr(event.target.value, state.page));
    event.target.value = state.page;
  });
  let waiting = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    const update = () => { readForm(); refresh(); };
    if (event.target.type === "search" || event.target.type === "number") waiting = setTimeout(update, 120);
    else update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { readForm(); refresh(); }));
};
