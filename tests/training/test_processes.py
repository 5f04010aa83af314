"""Several processes give what one gives: losses, weights, checkpoints, scores, also when their number changes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.folders import make_voc

from toco_lab.config import Config
from toco_lab.data.loader import train_loader
from toco_lab.evaluation.evaluate import evaluate_run
from toco_lab.method.model import ToCo
from toco_lab.runs.run_dir import RunDir
from toco_lab.training import processes
from toco_lab.training.checkpoints import load_checkpoint
from toco_lab.training.learner import Learner
from toco_lab.training.loop import fit

ROOT = Path(__file__).resolve().parents[2]
CFG = Config.preset("smoke").replace(batch_size=4, accumulate=2, val_images=5)
OPTIONS = ["--batch-size", "4", "--accumulate", "2", "--val-images", "5"]


def torchrun(*arguments, processes=2, check=True):
    """`torchrun -m toco_lab ...` with processes of one thread; its output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "-m", "toco_lab", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def test_alone_everything_is_what_one_process_gives():
    assert (processes.rank(), processes.num_processes(), processes.is_first()) == (0, 1, True)
    with processes.process_group():
        assert processes.everywhere("a") == ["a"] and processes.share(5) == range(5)
        values = torch.ones(2)
        assert processes.total(values) is values
        processes.wait()


def test_shares_are_neighbours_that_cover_everything_once(monkeypatch):
    monkeypatch.setattr(processes, "num_processes", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        shares.append(processes.share(8))
    assert [index for part in shares for index in part] == list(range(8))
    assert sorted(map(len, shares)) == [2, 3, 3]


def test_micro_batches_are_as_many_as_the_processes_need():
    assert processes.micro_batches(8, 1, 1) == 1
    assert processes.micro_batches(8, 1, 2) == 2
    assert processes.micro_batches(12, 4, 6) == 6
    assert processes.micro_batches(12, 4, 3) == 6  # 4 parts do not go into 3 processes
    with pytest.raises(ValueError, match="4 images does not divide among 3 processes; start 1 or 2 or 4, or change"):
        processes.micro_batches(4, 1, 3)


def test_each_process_loads_its_share_of_every_batch():
    whole = [batch.names for batch in train_loader(CFG, (0, 0, 0), (1, 1, 1))]
    halves = []
    for places in (range(0, 2), range(2, 4)):
        halves.append([batch.names for batch in train_loader(CFG, (0, 0, 0), (1, 1, 1), places=places)])
    assert whole == [one + other for one, other in zip(*halves, strict=True)]


def test_micro_batches_that_do_not_divide_are_refused(monkeypatch):
    monkeypatch.setattr("toco_lab.training.learner.num_processes", lambda: 4)
    with pytest.raises(ValueError, match="accumulate 2 does not divide among 4 processes; set it to 4 micro-batches"):
        Learner.of(ToCo(CFG), CFG)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process, evaluated."""
    run = RunDir.create(CFG, tmp_path_factory.mktemp("alone"))
    fit(CFG, run, progress=False)
    evaluate_run(run, progress=False)
    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same run by two processes, from the command line."""
    root = tmp_path_factory.mktemp("shared")
    done = torchrun("train", "smoke", *OPTIONS, "--root", root)
    assert "accumulate" not in done.stdout  # nothing was changed
    return RunDir(root / CFG.run_name())


def assert_same_training(one: RunDir, other: RunDir):
    """Losses and weights to float tolerance."""
    pd.testing.assert_frame_equal(one.metrics(), other.metrics(), rtol=2e-4, atol=1e-6)
    ours, theirs = (load_checkpoint(run.checkpoints()[-1]) for run in (one, other))
    for name, value in ours["model"].items():
        torch.testing.assert_close(
            value, theirs["model"][name], rtol=1e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    states = ours["optimizer"]["state"], theirs["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()  # AdamW has seen gradients of the same weights


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone, shared):
    assert len(alone.metrics()) == CFG.steps and alone.metrics()["seg_loss"].iloc[-1] > 0
    assert_same_training(alone, shared)
    assert shared.status()["state"] == "done" and len(shared.read_json("env")) == 1


@pytest.mark.slow
def test_two_processes_score_as_one_does(alone, shared):
    one, other = alone.read_table("evaluation"), shared.read_table("evaluation")
    # the weights differ in the last digits, and so may a pixel at a threshold
    np.testing.assert_allclose(one["iou"], other["iou"], atol=2e-3)
    assert other["target"].tolist() == one["target"].tolist()
    protocols = [
        {target: {k: v for k, v in record.items() if k != "checkpoint"} for target, record in found.items()}
        for found in (alone.read_json("protocol"), shared.read_json("protocol"))
    ]
    assert protocols[0] == protocols[1] and protocols[0]["cam"]["images"] == 5
    ours, theirs = alone.read_table("thresholds"), shared.read_table("thresholds")
    np.testing.assert_allclose(ours.pop("miou"), theirs.pop("miou"), atol=2e-3)
    pd.testing.assert_frame_equal(ours, theirs)
    torchrun("evaluate", alone.path)  # of one checkpoint nothing differs
    pd.testing.assert_frame_equal(alone.read_table("evaluation"), one, rtol=1e-9)


@pytest.mark.slow
def test_a_run_of_two_processes_is_continued_by_one(alone, shared, tmp_path):
    folder = tmp_path / CFG.run_name()
    shutil.copytree(shared.path, folder)
    half = RunDir(folder)
    half.checkpoints()[-1].unlink()  # as if killed after step 2
    assert len(half.checkpoints()) == 1
    fit(CFG, half, progress=False)
    assert_same_training(alone, half)


@pytest.mark.slow
def test_a_bad_file_that_one_process_meets_ends_all_and_is_named(tmp_path):
    root = Path(make_voc(tmp_path).data_root)
    broken = root / "JPEGImages/two.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    splits = ["--train-split", "train", "--val-split", "train"]
    data = ["--dataset", "voc", "--data-root", root, "--num-classes", "20", *splits]
    done = torchrun("train", "smoke", *data, "--root", tmp_path, "--name", "run", "--accumulate", "2", check=False)
    assert done.returncode != 0
    status = RunDir(tmp_path / "run").status()
    assert status["state"] == "failed" and "two.jpg" in status["error"], "the reason, not the lost connection"


@pytest.mark.slow
def test_the_command_says_what_it_does_to_the_batch(tmp_path):
    done = torchrun("train", "smoke", "--batch-size", "4", "--root", tmp_path, "--dry-run")
    assert re.search(r"accumulate 1 -> 2: 2 processes share a batch of 4 images", done.stdout)
    assert "warning: a batch of 4 images, but the preset's learning rate" in done.stdout
    assert done.stdout.count("run folder:") == 1 and not any(tmp_path.iterdir())
