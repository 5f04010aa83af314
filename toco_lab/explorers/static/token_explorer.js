/* Token explorer: click a patch and see its cosine similarity to every patch, at any layer and step of training.

The same module serves notebooks and offline pages: in a notebook anywidget calls `render`, and on a page `mount` makes
the model object itself. All cosines are computed here, from int8 tokens (quantise.py makes them and measures their error;
browser_data.py packs them).

Traits: `meta` (dict) and `data` (bytes) hold the token maps. `image`, `left`, `right` (indices; right -1: one panel
only), `patch` (row-major in the grid of the left model; -1: the centre), `layer` (index) and `step` (training step; the
nearest kept one is shown) say what is shown. `selection` says the same in names and numbers, to be kept in a file.
*/

const STATE = ["image", "patch", "layer", "step", "left", "right"];
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"];
const SCALES = {
  // 33 anchors of matplotlib's colour scales of these names; colours between them are interpolated linearly
  sequential: {
    label: "viridis", low: 0, high: 1,
    table: table("440154470d6048186a482374472d7b4536814240863f49893b528b375a8d33638d2f6a8e2c728e297a8e26818e23898e21908c1f988b1f9f8821a68528ae8031b57b3ebc744cc26c5dc9636ece5882d34c96d83fabdc32c0df24d5e21aeae51afde725"),
  },
  signed: {
    label: "blue-white-red (RdBu_r)", low: -1, high: 1,
    table: table("0530610e41781752901f63a72a71b2347fb93f8dc0529cc86bacd083bcd99ac9e0aed3e6c1ddecd3e6f0dfecf3ebf1f5f7f7f6f9eee8fbe6d9fdddcafbceb6f8bda0f5ac8bee9878e58268dc6d57d25749c6413ebb2a34ad162a960f267e082367001f"),
  },
};
const PLAY_MS = 700; // for each layer; twice as long if the reader prefers reduced motion
const WORDS_MS = 150; // during a drag the words are updated once the pointer rests for this long
const PLOT_HEIGHT = 132;
const REGIONS = [["top left", "top", "top right"], ["left", "centre", "right"], ["bottom left", "bottom", "bottom right"]];
let instances = 0;

/* --- numbers ------------------------------------------------------------------------------------------------------ */

function table(hex) {
  const anchors = hex.match(/../g).map((pair) => parseInt(pair, 16));
  const last = anchors.length / 3 - 1, colours = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * last, below = Math.min(Math.floor(place), last - 1), share = place - below;
    for (let c = 0; c < 3; c++) colours[3 * i + c] = (1 - share) * anchors[3 * below + c] + share * anchors[3 * below + 3 + c];
  }
  return colours;
}

const colourIndex = (scale, value) =>
  Math.max(0, Math.min(255, Math.round(((value - scale.low) / (scale.high - scale.low)) * 255)));
const tick = ({ low, high }, i) => `${i || low < 0 ? "" : "\u2264 "}${(low + ((high - low) * i) / 5).toFixed(1).replace("-", "\u2212")}`;
const css = (scale, i) => `rgb(${scale.table.slice(3 * i, 3 * i + 3).join(", ")})`;
const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
const fixed = (value) => value.toFixed(2).replace("-", "\u2212");
const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
const rounded = (value) => Math.round(value * 1e4) / 1e4;

/* The tokens of one model and image. A slab is one step and layer; what does not depend on the patch is kept. */
class Tokens {
  constructor(bytes, map) {
    this.map = map;
    this.count = map.grid[0] * map.grid[1];
    this.slabs = new Map();
    let offset = map.offset;
    this.values = map.widths.map((row) => row.map((width) => {
      const part = bytes.subarray(offset, offset + this.count * width);
      offset += part.length;
      return part;
    }));
  }

  slab(step, layer) {
    const key = step * this.map.layers.length + layer;
    if (!this.slabs.has(key)) {
      const values = this.values[step][layer], width = this.map.widths[step][layer], count = this.count;
      const inverse = new Float64Array(count), sum = new Float64Array(width);
      for (let i = 0, p = 0; i < count; i++, p += width) {
        let square = 0;
        for (let d = 0; d < width; d++) square = (square + values[p + d] * values[p + d]) | 0;
        inverse[i] = square ? 1 / Math.sqrt(square) : 0; // a zero token has cosine 0 with all
        for (let d = 0; d < width; d++) sum[d] += values[p + d] * inverse[i];
      }
      this.slabs.set(key, { values, width, inverse, sum });
    }
    return this.slabs.get(key);
  }

  /* Cosine of one patch to all. */
  similarity(step, layer, patch) {
    const { values, width, inverse } = this.slab(step, layer);
    const chosen = Int32Array.from(values.subarray(patch * width, (patch + 1) * width));
    const result = new Float64Array(this.count), own = inverse[patch];
    for (let i = 0, p = 0; i < this.count; i++, p += width) {
      let dot = 0;
      for (let d = 0; d < width; d++) dot = (dot + values[p + d] * chosen[d]) | 0; // exact: k * 127 * 127 < 2^31
      result[i] = dot * own * inverse[i];
    }
    return result;
  }

