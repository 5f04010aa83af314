"""README, docs and CONTRIBUTING: the Python in them runs, and every command, file, page and name in them exists."""

import contextlib
import functools
import io
import json
import re
from itertools import takewhile
from pathlib import Path

import pytest
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.data.toy import make_scene
from toco_lab.runs.run_dir import RunDir

ROOT = Path(__file__).resolve().parents[1]
PROSE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMED = [path for path in PROSE if path.name != "CHANGELOG.md"]  # a changelog may name what is gone
BUILT = ("notebooks/", "generated/", "api/")  # pages of docs/ that `make docs` makes
GROUPS = {("data", "prepare"): 3, ("data",): 2, ("runs",): 2, ("train",): 2}  # how many words name a command
OF_EVERY_COMMAND = ("--help-all", "--quiet", "--debug")
OURS = r"(?:toco_lab|tests|docs|notebooks|benchmarks|grids|data/toy)/(?!_build)[a-z\d_./-]+"


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```", path.read_text(encoding="utf-8"))


def targets() -> set[str]:
    return set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))


def test_the_ten_lines_of_the_readme_run(smoke_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a run of the smoke preset and an image file, in an empty folder; both leave what they say."""
    of_a_run, of_any_model = python_blocks(ROOT / "README.md")
    lines = [line for line in of_a_run.splitlines() if line]
    assert len(lines) == 10
    Image.fromarray(make_scene(1, 0, size=120).image).save(tmp_path / "photo.png")
    (tmp_path / "results" / "demo").mkdir(parents=True)
    (tmp_path / "results" / "demo" / "toco").symlink_to(smoke_run.path.resolve())
    monkeypatch.chdir(tmp_path)

    names: dict = {}
    exec(compile(of_a_run, "README.md", "exec"), names)
    assert Image.open("cam.png").size[0] > 100
    assert tuple(names["session"].score("cam").shape) == (120, 120)
    depth = smoke_run.config().depth
    assert names["curve"]["layer"].tolist() == [*range(1, depth + 1), depth]  # the blocks, then the final norm
    assert names["curve"]["value"].between(0, 1).all()

    exec(compile(of_any_model, "README.md", "exec"), names)
    assert set(names["frame"]["model"]) == {"ViT-Ti"} and names["frame"]["layer"].max() == 12
    assert "Plotly.newPlot" in Path("smoothing.html").read_text()


@pytest.mark.parametrize("path", NAMED, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_documents_is_python_and_names_what_exists(path: Path) -> None:
    import toco_lab as tl

    for block in python_blocks(path):
        compile(block, str(path), "exec")
    for dotted in re.findall(r"\btl\.([\w.]+\w)", path.read_text(encoding="utf-8")):
        found = tl
        for name in dotted.split("."):
            found = getattr(found, name)


@pytest.mark.parametrize("path", NAMED, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not link.startswith(("http://", "https://")) and not link.startswith(BUILT):
            assert (path.parent / link).is_file(), f"{path.name} links to {link}"
    for page in re.findall(r"\]\(notebooks/(\w+)\.ipynb\)", text):
        assert (ROOT / "notebooks" / f"{page}.ipynb").is_file(), f"{path.name} links to the notebook {page}"
    for file in re.findall(rf"`({OURS})`", text):
        assert (ROOT / file).exists(), f"{path.name} names {file}"
    for module in re.findall(r"\{py:mod\}`([\w.]+)`|python -m (toco_lab\.[\w.]+\w)", text):
        name = "".join(module).replace(".", "/")
        assert (ROOT / f"{name}.py").is_file() or (ROOT / name / "__init__.py").is_file(), f"{path.name} names {name}"


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """What `COMMAND --help` prints; an unknown command fails."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as left:
        main([*command, "--help-all"])
    usage = " ".join(printed.getvalue().partition("[-h]")[0].replace("-", "_").split())
    known = left.value.code in (0, None) and usage.endswith(f"toco_lab {' '.join(command).replace('-', '_')}")
    assert known, f"there is no command {' '.join(command)}"
    return printed.getvalue()


def command_of(words: list[str]) -> tuple[str, ...]:
    """The words of a command line that name the command: `data prepare voc`, `train toy`, `evaluate`."""
    deep = next((count for group, count in GROUPS.items() if words[: len(group)] == list(group)), 1)
    return tuple(takewhile(lambda word: re.fullmatch(r"[a-z][\w-]*", word), words[:deep]))


@pytest.mark.parametrize("path", [*NAMED, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_commands_that_exist(path: Path) -> None:
    """Targets of make; commands of the package with their options; scripts, tests, grids."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    assert set(re.findall(r"(?m)(?:^|`)make (\w+)", text)) <= targets()
    for line in re.findall(r"(?:-m toco_lab|toco-lab) ([a-z][^`\n#]*)", text):
        command = command_of(line.split())
        shown = help_of(command) + (help_of(("train", "folder")) if command == ("train",) else "")  # --config FILE
        for option in re.findall(r" (--[a-z][\w-]*)", line):
            known = option in OF_EVERY_COMMAND or re.search(rf"{option}\b", shown)
            assert known, f"{path.name}: {line} has no option {option}"
    for file in re.findall(r"(?:python|pytest|-m toco_lab (?:sweep|run)) ([a-z\d_/]+\.(?:py|ipynb|yaml))", text):
        assert (ROOT / file).is_file(), f"{path.name} names {file}"


def test_the_table_of_wrong_input_names_tests_that_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", (ROOT / "docs/bad_input.md").read_text())
    absent = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert len(named) > 40 and not absent


def test_there_is_something_to_check() -> None:
    """The patterns above find what they look for."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in NAMED)
    assert len(re.findall(r"-m toco_lab ([a-z][^`\n#]*)", text)) > 40
    with pytest.raises(AssertionError, match="no command trian toy"):
        help_of(("trian", "toy"))
    assert command_of("data prepare voc data/VOC2012".split()) == ("data", "prepare", "voc")
    assert command_of("evaluate results/RUN".split()) == ("evaluate",)
    assert len(re.findall(rf"`({OURS})`", text)) > 10
    assert {"demo", "test", "check", "lab", "notebooks", "strip", "studies", "docs", "clean"} <= targets()
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140
