"""A process that has imported what notebooks need, and forks a Jupyter kernel of itself when it is asked to.

torch and timm take five to ten seconds to import, in every notebook that is executed anew. This process imports them
once and does nothing else: no tensor is made, no thread is started and no GPU is touched before a fork, so that a child
is as a fresh process that has done the same imports. `warm_kernels` talks to it: a line of JSON in, a line out.

    {"argv": [...], "env": {...}, "cwd": "..."}   ->  {"pid": n}
    {"poll": n}                                   ->  {"code": its exit code, as in subprocess; null while it runs}

It ends when its standard input does, so with the process that started it; its kernels watch it and end as well.
"""

import contextlib
import importlib
import json
import os
import sys
from typing import IO, Any

PRELOADED = ("torch", "timm", "pandas", "ipykernel.kernelapp", "toco_lab.experiment")


def serve(requests: IO[str], replies: IO[str]) -> dict[str, Any] | None:
    """Answer requests until there are no more.

    Returns:
        None at the end; in a forked child, what was asked for.
    """
    children: dict[int, int | None] = {}
    for line in requests:
        request = json.loads(line)
        if "poll" in request:
            reply: dict[str, Any] = {"code": _exit_code(request["poll"], children)}
        else:
            child = os.fork()
            if child == 0:
                return request
            children[child] = None
            reply = {"pid": child}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return None


def _exit_code(child: int, children: dict[int, int | None]) -> int | None:
    """Exit code of a child, negative for a signal; None while it runs. One that ended is remembered."""
    if children[child] is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        children[child] = os.waitstatus_to_exitcode(status) if pid else None
    return children[child]


def _run_kernel(argv: list[str], env: dict[str, str], cwd: str) -> None:
    """What `python -m ipykernel_launcher` does with these arguments, in this process, as the leader of a session."""
    os.setsid()  # a signal for the kernel reaches what it has started, and not the server
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["ipykernel_launcher", *argv, f"--IPKernelApp.parent_handle={os.getppid()}"]  # ends with the server
    import numpy as np
    import torch
    from ipykernel.kernelapp import launch_new_instance

    np.random.seed()  # noqa: NPY002 - both were seeded by the imports, and would be alike in all kernels
    torch.default_generator.seed()
    launch_new_instance()


def main() -> None:
    """`python -P kernel_server.py`: requests on standard input, replies on what was standard output."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # imports and kernels that print do not disturb the replies
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # the notebook will say what it misses
            importlib.import_module(name)
    request = serve(sys.stdin, replies)
    if request is None:
        return
    replies.close()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _run_kernel(**request)


if __name__ == "__main__":
    main()
