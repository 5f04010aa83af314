"""What travels in the wheel beside the code; everything else is in pyproject.toml.

Notebooks, toy weights and studies lie once, in folders of the project. A wheel gets a copy of them inside the package,
as `toco_lab/_data`, and an sdist gets them where they lie. `toco_lab.files.project_root` finds either.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

TRAVELS = (
    "notebooks/*.ipynb", "data/README.md", "data/toy/*.safetensors", "results/studies/*/*.*", "docs/smoke.yaml",
)  # fmt: skip


class BuildWithData(build_py):
    """`build_py` with the files of `TRAVELS`; an editable installation takes them from where they lie."""

    def run(self) -> None:
        """Copy the modules, then the files."""
        super().run()
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "toco_lab", "_data"), ignore_errors=True)  # of an earlier build
            for target, source in self._travelling().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """What the sdist needs."""
        return [*super().get_source_files(), *self._travelling().values()]

    def get_output_mapping(self) -> dict[str, str]:
        """Files of the build -> their sources."""
        return super().get_output_mapping() | ({} if self.editable_mode else self._travelling())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Files of the build."""
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._travelling())]

    def _travelling(self) -> dict[str, str]:
        """Files of the build -> their sources, relative to the project.

        Raises:
            FileNotFoundError: If nothing fits one of the patterns: the wheel would lack what its commands need.
        """
        found = {pattern: sorted(path for path in Path().glob(pattern) if path.is_file()) for pattern in TRAVELS}
        if missing := [pattern for pattern, paths in found.items() if not paths]:
            raise FileNotFoundError(f"no {missing[0]} to put into the package; build it from a whole checkout or sdist")
        data = Path(self.build_lib, "toco_lab", "_data")
        return {str(data / path): path.as_posix() for paths in found.values() for path in paths}


setup(cmdclass={"build_py": BuildWithData})
