"""The command `notebooks`: copies of this package's notebooks, to be opened, run and changed where one works."""

import shlex
from pathlib import Path

import tyro

from toco_lab.files import atomic_write, project_root
from toco_lab.words import counted

FIRST = "00_start_here.ipynb"


def notebooks(folder: tyro.conf.Positional[Path] = Path()) -> None:
    """Copy the notebooks here, into the folder `notebooks`, and say how to open them. No changed file is overwritten.

    Args:
        folder: Where that folder goes; the runs that the notebooks make go into its neighbour `results`.
    """
    source, target = project_root() / "notebooks", folder / "notebooks"
    if target.exists() and target.samefile(source):
        print(f"{target} is where the notebooks of this package lie: nothing to copy")
    else:
        copied, there = copy_notebooks(source, target)
        print(f"{target}: {counted(copied, 'notebook')} copied" + (f", {there} unchanged since" if there else ""))
    print("Open them on this machine only, by the address with a token that this prints:")
    print(f"  python -m jupyter lab --ServerApp.ip=127.0.0.1 {shlex.quote(str(target / FIRST))}")


def copy_notebooks(source: Path, target: Path) -> tuple[int, int]:
    """Copy the notebooks of a folder, or none of them.

    Returns:
        How many were copied, and how many were there already.

    Raises:
        ValueError: If a file of `target` has the name of a notebook and another content; all such files are named.
        OSError: If the system refuses.
    """
    contents = {target / path.name: path.read_bytes() for path in sorted(source.glob("*.ipynb"))}
    there = [path for path in contents if path.exists()]
    changed = [path.name for path in there if path.is_dir() or path.read_bytes() != contents[path]]
    if changed:
        raise ValueError(
            f"{target}: {', '.join(changed)} {'differs' if len(changed) == 1 else 'differ'} from what would be copied, "
            "so nothing was copied. Rename or delete what you do not need, or give another folder: notebooks FOLDER"
        )
    for path in contents.keys() - there:
        with atomic_write(path) as file:
            file.write(contents[path])
    return len(contents) - len(there), len(there)
