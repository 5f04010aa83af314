"""A process that has imported what runs and notebooks need, and forks workers and Jupyter kernels of itself.

torch and timm take five to ten seconds to import, in every run of a sweep and every notebook that is executed anew.
This process imports them once and does nothing else: no tensor is made, no thread is started and no GPU is touched
before a fork, so that a child is as a fresh process that has done the same imports. `forked` talks to it: a line of
JSON in, a line out, which repeats the `id`.

    {"id": i, "start": {"what": a name of PROGRAMS, "argv": [...], "env": {...}, "cwd": "...", "output": file or null}}
                             ->  {"id": i, "pid": n} or {"id": i, "error": what the system says}
    {"id": i, "poll": n}     ->  {"id": i, "code": its exit code, as in subprocess; null while it runs}

It ends when its standard input does, so with the process that started it; its children watch it and end as well.
"""

import contextlib
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

PRELOADED = (
    "torch", "timm", "pandas", "ipykernel.kernelapp", "toco_lab.experiment", "toco_lab.sweeps.worker",
    "toco_lab.sweeps.notebooks",
)  # fmt: skip


def serve(requests: IO[str], replies: IO[str]) -> dict[str, Any] | None:
    """Answer requests until there are no more.

    Returns:
        None at the end; in a forked child, what is to be started.
    """
    children: dict[int, int | None] = {}
    for line in requests:
        request = json.loads(line)
        reply: dict[str, Any] = {"id": request["id"]}
        if "poll" in request:
            reply["code"] = _exit_code(request["poll"], children)
        else:
            try:
                child = os.fork()
            except OSError as error:  # no memory, too many processes: those that run go on
                reply["error"] = str(error)
            else:
                if child == 0:
                    return request["start"]
                children[child] = None
                reply["pid"] = child
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    return None


def _exit_code(child: int, children: dict[int, int | None]) -> int | None:
    """Exit code of a child, negative for a signal; None while it runs. One that ended is remembered."""
    if children[child] is None:
        pid, status = os.waitpid(child, os.WNOHANG)
        children[child] = os.waitstatus_to_exitcode(status) if pid else None
    return children[child]


def _kernel(argv: list[str]) -> None:
    """What `python -m ipykernel_launcher` does with these arguments."""
    sys.argv = ["ipykernel_launcher", *argv, f"--IPKernelApp.parent_handle={os.getppid()}"]
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()


def _worker(argv: list[str]) -> None:
    """What `python -m toco_lab.sweeps.worker` does with these arguments."""
    from toco_lab.sweeps import worker

    sys.argv = [worker.__file__, *argv]
    sys.exit(worker.main())


PROGRAMS = {"kernel": _kernel, "worker": _worker}


def _become(what: str, argv: list[str], env: dict[str, str], cwd: str, output: str | None) -> None:
    """Run a program in this process, as the leader of a session: a signal for it reaches what it starts, no other."""
    os.setsid()
    if output:
        _open_as(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 1, 2)
    _open_as(os.devnull, os.O_RDONLY, 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002 - both were seeded by the imports, and would be alike in all children
    torch.default_generator.seed()
    PROGRAMS[what](argv)


def _open_as(path: str, flags: int, *numbers: int) -> None:
    """Open a file as these descriptors."""
    file = os.open(path, flags, 0o666)
    for number in numbers:
        os.dup2(file, number)
    os.close(file)


def _end_with(pipe: int) -> None:
    """End this process at once when the other end of the pipe is gone, even by kill -9."""
    os.read(pipe, 1)
    os._exit(1)


def _use_this_package() -> None:
    """Let children have this toco_lab, where another or none is installed: a folder of the source, used as it is."""
    here = Path(__file__).resolve().parents[1]
    found = importlib.util.find_spec("toco_lab")
    if found is None or not found.origin or Path(found.origin).resolve().parent != here:
        sys.path.insert(0, str(here.parent))


def main() -> None:
    """`python fork_server.py`: requests on standard input, replies on what was standard output."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the folder of this file; children have the current one there, as Python gives it to them
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # imports and children that print do not disturb the replies
    ends_with_server, held = os.pipe()  # nobody writes: it is at its end when the only process that could is gone
    _use_this_package()
    for name in PRELOADED:
        with contextlib.suppress(Exception):  # who needs it imports it again, and says why it cannot be had
            importlib.import_module(name)
    start = serve(sys.stdin, replies)
    if start is None:
        return
    replies.close()
    os.close(held)
    threading.Thread(target=_end_with, args=(ends_with_server,), daemon=True).start()
    _become(**start)


if __name__ == "__main__":
    main()
