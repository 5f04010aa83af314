"""Processes that need not import torch anew: `fork_server` forks them. Only where forking is safe, on Linux."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from toco_lab.sweeps import fork_server

CAN_FORK = sys.platform == "linux"
_POLL_SECONDS = 0.05


class _Server:
    """A process of `fork_server`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", fork_server.__file__],  # the current folder hides no module
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env,
            start_new_session=True,  # Ctrl-C is for this process, which then stops what it has started
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """The reply to a request; OSError if the server has died, and its children with it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                reply = self._process.stdout.readline()
            except BaseException:  # Ctrl-C: what it starts now would be nobody's, and its reply the next one's
                self._process.kill()
                raise
        if not reply:
            raise OSError(f"the process that starts others ended with exit code {self._process.wait()}")
        return json.loads(reply)

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None


# One for each number of threads: the libraries read it when they are imported, a child could not change it.
_servers: dict[str | None, _Server] = {}


def _server_for(env: Mapping[str, str]) -> _Server:
    """The server for children of this environment, started if there is none or the last one died."""
    threads = env.get("OMP_NUM_THREADS")
    if threads not in _servers or not _servers[threads].is_alive():
        _servers[threads] = _Server(env)
    return _servers[threads]


class ForkedProcess:
    """A forked process, with the face of `subprocess.Popen` as far as it is needed."""

    stdin = stdout = stderr = None

    def __init__(
        self,
        what: Literal["kernel", "worker"],
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        output: Path | None = None,
    ) -> None:
        """Start it, in a session of its own. It ends when this process does, in whatever way.

        Args:
            what: A program of `fork_server.PROGRAMS`.
            argv: Its arguments.
            env: Its environment.
            cwd: Its current folder.
            output: File that what it prints is added to; None prints where this process prints errors.

        Raises:
            OSError: If the server cannot be started or has died.
        """
        self._server = _server_for(env)
        start = {"what": what, "argv": [*argv], "env": {**env}, "cwd": str(cwd), "output": output and str(output)}
        self.pid: int = self._server.ask(start=start)["pid"]

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        try:
            return self._server.ask(poll=self.pid)["code"]
        except OSError:
            return -signal.SIGKILL

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, as soon as it has one; subprocess.TimeoutExpired if it has none after these seconds."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(_POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)
