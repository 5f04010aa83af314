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

for (const heading of document.querySelectorAll("table.sortable thead th")) {
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
    const config = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"]};
    for (const plot of plots) {
      const figure = JSON.parse(plot.nextElementSibling.textContent);
      await Plotly.newPlot(plot, figure.data, figure.layout, config);
    }
  } catch (error) {
    say("The figures cannot be drawn: " + error);
    throw error;
  }
}

drawFigures();
