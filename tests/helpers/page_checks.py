"""What a reader needs of a page, asked of a browser: nothing cut, text to be read, names for figures and tables.

Each check returns what is wrong, as words; none is good.
"""

from typing import Any

_CUT = """() => {
  const wrong = [], page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) wrong.push(`page ${page.scrollWidth} > ${page.clientWidth}`);
  for (const part of document.querySelectorAll("main, main *")) {
    if (part.closest("svg") || part.clientWidth === 0 || getComputedStyle(part).display === "inline") continue;
    if (part.scrollWidth > part.clientWidth + 1)
      wrong.push(`${part.tagName} ${part.className} ${part.scrollWidth} > ${part.clientWidth}`);
  }
  for (const plot of document.querySelectorAll(".plotly-graph-div")) {
    const place = plot.getBoundingClientRect();
    for (const text of plot.querySelectorAll(".main-svg text")) {
      const box = text.getBoundingClientRect();
      if (box.width && (box.left < place.left - 1 || box.right > place.right + 1 || box.bottom > place.bottom + 1))
        wrong.push(`text "${text.textContent}" leaves its figure`);
    }
    const titles = [...plot.querySelectorAll(".annotation-text")].map((one) => [one, one.getBoundingClientRect()]);
    titles.forEach(([one, a], i) => titles.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        wrong.push(`"${one.textContent}" covers "${other.textContent}"`);
    }));
  }
  return wrong;
}"""

_PALE = """least => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (part) => {
    for (let one = part; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return getComputedStyle(document.documentElement).colorScheme.startsWith("dark") ? [0, 0, 0] : [255, 255, 255];
  };
  const wrong = new Set();
  for (const part of document.querySelectorAll("body *")) {
    const own = [...part.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !part.getClientRects().length) continue;
    if (part.closest("script, style, option, [disabled], .hoverlayer")) continue;
    const style = getComputedStyle(part);
    if (style.visibility === "hidden") continue;
    const ink = rgba(part.closest("svg") ? style.fill : style.color);
    const [a, b] = [ink, behind(part)].map((colour) => light(colour.slice(0, 3)));
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least) wrong.add(`${part.tagName} ${part.textContent.trim().slice(0, 30)}: ${contrast.toFixed(1)}`);
  }
  return [...wrong];
}"""

_NAMELESS = """() => {
  const wrong = [];
  const want = (selector, says, good) => {
    for (const part of document.querySelectorAll(selector))
      if (!good(part)) wrong.push(`${says}: ${part.outerHTML.slice(0, 80)}`);
  };
  want(".plotly-graph-div", "figure without role or label", (p) => p.getAttribute("role") === "img" && p.ariaLabel);
  want("figure.plot", "figure without label", (p) => p.ariaLabel);
  want("img", "picture without words", (p) => p.alt);
  want("table", "table without caption", (p) => p.caption?.textContent.trim());
  want("th", "heading without scope", (p) => ["row", "col"].includes(p.scope));
  want(".modebar-btn", "the keyboard stops at a tool bar", (p) => p.tabIndex < 0 && p.closest("[aria-hidden=true]"));
  want(".modebar-btn", "a button that uploads", (p) => !/cloud|share/i.test(p.dataset.title + p.ariaLabel));
  want("input, select, button", "a control without a name",
       (p) => p.labels?.length || p.ariaLabel || p.title || p.textContent.trim());
  return wrong;
}"""


def cut_parts(tab: Any) -> list[str]:
    """What is wider than its place, texts that leave their figure, and headings that cover each other."""
    return tab.evaluate(_CUT)


def pale_texts(tab: Any, least: float = 4.5) -> list[str]:
    """Texts whose contrast with what lies behind is below `least` (WCAG 2.2, 1.4.3)."""
    return tab.evaluate(_PALE, least)


def nameless_parts(tab: Any) -> list[str]:
    """Figures, pictures, tables and controls without what a screen reader says; stops of the keyboard at tool bars."""
    return tab.evaluate(_NAMELESS)
