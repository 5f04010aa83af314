"""Kernels for papermill that do not import torch anew: `kernel_server` forks them.

Only where forking is safe, on Linux, and only for kernels of this very Python; any other kernel starts as always.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from toco_lab.sweeps import kernel_server

_LAUNCHER = [sys.executable, "-m", "ipykernel_launcher"]


class _Server:
    """One server process; this process has one at a time, from its first kernel on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", kernel_server.__file__],  # the current folder hides no module, as in a kernel
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for papermill, which then stops its kernel
        )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """The reply to a request; OSError if the server has died, and its kernels with it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        if not reply:
            raise OSError(f"the process that starts kernels ended with exit code {self._process.wait()}")
        return json.loads(reply)

    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None


_started: list[_Server] = []  # the last one, if any


def _server() -> _Server:
    """The server, started if there is none or the last one died."""
    if not _started or not _started[0].is_alive():
        _started[:] = [_Server()]
    return _started[0]


class _ForkedKernel:
    """A forked kernel with the face of `subprocess.Popen`, as far as jupyter_client looks at it."""

    stdin = stdout = stderr = None

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self._server = _server()
        self.pid: int = self._server.ask(argv=argv, env=env, cwd=cwd)["pid"]

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        try:
            return self._server.ask(poll=self.pid)["code"]
        except OSError:
            return -signal.SIGKILL

    def wait(self) -> int:
        """Its exit code, as soon as it has one."""
        while (code := self.poll()) is None:
            time.sleep(0.05)
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


class _WarmProvisioner(LocalProvisioner):
    """Starts local kernels; those of this Python are forked."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        if sys.platform != "linux" or cmd[:3] != _LAUNCHER:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or Path.cwd()
        kernel = _ForkedKernel(cmd[3:], dict(kwargs["env"]), str(self.cwd))
        self.process = cast("subprocess.Popen[bytes]", kernel)
        self.pid = self.pgid = kernel.pid
        return self.connection_info


class WarmKernelManager(AsyncKernelManager):
    """What papermill starts kernels with (`kernel_manager_class`)."""

    async def _async_pre_start_kernel(self, **kw: Any) -> tuple[list[str], dict[str, Any]]:
        if self.provisioner is None:
            self.provisioner = _WarmProvisioner(
                kernel_id=self.kernel_id or "", kernel_spec=self.kernel_spec, parent=self
            )
        return await super()._async_pre_start_kernel(**kw)
