"""What a number may depend on besides the config: versions, device, code revision, command line, process."""

import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("toco_lab", "torch", "torchvision", "timm", "torchmetrics", "numpy", "pandas")


def environment(device: str = "auto") -> dict[str, Any]:
    """What a number may depend on besides the config: versions, device, code revision, command line."""
    return {
        "start": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": cores(),
        "device": _device_name(device),
        "git": git_revision(),
        "process": {"host": platform.node(), "pid": os.getpid()},
    }


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def version_of(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: str) -> str:
    """Name of the accelerator that `device` means, or of the processor."""
    import torch

    if torch.cuda.is_available() and device != "cpu":
        return torch.cuda.get_device_name(None if device == "auto" else device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def git_revision() -> dict[str, Any] | None:
    """Commit of this package and whether its folder has changes; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a copy may lie in another checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
