"""What the widgets of this room share: a line for messages, quiet changes of controls, keys that stay inside."""

import html
from collections.abc import Iterator
from contextlib import contextmanager

import anywidget
import ipywidgets as widgets


class KeyboardGuard(anywidget.AnyWidget):
    """Shows nothing; as a child of a box it keeps JupyterLab's shortcuts (b: a new cell) away from the box's controls.

    Keys with Ctrl, Alt or Meta stay JupyterLab's: Ctrl+S saves the notebook. It also says to screen readers what
    ipywidgets leaves out: the name of a slider, and whether a toggle button is pressed.
    """

    # JupyterLab walks upwards from the focused element and stops at the first element that either matches the selector
    # of a shortcut or has this attribute. The selector of `b` matches the focused element itself, so the attribute must
    # be on that element, not on the box. JupyterLab listens at the document; only a listener of the window runs before.
    _esm = """
        export default {
            render({ el }) {
                const mark = ({ target, ctrlKey, altKey, metaKey }) => {
                    if (el.parentElement?.contains(target))
                        target.toggleAttribute("data-lm-suppress-shortcuts", !(ctrlKey || altKey || metaKey));
                };
                const say = () => {
                    const box = el.parentElement;
                    for (const slider of box?.querySelectorAll(".widget-slider") ?? []) {
                        const name = slider.querySelector(".widget-label")?.textContent ?? "";
                        slider.querySelector("[role=slider]")?.setAttribute("aria-label", name);
                    }
                    for (const toggle of box?.querySelectorAll(".widget-toggle-button") ?? [])
                        toggle.setAttribute("aria-pressed", toggle.classList.contains("mod-active"));
                };
                const watch = new MutationObserver(say);
                // a notebook attaches an element after it has rendered it
                const begin = setTimeout(() => {
                    say();
                    if (el.parentElement)
                        watch.observe(el.parentElement, { subtree: true, childList: true, attributeFilter: ["class"] });
                }, 0);
                window.addEventListener("keydown", mark, true);
                return () => {
                    clearTimeout(begin);
                    watch.disconnect();
                    window.removeEventListener("keydown", mark, true);
                };
            },
        };
    """


class ControlBox(widgets.VBox):
    """A column of controls with a line for messages.

    Attributes:
        message: What went wrong and what to do about it, or what a control did on its own.
    """

    def __init__(self) -> None:
        """Makes the message line; a subclass makes the other controls and calls `_arrange`."""
        super().__init__()
        self.message = widgets.HTML(layout={"min_height": "28px"})  # what is below stays in place when a line appears
        self._quiet = False  # True: controls are being changed by code, and nothing reacts

    def _arrange(self, *rows: widgets.Widget) -> None:
        self.children = [*rows, KeyboardGuard()]

    def _say(self, text: str, *, problem: bool = False) -> None:
        colour = "var(--jp-error-color1, #B00020)" if problem else "inherit"
        self.message.value = f'<div role="status" style="color: {colour}">{html.escape(text)}</div>' if text else ""

    @contextmanager
    def _saying_errors(self, what: str) -> Iterator[None]:
        """Shows an exception as a message: raised in a callback it would vanish."""
        try:
            yield
        except Exception as error:
            self._say(f"{what} failed: {error}", problem=True)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Controls change inside without a reaction."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


def wrapped_row(*controls: widgets.Widget) -> widgets.HBox:
    """Controls side by side, on several lines where the notebook is narrow."""
    return widgets.HBox(controls, layout={"flex_flow": "row wrap"})


def wide(pixels: int) -> dict[str, dict[str, str]]:
    """Arguments of a control that is `pixels` wide and shows its whole description."""
    return {"layout": {"width": f"{pixels}px"}, "style": {"description_width": "initial"}}


def button(name: str, icon: str, tooltip: str, **options: str) -> widgets.Button:
    """A button with an icon (its Font Awesome name); a tooltip says what it does."""
    return widgets.Button(description=name, icon=icon, tooltip=tooltip, **options)
