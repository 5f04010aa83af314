/* Panels cut out of one PNG, in as many columns as fit; headings and legend are text of the page.

Traits: `value` (the PNG), `panels` and `legend` (see panel_picture.py).
*/

const COLUMN = 200; // narrowest panel, in pixels, while there is room for more than two beside each other
const MOST = 4; // columns

const STYLE = `
.toco-panels{container-type:inline-size;font:13px/1.4 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit)}
.toco-panels .grid{display:grid;gap:.6rem .7rem;align-items:end;justify-content:start}
.toco-panels figure{margin:0;min-width:0}
.toco-panels figcaption{overflow-wrap:anywhere}
.toco-panels figcaption b,.toco-panels figcaption span,.toco-panels figcaption small{display:block}
.toco-panels small{font-size:11.5px;color:var(--jp-ui-font-color2,inherit);min-height:1.4em}
.toco-panels canvas{display:block;max-width:100%}
.toco-panels .legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;margin-top:.5rem}
.toco-panels .legend span{display:inline-flex;align-items:center;gap:.4rem}
`;

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) if (value !== null && value !== false) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/* Columns of the grid, and for each panel its column and row, both from 1. Where all views of a run fit beside each
other, every run has a row of its own; where they do not, the runs stand beside each other, a view below the other. */
export function arrange(panels, width) {
  const runs = Math.max(...panels.map(({ run }) => run)) + 1, views = Math.max(...panels.map(({ view }) => view)) + 1;
  const fitting = Math.max(2, Math.min(MOST, Math.floor(width / COLUMN)));
  if (runs === 1 || views <= fitting) {
    const columns = Math.min(views, fitting), lines = Math.ceil(views / columns);
    return { columns, places: panels.map(({ run, view }) => [1 + (view % columns), 1 + run * lines + Math.floor(view / columns)]) };
  }
  const groups = Math.max(1, Math.floor(fitting / runs)), columns = Math.max(groups * runs, 2); // views beside each other
  const own = [...new Set(panels.filter(({ shared }) => !shared).map(({ view }) => view))];
  const shared = panels.filter((panel) => panel.shared), below = Math.ceil(own.length / groups);
  return {
    columns,
    places: panels.map((panel) => {
      const index = panel.shared ? shared.indexOf(panel) : own.indexOf(panel.view);
      if (panel.shared) return [1 + (index % columns), 1 + below + Math.floor(index / columns)];
      return [1 + (index % groups) * runs + panel.run, 1 + Math.floor(index / groups)];
    }),
  };
}

function render({ model, el }) {
  const image = make("img", { hidden: "", alt: "" });
  const grid = make("div", { class: "grid" }), legend = make("div", { class: "legend", role: "group", "aria-label": "Legend" });
  const root = make("div", { class: "toco-panels", role: "group", "aria-label": "Panels" }, make("style", {}, STYLE), image, grid, legend);
  el.append(root);
  let shown = [], turn = 0;

  function cut([x, y, width, height], words) {
    const canvas = make("canvas", { width, height, ...(words ? { role: "img", "aria-label": words } : { "aria-hidden": "true" }) });
    canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height);
    return canvas;
  }

  function place() {
    if (!shown.length) return;
    const { columns, places } = arrange(shown, root.clientWidth || 1200);
    const widest = Math.max(190, ...shown.map(({ box }) => (box ? box[2] : 0)));
    grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${widest}px))`;
    [...grid.children].forEach((node, i) => {
      [node.style.gridColumn, node.style.gridRow] = places[i];
    });
    root.dataset.columns = columns;
  }

  async function draw() {
    const mine = ++turn, value = model.get("value"), panels = model.get("panels"), entries = model.get("legend");
    if (!value?.byteLength) return;
    const url = URL.createObjectURL(new Blob([value], { type: "image/png" })), before = image.src;
    image.src = url;
    try {
      await image.decode();
    } catch { // replaced by a later picture
    }
    if (before) URL.revokeObjectURL(before);
    if (mine !== turn) return;
    shown = panels;
    grid.replaceChildren(...panels.map((panel) => make("figure", {},
      make("figcaption", {}, ...(panel.heading ? [make("b", {}, panel.heading)] : []), make("span", {}, panel.title), make("small", {}, panel.note),
        ...(panel.details ? [make("small", {}, panel.details)] : [])),
      ...(panel.box ? [cut(panel.box, panel.words)] : []))));
    legend.replaceChildren(...entries.map(({ name, box }) => make("span", {}, cut(box), name)));
    place();
  }

  let waiting = false; // the three traits come together, and one drawing will do
  const later = () => {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => {
      waiting = false;
      draw();
    });
  };
  const names = ["change:value", "change:panels", "change:legend"];
  for (const name of names) model.on(name, later);
  const watch = new ResizeObserver(place);
  watch.observe(root);
  draw();
  return () => {
    turn++;
    watch.disconnect();
    for (const name of names) model.off(name, later);
    URL.revokeObjectURL(image.src);
    root.remove();
  };
}

export default { render };
