"""Training: terms and weights, schedule, accumulation, resume to the same numbers, kill -9, NaN."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import pytest
import torch

from toco_lab.backbones.weights import CheckpointError
from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.method.model import ToCo
from toco_lab.method.step import LossTerms
from toco_lab.presets import BASELINE
from toco_lab.runs.run_dir import RunDir
from toco_lab.training import learner, loop, processes
from toco_lab.training.checkpoints import load_checkpoint
from toco_lab.training.finite import TrainingError
from toco_lab.training.learner import Learner, train_step
from toco_lab.training.loop import fit
from toco_lab.training.optimiser import build_optimizer, learning_rate

CFG = Config.preset("smoke")


def first_batch(cfg=CFG):
    model = ToCo(cfg)
    return next(iter(train_loader(cfg, model.mean, model.std)))


def fresh(cfg=CFG):
    torch.manual_seed(0)
    return ToCo(cfg).train()


@pytest.mark.parametrize("schedule", ["continuous", "drop"])
def test_schedule(schedule):
    cfg = Config(steps=100, warmup_steps=10, learning_rate=1.0, warmup_ratio=0.1, poly_power=2.0, schedule=schedule)
    assert learning_rate(cfg, 0) == pytest.approx(0.1)
    assert learning_rate(cfg, 5) == pytest.approx(0.55)
    assert learning_rate(cfg, 10) == pytest.approx(1.0 if schedule == "continuous" else 0.81)
    assert learning_rate(cfg, 55) == pytest.approx(0.25 if schedule == "continuous" else 0.45**2)
    assert learning_rate(cfg, 500) == learning_rate(cfg, 99) > 0


def test_optimizer_groups_hold_every_trained_parameter_once():
    model = ToCo(CFG)
    groups = build_optimizer(model, CFG).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    trained = {id(p) for name, p in model.named_parameters() if p.requires_grad}
    assert len(held) == len(set(held)) and set(held) == trained
    assert [group["lr_factor"] for group in groups] == [1, 1, 10, 10]
    assert {group["weight_decay"] for group in groups} == {CFG.weight_decay}


def test_accumulation_averages_the_gradients_of_micro_batches():
    cfg = CFG.replace(batch_size=4, **BASELINE)
    results = []
    for accumulate in (1, 4):
        c = cfg.replace(accumulate=accumulate)
        model = fresh(c)
        terms = train_step(Learner.of(model, c), first_batch(c), c, 1).terms
        results.append((terms.total, model.classifier.weight.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_loss_falls(tmp_path):
    cfg = CFG.replace(steps=30, train_images=2, learning_rate=2e-3, **BASELINE)
    fit(cfg, RunDir.create(cfg, tmp_path), progress=False)
    losses = RunDir(tmp_path / cfg.run_name()).metrics()["cls_loss"]
    assert losses.iloc[-5:].mean() < 0.8 * losses.iloc[:5].mean()


def weights(path):
    return load_checkpoint(path)["model"]


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


def test_two_runs_with_one_seed_are_equal_and_another_seed_is_not(tmp_path):
    runs = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        cfg = CFG.replace(seed=seed)
        runs.append(RunDir.create(cfg, tmp_path / folder))
        fit(cfg, runs[-1], progress=False)
    last = [run.checkpoints()[-1] for run in runs]
    assert same_weights(last[0], last[1]) and not same_weights(last[0], last[2])
    assert runs[0].metrics().equals(runs[1].metrics())
    assert runs[0].status()["state"] == "done"


@pytest.mark.slow
def test_killed_training_ends_with_the_same_numbers(tmp_path):
    """kill -9 a real process twice, at moments of its own choosing; the third call finishes."""
    cfg = CFG.replace(steps=14, checkpoint_every=3)
    straight = RunDir.create(cfg, tmp_path / "straight")
    fit(cfg, straight, progress=False)
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(int(sys.argv[2]))\n"
        "from toco_lab.config import Config\n"
        "from toco_lab.runs.run_dir import RunDir; from toco_lab.training.loop import fit\n"
        "cfg = Config.from_json(Path(sys.argv[1] + '.json').read_text())\n"
        "fit(cfg, RunDir.create(cfg, sys.argv[1]), progress=False)\n"
    )
    root = tmp_path / "killed"
    (tmp_path / "killed.json").write_text(cfg.to_json())
    command = [sys.executable, "-c", code, str(root), str(torch.get_num_threads())]
    folder = root / cfg.run_name()
    for wanted in ("step_00000003.pt", "step_00000009.pt"):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints" / wanted).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert RunDir(folder).status()["state"] == "running"
    subprocess.run(command, check=True, timeout=120)
    again = RunDir(folder)
    assert again.status()["state"] == "done"
    assert again.checkpoints()[-1].read_bytes() == straight.checkpoints()[-1].read_bytes()  # and so one hash
    assert again.metrics().equals(straight.metrics())
    assert len(again.checkpoints()) == loop.KEPT_CHECKPOINTS


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    run = RunDir.create(CFG, tmp_path)
    model = fit(CFG, run, progress=False)
    monkeypatch.setattr(loop, "train_step", None)
    again = fit(CFG, run, progress=False)
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_damaged_last_checkpoint_stops_and_the_older_one_continues(tmp_path):
    run = RunDir.create(CFG, tmp_path)
    fit(CFG, run, progress=False)
    older, last = run.checkpoints()
    good = weights(last)
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{last.name}.*{older.name}"):
        fit(CFG, run, progress=False)
    last.unlink()
    fit(CFG, run, progress=False)
    assert all(torch.equal(good[name], value) for name, value in weights(run.checkpoints()[-1]).items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_term_and_checkpoint(tmp_path, monkeypatch, value):
    cfg = CFG.replace(steps=8, checkpoint_every=2, log_every=4)
    real, run = learner.compute_losses, RunDir.create(cfg, tmp_path)

    def poisoned(model, batch, cfg, step, **kwargs):
        output = real(model, batch, cfg, step, **kwargs)
        if step == 5:
            return replace(output, terms=replace(output.terms, ctc=output.terms.ctc + value))
        return output

    monkeypatch.setattr(learner, "compute_losses", poisoned)
    with pytest.raises(TrainingError) as error:
        fit(cfg, run, progress=False)
    assert "loss ctc is not finite at step 5" in str(error.value) and "step_00000004.pt" in str(error.value)
    assert run.status()["state"] == "failed" and "step 5" in run.status()["error"]
    assert [path.name for path in run.checkpoints()] == ["step_00000002.pt", "step_00000004.pt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    cfg = CFG.replace(steps=8, checkpoint_every=2, log_every=8)
    real, run = learner.train_step, RunDir.create(cfg, tmp_path)

    def poisoned(learner, batch, cfg, step, **kwargs):
        output = real(learner, batch, cfg, step, **kwargs)
        if step == 3:
            learner.model.decoder.conv1.weight.data[0, 0, 0, 0] = math.nan  # after the losses of this step were finite
        return output

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(TrainingError, match=r"decoder.conv1.weight .* after step 4.*step_00000002\.pt"):
        fit(cfg, run, progress=False)
    assert [path.name for path in run.checkpoints()] == ["step_00000002.pt"]


def test_an_interrupted_run_is_no_failure_and_validation_may_join_later(tmp_path, monkeypatch):
    cfg, real = CFG.replace(steps=6, checkpoint_every=2), learner.train_step
    run = RunDir.create(cfg, tmp_path)

    def interrupted(learner, batch, cfg, step, **kwargs):
        if step == 3:
            raise KeyboardInterrupt
        return real(learner, batch, cfg, step, **kwargs)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(cfg, run, progress=False)
    assert run.status()["state"] == "running"
    monkeypatch.setattr(loop, "train_step", real)
    cfg = cfg.replace(val_every=3)
    fit(cfg, run, validate=lambda model, step: {"cam": 0.5, "cam_aux": 0.5, "seg": 0.5}, progress=False)
    assert run.metrics()["val_cam"].tolist()[-1] == 0.5 and len(run.metrics()) == 6


def test_a_run_begun_from_other_weights_is_not_reused(tmp_path):
    first, second = ToCo(CFG).encoder.state_dict(), ToCo(CFG).encoder.state_dict()
    torch.save(first, tmp_path / "vit.pth")
    cfg = CFG.replace(pretrained=True, weights=str(tmp_path / "vit.pth"))
    run = RunDir.create(cfg, tmp_path)
    fit(cfg, run, progress=False)
    fit(cfg, run, progress=False)
    torch.save(second, tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"began from .*vit\.pth with hash .* Delete the folder"):
        fit(cfg, run, progress=False)
    (tmp_path / "vit.pth").unlink()
    fit(cfg, run, progress=False)  # a finished run does not need the file


def test_half_precision_keeps_losses_in_fp32_and_scales_the_gradients():
    terms = {}
    for precision in ("fp32", "bf16", "fp16"):
        cfg = CFG.replace(precision=precision)
        learner = Learner.of(fresh(cfg), cfg)
        output = train_step(learner, first_batch(cfg), cfg, 1)
        assert all(value.dtype == torch.float32 for value in output.terms.named().values())
        assert learner.scaler.is_enabled() == (precision == "fp16") == ("scaler" in learner.state())
        terms[precision] = output.terms.total.item()
        gradient = learner.model.classifier.weight.grad
        assert gradient.isfinite().all() and 0 < gradient.abs().max() < 10, "unscaled before the step"
    assert len(set(terms.values())) == 3
    assert terms["bf16"] == pytest.approx(terms["fp32"], rel=0.05)
    assert terms["fp16"] == pytest.approx(terms["fp32"], rel=0.02)


def test_gradients_that_overflow_in_fp16_skip_the_step_and_lower_the_scale():
    cfg = CFG.replace(precision="fp16")
    learner = Learner.of(fresh(cfg), cfg)
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**120})
    before = learner.model.classifier.weight.detach().clone()
    train_step(learner, first_batch(cfg), cfg, 1)
    assert torch.equal(learner.model.classifier.weight, before)
    assert learner.scaler.get_scale() == 2.0**119


def test_a_run_in_fp16_continues_with_its_scale(tmp_path):
    cfg = CFG.replace(precision="fp16")
    straight = RunDir.create(cfg, tmp_path / "a")
    fit(cfg, straight, progress=False)
    again = RunDir.create(cfg, tmp_path / "b")
    fit(cfg, again, progress=False)
    again.checkpoints()[-1].unlink()
    fit(cfg, again, progress=False)
    assert again.checkpoints()[-1].read_bytes() == straight.checkpoints()[-1].read_bytes()


def test_compiled_blocks_give_the_same_step_and_are_given_back(tmp_path, monkeypatch):
    made = []

    def compile_quickly(block):  # inductor takes a minute; the graph is the same
        made.append(block)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="aot_eager", dynamic=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    cfg = CFG.replace(steps=2)
    plain = RunDir.create(cfg, tmp_path)
    fit(cfg, plain, progress=False)
    cfg = cfg.replace(compile_blocks=True)
    run = RunDir.create(cfg, tmp_path)
    model = fit(cfg, run, progress=False)
    assert len(made) == cfg.depth and all(block._compiled_call_impl is None for block in model.encoder.blocks)
    torch.testing.assert_close(
        torch.tensor(run.metrics()["total_loss"]), torch.tensor(plain.metrics()["total_loss"]), rtol=1e-4, atol=1e-5
    )


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'cudaa' is not there; use auto or one of cpu"):
        processes.resolve_device("cudaa")


def test_validation_joins_the_metrics(tmp_path):
    cfg, seen = CFG.replace(steps=6, val_every=3), []

    def validate(model, step):
        assert not model.training
        seen.append(step)
        return {"cam": 0.5, "cam_aux": 0.25, "seg": 0.125}

    fit(cfg, RunDir.create(cfg, tmp_path), validate=validate, progress=False)
    rows = RunDir(tmp_path / cfg.run_name()).metrics().set_index("step")
    assert seen == [3, 6] and rows.loc[3, "val_cam_aux"] == 0.25 and math.isnan(rows.loc[2, "val_cam"])
    assert {f"{field.name}_loss" for field in fields(LossTerms)} >= {"cls_loss", "total_loss"} <= set(rows.columns)
