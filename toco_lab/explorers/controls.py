"""Keys that belong to a widget: they must not reach JupyterLab's shortcuts."""

import anywidget


class KeepsKeys(anywidget.AnyWidget):
    """Shows nothing; as a child of a box it keeps JupyterLab's keys (b: a new cell) away from the controls in there.

    Keys with Ctrl, Alt or Meta stay JupyterLab's: Ctrl+S saves the notebook.
    """

    # From the focused element upwards JupyterLab looks for a shortcut's selector or this attribute: the first it finds
    # counts. The selector of `b` fits the focused element itself, so the attribute must be there, not on the box.
    # JupyterLab listens at the document, before anything inside it; only the window is earlier.
    _esm = """
        export default {
            render({ el }) {
                const mark = ({ target, ctrlKey, altKey, metaKey }) => {
                    if (el.parentElement?.contains(target))
                        target.toggleAttribute("data-lm-suppress-shortcuts", !(ctrlKey || altKey || metaKey));
                };
                window.addEventListener("keydown", mark, true);
                return () => window.removeEventListener("keydown", mark, true);
            },
        };
    """
