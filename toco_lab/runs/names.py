"""Names that a run's folder may have below the folder of all runs."""

from pathlib import Path


def check_run_name(name: str | None) -> None:
    """Refuse a name that would put a run somewhere else than below its root, or into the root itself.

    Args:
        name: Folder name, or several with `/` between; None stands for the name that the config gives.

    Raises:
        ValueError: For no name, `..`, or an absolute path.
    """
    if name is None:
        return
    path = Path(name)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"name {name!r} names no folder below the root: give one like 'my_run', or leave it out")
