"""Weights files: where they are looked for."""

import pytest

from toco_lab.backbones.weights import CheckpointError, find_weights
from toco_lab.files import project_root


def test_a_file_of_the_project_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "data/toy/vit_toy.safetensors"
    assert find_weights(name) == project_root() / name
    (tmp_path / "data" / "toy").mkdir(parents=True)
    (tmp_path / name).touch()
    assert find_weights(name).resolve() == tmp_path / name  # the current folder comes first


def test_an_absent_file_is_named_with_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights file no/such\.pth \(looked for .*no/such\.pth as well\)"):
        find_weights("no/such.pth")
