// Starting: the gallery first, all that lies below it when the file has been read.

const root = document.documentElement;

// Kept in the address like the filters: a file's storage is shared with other files, or there is none.
const showTheme = () => {
  if (state.theme) root.dataset.theme = state.theme;
  else delete root.dataset.theme;
  byId("theme").value = state.theme;
};
byId("theme").addEventListener("change", (event) => {
  state.theme = event.target.value;
  showTheme();
  keepInAddress();
});

const setOpacity = () => {
  const value = byId("opacity").value;
  root.style.setProperty("--opacity", value / 100);
  byId("opacity-value").textContent = `${value} %`;
};
byId("opacity").addEventListener("input", setOpacity);
for (const name of ["shared", "cells"]) {
  byId(name).addEventListener("change", (event) => {
    options[name] = event.target.checked;
    drawLegend();
    drawCards();
    if (name === "cells") fillClasses();
  });
}
byId("shared").parentElement.hidden = data.scale.value === null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || dialog.open) return;
  if (event.target.closest?.("input, select, textarea")) {
    if (event.key === "Escape" && event.target.id === "search" && !event.target.value) byId("gallery-heading").focus();
    return;
  }
  if (event.key === "/") {
    byId("filter-panel").open = true;
    byId("search").focus();
  } else if (event.key === "n") turnTo("next", Boolean(event.target.closest?.(".card")));
  else if (event.key === "p") turnTo("previous", Boolean(event.target.closest?.(".card")));
  else return;
  event.preventDefault();
});

window.addEventListener("hashchange", () => {
  if (!readAddress()) return;
  showTheme();
  showForm();
  refresh({ keepPage: true });
});

byId("filter-panel").open = !window.matchMedia("(max-width: 640px)").matches;
fillSummary();
setOpacity();
drawLegend();
setUpFilters();
setUpGallery();
setUpDialog();
const given = readAddress();
showTheme();
if (given) showForm();
matches = matching();
showPage();
parsed.then(() => setTimeout(() => {
  fillClasses();
  fillConfusions();
  fillMetrics();
  fillDamaged();
  fillSettings();
  fillNavigation();
  root.dataset.ready = "";
}));
