"""A JupyterLab of this machine, with a token, driven as a person would."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 180_000  # milliseconds until a notebook has run, on a busy machine


SETTINGS = {  # all cells stay in the page, whatever is in view; no question about news
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


RUN_ALL = """async () => {
    const app = window.jupyterapp;
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.context.sessionContext.ready;
    app.commands.execute("notebook:run-all-cells");
}"""


IN_KERNEL = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
    const future = kernel.requestExecute({ code });
    let text = "";
    future.onIOPub = (message) => { text += message.content.text ?? message.content.evalue ?? ""; };
    await future.done;
    return text;
}"""


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """A JupyterLab on this machine only, with a token and settings of its own; gives the address of a notebook."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, values in SETTINGS.items():
        file = folder / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    token = secrets.token_hex(16)
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True, "IdentityProvider.token": token, "LabApp.expose_app_in_browser": True,
        "LabApp.user_settings_dir": folder / "settings", "LabApp.workspaces_dir": folder / "workspaces",
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", *(f"--{k}={v}" for k, v in options.items())]
    private = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "RUNTIME")}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=os.environ | private)
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert server.poll() is None, (folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5)
                break
            except OSError:
                pass
        # a workspace for each notebook: otherwise the one before is opened again and may get the focus
        yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}"
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def executed(lab: tuple, name: str) -> Iterator:
    """The page of a notebook that runs all its cells."""
    browser, address, folder = lab
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PATIENCE)
    try:
        page.goto(address.format(name))
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.context?.sessionContext")
        page.evaluate(RUN_ALL)
        yield page
        page.screenshot(path=folder / f"{name}.png")
        errors = page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Traceback")
        assert errors.count() == 0
    finally:
        page.close()


def until(page, read: Callable[[], object], wanted: object) -> None:
    """Ask again until the value is there."""
    deadline = time.monotonic() + PATIENCE / 1000
    while (found := read()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"
        page.wait_for_timeout(100)
