"""The benchmarks of a GPU, with the CPU in its place: every case runs, and is compared with the right one."""

import pytest
import torch

from benchmarks import gpu_inference, gpu_step, inference, metrics, run
from toco_lab.config import Config

SMOKE = Config.preset("smoke")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make gpu")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_steps_of_every_kind_on_a_device(device, monkeypatch):
    """The CPU stands in for the GPU: every case runs, on the device it is given, and is compared with the right one."""
    monkeypatch.setattr(gpu_step, "compile_blocks", lambda _: None)
    monkeypatch.setattr(gpu_step, "FED_STEPS", 2)
    cfg = SMOKE.replace(seg_start_step=0)
    table = gpu_step.measure_steps(cfg, torch.device(device), 1).set_index("case")
    assert tuple(table.index) == gpu_step.KINDS and (table["seconds"] > 0).all()
    assert table.loc[gpu_step.PLAIN, "plain_to"] == table.loc[gpu_step.FLOOR, "to_floor"] == 1
    plain, ours = (table["seconds"][case] for case in (gpu_step.PLAIN, gpu_step.BF16))
    assert table.loc[gpu_step.BF16, "plain_to"] == pytest.approx(plain / ours)
    assert 0 <= gpu_step.busy_share(cfg, torch.device(device)) <= 1.2
    about = {"device": "a card", "sizes": "small", "waits": "none", "busy": 0.934, "workers": 3, "largest": 64}
    text = "\n".join(gpu_step.section(table.reset_index().assign(**about)))
    assert "GPU busy with 3 loader processes: 93%. Largest batch that fits, doubling: 64" in text
    assert f"| {gpu_step.BF16} | " in text


def test_a_batch_is_repeated():
    batch = gpu_step.make_batch(SMOKE, gpu_step.ToCo(SMOKE))
    more = gpu_step.repeated(batch, 5)
    assert more.names == [batch.names[row] for row in (0, 1, 0, 1, 0)]
    assert torch.equal(more.view2, batch.view2[[0, 1, 0, 1, 0]])


def test_largest_batch_is_the_last_that_fits(monkeypatch):
    def make_step(case, cfg, device):
        def step():
            if cfg.batch_size > 20:
                raise torch.cuda.OutOfMemoryError

        return step

    monkeypatch.setattr(gpu_step, "make_step", make_step)
    assert gpu_step.largest_batch(SMOKE.replace(batch_size=4), torch.device("cpu")) == 16


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_inference_on_a_device(device):
    setting = gpu_inference.Setting(
        inference.Setting(SMOKE, (32, 48), 2), (24, 32, 3), metrics.Setting("smoke", 96, images=1)
    )
    table = gpu_inference.measure_on(torch.device(device), setting, 1)
    assert (table["seconds"] > 0).all() and (1 / table["images_per_second"]).gt(0).all()
    assert table["to_floor"].isna().sum() == 3  # the CRF's
    text = "\n".join(gpu_inference.section(table.assign(device="a card")))
    assert text.startswith("a card.") and "| dense CRF | 24 x 32, 3 classes | " in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: make gpu")
def test_no_step_waits_for_the_gpu():
    assert gpu_step.waits(SMOKE.replace(seg_start_step=0), torch.device("cuda")) == "none"


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        run.main(["gpu_step/toy", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
