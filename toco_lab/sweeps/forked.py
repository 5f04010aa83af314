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


class ServerError(OSError):
    """The process that starts others has died, and with it what it has started."""


class _Server:
    """A process of `fork_server`."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._lock, self._asked = threading.Lock(), 0
        self._source = _newest_source()
        self._process = subprocess.Popen(
            [sys.executable, fork_server.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=env,
            start_new_session=True,  # Ctrl-C is for this process, which then stops what it has started
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """The reply to a request.

        Raises:
            ServerError: If the server has died.
            OSError: If it cannot do what it is asked.
        """
        assert self._process.stdin is not None
        with self._lock:
            self._asked += 1
            try:
                self._process.stdin.write(json.dumps({"id": self._asked, **request}) + "\n")
                self._process.stdin.flush()
                reply = self._reply()
                while reply and reply["id"] != self._asked:  # it is that of a question that Ctrl-C interrupted
                    reply = self._reply()
            except BrokenPipeError:
                reply = None
            except BaseException:
                if "start" in request:  # what it starts now would be nobody's
                    self._process.kill()
                raise
        if reply is None:
            raise ServerError(f"the process that starts others ended with exit code {self._process.wait()}")
        if "error" in reply:
            raise OSError(reply["error"])
        return reply

    def _reply(self) -> Any:
        """The next one; None if there will be no more."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or "null")

    def is_usable(self) -> bool:
        """Whether it can be asked, and has imported the package as it is now."""
        return self._process.poll() is None and self._source == _newest_source()


def _newest_source() -> float:
    """When a file of this package was changed last."""
    return max(path.stat().st_mtime for path in Path(fork_server.__file__).parents[1].rglob("*.py"))


# One for each set of variables that libraries read when they are imported: a child could not change them any more.
_servers: dict[frozenset[tuple[str, str]], _Server] = {}
_READ_BY_IMPORTS = ("OMP_", "MKL_", "OPENBLAS_", "CUDA_", "TORCH", "PYTORCH_", "HF_", "TIMM_", "PYTHON")


def _server_for(env: Mapping[str, str]) -> _Server:
    """The server for children of this environment, started if there is none, or none that is alive and up to date.

    One that is replaced ends with the last of its children that anyone holds.
    """
    key = frozenset((name, value) for name, value in env.items() if name.startswith(_READ_BY_IMPORTS))
    if key not in _servers or not _servers[key].is_usable():
        _servers[key] = _Server(env)
    return _servers[key]


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
            OSError: If the system does not start it; ServerError if the server has died, which is worth another try.
        """
        self._server = _server_for(env)
        start = {"what": what, "argv": [*argv], "env": {**env}, "cwd": str(cwd), "output": output and str(output)}
        self.pid: int = self._server.ask(start=start)["pid"]

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        try:
            return self._server.ask(poll=self.pid)["code"]
        except ServerError:
            return -signal.SIGKILL

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, as soon as it has one; subprocess.TimeoutExpired if it has none after these seconds."""
        began = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - began >= timeout:
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
