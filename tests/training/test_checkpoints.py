"""Weights in and out: damaged files, foreign files, the authors' names, pretrained backbones offline."""

import pickle

import pytest
import safetensors.torch
import torch

from toco_lab.backbones.weights import CheckpointError, read_weights
from toco_lab.config import Config
from toco_lab.method.model import ToCo
from toco_lab.training.checkpoints import initial_model, load_checkpoint, save_checkpoint
from toco_lab.training.learner import Learner
from toco_lab.training.released import export_released, import_released

CFG = Config.preset("smoke")


def test_training_checkpoint_round_trip(tmp_path):
    model = ToCo(CFG)
    save_checkpoint(tmp_path / "step_00000003.pt", Learner.of(model, CFG).state(), 3, CFG)
    state = load_checkpoint(tmp_path / "step_00000003.pt")
    assert state["step"] == 3 and Config.from_json(state["config"]) == CFG
    for name, value in model.state_dict().items():
        assert torch.equal(state["model"][name], value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003.pt"]


def test_truncated_checkpoint_is_named_and_the_one_before_offered(tmp_path):
    model = ToCo(CFG)
    for step in (2, 4):
        save_checkpoint(tmp_path / f"step_0000000{step}.pt", Learner.of(model, CFG).state(), step, CFG)
    damaged = tmp_path / "step_00000004.pt"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(damaged)
    assert "step_00000004.pt" in str(error.value) and "step_00000002.pt" in str(error.value)
    assert (tmp_path / "step_00000002.pt").is_file()


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        read_weights(tmp_path / "evil.pt")
    torch.save({"model": Evil()}, tmp_path / "evil2.pt")
    (tmp_path / "ran").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="could run code"):
        read_weights(tmp_path / "evil2.pt")
    assert not (tmp_path / "ran").exists()


def test_missing_file_and_wrong_kind_of_file(tmp_path):
    with pytest.raises(CheckpointError, match="no weights file"):
        read_weights(tmp_path / "absent.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a training checkpoint: it has no config, model, optimizer, step"):
        load_checkpoint(tmp_path / "other.pt")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match=r"short\.safetensors is truncated"):
        read_weights(tmp_path / "short.safetensors")


def test_released_import_lists_missing_and_unexpected_names():
    source, target = ToCo(CFG), ToCo(CFG)
    state = {f"module.{name}": value for name, value in export_released(source).items()}
    state["module.encoder.head.weight"] = torch.ones(3, 24)
    del state["module.decoder.conv6.weight"]
    report = import_released(target, state)
    assert report.missing == ["decoder.conv6.weight"]
    assert report.unexpected == ["encoder.head.weight"]
    assert "decoder.conv6.weight" in str(report)
    assert torch.equal(target.teacher_head.directions, source.teacher_head.directions)
    exported = export_released(target, report.unused)
    assert set(exported) == {name.removeprefix("module.") for name in state} | {"decoder.conv6.weight"}


def test_released_import_refuses_other_sizes_and_other_models():
    with pytest.raises(CheckpointError, match="other sizes"):
        import_released(ToCo(CFG), export_released(ToCo(CFG.replace(decoder_width=8))))
    with pytest.raises(CheckpointError, match="no parameter of the checkpoint is known"):
        import_released(ToCo(CFG), {"layer1.weight": torch.zeros(1)})
    state = export_released(ToCo(CFG))
    state["proj_head.last_layer.weight_g"] *= 2
    with pytest.raises(CheckpointError, match="not all ones"):
        import_released(ToCo(CFG), state)


def test_backbone_weights_from_a_local_file_resample_the_position_grid(tmp_path):
    source = ToCo(CFG.replace(image_size=64, crop_size=64, view2_size=64)).encoder
    state = source.state_dict() | {"head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    safetensors.torch.save_file(state, tmp_path / "vit.safetensors")
    torch.save({"model": state}, tmp_path / "vit.pth")
    for name in ("vit.safetensors", "vit.pth"):
        model = initial_model(CFG.replace(pretrained=True, weights=str(tmp_path / name)))
        assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
        assert model.encoder.pos_embed.shape == (1, 1 + 12 * 12, 24)
    with pytest.raises(CheckpointError, match=r"vit\.pth does not fit this backbone"):
        initial_model(CFG.replace(pretrained=True, weights=str(tmp_path / "vit.pth"), depth=5))


def test_pretrained_without_a_network_names_the_model_and_the_remedy(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("timm.create_model", offline(CFG))
    with pytest.raises(CheckpointError) as error:
        initial_model(CFG.replace(pretrained=True))
    assert "vit_tiny_patch16_224" in str(error.value) and "weights=" in str(error.value)


def offline(cfg):
    """timm.create_model as it is without a network: random weights work, pretrained ones raise."""
    import timm

    real = timm.create_model

    def create(name, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network")
        return real(name, **kwargs)

    return create
