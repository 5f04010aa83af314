// --- tables: a click on a heading sorts, numbers as numbers; "-" and empty cells stay at the end -----------------------

const words = new Intl.Collator(undefined, {numeric: true});

function keyOf(row, column) {
  const text = row.cells[column].textContent.trim();
  return {row, text, empty: text === "" || text === "-", number: parseFloat(text)};
}

function compareUp(a, b) {
  if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number) || words.compare(a.text, b.text);
  return a.number - b.number || words.compare(a.text, b.text);
}

function sortBy(heading) {
  const column = heading.cellIndex, body = heading.closest("table").tBodies[0];
  const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const keys = [...body.rows].map((row) => keyOf(row, column));
  keys.sort((a, b) => a.empty - b.empty || direction * compareUp(a, b));
  body.append(...keys.map((key) => key.row));
}

for (const heading of document.querySelectorAll("table.sortable thead th:not(:empty)")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  button.addEventListener("click", () => sortBy(heading));
  heading.append(button);
}

// --- pictures: a click opens one in full size; Escape, another click or Close leads back ------------------------------

const viewer = document.querySelector("dialog");

function open(picture) {
  const caption = document.createElement("figcaption");
  caption.textContent = picture.alt;
  viewer.querySelector("figure").replaceChildren(picture.cloneNode(), caption);
  viewer.showModal();
}

viewer.addEventListener("click", () => viewer.close());
for (const picture of document.querySelectorAll("main figure img, main .gallery img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", `${picture.alt}, in full size`);
  button.addEventListener("click", () => open(picture));
  picture.replaceWith(button);
  button.append(picture);
}

// --- figures: plotly.js travels compressed, a fifth of the page it would be -------------------------------------------

const CONFIG = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,  // nothing leaves this page
  modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};
const PANEL = 250, GAP = 66, TITLE = 27, LINE = 24;  // pixels: a panel, between two of them, a line of a title below one, a row of a legend
const PAPER = 680, PAGE = 940, MANY = 12;  // pixels between the margins of a page; more panels are drawn small on it

// The panels of a figure: the axes that something is drawn on, in the order of their headings.
function panelsOf({data, layout}) {
  const drawn = new Set(data.map((trace) => trace.xaxis ?? "x"));
  const numbers = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).map((key) => key.slice(5));
  return numbers.sort((a, b) => a - b).filter((number) => drawn.has("x" + number))
    .map((number) => ({x: layout["xaxis" + number], y: layout["yaxis" + number]}))
    .filter(({x, y}) => x.domain && y?.domain);
}

// A name in lines that a legend of this width holds; a letter is taken to be 7 pixels wide, and &lt; is one letter.
function lines(name, width) {
  const letters = name.match(/&\w+;|./g) ?? [], most = Math.max(12, Math.floor((width - 120) / 7));
  const count = Math.ceil(letters.length / most);
  return Array.from({length: count}, (_, i) => letters.slice(i * most, (i + 1) * most).join(""));
}

// Rows of the legend at a width.
function legendRows({data}, width) {
  let rows = 0, used = Infinity;
  for (const {name, showlegend} of data) {
    if (showlegend === false || !name) continue;
    const parts = lines(name, width), wanted = 50 + 7 * Math.max(...parts.map((part) => part.length));
    if (used + wanted > width || parts.length > 1) [rows, used] = [rows + parts.length, 0];
    used += wanted;
  }
  return Math.max(1, rows);
}

// What names of bars need that do not fit below them and are turned.
function slanted({data}, width) {
  const names = data.find(({type, x}) => type === "bar" && typeof x?.[0] === "string")?.x ?? [];
  return 7 * names.join("  ").length > width - 80 ? 40 : 0;
}

// The layout of a figure for a width, or for paper: as many panels in a row as fit, the others below.
function arranged(figure, width, paper) {
  const layout = structuredClone(figure.layout), panels = panelsOf({data: figure.data, layout});
  const margin = layout.margin ?? (layout.margin = {}), many = paper && panels.length > MANY;
  margin.t ??= 60, margin.b ??= 80, layout.height ??= 450;
  const rows = legendRows(figure, width - (margin.l ?? 60)), below = 66 + slanted(figure, width) + LINE * rows;
  layout.height += below - margin.b;
  margin.b = below;
  const columns = new Set(panels.map(({x}) => x.domain[0])).size;
  const abreast = many ? 4 : Math.max(1, Math.min(columns, Math.floor(width / (paper ? 200 : PANEL))));
  if (abreast !== columns && columns) stack(layout, panels, abreast, many ? PAGE : Infinity);
  if (many) for (const heading of layout.annotations ?? []) heading.font = {...heading.font, size: 9};
  layout.hoverlabel = {...layout.hoverlabel, font: {color: "#fff"}};
  return layout;
}

