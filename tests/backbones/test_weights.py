"""Weights files: where they are looked for, what they may hold, and what is said of others."""

import pytest
import timm
import torch
from torch import nn

from toco_lab.backbones.weights import CheckpointError, find_weights, load_backbone_weights, read_weights
from toco_lab.commands.app import main
from toco_lab.config import Config
from toco_lab.files import project_root
from toco_lab.method.model import ToCo
from toco_lab.training.released import export_released, import_released


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


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, num_classes=0).eval()


def changed(state: dict, name: str, value: object) -> dict:
    return {**state, name: value}


NORM = "norm.weight"
REFUSED = {
    "a tensor": (lambda state: torch.zeros(3), "no dict of tensors by name but an object of type Tensor"),
    "numbered": (lambda state: {0: torch.zeros(1)}, "no dict of tensors by name: 0 is no name"),
    "lists": (lambda state: changed(state, NORM, [1.0]), r"tensors by name: norm.weight \(list\)"),
    "nested": (lambda state: {"ema": dict(state)}, r"tensors by name: ema \(dict\)"),
    "empty": (lambda state: {}, "holds no weights"),
    "NaN": (lambda state: changed(state, NORM, state[NORM] * torch.nan), "NaN or infinite, in norm.weight"),
    "sparse": (
        lambda state: changed(state, NORM, state[NORM].to_sparse()),
        "norm.weight is sparse",
    ),
    "complex": (lambda state: changed(state, NORM, state[NORM] + 0j), "norm.weight is complex"),
    "meta": (lambda state: changed(state, NORM, state[NORM].to("meta")), "norm.weight is without values"),
    "integers": (lambda state: changed(state, NORM, state[NORM].int()), r"whole numbers .*, in norm.weight \(int32\)"),
    "shape": (lambda state: changed(state, NORM, torch.ones(7)), "size mismatch for norm.weight"),
    "missing": (
        lambda state: dict(list(state.items())[5:]),
        r"missing \(5\): cls_token, .* and 2 more; une",
    ),
    "more": (
        lambda state: state | {f"extra.{i}": torch.ones(1) for i in range(5)},
        r"missing \(0\): none; unexpected \(5\): extra.0, extra.1, extra.2 and 2 more",
    ),
    "a module": (
        lambda state: nn.Linear(2, 2),
        r"values \(torch.nn.modules.linear.Linear\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_weights_that_do_not_fit_are_refused_by_name_in_one_line(encoder, tmp_path, case):
    content, words = REFUSED[case]
    path = tmp_path / "mine.pt"
    torch.save(content(encoder.state_dict()), path)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_backbone_weights(encoder, path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


def test_an_encoder_of_fewer_blocks_takes_the_first_ones_where_that_is_asked_for(encoder, tmp_path):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    count, path = len(encoder.blocks), tmp_path / "deep.pt"
    further = {f"blocks.{count}.{name}": value + 1 for name, value in encoder.blocks[0].state_dict().items()}
    torch.save(before | further, path)
    with pytest.raises(CheckpointError, match=rf"unexpected \(\d+\): blocks.{count}.norm1"):
        load_backbone_weights(encoder, path)
    for weight in encoder.parameters():
        weight.data.zero_()
    load_backbone_weights(encoder, path, first_blocks=True)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated or not a weights file"),
        (b"<html>404</html>", "damaged or not a weights file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path, content, words, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words if suffix == ".pt" else "mine.safetensors") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "teacher.backbone.", "module.encoder."])
def test_prefixes_of_training_code_are_taken_off(encoder, tmp_path, prefix):
    path = tmp_path / "mine.pt"
    state = {f"{prefix}{name}": value + 1 for name, value in encoder.state_dict().items()}
    torch.save({"state_dict": state | ({"classifier.weight": torch.ones(1)} if prefix else {}), "epoch": 3}, path)
    other = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, num_classes=0)
    load_backbone_weights(other, path)
    assert torch.equal(other.norm.weight, encoder.norm.weight + 1)


def test_weights_that_do_not_fit_leave_no_run_behind(tmp_path, capsys):
    torch.save({"norm.weight": torch.ones(3)}, tmp_path / "mine.pt")
    command = ["train", "smoke", "--pretrained", "--root", str(tmp_path / "runs")]
    assert main([*command, "--weights", str(tmp_path / "mine.pt")]) == 2
    assert "mine.pt does not fit this backbone" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_released_checkpoint_of_another_number_of_classes_is_named(tmp_path):
    cfg = Config.preset("smoke")
    torch.save(export_released(ToCo(cfg)), tmp_path / "toco.pth")
    with pytest.raises(
        CheckpointError, match=r"toco.pth is of a model of 6 classes, the config has num_classes=4"
    ) as caught:
        import_released(ToCo(cfg.replace(num_classes=4)), tmp_path / "toco.pth")
    assert "\n" not in str(caught.value)
