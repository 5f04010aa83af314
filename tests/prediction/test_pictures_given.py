"""Files, folders and patterns: which images they mean, and how their outputs are called."""

from pathlib import Path

import pytest

from toco_lab.prediction.pictures_given import image_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.jpg",
        "a.png",
        "b.JPG",
        "notes.txt",
        ".hidden.png",
        "in/c.tif",
        "in/deep/a.webp",
        "out/masks/a.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(*given: object, **options: object) -> list[str]:
    return [file.name for file in image_files([str(one) for one in given], **options)]


def test_a_folder_means_its_images_and_those_below(tree):
    assert names(tree, outside=tree / "out") == ["a.jpg", "a.png", "b", "in/c", "in/deep/a"]
    assert "out/masks/a" in names(tree)


def test_files_and_patterns(tree, monkeypatch):
    assert names(tree / "a.jpg") == ["a"]
    assert names(tree / "notes.txt") == ["notes"]  # named by itself a file is taken: its bytes say what it is
    assert names(tree / "*.jpg", tree / "a.jpg", tree / "in") == ["a", "in/c", "in/deep/a"]
    assert names(tree / "in" / "**" / "*") == ["c", "deep/a"]
    monkeypatch.chdir(tree)
    assert [str(file.path) for file in image_files(["b.JPG", "in"])] == ["b.JPG", "in/c.tif", "in/deep/a.webp"]


@pytest.mark.parametrize("given", ["nothing.png", "*.gif", "in/deep/nothing", "out"])
def test_what_means_no_image_is_named(tree, given):
    with pytest.raises(FileNotFoundError, match=r"no image at .*: give a file, a folder of images"):
        image_files([tree / given], outside=tree / "out")