  /* Mean cosine of one patch to all others, from the sum of all unit tokens: k products instead of N * k. */
  mean(step, layer, patch) {
    const { values, width, inverse, sum } = this.slab(step, layer);
    let total = 0;
    for (let d = 0; d < width; d++) total += values[patch * width + d] * sum[d];
    return (total * inverse[patch] - (inverse[patch] ? 1 : 0)) / Math.max(1, this.count - 1);
  }
}

/* Range and mean of the similarities, and the share above 0.8; the chosen patch itself is left out. */
function summary(similarity, patch) {
  let total = 0, minimum = Infinity, maximum = -Infinity, above = 0;
  for (let i = 0; i < similarity.length; i++) {
    if (i === patch) continue;
    const value = similarity[i];
    total += value;
    if (value < minimum) minimum = value;
    if (value > maximum) maximum = value;
    if (value > 0.8) above++;
  }
  const others = similarity.length - 1;
  return others ? { minimum, mean: total / others, maximum, above: above / others }
    : { minimum: 1, mean: 1, maximum: 1, above: 0 };
}

/* Which ninth of the image is most similar to the chosen patch, which is left out: its name and mean similarity. */
function mostAlike(similarity, [h, w], patch) {
  const sums = new Float64Array(9), counts = new Float64Array(9);
  for (let i = 0; i < similarity.length; i++) {
    if (i === patch) continue;
    const cell = 3 * Math.floor((3 * Math.floor(i / w)) / h) + Math.floor((3 * (i % w)) / w);
    sums[cell] += similarity[i];
    counts[cell]++;
  }
  let best = -1;
  for (let cell = 0; cell < 9; cell++)
    if (counts[cell] && (best < 0 || sums[cell] / counts[cell] > sums[best] / counts[best])) best = cell;
  return best < 0 ? null : { name: REGIONS[Math.floor(best / 3)][best % 3], mean: sums[best] / counts[best] };
}

function nearest(steps, wanted) {
  let best = 0;
  steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = i; });
  return best;
}

/* --- page --------------------------------------------------------------------------------------------------------- */

function make(tag, properties = {}, ...children) {
  const { namespace, ...rest } = properties;
  const node = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(rest)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}
const svg = (tag, properties, ...children) => make(tag, { namespace: "http://www.w3.org/2000/svg", ...properties }, ...children);

