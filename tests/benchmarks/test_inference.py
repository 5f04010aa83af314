"""Benchmark of inference: which passes it counts, and what its floor encodes."""

import pytest
from helpers.benchmarks import tables, with_settings

from benchmarks import inference, run
from toco_lab.config import Config

SMOKE = Config.preset("smoke")


SETTING = inference.Setting(
    SMOKE.replace(cam_scales=(1.0, 0.5, 1.5), eval_cam_size=64, eval_seg_scales=(1.0, 1.5)), (48, 64), 2
)


def test_passes():
    assert inference.passes_of(SETTING, "cam_refined") == [(64, 64), (32, 32), (96, 96)]
    assert inference.passes_of(SETTING, "seg") == [(48, 64), (72, 96)]
    assert len(inference.passes_of(SETTING, inference.EVERYTHING)) == 5
    toy = inference.SETTINGS["toy"]  # CAM and segmentation read the same image: one pass is enough for both
    assert inference.passes_of(toy, inference.EVERYTHING) == [(96, 96), (48, 48)]


@pytest.mark.parametrize("name", [inference.MULTI_SCALE_CAM, inference.ALL_CLASSES, "cam_refined", "seg"])
def test_floor_encodes_the_same_tokens(name, monkeypatch):
    seen, models = [], []
    model_of = inference.ToCo
    monkeypatch.setattr(inference, "ToCo", lambda cfg: models.append(model_of(cfg)) or models[-1])
    calls = inference.make_calls(SETTING)
    models[0].encoder.norm.register_forward_hook(lambda _, __, tokens: seen.append(len(tokens) * tokens.shape[1]))
    sums = []
    for call in (name, inference.floor_name(inference.passes_of(SETTING, name))):
        seen.clear()
        calls[call]()
        sums.append(sum(seen))
    tokens = [side[0] * side[1] // 64 + 1 for side in inference.passes_of(SETTING, name)]
    assert sums == [2 * SETTING.batch * sum(tokens)] * 2


def test_memory_compares_with_the_fewer_images(monkeypatch):
    monkeypatch.setattr(inference, "in_a_fresh_process", lambda _, count: 100.0 + count)
    table = inference.measure_memory(10)
    assert table["images"].tolist() == [10, 40] and table["to_fewer"].tolist() == pytest.approx([1, 140 / 110])


def test_inference(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, inference, {"first": SETTING, "smoke": SETTING, "memory": 16})
    monkeypatch.setattr(inference, "in_a_fresh_process", lambda _, count: 100.0 + count)
    run.main(["inference/smoke", "inference/memory", "--repeats", "1", "--out", str(tmp_path)])
    run.main(["inference/first", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "inference")
    assert table["setting"].unique().tolist() == ["first", "smoke", "memory"]
    times = table[table["setting"] == "first"]
    assert times["what"].tolist() == [
        inference.MULTI_SCALE_CAM, inference.ALL_CLASSES, "cam", "cam_aux", "cam_refined", "seg", inference.EVERYTHING
    ]  # fmt: skip
    assert times["images_per_second"].to_numpy() == pytest.approx(2 / times["seconds"].to_numpy(), rel=0.05)
    assert (times["to_floor"] > 0).all()
    assert "| 64 images | 164 | 1.414 |" in text and text in capsys.readouterr().out
