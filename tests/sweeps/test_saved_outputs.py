"""What an executed notebook shows without its kernel: the token explorer and every Plotly figure, in below 5 MB."""

import json
import re
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from helpers.browser import running_browser
from helpers.finished_runs import make_run
from helpers.notebooks import MOST_BYTES
from helpers.token_records import make_maps
from nbconvert import HTMLExporter

from toco_lab.figures.saved import PACKED, PLOTLY, figure_html
from toco_lab.sweeps.notebooks import execute_notebook
from toco_lab.sweeps.saved_outputs import WIDGET, make_readable
from toco_lab.tokens.token_maps import save_token_maps

FIGURE = go.Figure(go.Scatter(y=[1, 3, 2], name="</script>"))
STATE = "application/vnd.jupyter.widget-state+json"


def notebook_of(*outputs: dict) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data)]) for data in outputs]
    return nbformat.v4.new_notebook(cells=cells)


# --- outputs, without a kernel ----------------------------------------------------------------------------------------


def test_figures_get_html_and_plotly_is_written_once() -> None:
    figure = json.loads(FIGURE.to_json())
    notebook = notebook_of({PLOTLY: figure}, {"text/plain": "x"}, {PLOTLY: figure})
    make_readable(notebook)
    make_readable(notebook)  # changes nothing more
    shown = [cell.outputs[0].data.get("text/html", "") for cell in notebook.cells]
    assert [PACKED in html for html in shown] == [True, False, False] and shown[1] == ""
    assert len(json.dumps(notebook)) < 2_100_000, "plotly.js itself has 4.8 MB"
    assert shown[2].count("</script>") == 2, "no name of a trace ends an element"


def test_what_plotly_writes_in_front_of_its_figures_goes() -> None:
    script = "<script>window.PlotlyConfig = {}; " + 1_000_000 * "x" + "</script>"
    notebook = notebook_of({"text/html": script}, {PLOTLY: {"data": []}}, {"text/html": "<b>kept</b>"})
    make_readable(notebook)
    assert [len(cell.outputs) for cell in notebook.cells] == [0, 1, 1]


def test_a_widget_without_an_offline_form_stays() -> None:
    notebook = notebook_of({WIDGET: {"model_id": "a"}, "text/plain": "VBox"})
    notebook.metadata["widgets"] = {STATE: {"state": {"a": {"state": {}}}}}
    make_readable(notebook)
    assert WIDGET in notebook.cells[0].outputs[0].data and "a" in notebook.metadata["widgets"][STATE]["state"]


def test_the_address_of_plotly_is_that_of_plotly() -> None:
    from plotly.offline import get_plotlyjs_version

    assert f"{get_plotlyjs_version()}.min.js" in figure_html({"data": []}, with_script=False)


# --- executed, and exported -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook with two figures and the explorer of a run with twice as many tokens as a saved notebook keeps."""
    folder = tmp_path_factory.mktemp("executed")
    run = make_run(folder, name="toco")
    for image in range(2):
        maps = make_maps("toco", f"image {image}", range(0, 300, 5), grid=(24, 24), seed=image)
        save_token_maps(run.token_maps_path(image, 0), maps)
    code = [
        f"preset: str = 'toy'\noverrides: dict = {{}}\nrun_dir: str = {str(run.path)!r}",
        "import toco_lab as tl\ntl.enter_notebook()\nrun = tl.RunDir(run_dir)",
        "tl.figures.training_curves(run.metrics())",
        "tl.figures.training_curves(run.metrics(), columns=['lr'])",
        "tl.TokenExplorer(tl.maps_of_run(run), patch=(1, 2), layer='block 3')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in code])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "source.ipynb")
    return execute_notebook(folder / "source.ipynb", folder / "executed.ipynb", {}, progress=False)


@pytest.mark.slow
def test_an_executed_notebook_is_small_and_needs_no_kernel(executed: Path) -> None:
    notebook = nbformat.read(executed, as_version=4)
    assert executed.stat().st_size < MOST_BYTES
    data = [output.data for cell in notebook.cells for output in cell.outputs if "data" in output]
    figures = [one for one in data if PLOTLY in one]
    assert len(figures) == 2 and all("text/html" in one for one in figures), (
        "both forms: JupyterLab and VS Code, export"
    )
    (explorer,) = [one for one in data if "TokenExplorer" in one.get("text/plain", "")]
    assert WIDGET not in explorer, "VS Code and nbconvert would show it, and nothing in it"
    assert "holds 28 of 60 training steps" in explorer["text/html"] and "widgets" not in notebook.metadata


@pytest.mark.slow
@pytest.mark.browser
def test_its_html_export_draws_all_of_it_without_a_network(executed: Path, tmp_path: Path) -> None:
    page_file = tmp_path / "exported.html"
    page_file.write_text(HTMLExporter().from_filename(str(executed))[0], encoding="utf-8")
    with running_browser() as browser:
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_file.as_uri(), wait_until="domcontentloaded")
        page.set_default_timeout(20_000)
        explorer = page.locator(".toco-token-explorer")
        explorer.wait_for()
        state = json.loads(explorer.get_attribute("data-state"))
        assert (state["row"], state["column"], state["layer"]) == (1, 2, "block 3"), "as it was shown"
        assert explorer.locator(".picture canvas").first.evaluate("c => c.width * c.height") == 24 * 24
        page.locator(".plotly-graph-div .main-svg").nth(1).wait_for()
        assert page.locator(".plotly-graph-div:has(.main-svg)").count() == 2
        assert not page.locator(".plotly-graph-div [data-title*='hare chart']").count()
        context.close()
    assert not [error for error in errors if not re.search("require|MathJax|jupyter", error, re.I)]