function setText(node, text) { if (node.textContent !== text) node.textContent = text; }
function setOptions(select, names, chosen) {
  const key = names.join("\n");
  if (select.dataset.names !== key) {
    select.replaceChildren(...names.map(([value, name]) => make("option", { value }, name)));
    select.dataset.names = key;
  }
  select.value = String(chosen);
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const STYLE = `
:host{display:block;container-type:inline-size;--ink0:#1c2126;--soft0:#5c6670;--line0:#dde1e6;--page0:#fff;--card0:#f6f7f9;--accent0:#0072b2}
@media screen and (prefers-color-scheme:dark){:host{--ink0:#e4e7ea;--soft0:#9aa5b0;--line0:#363d45;--page0:#15181b;--card0:#1e2327;--accent0:#62b5e5}}
.app{--ink:var(--jp-ui-font-color1,var(--ink0));--soft:var(--jp-ui-font-color2,var(--soft0));--line:var(--jp-border-color2,var(--line0));
--page:var(--jp-layout-color1,var(--page0));--card:var(--jp-layout-color2,var(--card0));--accent:var(--jp-brand-color1,var(--accent0));
box-sizing:border-box;max-width:66rem;padding:1rem;border:1px solid var(--line);border-radius:8px;background:var(--page);color:var(--ink);
font:14px/1.45 var(--jp-ui-font-family,system-ui,-apple-system,"Segoe UI",Roboto,sans-serif);font-variant-numeric:tabular-nums}
*,*::before,*::after{box-sizing:inherit}
[hidden]{display:none!important}
.row{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center}
.head{margin-bottom:.8rem}
.spread{flex:1}
label{display:inline-flex;gap:.45rem;align-items:center;color:var(--soft);max-width:100%}
select,button{font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:5px;padding:.2rem .6rem;min-width:0;max-width:16rem}
button{cursor:pointer}button:hover{border-color:var(--accent)}
button[aria-pressed=true]{border-color:var(--accent);box-shadow:inset 0 0 0 1px var(--accent)}
input[type=range],input[type=checkbox]{accent-color:var(--accent);margin:0}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.thumbs{display:flex;flex-wrap:wrap;gap:.4rem}
.thumbs button{padding:2px;line-height:0}
.thumbs img{width:3.2rem;height:3.2rem;object-fit:cover;border-radius:3px}
.stage{display:flex;gap:1rem;align-items:stretch}
.panels{display:flex;flex:1;flex-wrap:wrap;gap:1rem;min-width:0}
figure{margin:0;flex:1 1 11rem;min-width:0;max-width:29rem}
.title{display:flex;gap:.5rem;align-items:baseline;margin-bottom:.35rem;min-height:1.45em}
.title b{overflow-wrap:anywhere}.title span{color:var(--soft)}
.dot{flex:none;width:.7rem;height:.7rem;border-radius:50%;align-self:center}
.picture{position:relative;overflow:hidden;cursor:crosshair;touch-action:none;user-select:none;background:var(--card);border-radius:3px}
.picture:focus-visible{overflow:visible}
.picture img,.picture canvas{position:absolute;inset:0;width:100%;height:100%;display:block;pointer-events:none}
.picture.grey img{filter:grayscale(1)}
.picture canvas{image-rendering:pixelated}.picture.smooth canvas{image-rendering:auto}
.mark,.hover{position:absolute;pointer-events:none}
.mark{border:2px solid #fff;box-shadow:0 0 0 1.5px #000,inset 0 0 0 1px #000;margin:-2px}
.hover{box-shadow:0 0 0 1px #fff,0 0 0 2px #0009}
.readout{margin:.35rem 0 0;min-height:1.45em;color:var(--soft)}
.bar{flex:none;display:flex;flex-direction:column;width:3.6rem;max-height:31rem}
.bar .title{white-space:nowrap}
.gradient{position:relative;flex:1;width:15px;min-height:8rem;border:1px solid var(--line)}
.gradient span{position:absolute;left:20px;transform:translateY(-50%);color:var(--soft);font-size:12px;white-space:nowrap}
.sliders{display:grid;grid-template-columns:auto auto minmax(5rem,1fr) minmax(5.5rem,auto);gap:.45rem .7rem;align-items:center;margin:.7rem 0 .3rem}
.sliders>div{display:contents}.sliders label{display:block}
.sliders button{padding:.15rem .55rem;min-width:2.3rem}
.sliders output{white-space:nowrap}
.plot{margin:.8rem 0 .5rem}
.plot svg{display:block;width:100%;height:${PLOT_HEIGHT}px;overflow:visible}
.plot text{fill:var(--soft);font-size:11.5px}.plot text.now{fill:var(--ink);font-weight:600;paint-order:stroke;stroke:var(--page);stroke-width:4px}
.plot .grid{stroke:var(--line)}.plot line.now{stroke:var(--soft);stroke-dasharray:3 3}
.plot .hit{fill:transparent;cursor:pointer}.plot .hit:hover{fill:var(--soft);fill-opacity:.12}
.words{margin:.7rem 0 .2rem}
.small{margin:.2rem 0 0;color:var(--soft);font-size:12px}
.plain .picture canvas,.plain .dot{display:none}
@container (max-width:36rem){figure.plain{display:none}}
@media print{.head,.sliders,.options{display:none}}
`;

/* One image with its map, which is drawn at the size of the grid and enlarged by the browser; or a plain image. */
class Panel {
  constructor(app) {
    this.app = app;
    this.dot = make("i", { class: "dot" });
    this.name = make("b");
    this.what = make("span");
    this.image = make("img", { alt: "", draggable: "false" });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.context = this.canvas.getContext("2d", { willReadFrequently: true }); // it is tiny, so it is better in memory than on a GPU
    this.mark = make("div", { class: "mark" });
    this.hover = make("div", { class: "hover", hidden: true });
    this.picture = make(
      "div",
      {
        class: "picture", tabindex: "0", role: "application", "aria-describedby": app.id("words"),
        onpointerdown: (event) => {
          if (event.button) return;
          this.picture.setPointerCapture(event.pointerId);
          this.app.choose(this.at(event));
        },
        onpointermove: (event) => {
          this.app.point(this.at(event));
          if (this.picture.hasPointerCapture(event.pointerId)) this.app.choose(this.at(event));
        },
        onpointerleave: () => this.app.point(null),
      },
      this.image, this.canvas, this.hover, this.mark,
    );
    this.readout = make("p", { class: "readout" });
    this.element = make("figure", {}, make("figcaption", { class: "title" }, this.dot, this.name, this.what), this.picture, this.readout);
  }

  /* Where a pointer event is, as shares of height and width. */
  at(event) {
    const box = this.picture.getBoundingClientRect();
    const share = (value) => Math.max(0, Math.min(0.999999, value));
    return [share((event.clientY - box.top) / box.height), share((event.clientX - box.left) / box.width)];
  }

  /* `shown` is this panel in App.current; `plain` shows the picture without a map, beside the only map. */
  draw(shown, scale, { plain = false } = {}) {
    const [h, w] = shown.grid, picture = shown.picture;
    this.shown = shown;
    this.plain = plain;
    this.element.classList.toggle("plain", plain);
    place(this.mark, shown.patch, shown.grid);
    setText(this.name, plain ? shown.image : shown.model);
    setText(this.what, plain ? "" : shown.where);
    if (this.image.src !== picture.url) {
      this.image.src = picture.url;
      this.picture.style.aspectRatio = `${picture.width} / ${picture.height}`;
    }
    if (plain) return;
    this.dot.style.background = shown.colour;
    if (this.canvas.width !== w || this.canvas.height !== h || !this.pixels) {
      this.canvas.width = w;
      this.canvas.height = h;
      this.pixels = this.context.createImageData(w, h);
    }
    const { data } = this.pixels, colours = scale.table;
    for (let i = 0, p = 0; i < shown.similarity.length; i++, p += 4) {
      const c = 3 * colourIndex(scale, shown.similarity[i]);
      data[p] = colours[c];
      data[p + 1] = colours[c + 1];
      data[p + 2] = colours[c + 2];
      data[p + 3] = 255;
    }
    this.context.putImageData(this.pixels, 0, 0);
  }

  /* The line under the picture: the patch under the pointer, or a summary of the whole map. */
  read(pointer, scale) {
    const { shown } = this;
    if (!shown) return;
    this.hover.hidden = !pointer;
    const patch = pointer ? patchAt(pointer, shown.grid) : shown.patch, [row, column] = rowColumn(patch, shown.grid);
    if (pointer) place(this.hover, patch, shown.grid);
    const where = `row ${row + 1}, column ${column + 1}`, value = shown.similarity[patch];
    if (this.plain) setText(this.readout, where);
    else if (pointer) setText(this.readout, `${where}: ${fixed(value)}${value < scale.low ? " (negative: below the colour scale)" : ""}`);
    else setText(this.readout, `mean ${fixed(shown.summary.mean)} \u00b7 ${percent(shown.summary.above)} of the other patches above 0.8`);
  }
}

const rowColumn = (patch, [, w]) => [Math.floor(patch / w), patch % w];
const patchAt = ([down, across], [h, w]) => Math.floor(down * h) * w + Math.floor(across * w);
const centreOf = (patch, grid) => rowColumn(patch, grid).map((place, axis) => (place + 0.5) / grid[axis]);
function place(node, patch, grid) {
  const [h, w] = grid, [row, column] = rowColumn(patch, grid), style = `top:${(100 * row) / h}%;left:${(100 * column) / w}%;`;
  const size = node.className === "mark" ? `width:calc(${100 / w}% + 4px);height:calc(${100 / h}% + 4px)` : `width:${100 / w}%;height:${100 / h}%`;
  node.setAttribute("style", style + size);
}

class App {
  constructor(model, root) {
    this.model = model;
    this.root = root;
    this.number = instances++;
    this.meta = model.get("meta");
    const data = model.get("data");
    const bytes = data.buffer ? new Int8Array(data.buffer, data.byteOffset, data.byteLength) : new Int8Array(data);
    this.tokens = this.meta.maps.map((row) => row.map((map) => new Tokens(bytes, map)));
    this.scale = SCALES.sequential;
    this.pointer = null;
    this.timers = {};
    this.build();
    this.changed = () => this.draw();
    for (const name of STATE) model.on(`change:${name}`, this.changed);
    this.watch = new ResizeObserver(() => this.later());
    this.watch.observe(this.plot);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.restyle = () => this.matchControls();
    this.dark.addEventListener("change", this.restyle);
    this.draw();
  }

  id(name) { return `token-explorer-${this.number}-${name}`; }

  remove() {
    this.stop();
    for (const name of STATE) this.model.off(`change:${name}`, this.changed);
    this.watch.disconnect();
    this.dark.removeEventListener("change", this.restyle);
    cancelAnimationFrame(this.frame);
    Object.values(this.timers).forEach(clearTimeout);
    this.root.remove();
  }

  /* --- parts --- */

  build() {
    const { meta } = this, many = meta.models.length > 1;
    const set = (name) => (event) => this.set({ [name]: Number(event.target.value) });
    this.thumbs = meta.images.map((name, image) => make("button", { type: "button", title: name, onclick: () => this.set({ image }) },
      make("img", { src: meta.pictures[meta.maps[image][0].picture].url, alt: `image ${name}` })));
    this.left = make("select", { onchange: set("left") });
    this.right = make("select", { onchange: set("right") });
    this.compare = make("button", {
      type: "button",
      onclick: () => {
        const { left, right } = this.current();
        this.set({ right: right < 0 ? (left + 1) % meta.models.length : -1 });
      },
    }, "Compare");
    const head = make("div", { class: "row head", hidden: !many && meta.images.length < 2 },
      make("div", { class: "thumbs", role: "group", "aria-label": "Image", hidden: meta.images.length < 2 }, ...this.thumbs),
      make("span", { class: "spread" }),
      make("label", { hidden: !many }, "Model", this.left),
      make("label", { hidden: !many }, "beside", this.right),
      many ? this.compare : "");

    this.panels = [new Panel(this), new Panel(this)];
    this.ticks = make("div", { class: "gradient" });
    this.barNote = make("p", { class: "readout" });
    this.bar = make("div", { class: "bar", "aria-hidden": "true" },
      make("div", { class: "title" }, make("span", {}, "cosine")), this.ticks, this.barNote);
    this.layer = this.slider("layer", "Layer");
    this.step = this.slider("step", "Training step");
    this.plot = make("div", { class: "plot" });
    this.words = make("p", { class: "words", id: this.id("words"), "aria-live": "polite" });
    this.note = make("p", { class: "small" });

    const scale = make("select", {
      onchange: (event) => {
        this.scale = SCALES[event.target.value];
        this.draw();
      },
    });
    setOptions(scale, Object.entries(SCALES).map(([key, { label, low, high }]) => [key, `${label}, ${fixed(low).replace(".00", "")} to ${high}`]), "sequential");
    this.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.7, style: "width:6rem", oninput: () => this.paint() });
    this.smooth = make("input", { type: "checkbox", onchange: () => this.paint() });
    const options = make("div", { class: "row options" },
      make("label", {}, "Colours", scale), make("label", {}, "Opacity", this.opacity), make("label", {}, this.smooth, "smooth"),
      make("span", { class: "spread" }),
      make("button", { type: "button", onclick: () => this.savePicture() }, "Save PNG"),
      make("button", { type: "button", onclick: () => this.saveSelection() }, "Save selection"));

    this.app = make("div", { class: "app", role: "group", "aria-label": "Token explorer", onkeydown: (event) => this.key(event) },
      head,
      make("div", { class: "stage" }, make("div", { class: "panels" }, ...this.panels.map((panel) => panel.element)), this.bar),
      make("div", { class: "sliders" }, this.layer.element, this.step.element),
      this.plot, options, this.words, this.note,
      make("p", { class: "small" }, "Click or drag on the picture. With the picture in focus: arrow keys move the patch, "
        + "Page Up and Page Down or [ and ] change the layer, Home and End go to the first and last one, space plays."));
    const shadow = this.root.attachShadow({ mode: "open" });
    shadow.append(make("style", {}, STYLE), this.app);
  }

  /* Label, play button, slider and value of the trait `name`. */
  slider(name, label) {
    const id = this.id(name);
    const input = make("input", { type: "range", min: 0, step: 1, id, oninput: () => this.go(name, Number(input.value)) });
    const output = make("output", { for: id });
    const button = make("button", { type: "button", onclick: () => this.play(name) });
    return { input, output, button, label, element: make("div", {}, make("label", { for: id }, label), button, input, output) };
  }

  matchControls() {
    if (!this.root.isConnected) return; // a notebook renders an element before it attaches it
    const [r, g, b] = getComputedStyle(this.app).backgroundColor.match(/[\d.]+/g).map(Number);
    this.app.style.colorScheme = r + g + b < 384 ? "dark" : "light"; // of sliders and menus
  }

  paint() {
    for (const panel of this.panels) {
      panel.canvas.style.opacity = this.opacity.value;
      panel.picture.classList.toggle("smooth", this.smooth.checked);
      // grey, because the image's own colours would mix with those of the scale
      panel.picture.classList.toggle("grey", Number(this.opacity.value) > 0 && !panel.plain);
    }
  }

  /* --- state --- */

  /* The state with indices that exist, and what each panel shows. */
  current() {
    const { meta, model } = this;
    const image = clamp(model.get("image"), meta.images.length), left = clamp(model.get("left"), meta.models.length);
    const right = Math.min(model.get("right"), meta.models.length - 1);
    const first = meta.maps[image][left], count = first.grid[0] * first.grid[1];
    let patch = model.get("patch");
    if (!(patch >= 0 && patch < count)) patch = Math.floor(first.grid[0] / 2) * first.grid[1] + Math.floor(first.grid[1] / 2);
    const layer = clamp(model.get("layer"), first.layers.length), step = nearest(first.steps, model.get("step"));
    const panels = (right < 0 ? [left] : [left, right]).map((index, side) => {
      const map = meta.maps[image][index], same = map.layers.indexOf(first.layers[layer]);
      const here = {
        tokens: this.tokens[image][index], map, grid: map.grid, picture: meta.pictures[map.picture],
        image: meta.images[image], model: meta.models[index].name, colour: meta.models[index].colour || COLOURS[index % COLOURS.length],
        layer: same >= 0 ? same : Math.min(layer, map.layers.length - 1), step: nearest(map.steps, first.steps[step]),
        patch: side ? patchAt(centreOf(patch, first.grid), map.grid) : patch,
      };
      here.where = map.layers[here.layer] + (map.steps.length > 1 ? `, step ${map.steps[here.step]}` : "");
      return here;
    });
    return { image, left, right, first, patch, layer, step, panels };
  }

  /* Values are sent in a microtask, which runs before the browser handles the next message of the kernel: its echo of an
     older value would otherwise overwrite the new one. Whatever else is set until then is sent along; while the kernel is
     busy, ipywidgets itself waits. */
  set(values) {
    for (const [name, value] of Object.entries(values)) this.model.set(name, value);
    if (this.saving) return;
    this.saving = true;
    queueMicrotask(() => { this.saving = false; this.model.save_changes(); });
  }

  choose(place) { this.set({ patch: patchAt(place, this.current().first.grid) }); }

  point(place) {
    this.pointer = place;
    for (const panel of this.panels) panel.read(place, this.scale);
  }

  /* Moves to a layer or a step by its index in the left model. */
  go(name, index) {
    const { first } = this.current();
    this.set(name === "layer" ? { layer: clamp(index, first.layers.length) } : { step: first.steps[clamp(index, first.steps.length)] });
  }

  play(name) {
    const was = this.playing;
    this.stop();
    if (was === name) return;
    const length = () => this.current().first[`${name}s`].length;
    this.playing = name;
    if (this.current()[name] >= length() - 1) this.go(name, 0);
    const slow = matchMedia("(prefers-reduced-motion: reduce)").matches ? 2 : 1;
    this.clock = setInterval(() => {
      const next = this.current()[name] + 1;
      if (next < length()) this.go(name, next);
      if (next >= length() - 1) this.stop();
    }, PLAY_MS * slow);
    this.controls();
  }

  stop() {
    clearInterval(this.clock);
    this.playing = null;
    this.controls();
  }

  key(event) {
    const inside = event.target.closest(".picture"), { first, patch, layer } = this.current();
    if (event.altKey || event.ctrlKey || event.metaKey || (!inside && !"[]".includes(event.key))) return;
    const [h, w] = first.grid, row = Math.floor(patch / w), column = patch % w;
    const move = (down, across) => this.set({ patch: clamp(row + down, h) * w + clamp(column + across, w) });
    const actions = {
      ArrowUp: () => move(-1, 0), ArrowDown: () => move(1, 0), ArrowLeft: () => move(0, -1), ArrowRight: () => move(0, 1),
      PageUp: () => this.go("layer", layer + 1), PageDown: () => this.go("layer", layer - 1),
      "]": () => this.go("layer", layer + 1), "[": () => this.go("layer", layer - 1),
      Home: () => this.go("layer", 0), End: () => this.go("layer", first.layers.length - 1), " ": () => this.play("layer"),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would react to the key as well
    this.point(null); // the pointer may be anywhere: from now on the readout is about the chosen patch
    actions[event.key]();
  }

  /* --- drawing --- */

  /* Draws the maps at once, curves and words with the next frame. */
  draw() {
    const begun = performance.now(), now = this.current();
    this.now = now;
    now.panels.forEach((shown, side) => {
      shown.similarity = shown.tokens.similarity(shown.step, shown.layer, shown.patch);
      shown.summary = summary(shown.similarity, shown.patch);
      this.panels[side].draw(shown, this.scale);
    });
    if (now.right < 0) this.panels[1].draw(now.panels[0], this.scale, { plain: true });
    this.root.dataset.drawMs = (performance.now() - begun).toFixed(3);
    this.paint();
    for (const panel of this.panels) panel.read(this.pointer, this.scale);
    this.controls();
    const selection = this.selection(now);
    this.root.dataset.state = JSON.stringify(selection);
    this.set({ selection });
    this.later();
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawPlot());
    clearTimeout(this.timers.words);
    this.timers.words = setTimeout(() => this.say(), WORDS_MS);
  }

  controls() {
    const { now, meta } = this;
    if (!now) return;
    const { first } = now;
    for (const [name, control, names] of [["layer", this.layer, first.layers], ["step", this.step, first.steps]]) {
      const { input, output, button, element } = control;
      element.hidden = names.length < 2;
      input.max = names.length - 1;
      input.value = now[name];
      input.setAttribute("aria-valuetext", names[now[name]]);
      setText(output, `${names[now[name]]}`);
      const on = this.playing === name;
      setText(button, on ? "\u275a\u275a" : "\u25b6\ufe0e");
      button.setAttribute("aria-label", `${on ? "Pause" : "Play through"} ${control.label.toLowerCase()}s`);
    }
    this.words.setAttribute("aria-live", this.playing ? "off" : "polite"); // a screen reader reads the last frame, not each one
    const named = meta.models.map((model, i) => [i, model.name]);
    setOptions(this.left, named, now.left);
    setOptions(this.right, [[-1, "none"], ...named], now.right);
    this.compare.setAttribute("aria-pressed", now.right >= 0);
    this.thumbs.forEach((button, i) => button.setAttribute("aria-pressed", i === now.image));
    for (const { picture, plain, shown } of this.panels) {
      picture.setAttribute("aria-label", `Image ${shown.image}${plain ? "" : `, similarity of patches in ${shown.model}`}. Arrow keys choose a patch.`);
    }
    this.drawBar();
    const told = now.panels.map(({ map, model, layer, step }) => `${now.right < 0 ? "" : `${model}: `}largest error against `
      + `full precision ${map.error.toFixed(map.error < 0.001 ? 4 : 3)}; tokens projected to ${map.widths[step][layer]} of ${map.dim} dimensions, int8`);
    setText(this.note, `${told.join(". ")}.`.replace(/^l/, "L"));
  }

  drawBar() {
    if (this.barScale === this.scale) return;
    this.barScale = this.scale;
    const { label } = this.scale, stops = Array.from({ length: 33 }, (_, i) => css(this.scale, Math.round((i / 32) * 255)));
    this.ticks.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
    this.ticks.replaceChildren(...Array.from({ length: 6 }, (_, i) => make("span", { style: `top:${100 - 20 * i}%` }, tick(this.scale, i))));
    setText(this.barNote, label.split(" ")[0]);
  }

  /* Draws the mean similarity of the chosen patch to all others, layer by layer. */
  drawPlot() {
    if (!this.plot.clientWidth) { // it has no size yet: hidden, or the theme is changing
      this.frame = requestAnimationFrame(() => this.drawPlot());
      return;
    }
    this.matchControls();
    const { now } = this, width = Math.max(200, this.plot.clientWidth), height = PLOT_HEIGHT;
    const names = now.first.layers, low = this.scale.low, pad = { left: 34, right: 46, top: 22, bottom: 22 };
    const x = (i) => pad.left + (names.length > 1 ? i / (names.length - 1) : 0.5) * (width - pad.left - pad.right);
    const y = (value) => pad.top + (1 - (Math.max(low, value) - low) / (1 - low)) * (height - pad.top - pad.bottom);
    const parts = [svg("text", { x: 0, y: 10 }, "mean cosine of this patch to all others, by layer")];
    for (const value of [low, (1 + low) / 2, 1]) {
      parts.push(svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(value), y2: y(value) }),
        svg("text", { x: pad.left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value).replace("-", "\u2212")));
    }
    parts.push(svg("line", { class: "now", x1: x(now.layer), x2: x(now.layer), y1: pad.top, y2: height - pad.bottom }));
    const every = Math.ceil((names.length * 26) / width), short = (name) => name.replace(/^block /, "").replace("final ", "");
    names.forEach((name, i) => {
      const edge = i === names.length - 1;
      if (i % every === 0 || edge) parts.push(svg("text", { x: x(i), y: height - 6, "text-anchor": "middle", class: i === now.layer ? "now" : null }, short(name)));
    });
    const labels = [];
    for (const { tokens, map, colour, step, patch } of now.panels) {
      // layers of both models are matched by name; the axis has those of the left model
      const points = names.map((name, i) => [i, map.layers.indexOf(name)]).filter(([, j]) => j >= 0)
        .map(([i, j]) => [i, tokens.mean(step, j, patch)]);
      parts.push(svg("polyline", { fill: "none", stroke: colour, "stroke-width": 2, points: points.map(([i, value]) => `${x(i)},${y(value)}`).join(" ") }));
      for (const [i, value] of points) {
        parts.push(svg("circle", { cx: x(i), cy: y(value), r: i === now.layer ? 5 : 2.6, fill: colour }));
        if (i === now.layer) labels.push({ value, colour, at: y(value) + 4 });
      }
    }
    labels.sort((a, b) => a.at - b.at);
    if (labels.length > 1 && labels[1].at - labels[0].at < 13) {
      const middle = Math.min(Math.max((labels[0].at + labels[1].at) / 2, pad.top + 8), height - pad.bottom - 6);
      [labels[0].at, labels[1].at] = [middle - 6.5, middle + 6.5];
    }
    for (const { value, at } of labels) parts.push(svg("text", { class: "now", x: x(now.layer) + 9, y: at }, fixed(value)));
    const span = names.length > 1 ? x(1) - x(0) : 40;
    names.forEach((name, i) => parts.push(svg("rect", {
      class: "hit", x: x(i) - span / 2, y: pad.top - 8, width: span, height: height - pad.top + 8, onclick: () => this.go("layer", i),
    }, svg("title", {}, name))));
    const told = now.panels.map(({ model, summary: { mean } }) => `${model} ${fixed(mean)}`).join(", ");
    const viewBox = `0 0 ${width} ${height}`;  // a page of paper is narrower, and this is not drawn anew for it
    this.plot.replaceChildren(svg("svg", { viewBox, role: "img", "aria-label": `Mean similarity by layer; at ${names[now.layer]}: ${told}` }, ...parts));
  }

  /* Describes the picture in words, for readers who cannot see it; the words stand under it for everybody. */
  say() {
    const { now, meta } = this, [h, w] = now.first.grid;
    const where = `Image ${meta.images[now.image]}, patch in row ${Math.floor(now.patch / w) + 1} of ${h}, column ${(now.patch % w) + 1} of ${w}.`;
    const seen = now.panels.map(({ model, where: place, summary: told, similarity, grid, patch }) => {
      const region = mostAlike(similarity, grid, patch);
      return `${model}, ${place}: mean similarity ${fixed(told.mean)} (${fixed(told.minimum)} to ${fixed(told.maximum)}), `
        + `above 0.8 for ${percent(told.above)} of the other patches${region ? `, most alike ${region.name} (${fixed(region.mean)})` : ""}.`;
    });
    setText(this.words, [where, ...seen].join(" "));
  }

  /* --- to keep --- */

  selection({ image, first, patch, layer, step, panels } = this.current()) {
    const range = ({ summary: { minimum, mean, maximum } }) => ({ minimum: rounded(minimum), mean: rounded(mean), maximum: rounded(maximum) });
    return {
      image: this.meta.images[image], patch, row: Math.floor(patch / first.grid[1]), column: patch % first.grid[1],
      layer: first.layers[layer], step: first.steps[step], left: panels[0].model, right: panels[1]?.model ?? null,
      similarity: { left: range(panels[0]), right: panels[1] ? range(panels[1]) : null },
    };
  }

  fileName(end) {
    const { image, row, column, layer, step, left, right } = this.selection(this.now);
    return `tokens ${[left, right].filter(Boolean).join(" ")} ${image} r${row} c${column} ${layer} step ${step}.${end}`.replace(/[^\w.-]+/g, "_");
  }

  saveSelection() {
    const selection = this.selection(this.now);
    this.set({ selection });
    download(this.fileName("json"), new Blob([JSON.stringify(selection, null, 1)], { type: "application/json" }));
  }

  /* Saves panels, colour bar and caption on white, for a slide. */
  async savePicture() {
    const { now, scale, panels } = this, side = 640, gap = 28, top = 64, bar = 110, font = "system-ui, sans-serif";
    await Promise.all(panels.map(({ image }) => image.decode()));
    this.say();
    const range = `Colours: ${scale.label}, ${scale.low} to ${scale.high}${scale.low < 0 ? "" : ", negative values as 0"}.`;
    const canvas = make("canvas", { width: gap + panels.length * (side + gap) + bar }), pen = canvas.getContext("2d");
    const lines = [[this.words.textContent, `18px ${font}`], [`${range} ${this.note.textContent}`, `15px ${font}`]]
      .flatMap(([text, style]) => wrapped(pen, text, style, canvas.width - 2 * gap));
    const heights = panels.map(({ shown: { picture } }) => Math.round((side * picture.height) / picture.width));
    const tall = Math.max(...heights);
    canvas.height = top + tall + 20 + 26 * lines.length + gap; // setting the size also clears the canvas and its font
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    panels.forEach(({ shown, plain, image, canvas: map }, i) => {
      const x = gap + i * (side + gap), [h, w] = shown.grid, [row, column] = rowColumn(shown.patch, shown.grid);
      pen.fillStyle = plain ? "#fff" : shown.colour;
      pen.fillRect(x, 24, 18, 18);
      pen.fillStyle = "#1c2126";
      pen.font = `600 22px ${font}`;
      pen.fillText(plain ? shown.image : `${shown.model}, ${shown.where}`, plain ? x : x + 28, 41, side - 28);
      pen.filter = this.panels[i].picture.classList.contains("grey") ? "grayscale(1)" : "none";
      pen.imageSmoothingEnabled = true;
      pen.drawImage(image, x, top, side, heights[i]);
      pen.filter = "none";
      if (!plain) {
        pen.globalAlpha = Number(this.opacity.value);
        pen.imageSmoothingEnabled = this.smooth.checked;
        pen.drawImage(map, x, top, side, heights[i]);
        pen.globalAlpha = 1;
      }
      for (const [style, line] of [["#000", 7], ["#fff", 3]]) {
        pen.strokeStyle = style;
        pen.lineWidth = line;
        pen.strokeRect(x + (column * side) / w, top + (row * heights[i]) / h, side / w, heights[i] / h);
      }
    });
    const x = canvas.width - bar;
    for (let i = 0; i < 256; i++) {
      pen.fillStyle = css(scale, i);
      pen.fillRect(x, top + (tall * (255 - i)) / 256, 24, tall / 256 + 1);
    }
    pen.fillStyle = "#1c2126";
    pen.font = `18px ${font}`;
    pen.fillText("cosine", x, 41);
    for (let i = 0; i <= 5; i++) pen.fillText(tick(scale, i), x + 32, top + tall * (1 - i / 5) + 6);
    lines.forEach(([line, style], i) => {
      pen.font = style;
      pen.fillText(line, gap, top + tall + 36 + 26 * i);
    });
    canvas.toBlob((blob) => download(this.fileName("png"), blob), "image/png");
  }
}

