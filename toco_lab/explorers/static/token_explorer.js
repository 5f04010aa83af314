/* Token explorer: click a patch and see its cosine similarity to every patch, at any layer and step of training.

The same module serves notebooks and offline pages: in a notebook anywidget calls `render`, and on a page `mount` makes
the model object itself. token_numbers.js, which stands above it in the module, computes everything.

Traits: `meta` (dict) and `data` (bytes) hold the token maps. `image`, `left`, `right` (indices; right -1: one panel
only), `patch` (row-major in the grid of the left model; -1: the centre), `layer` (index) and `step` (training step; the
nearest kept one is shown) say what is shown. `other` (index, -1: none) is a second image beside the first, in place of
a second model; the patch is one of the first image (`asked` 0) or of the second (1). `show` is one of SHOW. `selection`
says the same in names and numbers, to be kept in a file.
*/

const STATE = ["image", "patch", "layer", "step", "left", "right", "other", "asked", "show"];
const SHOW = {
  similarity: "cosine to the patch",
  colours: "components, each image",
  "shared colours": "components, all images",
  length: "length of tokens",
};
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F"];
const PLAY_MS = 700; // for each layer; twice as long if the reader prefers reduced motion
const WORDS_MS = 150; // during a drag the words are updated once the pointer rests for this long
const PLOT_HEIGHT = 132;
let instances = 0;

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
.mark.found{border-style:dashed;box-shadow:none;outline:1.5px dashed #000;outline-offset:0}
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
          this.app.choose(this.at(event), this);
        },
        onpointermove: (event) => {
          this.app.point(this.at(event), this);
          if (this.picture.hasPointerCapture(event.pointerId)) this.app.choose(this.at(event), this);
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
  draw(shown, { plain = false } = {}) {
    const [h, w] = shown.grid, picture = shown.picture;
    this.shown = shown;
    this.plain = plain;
    this.element.classList.toggle("plain", plain);
    this.mark.classList.toggle("found", shown.found);
    this.mark.hidden = shown.found && shown.show === "length";
    place(this.mark, shown.patch, shown.grid);
    setText(this.name, plain ? shown.image : shown.name);
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
    const { data } = this.pixels;
    for (let i = 0, p = 0; i < h * w; i++) {
      for (let c = 0; c < 3; c++) data[p++] = shown.rgb[3 * i + c];
      data[p++] = 255;
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
    else if (shown.show === "length") setText(this.readout, pointer || !shown.artifacts ? `${where}: length ${short(shown.length[patch])}` : shown.artifacts);
    else if (pointer) setText(this.readout, `${where}: ${fixed(value)}${value < scale.low ? " (negative: below the colour scale)" : ""}`);
    else if (shown.found) setText(this.readout, `most alike: ${where} (${fixed(value)}) \u00b7 mean ${fixed(shown.summary.mean)}`);
    else setText(this.readout, `mean ${fixed(shown.summary.mean)} \u00b7 ${percent(shown.summary.above)} of the other patches above 0.8`);
  }
}

const short = (value) => Number(value.toPrecision(3)).toString();
const rowColumn = (patch, [, w]) => [Math.floor(patch / w), patch % w];
const patchAt = ([down, across], [h, w]) => Math.floor(down * h) * w + Math.floor(across * w);
const centreOf = (patch, grid) => rowColumn(patch, grid).map((place, axis) => (place + 0.5) / grid[axis]);
function place(node, patch, grid) {
  const [h, w] = grid, [row, column] = rowColumn(patch, grid), style = `top:${(100 * row) / h}%;left:${(100 * column) / w}%;`;
  const size = node.classList.contains("mark") ? `width:calc(${100 / w}% + 4px);height:calc(${100 / h}% + 4px)` : `width:${100 / w}%;height:${100 / h}%`;
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
    const { meta } = this, many = meta.models.length > 1 || meta.images.length > 1;
    const set = (name) => (event) => this.set({ [name]: Number(event.target.value) });
    this.thumbs = meta.images.map((name, image) => make("button", { type: "button", title: name, onclick: () => this.pick(image) },
      make("img", { src: meta.pictures[meta.maps[image][0].picture].url, alt: `image ${name}` })));
    this.left = make("select", { onchange: set("left") });
    this.right = make("select", { onchange: () => this.beside(this.right.value) });
    this.compare = make("button", {
      type: "button",
      onclick: () => {
        const { image, left, right, other } = this.current();
        if (right >= 0 || other >= 0) this.beside("none");
        else if (meta.models.length > 1) this.beside(`model ${(left + 1) % meta.models.length}`);
        else this.beside(`image ${(image + 1) % meta.images.length}`);
      },
    }, "Compare");
    const head = make("div", { class: "row head", hidden: !many && meta.images.length < 2 },
      make("div", { class: "thumbs", role: "group", "aria-label": "Image", hidden: meta.images.length < 2 }, ...this.thumbs),
      make("span", { class: "spread" }),
      make("label", { hidden: meta.models.length < 2 }, "Model", this.left),
      make("label", { hidden: !many }, "beside", this.right),
      many ? this.compare : "");

    this.panels = [new Panel(this), new Panel(this)];
    this.ticks = make("div", { class: "gradient" });
    this.barNote = make("p", { class: "readout" });
    this.bar = make("div", { class: "bar", "aria-hidden": "true" },
      make("div", { class: "title" }, this.barName = make("span", {}, "cosine")), this.ticks, this.barNote);
    this.layer = this.slider("layer", "Layer");
    this.step = this.slider("step", "Training step");
    this.plot = make("div", { class: "plot" });
    this.words = make("p", { class: "words", id: this.id("words"), "aria-live": "polite" });
    this.note = make("p", { class: "small" });

    this.show = make("select", { onchange: () => this.set({ show: this.show.value }) });
    const scale = make("select", {
      onchange: (event) => {
        this.scale = SCALES[event.target.value];
        this.draw();
      },
    });
    this.scaleLabel = make("label", {}, "Colours", scale);
    setOptions(scale, Object.entries(SCALES).map(([key, { label, low, high }]) => [key, `${label}, ${fixed(low).replace(".00", "")} to ${high}`]), "sequential");
    this.opacity = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.7, style: "width:6rem", oninput: () => this.paint() });
    this.smooth = make("input", { type: "checkbox", onchange: () => this.paint() });
    const options = make("div", { class: "row options" },
      make("label", {}, "Map", this.show), this.scaleLabel, make("label", {}, "Opacity", this.opacity), make("label", {}, this.smooth, "smooth"),
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
    let other = Math.min(model.get("other") ?? -1, meta.images.length - 1);
    if (other === image || (other >= 0 && !this.tokens[image][left].comparable(this.tokens[other][left]))) other = -1;
    const right = other >= 0 ? -1 : Math.min(model.get("right"), meta.models.length - 1);
    const first = meta.maps[image][left], asked = other >= 0 && model.get("asked") ? 1 : 0;
    const grid = asked ? meta.maps[other][left].grid : first.grid, count = grid[0] * grid[1];
    let patch = model.get("patch");
    if (!(patch >= 0 && patch < count)) patch = Math.floor(grid[0] / 2) * grid[1] + Math.floor(grid[1] / 2);
    const layer = clamp(model.get("layer"), first.layers.length), step = nearest(first.steps, model.get("step"));
    let show = Object.hasOwn(SHOW, model.get("show")) ? model.get("show") : "similarity";
    const pairs = [[image, left], ...(other >= 0 ? [[other, left]] : right >= 0 ? [[image, right]] : [])];
    if (show === "length" && !pairs.every(([i, m]) => meta.maps[i][m].lengths)) show = "similarity";
    const panels = pairs.map(([where, index], side) => {
      const map = meta.maps[where][index], same = map.layers.indexOf(first.layers[layer]);
      const here = {
        tokens: this.tokens[where][index], map, grid: map.grid, picture: meta.pictures[map.picture], show,
        image: meta.images[where], model: meta.models[index].name, found: other >= 0 && side !== asked,
        colour: (other < 0 && meta.models[index].colour) || COLOURS[(other < 0 ? index : side) % COLOURS.length],
        layer: same >= 0 ? same : Math.min(layer, map.layers.length - 1), step: nearest(map.steps, first.steps[step]),
        patch: other < 0 && side ? patchAt(centreOf(patch, first.grid), map.grid) : patch, place: [where, index],
      };
      here.name = other < 0 ? here.model : here.image;
      here.where = [...(other >= 0 && meta.models.length > 1 ? [here.model] : []), map.layers[here.layer], ...(map.steps.length > 1 ? [`step ${map.steps[here.step]}`] : [])].join(", ");
      return here;
    });
    const source = panels[asked];
    for (const here of panels) here.from = other < 0 ? [here.tokens, [here.step, here.layer]] : [source.tokens, [source.step, source.layer]];
    return { image, left, right, other, asked, grid, first, patch, layer, step, show, panels };
  }

  /* An image by its thumbnail: the two images change places if it is the second one. */
  pick(image) {
    const now = this.current();
    this.set(now.other === image ? { image, other: now.image, asked: 1 - now.asked } : { image });
  }

  /* What stands beside the picture: "none", "model 1" or "image 2". */
  beside(value) {
    const [kind, index] = value.split(" "), now = this.current();
    const back = now.asked ? { asked: 0, patch: -1 } : {};
    this.set({ right: kind === "model" ? Number(index) : -1, other: kind === "image" ? Number(index) : -1, ...back });
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

  /* A patch by its place in a panel. */
  choose(place, panel) {
    const { other, grid, panels } = this.current();
    if (other < 0) return this.set({ patch: patchAt(place, grid) });
    const asked = this.panels.indexOf(panel);
    return this.set({ asked, patch: patchAt(place, panels[asked].grid) });
  }

  /* Where the pointer is; two models see one image, so both panels follow it, and of two images the one it is in. */
  point(place, panel) {
    this.pointer = place && { place, panel };
    this.readAll();
  }

  readAll() {
    const two = this.now?.other >= 0;
    for (const panel of this.panels) panel.read(this.pointer && (!two || this.pointer.panel === panel) ? this.pointer.place : null, this.scale);
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
    const inside = event.target.closest(".picture"), { first, grid, patch, layer } = this.current();
    if (event.altKey || event.ctrlKey || event.metaKey || (!inside && !"[]".includes(event.key))) return;
    const [h, w] = grid, row = Math.floor(patch / w), column = patch % w;
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
    for (const shown of now.panels) {
      shown.similarity = shown.tokens.similarity(shown.step, shown.layer, shown.patch, ...shown.from);
      shown.summary = summary(shown.similarity, shown.found ? -1 : shown.patch);
      if (shown.found) shown.patch = shown.similarity.indexOf(Math.max(...shown.similarity));
      if (now.show === "length") this.measure(shown);
    }
    this.paintPanels(now);
    now.panels.forEach((shown, side) => this.panels[side].draw(shown));
    if (now.panels.length < 2) this.panels[1].draw(now.panels[0], { plain: true });
    this.root.dataset.drawMs = (performance.now() - begun).toFixed(3);
    this.paint();
    this.readAll();
    this.controls();
    const selection = this.selection(now);
    this.root.dataset.state = JSON.stringify(selection);
    this.set({ selection });
    this.later();
  }

  /* Lengths of the tokens of a panel, and a word about artifacts. */
  measure(shown) {
    const [share, cut] = shown.map.lengths.artifacts[shown.step][shown.layer];
    shown.length = shown.tokens.length(shown.step, shown.layer);
    shown.artifacts = share > 0 ? `artifacts: ${(100 * share).toFixed(1)}\u00a0% of the tokens, longer than ${short(cut)}` : "no artifacts: the lengths have one mode";
  }

  /* Three bytes for each patch of each panel. */
  paintPanels(now) {
    const { panels, show } = now;
    if (show.endsWith("colours")) {
      for (const shown of panels) shown.rgb = this.components(shown, show === "shared colours");
      return;
    }
    this.lengths = show === "length" ? this.lengthScale(panels) : null;
    for (const shown of panels) {
      const values = show === "length" ? shown.length.map(Math.log) : shown.similarity, scale = this.lengths ?? this.scale;
      shown.rgb = new Uint8ClampedArray(3 * values.length);
      values.forEach((value, i) => {
        const c = 3 * colourIndex(scale, value);
        for (let d = 0; d < 3; d++) shown.rgb[3 * i + d] = scale.table[c + d];
      });
    }
  }

  /* One scale of logarithms for the lengths in all panels. */
  lengthScale(panels) {
    const all = panels.flatMap(({ length }) => [...length]), low = Math.log(Math.min(...all)), high = Math.log(Math.max(...all));
    return { ...SCALES.sequential, low, high: Math.max(high, low + 1e-6) };
  }

  /* Principal components as colours, of one image or of all that share its directions; kept until the page is closed. */
  components(shown, shared) {
    const { step, layer, place: [image, index] } = shown, basis = shown.map.bases?.[step][layer];
    const key = JSON.stringify([shared, image, index, step, layer]);
    this.colours ??= new Map();
    if (!this.colours.has(key)) {
      const places = this.meta.maps.map((row, i) => [i, nearest(row[index].steps, shown.map.steps[step])])
        .filter(([i, at]) => (shared ? basis !== undefined && this.meta.maps[i][index].bases?.[at][layer] === basis : i === image));
      if (!places.length) places.push([image, step]);
      const made = componentColours(places.map(([i, at]) => this.tokens[i][index].slab(i === image ? step : at, layer)));
      places.forEach(([i, at], n) => this.colours.set(JSON.stringify([shared, i, index, i === image ? step : at, layer]), made[n]));
    }
    return this.colours.get(key);
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
    const images = meta.images.map((name, i) => [i, name]).filter(([i]) => i !== now.image && this.tokens[now.image][now.left].comparable(this.tokens[i][now.left]));
    setOptions(this.right, [["none", "none"], ...named.slice(0, named.length > 1 ? undefined : 0).map(([i, name]) => [`model ${i}`, name]),
      ...images.map(([i, name]) => [`image ${i}`, `image ${name}`])], now.other >= 0 ? `image ${now.other}` : now.right >= 0 ? `model ${now.right}` : "none");
    const apart = named.length < 2 && !images.length; // kept by an earlier version: each image in directions of its own
    this.compare.disabled = this.right.disabled = apart;
    this.compare.title = apart ? "these tokens were kept one image at a time; keep them again to compare images" : "";
    this.compare.setAttribute("aria-pressed", now.right >= 0 || now.other >= 0);
    setOptions(this.show, Object.entries(SHOW).filter(([name]) => name !== "length" || now.panels.every(({ map }) => map.lengths)), now.show);
    this.scaleLabel.hidden = now.show !== "similarity";
    this.thumbs.forEach((button, i) => button.setAttribute("aria-pressed", i === now.image));
    const what = { similarity: "similarity of patches", length: "length of tokens" }[now.show] ?? "principal components of the tokens as colours";
    for (const { picture, plain, shown } of this.panels) {
      picture.setAttribute("aria-label", `Image ${shown.image}${plain ? "" : `, ${what} in ${shown.model}`}. Arrow keys choose a patch.`);
    }
    this.drawBar();
    const told = (now.other < 0 ? now.panels : now.panels.slice(0, 1)).map(({ map, model, layer, step }) => `${now.right < 0 ? "" : `${model}: `}largest error against `
      + `full precision ${map.error.toFixed(map.error < 0.001 ? 4 : 3)}; tokens projected to ${map.widths[step][layer]} of ${map.dim} dimensions, int8`);
    setText(this.note, `${told.join(". ")}.`.replace(/^l/, "L"));
  }

  drawBar() {
    const scale = this.lengths ?? this.scale, key = `${this.now.show} ${scale.label} ${scale.low} ${scale.high}`;
    if (this.barKey === key) return;
    this.barKey = key;
    this.bar.style.visibility = this.now.show.endsWith("colours") ? "hidden" : "";
    const stops = Array.from({ length: 33 }, (_, i) => css(scale, Math.round((i / 32) * 255)));
    this.ticks.style.background = `linear-gradient(to top, ${stops.join(", ")})`;
    this.ticks.replaceChildren(...Array.from({ length: 6 }, (_, i) => make("span", { style: `top:${100 - 20 * i}%` }, this.tick(i))));
    setText(this.barName, this.lengths ? "length" : "cosine");
    setText(this.barNote, scale.label.split(" ")[0]);
  }

  /* One of the six marks of the colour bar, 0 the lowest. */
  tick(i) {
    if (!this.lengths) return tick(this.scale, i);
    const { low, high } = this.lengths;
    return short(Math.exp(low + ((high - low) * i) / 5));
  }

  /* Draws a number of each layer: the mean similarity of the chosen patch to all others, or the share of artifacts. */
  drawPlot() {
    if (!this.plot.clientWidth) { // it has no size yet: hidden, or the theme is changing
      this.frame = requestAnimationFrame(() => this.drawPlot());
      return;
    }
    this.matchControls();
    const { now } = this, width = Math.max(200, this.plot.clientWidth), height = PLOT_HEIGHT;
    const names = now.first.layers, artifacts = now.show === "length", pad = { left: 34, right: 46, top: 22, bottom: 22 };
    const value = ({ tokens, map, step, patch, from: [source, [at, depth]], found, layer: here }, j) => {
      if (artifacts) return map.lengths.artifacts[step][j][0];
      if (!found) return tokens.mean(step, j, patch);
      return tokens.mean(step, j, now.patch, source, [at, depth + j - here]);
    };
    const lines = now.panels.map((panel) => names.map((name, i) => [i, panel.map.layers.indexOf(name)]).filter(([, j]) => j >= 0)
      .map(([i, j]) => [i, value(panel, j)]));
    const low = artifacts ? 0 : this.scale.low;
    const high = artifacts ? Math.max(0.05, ...lines.flatMap((line) => line.map(([, share]) => share))) : 1;
    const written = (number) => (artifacts ? `${(100 * number).toFixed(number && number < 0.1 ? 1 : 0)}%` : fixed(number));
    const x = (i) => pad.left + (names.length > 1 ? i / (names.length - 1) : 0.5) * (width - pad.left - pad.right);
    const y = (number) => pad.top + (1 - (Math.max(low, number) - low) / (high - low)) * (height - pad.top - pad.bottom);
    const what = artifacts ? "share of artifact tokens" : now.other < 0 ? "mean cosine of this patch to all others" : "mean cosine of this patch to all of each image";
    const parts = [svg("text", { x: 0, y: 10 }, `${what}, by layer`)];
    for (const number of [low, (high + low) / 2, high]) {
      parts.push(svg("line", { class: "grid", x1: pad.left, x2: width - pad.right, y1: y(number), y2: y(number) }),
        svg("text", { x: pad.left - 6, y: y(number) + 4, "text-anchor": "end" }, artifacts ? written(number) : String(number).replace("-", "\u2212")));
    }
    parts.push(svg("line", { class: "now", x1: x(now.layer), x2: x(now.layer), y1: pad.top, y2: height - pad.bottom }));
    const every = Math.ceil((names.length * 26) / width), short = (name) => name.replace(/^block /, "").replace("final ", "");
    names.forEach((name, i) => {
      const edge = i === names.length - 1;
      if (i % every === 0 || edge) parts.push(svg("text", { x: x(i), y: height - 6, "text-anchor": "middle", class: i === now.layer ? "now" : null }, short(name)));
    });
    const labels = [];
    lines.forEach((points, side) => { // layers of both models are matched by name; the axis has those of the left model
      const { colour } = now.panels[side];
      parts.push(svg("polyline", { fill: "none", stroke: colour, "stroke-width": 2, points: points.map(([i, number]) => `${x(i)},${y(number)}`).join(" ") }));
      for (const [i, number] of points) {
        parts.push(svg("circle", { cx: x(i), cy: y(number), r: i === now.layer ? 5 : 2.6, fill: colour }));
        if (i === now.layer) labels.push({ number, colour, at: y(number) + 4 });
      }
    });
    labels.sort((a, b) => a.at - b.at);
    if (labels.length > 1 && labels[1].at - labels[0].at < 13) {
      const middle = Math.min(Math.max((labels[0].at + labels[1].at) / 2, pad.top + 8), height - pad.bottom - 6);
      [labels[0].at, labels[1].at] = [middle - 6.5, middle + 6.5];
    }
    for (const { number, at } of labels) parts.push(svg("text", { class: "now", x: x(now.layer) + 9, y: at }, written(number)));
    const span = names.length > 1 ? x(1) - x(0) : 40;
    names.forEach((name, i) => parts.push(svg("rect", {
      class: "hit", x: x(i) - span / 2, y: pad.top - 8, width: span, height: height - pad.top + 8, onclick: () => this.go("layer", i),
    }, svg("title", {}, name))));
    const told = now.panels.map(({ name, summary: { mean }, map, step, layer }) => `${name} ${artifacts ? written(map.lengths.artifacts[step][layer][0]) : fixed(mean)}`).join(", ");
    const viewBox = `0 0 ${width} ${height}`;  // a page of paper is narrower, and this is not drawn anew for it
    this.plot.replaceChildren(svg("svg", { viewBox, role: "img", "aria-label": `${artifacts ? "Share of artifact tokens" : "Mean similarity"} by layer; at ${names[now.layer]}: ${told}` }, ...parts));
  }

  /* Describes the picture in words, for readers who cannot see it; the words stand under it for everybody. */
  say() {
    const { now } = this, [h, w] = now.grid, asked = now.panels[now.asked];
    const where = `Image ${asked.image}, patch in row ${Math.floor(now.patch / w) + 1} of ${h}, column ${(now.patch % w) + 1} of ${w}.`;
    const seen = now.panels.map(({ name, where: place, summary: told, similarity, grid, patch, found, artifacts }) => {
      if (now.show === "length") return `${name}, ${place}: ${artifacts}.`;
      const region = mostAlike(similarity, grid, found ? -1 : patch), [row, column] = rowColumn(patch, grid);
      const best = found ? `, most alike row ${row + 1}, column ${column + 1} (${fixed(similarity[patch])})` : "";
      return `${name}, ${place}: mean similarity ${fixed(told.mean)} (${fixed(told.minimum)} to ${fixed(told.maximum)}), `
        + `above 0.8 for ${percent(told.above)} of the ${found ? "" : "other "}patches${best || (region ? `, most alike ${region.name} (${fixed(region.mean)})` : "")}.`;
    });
    const shown = now.show.endsWith("colours") ? [`Colours: the first three principal components of the directions of the tokens, of ${now.show === "colours" ? "each image" : "all images"}.`] : [];
    setText(this.words, [where, ...shown, ...seen].join(" "));
  }

  /* --- to keep --- */

  selection({ image, first, grid, patch, layer, step, panels, right, other, asked, show } = this.current()) {
    const range = ({ summary: { minimum, mean, maximum } }) => ({ minimum: rounded(minimum), mean: rounded(mean), maximum: rounded(maximum) });
    return {
      image: this.meta.images[image], patch, row: Math.floor(patch / grid[1]), column: patch % grid[1],
      layer: first.layers[layer], step: first.steps[step], left: panels[0].model, right: right < 0 ? null : panels[1].model,
      other: this.meta.images[other] ?? null, asked, show,
      similarity: { left: range(panels[0]), right: panels[1] ? range(panels[1]) : null },
    };
  }

  fileName(end) {
    const { image, row, column, layer, step, left, right, other } = this.selection(this.now);
    return `tokens ${[left, right].filter(Boolean).join(" ")} ${[image, other].filter(Boolean).join(" ")} r${row} c${column} ${layer} step ${step}.${end}`.replace(/[^\w.-]+/g, "_");
  }

  saveSelection() {
    const selection = this.selection(this.now);
    this.set({ selection });
    download(this.fileName("json"), new Blob([JSON.stringify(selection, null, 1)], { type: "application/json" }));
  }

  /* Saves panels, colour bar and caption on white, for a slide. */
  async savePicture() {
    const { now, panels } = this, scale = this.lengths ?? this.scale, side = 640, gap = 28, top = 64, bar = 110, font = "system-ui, sans-serif";
    await Promise.all(panels.map(({ image }) => image.decode()));
    this.say();
    const range = now.show === "similarity" ? `Colours: ${scale.label}, ${scale.low} to ${scale.high}${scale.low < 0 ? "" : ", negative values as 0"}.` : "";
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
      pen.fillText(plain ? shown.image : `${shown.name}, ${shown.where}`, plain ? x : x + 28, 41, side - 28);
      pen.filter = panels[i].picture.classList.contains("grey") ? "grayscale(1)" : "none";
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
    for (let i = 0; i < 256 && !now.show.endsWith("colours"); i++) {
      pen.fillStyle = css(scale, i);
      pen.fillRect(x, top + (tall * (255 - i)) / 256, 24, tall / 256 + 1);
    }
    pen.fillStyle = "#1c2126";
    pen.font = `18px ${font}`;
    if (!now.show.endsWith("colours")) {
      pen.fillText(this.lengths ? "length" : "cosine", x, 41);
      for (let i = 0; i <= 5; i++) pen.fillText(this.tick(i), x + 32, top + tall * (1 - i / 5) + 6);
    }
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
    image: 0, patch: -1, layer: first.layers.length - 1, step: first.steps.at(-1), left: 0, right: -1, other: -1, asked: 0, show: "similarity", selection: {},
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
