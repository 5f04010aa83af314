"""The benchmarks beside that of the training step: what they count, their arithmetic, and that each writes its table.

Times themselves are not asserted; where numbers matter, the clock is made up.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from toco_lab.config import Config
from toco_lab.method.lattice import Lattice, bilateral_features
from toco_lab.smoothing.catalogue import METRICS

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import crf
import gpu_step
import growth
import inference
import measure
import metrics
import pieces
import startup
import summary

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Config.preset("smoke")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The scripts work with one thread, in this process too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A processor clock that moves when it is told to."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: now[0])
    return now


def tables(folder: Path, name: str) -> tuple[pd.DataFrame, str]:
    return pd.read_csv(folder / f"{name}.csv"), (folder / f"{name}.md").read_text()


# --- what they share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, 1, 1.7, -0.5])
def test_growth_exponent(exponent):
    sizes = np.array([3.0, 10, 50, 70])
    assert measure.growth_exponent(sizes, 4.2 * sizes**exponent) == pytest.approx(exponent, abs=1e-12)


def test_growth_exponent_is_the_least_squares_slope():
    # log2: x = 0, 1, 2 and y = 0, 2, 1, mean 1: slope (-1 * -1 + 1 * 0) / 2
    assert measure.growth_exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_calls_take_turns_and_the_first_round_does_not_count(clock):
    spends, order = {"a": iter([100, 2, 8, 3]), "b": iter([1, 1, 2, 3])}, []

    def spend(name):
        order.append(name)
        clock[0] += next(spends[name])

    seconds = measure.rounds({name: lambda name=name: spend(name) for name in "ab"}, 3, lambda: order.append("|"))
    assert "".join(order) == "a|b|" * 4
    assert seconds.to_dict("list") == {"a": [2, 8, 3], "b": [1, 2, 3]}
    assert measure.ratio(seconds, "a", "b") == 2  # the median of 2, 4 and 1; that of the medians is 1.5


def test_new_rows_take_the_place_of_old_ones(tmp_path):
    path = tmp_path / "table.csv"
    pd.DataFrame({"setting": ["c", "a", "a"], "value": [1, 2, 3]}).to_csv(path, index=False)
    new = pd.DataFrame({"setting": ["b", "a"], "value": [4, 5]})
    both = measure.merged(path, new, "setting", "abc")
    assert list(zip(both["setting"], both["value"], strict=True)) == [("a", 5), ("b", 4), ("c", 1)]
    assert measure.merged(tmp_path / "none.csv", new, "setting", "abc")["value"].tolist() == [5, 4]


def test_table_names_its_origin():
    about = measure.origin("/somewhere/crf.py", ["--sizes", "8x8", "a b"])
    assert about["command"] == "python benchmarks/crf.py --sizes 8x8 'a b'"
    assert f"torch {torch.__version__.partition('+')[0]}" in about["versions"]
    text = "\n".join(measure.origin_lines(about))
    assert all(value in text for value in about.values())
    assert measure.markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


# --- inference --------------------------------------------------------------------------------------------------------

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
    monkeypatch.setattr(inference, "SETTINGS", {"first": SETTING, "smoke": SETTING})
    monkeypatch.setattr(inference, "in_a_fresh_process", lambda _, count: 100.0 + count)
    inference.main(["smoke", "--repeats", "1", "--out", str(tmp_path)])
    inference.main(["first", "--repeats", "1", "--images", "0", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "inference")
    assert table["setting"].unique().tolist() == ["first", "smoke", "memory"]
    times = table[table["setting"] == "first"]
    assert times["what"].tolist() == [
        inference.MULTI_SCALE_CAM, inference.ALL_CLASSES, "cam", "cam_aux", "cam_refined", "seg", inference.EVERYTHING
    ]  # fmt: skip
    assert times["images_per_second"].to_numpy() == pytest.approx(2 / times["seconds"].to_numpy(), rel=0.05)
    assert (times["to_floor"] > 0).all()
    assert "| 64 images | 164 | 1.414 |" in text and text in capsys.readouterr().out
    with pytest.raises(SystemExit):
        inference.main(["third"])


# --- dense CRF --------------------------------------------------------------------------------------------------------


def test_photo_has_as_many_vertices_as_photographs_have():
    image = crf.photo(60, 80)
    assert image.shape == (3, 60, 80) and (image == image.round()).all() and 0 <= image.min() and image.max() <= 255
    lattice = Lattice(bilateral_features(crf.photo(240, 320)[None], crf.SIGMA_XY, crf.SIGMA_RGB))
    vertices = len(lattice._splat[2])
    assert 0.15 < vertices / (240 * 320) < 0.5


def test_filter_steps_leave_the_filter_as_it_is(clock, monkeypatch):
    bag = torch.nn.functional.embedding_bag
    lengths = []

    def slow(*arguments, **options):
        clock[0] += 10 ** len(lengths)
        lengths.append(len(arguments[0]))
        return bag(*arguments, **options)

    image = crf.photo(8, 9)
    lattice, rows = Lattice(bilateral_features(image[None], 5, 50)), torch.rand(72, 3)
    expected = lattice.filter_rows(rows)
    monkeypatch.setattr(torch.nn.functional, "embedding_bag", slow)
    with crf.filter_steps() as seconds:
        found = lattice.filter_rows(rows)
    torch.testing.assert_close(found, expected)
    # splat, six axes, slice: ten times as long each as the one before
    assert seconds == {"splat": 1, "blur": 1_111_110, "slice": 10_000_000}
    assert torch.nn.functional.embedding_bag is slow


def test_growth_of_the_crf():
    rows = [
        {
            "pixels": pixels,
            "classes": classes,
            crf.BUILD: pixels,
            crf.FILTER: pixels**2 * classes,
            crf.CRF: classes**0.5,
        }
        for pixels, classes in ((10, 4), (20, 1), (20, 4), (20, 9), (70, 4))
    ]
    table = crf.growth(pd.DataFrame(rows), 4).set_index("over")
    assert table.loc["pixels"].tolist() == pytest.approx([3, 1, 2, 0])
    assert table.loc["classes"].tolist() == pytest.approx([3, 0, 1, 0.5])


def test_crf(tmp_path, capsys):
    crf.main(
        ["--sizes", "12x16", "24x32", "--classes", "1", "3", "--many", "3", "--repeats", "1", "--out", str(tmp_path)]
    )
    table, text = tables(tmp_path, "crf")
    times = table[table["kind"] == "seconds"]
    assert times["pixels"].tolist() == [192, 768, 768] and times["classes"].tolist() == [3, 3, 1]
    assert table.query("kind == 'exponent'")["over"].tolist() == ["pixels", "classes"]
    shares = table.query("kind == 'share'").set_index("part")["share"]
    assert list(shares.index) == ["construction", "splat", "blur", "slice", "softmax", "rest"]
    assert shares.sum() == pytest.approx(1, abs=1e-3) and (shares > 0).all()
    assert "| 24 x 32 | 1 | " in text and text in capsys.readouterr().out


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_pieces(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "SETTINGS", {"small": ("vit_tiny_patch16_224", 32, 6), "other": ("none", 1, 1)})
    pieces.main(["small", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "pieces")
    assert table["at_once"].tolist() == [6, 3, 1] and table["tokens"].tolist() == [24, 12, 4]
    assert table["to_all"].iloc[0] == 1 and (table["seconds"] > 0).all()
    assert "| vit_tiny_patch16_224, 6 images of 32 | 3 | 12 | " in text and text in capsys.readouterr().out


# --- the step on a GPU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_steps_of_every_kind_on_a_device(device, monkeypatch):
    """The CPU stands in for the GPU: every case runs, on the device it is given, and is compared with the right one."""
    monkeypatch.setattr(gpu_step, "compile_blocks", lambda _: None)
    monkeypatch.setattr(gpu_step, "FED_STEPS", 2)
    cfg = SMOKE.replace(seg_start_step=0)
    table = gpu_step.measure(cfg, torch.device(device), 1, lambda: None).set_index("case")
    assert tuple(table.index) == gpu_step.CASES and (table["seconds"] > 0).all()
    assert table.loc[gpu_step.PLAIN, "plain_to"] == table.loc[gpu_step.FLOOR, "to_floor"] == 1
    plain, ours = (table["seconds"][case] for case in (gpu_step.PLAIN, gpu_step.BF16))
    assert table.loc[gpu_step.BF16, "plain_to"] == pytest.approx(plain / ours)
    assert 0 <= gpu_step.busy_share(cfg, torch.device(device)) <= 1.2
    about = {"device": "a card", "sizes": "small", "repeats": 1, "waits": "none", "busy": 0.934, "machine": "m",
             "versions": "v", "commit": "c", "command": "x"}  # fmt: skip
    text = gpu_step.markdown(table.reset_index().assign(**about))
    assert "GPU busy with the loader: 93%" in text and f"| {gpu_step.BF16} | " in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_gpu():
    assert gpu_step.waits(SMOKE.replace(seg_start_step=0), torch.device("cuda")) == "none"


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu_step.main(["toy", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "SETTINGS", {"smoke": ("smoke", 96)})
    metrics.main(["smoke", "--repeats", "1", "--images", "2", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "metrics")
    whole, each = (table[table["kind"] == kind] for kind in ("whole", "metric"))
    assert whole["metric"].tolist() == ["forward pass", "all metrics", "reading the layers"]
    assert whole["to_forward"].iloc[0] == 1
    assert set(zip(each["metric"], each["variant"], strict=True)) == {*METRICS, metrics.RANK_ME}
    assert each["share"].sum() == pytest.approx(1, abs=1e-3)
    assert (each["alone_seconds"] > 0).all()  # none was left out for want of labels or attention
    assert f"of {len(METRICS) + 1} that cost most" in text and text in capsys.readouterr().out


def test_what_metrics_share_counts_for_the_first(clock, monkeypatch):
    @property
    def slow(view):
        if "paid" not in view.__dict__:
            view.__dict__["paid"] = True
            clock[0] += 5
        return view.tokens.sum()

    def metric(function, needs=()):
        return type("Metric", (), {"function": staticmethod(function), "needs": needs})

    view = metrics.TokenView(torch.rand(1, 4, 3), (2, 2))
    monkeypatch.setattr(metrics.TokenView, "x", slow)
    made = {("a", ""): metric(lambda view: view.x), ("b", ""): metric(lambda view: view.x)}
    monkeypatch.setattr(metrics, "METRICS", made | {("c", ""): metric(lambda view: view.x, ("label",))})
    found = metrics.metric_seconds([metrics.Layer("after block", "none", 1, view)]).set_index("metric")
    assert found["in_order"].tolist() == [5, 0, 0, 0] and found["alone"].tolist() == [5, 5, 0, 0]  # no label for c


# --- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "power"), [("size", 1.5), ("batch", 3.0)])
def test_exponents_of_a_step(axis, power):
    values = np.array([2.0, 4, 5])
    rows = pd.DataFrame(
        {"axis": axis, "value": ["2", "4", "5"], "seconds": values**3, "floor_seconds": 1.0, "step_mb": np.nan}
    )
    assert growth.exponents(rows) == pytest.approx({"step": power, "floor": 0})
    assert growth.exponents(rows.assign(step_mb=7 * values**6))["memory"] == pytest.approx(2 * power)


def test_growth(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "BASE", SMOKE.replace(view2_size=32))
    monkeypatch.setattr(growth, "BACKBONES", {"toy": {"depth": 4}, "wide": {"embed_dim": 32}})
    monkeypatch.setattr(growth, "in_a_fresh_process", lambda _, cfg, __: (400.0, cfg.crop_size / 2))
    options = ["--repeats", "1", "--sizes", "64", "96", "--batches", "1", "--classes", "6", "9", "--out", str(tmp_path)]
    growth.main(["toy", *options])
    growth.main(["backbone", "--compared", "toy", "wide", "--no-memory", *options])
    table, text = tables(tmp_path, "growth")
    found = {(group, axis): rows for (group, axis), rows in table.groupby(["group", "axis"])}
    assert found["toy", "size"]["value"].tolist() == ["64", "96"]
    assert found["backbone", "backbone"]["value"].tolist() == ["toy", "wide"]
    assert all(rows["to_first"].iloc[0] == 1 and (rows["to_floor"] > 0).all() for rows in found.values())
    assert (
        found["toy", "size"]["step_mb"].tolist() == [32, 48] and found["backbone", "backbone"]["peak_mb"].isna().all()
    )
    assert "memory 0.50." in text and "## backbones" in text and text in capsys.readouterr().out


# --- start-up ---------------------------------------------------------------------------------------------------------


def test_first_cells_of_the_notebook(tmp_path):
    cells = startup.first_cells(ROOT / "notebooks/00_start_here.ipynb", tmp_path, preset="smoke")
    names: dict = {}
    exec(cells["cell 0"], names)
    assert names["run_dir"] == str(tmp_path) and names["preset"] == "smoke"
    *before, last = cells.values()
    assert "run.show(" in last and "run.show(" not in "".join(before)
    for source in cells.values():
        compile(source, "cell", "exec")  # no magic is left


def test_stages_share_a_process_and_its_errors_are_told():
    found = startup.stages({"make": "print('{'); value = [1]", "use": "value.append(2); assert len(value) == 2"})
    assert found.index.tolist() == ["make", "use"] and (found[["cpu", "wall"]] >= 0).all(axis=None)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        startup.stages({"fail": "1 / 0"})


def test_startup(tmp_path, monkeypatch, capsys):
    counts = iter(range(100))

    def stages(code):
        seconds = {"torch and timm": 4.0, "import toco_lab": 1.0 + next(counts)}
        return pd.DataFrame({"cpu": [seconds.get(name, 2.0) for name in code], "wall": 3.0}, index=list(code))

    monkeypatch.setattr(startup, "stages", stages)
    report = tmp_path / "report.html"
    report.write_bytes(b"x" * 2_500_000)
    startup.main(["--report", str(report), "--no-browser", "--repeats", "3", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "startup")
    table = table.set_index("what")
    # three calls a round: 0 is not counted, then 3, 6 and 9
    assert table.loc["import toco_lab", "cpu"] == 7 and table.loc["import toco_lab", "to_base"] == 7 / 4
    assert table.loc["imports, model and first batch", "cpu"] == 6
    assert table.loc["opening a report", "megabytes"] == 2.5 and pd.isna(table.loc["opening a report", "wall"])
    assert "| opening a report | - | - | - | 2.50 |" in text and text in capsys.readouterr().out


def test_report_of_given_runs(smoke_run):
    table = startup.measure_report(None, [smoke_run.path], 1, browser=False).set_index("what")
    assert table.loc["building a report of 1 runs", "cpu"] > 0 and table.loc["opening a report", "megabytes"] > 1


# --- summary ----------------------------------------------------------------------------------------------------------


def test_summary(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="make bench"):
        summary.markdown(tmp_path)
    made = {"machine": "a machine", "versions": "torch 9", "command": "python benchmarks/some.py"}
    files = {
        "crf": [
            {
                "kind": "seconds",
                "height": 375,
                "width": 500,
                "classes": 21,
                "dense CRF": 1.501,
                "lattice": 0.2,
                "one filtering": 0.1,
            },
            {"kind": "seconds", "height": 375, "width": 500, "classes": 5, "dense CRF": 9.0},
            {"kind": "exponent", "over": "pixels", "dense CRF": 1.02},
        ],
        "inference": [
            {"setting": "toy", "what": "multi-scale CAM", "to_floor": 1.1, "images_per_second": 7},
            {"setting": "vit_b", "what": "multi-scale CAM", "to_floor": 2},
            {"setting": "memory", "what": "64 images", "to_fewer": 1.01},
        ],
        "growth": [
            {
                "group": "toy",
                "axis": axis,
                "value": value,
                "seconds": float(value) ** 3,
                "step_mb": float(value),
                "to_first": float(value) / 2,
            }
            for axis in ("size", "classes")
            for value in ("2", "4")
        ],
        "training_step": [
            {
                "setting": setting,
                "step": step,
                "part": "whole",
                "to_floor": floor,
                "to_fast": fast,
                "step_mb": memory,
                "peak_mb": 100 + memory,
            }
            for setting, fast in (("toy", 1.5), ("deit_tiny", 1.9), ("vit_b", 2.1))
            for step, floor, memory in (("fast", 1.2, 60), ("textbook", 3.0, 100), ("floor", 1.0, 50))
        ],
        "startup": [
            {"what": "import toco_lab", "cpu": 0.01},
            {"what": "opening a report", "megabytes": 12.3, "wall": np.nan},
        ],
    }
    for name, rows in files.items():
        pd.DataFrame(rows).assign(**made).to_csv(tmp_path / f"{name}.csv", index=False)
    summary.main(["--results", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:-5] == [
        "| training step, x the bare encoder passes, toy | at most 2.50 | x 1.20 | yes | training_step |",
        "| training step, x the bare encoder passes, deit_tiny | at most 1.60 | x 1.20 | yes | training_step |",
        "| training step, x the bare encoder passes, vit_b | at most 1.10 | x 1.20 | **no** | training_step |",
        "| the same step written plainly, x ours, toy | - | x 1.50 | - | training_step |",
        "| the same step written plainly, x ours, deit_tiny | at least 1.90 | x 1.90 | yes | training_step |",
        "| the same step written plainly, x ours, vit_b | at least 2.20 | x 2.10 | **no** | training_step |",
        *[
            f"| {what}, {setting} | {wanted} | x {ratio} | {holds} | training_step |"
            for what, wanted, ratio, holds in (
                ("memory of a step, x that of the plain one", "at most 0.60", "0.60", "yes"),
                ("the same with all that the process has before", "-", "0.80", "-"),
            )
            for setting in ("toy", "deit_tiny", "vit_b")
        ],
        "| training step over pixels, exponent, toy | - | 1.50 | - | growth |",
        "| memory of a step over pixels, exponent, toy | - | 0.50 | - | growth |",
        "| training step, most classes, x fewest, toy, 4 to 2 | - | x 2.00 | - | growth |",
        "| multi-scale CAM, x the bare encoder passes, toy | at most 1.10 | x 1.10 | yes | inference |",
        "| multi-scale CAM, x the bare encoder passes, vit_b | at most 1.10 | x 2.00 | **no** | inference |",
        "| the same, images a second, toy | - | 7.00 | - | inference |",
        "| peak memory of an evaluation, x that of a quarter of the images | at most 1.05 | x 1.01 | yes | inference |",
        "| dense CRF, 375 x 500, 21 classes, 10 iterations | at most 1.50 s | 1.50 s | **no** | crf |",
        "| dense CRF over pixels, exponent (1: linear) | at most 1.10 | 1.02 | yes | crf |",
        "| `import toco_lab` beside torch and timm | at most 0.200 s | 0.010 s | yes | startup |",
        "| size of a report | - | 12.3 MB | - | startup |",
    ], json.dumps(lines, indent=1)
    assert lines[-4] == "One thread, processor seconds; a machine; torch 9. Made by"
    assert lines[-2] == "    python benchmarks/some.py"  # once, though every script has it


def test_every_target_has_a_script():
    for target in summary.TARGETS:
        assert (ROOT / "benchmarks" / f"{target.script}.py").is_file()
