"""What an executed notebook shows when nobody runs it: widgets and figures in forms that need no kernel."""

from nbformat import NotebookNode

from toco_lab.explorers.saved_explorer import SAVED
from toco_lab.figures.saved import PACKED, PLOTLY, figure_html

WIDGET = "application/vnd.jupyter.widget-view+json"
_STATE = "application/vnd.jupyter.widget-state+json"
_WHOLE_PLOTLY = 1_000_000  # characters of an output that is nothing but plotly.js


def make_readable(notebook: NotebookNode) -> None:
    """Change the outputs of an executed notebook in place.

    - A token explorer keeps its offline form and loses the widget, whose kernel is gone: JupyterLab, VS Code, Colab
      and nbconvert would all prefer it, and show nothing.
    - A Plotly figure that has plotly's MIME type alone gets HTML as well, which an export shows; plotly.js stands
      compressed in the first one.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    for output in outputs:
        if WIDGET in output.data and SAVED in _html(output):
            _forget(notebook, output.data.pop(WIDGET)["model_id"])
    packed = any(PACKED in _html(output) for output in outputs)
    for output in outputs:
        if PLOTLY in output.data and "text/html" not in output.data:
            output.data["text/html"] = figure_html(output.data[PLOTLY], with_script=not packed)
            packed = True
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_plotly_alone(output)]


def _html(output: NotebookNode) -> str:
    return output.get("data", {}).get("text/html", "")


def _is_plotly_alone(output: NotebookNode) -> bool:
    """Whether an output is what plotly's renderer "notebook" writes in front of the first figure: five megabytes."""
    html = _html(output)
    return (
        len(html) > _WHOLE_PLOTLY and PLOTLY not in output.data and PACKED not in html and "window.PlotlyConfig" in html
    )


def _forget(notebook: NotebookNode, model: str) -> None:
    """Take the state of a widget, tokens and all, out of the notebook's file."""
    states = notebook.metadata.get("widgets", {}).get(_STATE, {}).get("state", {})
    state = states.pop(model, None)
    if state:
        states.pop(str(state["state"].get("layout", "")).removeprefix("IPY_MODEL_"), None)
    if not states:
        notebook.metadata.pop("widgets", None)