/* Text as lines no wider than `width`, each with its font. */
function wrapped(pen, text, style, width) {
  pen.font = style;
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (pen.measureText(longer).width < width) lines[lines.length - 1] = longer;
    else lines.push(word);
  }
  return lines.map((line) => [line, style]);
}

/* For anywidget. It returns a function that removes everything. */
function render({ model, el }) {
  // this attribute keeps JupyterLab's shortcuts (arrow keys among them) away from the element
  const root = make("div", { class: "toco-token-explorer", "data-lm-suppress-shortcuts": "true" });
  el.append(root);
  const app = new App(model, root);
  return () => app.remove();
}

/* For a page without a kernel. `state` holds first values of traits. Returns the model object and a function that
removes everything. */
export function mount(element, meta, bytes, state = {}) {
  const first = meta.maps[0][0], listeners = {};
  const values = {
    image: 0, patch: -1, layer: first.layers.length - 1, step: first.steps.at(-1), left: 0, right: -1, selection: {},
    ...state, meta, data: bytes,
  };
  const model = {
    get: (name) => values[name],
    set(name, value) {
      if (values[name] === value) return;
      values[name] = value;
      for (const listener of [...(listeners[`change:${name}`] ?? [])]) listener();
    },
    on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
    off: (event, listener) => listeners[event]?.delete(listener),
    save_changes() {},
  };
  return { model, remove: render({ model, el: element }) };
}

export default { render };
