"""Kernels for papermill that do not import torch anew: forked ones, as far as they are of this very Python."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

from toco_lab.sweeps.forked import CAN_FORK, ForkedProcess

_LAUNCHER = [sys.executable, "-m", "ipykernel_launcher"]


class _WarmProvisioner(LocalProvisioner):
    """Starts local kernels; those of this Python are forked."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        if not CAN_FORK or cmd[:3] != _LAUNCHER:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or Path.cwd()
        kernel = ForkedProcess("kernel", cmd[3:], env=kwargs["env"], cwd=Path(self.cwd))
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
