"""A run as an ONNX file: onnxruntime says what torch says, whatever number and size of images it gets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toco_lab.backbones.pixels import normalise
from toco_lab.backbones.weights import weights_hash
from toco_lab.commands.app import main
from toco_lab.data.toy import make_scene
from toco_lab.prediction import onnx as exporter
from toco_lab.prediction.onnx import OUTPUTS, Exported, compare_with_torch, export_onnx, toy_images
from toco_lab.prediction.recipe import why_no_decoder
from toco_lab.runs.run_dir import RunDir
from toco_lab.training.checkpoints import load_run_model


@pytest.fixture(scope="module")
def exported(smoke_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'toco_lab[onnx]'")
    return export_onnx(smoke_run, tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.mark.slow
def test_the_file_says_what_torch_says(exported: Exported, smoke_run: RunDir) -> None:
    import onnxruntime

    model, cfg = load_run_model(smoke_run)
    session = onnxruntime.InferenceSession(exported.path)
    for number, height, width in ((1, 96, 96), (3, 96, 64), (2, 83, 120)):  # 96 is the native size of its positions
        grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, 3, height, width))).float()
        with torch.no_grad():
            output = model(normalise(grey, model.mean, model.std))
        found = dict(zip(exported.outputs, session.run(None, {"image": grey.numpy()}), strict=True))
        expected = {
            "scores": output.logits.sigmoid(), "cam": output.cam, "cam_aux": output.cam_aux,
            "class_token": output.features.class_token, "patch_tokens": output.features.patch_tokens,
            "seg_logits": output.seg_logits,
        }  # fmt: skip
        assert list(found) == list(OUTPUTS) == list(expected)
        for name, value in expected.items():
            scale = float(value.abs().max())
            np.testing.assert_allclose(found[name], value.numpy(), rtol=0, atol=1e-5 * scale, err_msg=name)
        assert found["cam"].shape == (number, cfg.num_classes, height // 8, width // 8)


@pytest.mark.slow
def test_its_metadata_say_what_a_reader_needs(exported: Exported, smoke_run: RunDir) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.path)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["classes"])[0] == "striped disc" and json.loads(said["mean"]) == [0.485, 0.456, 0.406]
    assert said["patch_size"] == "8" and json.loads(said["config"])["preset_name"] == "smoke"
    assert said["checkpoint"] == weights_hash(smoke_run.checkpoints()[-1])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[1].shape == ["batch", 6, "row", "column"]
    assert exported.size is None and max(exported.differences.values()) < 1e-5
    assert "images of any size" in str(exported) and "checked with onnxruntime" in str(exported)


@pytest.mark.slow
def test_another_network_than_the_file_is_noticed(exported: Exported, smoke_run: RunDir) -> None:
    model, cfg = load_run_model(smoke_run)
    graph = exporter._Graph(model, segment=not why_no_decoder(cfg, cfg.steps)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(1.1)
    with pytest.raises(ValueError, match=r"differs from torch in .*cam by 9\.1e-02"):
        compare_with_torch(exported.path.read_bytes(), graph, [toy_images(1, 96)])


def test_what_cannot_be_exported_is_said_before_the_work(
    smoke_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(smoke_run.path), "--out", str(tmp_path / "model.pt")]) == 2
    assert "out must end in .onnx" in capsys.readouterr().err
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ValueError, match=r"needs the package onnxscript; .* pip install 'toco_lab\[onnx\]'"):
        export_onnx(smoke_run, tmp_path / "model.onnx")
    monkeypatch.setattr(exporter, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="size must be a multiple of 8, the side of a token of this run, got 100"):
        export_onnx(smoke_run, tmp_path / "model.onnx", size=100)
    assert not list(tmp_path.iterdir())


def test_without_onnxruntime_the_file_is_said_to_be_unchecked(
    smoke_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    assert compare_with_torch(b"", torch.nn.Identity(), []) == {}
    assert "not checked: onnxruntime is not installed" in str(Exported(Path("a.onnx"), ("cam",), 96, {}))


def test_the_decoder_is_exported_where_it_was_trained(smoke_run: RunDir) -> None:
    cfg = smoke_run.config()
    assert not why_no_decoder(cfg, cfg.steps)
    assert why_no_decoder(cfg.replace(w_seg=0.0), cfg.steps)
    assert why_no_decoder(cfg.replace(seg_start_step=cfg.steps), cfg.steps)


@pytest.mark.slow
def test_the_example_of_the_document_runs(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(exported.path, tmp_path / "model.onnx")
    Image.fromarray(make_scene(1, 0, size=120).image).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    names: dict = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "export.md", "exec"), names)
    written = Image.open(f"{names['classes'][names['best']]}.png")
    assert written.size == (120, 120) and names["cam"].shape == (1, 6, 15, 15)