function stack(layout, panels, abreast, most) {
  const outside = layout.margin.t + layout.margin.b, inside = layout.height - outside;
  const count = Math.ceil(panels.length / abreast), gap = GAP + Math.max(0, ...panels.map(({x}) => TITLE * (x.title?.text?.split("<br>").length ?? 0)));
  const fits = (most - outside - (count - 1) * gap) / count;
  const side = Math.min(fits, inside * (panels[0].y.domain[1] - panels[0].y.domain[0]));
  const whole = count * side + (count - 1) * gap;
  const between = abreast > 1 ? 0.09 : 0, part = (1 - between * (abreast - 1)) / abreast;
  const headings = (layout.annotations ?? []).filter(({xref, yref}) => xref === "paper" && yref === "paper");
  panels.forEach(({x, y}, i) => {
    const left = (i % abreast) * (part + between), top = 1 - Math.floor(i / abreast) * (side + gap) / whole;
    x.domain = [left, left + part];
    y.domain = [Math.max(0, top - side / whole), top];
    x.showticklabels = true;
    y.showticklabels = y.showticklabels !== false || !(i % abreast);  // one that panels share stands at the left
    if (!(i % abreast)) y.automargin = true;
    if (headings.length === panels.length) Object.assign(headings[i], {x: left + part / 2, y: top});
  });
  layout.height = whole + outside;
}

// The tool bar is for the mouse: the keyboard passes by.
function quiet(plot) {
  plot.querySelector(".modebar-container")?.setAttribute("aria-hidden", "true");
  for (const button of plot.querySelectorAll(".modebar-btn")) button.tabIndex = -1;
}

const figures = new Map();  // where each is drawn -> its data and layout

function draw(plot, paper = false) {
  const figure = figures.get(plot), width = paper ? PAPER : plot.clientWidth;
  const layout = arranged(figure, width, paper);
  if (paper) layout.width = width;
  plot.style.minHeight = `${layout.height}px`;
  const data = figure.data.map((trace) => trace.name ? {...trace, name: lines(trace.name, width).join("<br>")} : trace);
  return Plotly.react(plot, data, layout, CONFIG);
}

async function drawFigures() {
  const plots = document.querySelectorAll(".plotly-graph-div");
  const say = (text) => plots.forEach((plot) => { if (!plot.childElementCount) plot.textContent = text; });
  if (!("DecompressionStream" in window))
    return say("The figures need a newer browser: Chrome or Edge 80, Firefox 113, Safari 16.4.");
  try {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    for (const plot of plots) {
      figures.set(plot, JSON.parse(plot.nextElementSibling.textContent));
      await draw(plot);
      plot.on("plotly_afterplot", () => quiet(plot));
      quiet(plot);
    }
  } catch (error) {
    say("The figures cannot be drawn: " + error);
    throw error;
  }
}

drawFigures();

// --- every width, and paper: nothing is cut ----------------------------------------------------------------------------

// A table that is wider than its place becomes a list: a block for each row, a line for each of its cells.
function fitTables(width) {
  for (const box of document.querySelectorAll(".scroll")) {
    const table = box.firstElementChild;
    table.classList.remove("stacked");
    const place = width ?? box.clientWidth;
    table.style.width = "min-content";
    const wanted = table.offsetWidth;
    table.style.width = "";
    table.classList.toggle("stacked", place > 0 && wanted > place);
  }
}

for (const table of document.querySelectorAll(".scroll table")) {
  const headings = [...table.tHead?.rows[0]?.cells ?? []].map((cell) => cell.textContent);
  for (const row of table.tBodies[0].rows)
    for (const cell of row.cells) if (cell.cellIndex) cell.dataset.heading = headings[cell.cellIndex];
}

let seen = 0;

function fit() {
  fitTables();
  if (document.documentElement.clientWidth === seen) return;
  seen = document.documentElement.clientWidth;
  for (const plot of figures.keys()) draw(plot);
}

addEventListener("resize", fit);
for (const part of document.querySelectorAll("main details")) part.addEventListener("toggle", () => fitTables());
if (matchMedia("(max-width:60rem)").matches) document.querySelector("nav details").open = false;
fit();

let closed = [];

addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("main details:not([open])")];
  for (const part of closed) part.open = true;
  document.documentElement.classList.add("paper");
  fitTables(PAPER);
  for (const plot of figures.keys()) draw(plot, true);
});

addEventListener("afterprint", () => {
  for (const part of closed) part.open = false;
  document.documentElement.classList.remove("paper");
  seen = 0;
  fit();
});
