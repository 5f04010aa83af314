"""Sweeps looked at image by image, and the command `images`."""

import shutil

import pandas as pd
import pytest
from helpers.labelled_runs import SMALL, make_run

from toco_lab.commands.app import main
from toco_lab.evaluation.image_counts import images_of_run
from toco_lab.evaluation.object_size import SizeBounds, bounds_of, scores_by_size
from toco_lab.reports.ablation import summarise, wide_table
from toco_lab.reports.by_image import gains_of_rows, sizes_of_sweep
from toco_lab.runs.run_dir import RunDir
from toco_lab.sweeps.grid import Grid


@pytest.fixture(scope="module")
def grid() -> Grid:
    overrides = {**SMALL, "val_images": 3, "train_images": 4, "crop_size": 48, "threshold_images": 0}
    return Grid(name="sweep", preset="smoke", overrides=overrides, rows={"plain": {"w_ptc": 0}, "PTC": {}}, seeds=2)


@pytest.fixture(scope="module")
def root(grid, tmp_path_factory):
    """Finished runs of three of the four: `PTC` of seed 1 is missing."""
    root = tmp_path_factory.mktemp("root")
    for planned in grid.runs(root)[:3]:
        made = make_run(planned.config, root / planned.row / str(planned.seed), flat=planned.row == "PTC")
        shutil.move(made.path, planned.folder)
        made = RunDir(planned.folder)
        made.write_table("evaluation", pd.DataFrame([{"target": "cam", "class": "mIoU", "iou": 0.5}]))
        made.write_json("protocol", {})
    (root / "sweep" / "grid.yaml").write_text(grid.to_text())
    return root


def test_sizes_over_rows_and_seeds_share_the_bounds_and_are_in_points(grid, root):
    frame = sizes_of_sweep(grid, root, targets=("cam",), device="cpu")
    assert list(zip(frame["row"], frame["seed"], strict=True)) == [("plain", 0), ("plain", 1), ("PTC", 0)]
    counts = [images_of_run(RunDir(root / "sweep" / name), targets=("cam",)).table for name in frame["run"]]
    bounds = bounds_of(counts[0])
    for line, table in zip(frame.to_dict("records"), counts, strict=True):
        scores = scores_by_size(table, bounds).set_index(["class", "size"])["iou"]
        assert line["cam_small_mIoU"] == scores["mIoU", "small"] and line["cam_large_mIoU"] == scores["mIoU", "large"]
    wide = wide_table(summarise(frame, scores=["cam_small_mIoU"]))
    small = frame.set_index(["row", "seed"])["cam_small_mIoU"]
    spread = small["plain"].std()
    assert wide.loc["plain", "final CAM, small objects"] == f"{100 * small['plain'].mean():.1f} ± {100 * spread:.1f}"
    assert wide.loc["PTC", "difference, final CAM, small objects"] == (
        f"{100 * (small['PTC', 0] - small['plain', 0]):+.1f} (one seed)"
    )


def test_bounds_can_be_given(grid, root):
    frame = sizes_of_sweep(grid, root, targets=("cam",), bounds=SizeBounds(0.98, 0.99))
    assert "cam_small_mIoU" in frame and "cam_large_mIoU" not in frame  # nothing is as large as that


def test_rows_are_paired_over_the_seeds_that_both_have(grid, root):
    gains = gains_of_rows(grid, "plain", "PTC", root, device="cpu", progress=False)
    assert list(gains.pairs) == [0] and (gains.before, gains.after) == ("plain", "PTC") and len(gains.frame) == 3
    with pytest.raises(ValueError, match="no row 'ptc', did you mean 'PTC'"):
        gains_of_rows(grid, "plain", "ptc", root)
    with pytest.raises(ValueError, match="none of the 2 runs of row 'plain' is finished in"):
        gains_of_rows(grid, "plain", "PTC", root / "elsewhere")


def test_the_command_shows_sizes_gains_and_a_sweep(grid, root, tmp_path, capsys):
    first, second = (str(grid.runs(root)[place].folder) for place in (0, 2))
    assert main(["images", first, "--out", str(tmp_path), "--bounds", "0.1", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "IoU in per cent of cam; small: below 10.0% of the image, large: from 20.0% on" in said
    assert set(pd.read_csv(tmp_path / "sizes.csv")["target"]) == {"cam"}
    assert main(["images", first, second, "--out", str(tmp_path), "--shown", "1"]) == 0
    assert "3 images, 1 seed" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "gains.csv")) == 3 and len(pd.read_csv(tmp_path / "relations.csv")) == 4
    assert (tmp_path / "gains.png").read_bytes().startswith(b"\x89PNG")
    sweep = str(root / "sweep")
    assert main(["images", sweep, "--out", str(tmp_path)]) == 0
    assert "final CAM, small objects" in capsys.readouterr().out
    assert main(["images", sweep, "--rows", "plain", "PTC", "--out", str(tmp_path), "--shown", "1"]) == 0
    assert "cam: PTC against plain, 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["RUN", "--rows", "plain", "PTC"], "--rows are those of a sweep"),
        (["RUN", "--bounds", "0.1"], "--bounds are two shares"),
        (["RUN", "--bounds", "0.3", "0.1"], "0 < middle <= large < 1"),
        (["RUN", "--target", "cam_tuned"], "no counts of 'cam_tuned'"),
        (["RUN", "RUN", "RUN"], "one RUN, two, or one SWEEP, got 3"),
        (["SWEEP", "--rows", "plain"], "--rows are two rows"),
        (["SWEEP", "--split", "train"], "split of its config"),
    ],
)  # fmt: skip
def test_the_command_refuses(grid, root, capsys, words, message):
    places = {"RUN": str(grid.runs(root)[0].folder), "SWEEP": str(root / "sweep")}
    assert main(["images", *(places.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err
