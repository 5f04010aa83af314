"""The benchmarks beside that of the training step: what they count, their arithmetic, and that each writes its table.

Times themselves are not asserted; where numbers matter, the clock is made up.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import (
    cam_explorer,
    crf,
    gpu_step,
    growth,
    inference,
    loader,
    many_runs,
    measure,
    metrics,
    packages,
    pieces,
    run,
    small_machine,
    startup,
    summary,
    token_explorer,
)
from toco_lab.config import Config
from toco_lab.method.lattice import Lattice, bilateral_features
from toco_lab.smoothing.catalogue import METRICS

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Config.preset("smoke")


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


def with_settings(monkeypatch, case, settings: dict) -> None:
    """Replace the settings of a case by small ones."""
    monkeypatch.setattr(case, "CASE", replace(case.CASE, settings=settings, default=()))


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

    seconds = measure.rounds({name: lambda name=name: spend(name) for name in "ab"}, 3)
    assert "".join(order) == "ab" * 4
    assert seconds.to_dict("list") == {"a": [2, 8, 3], "b": [1, 2, 3]}
    assert measure.ratio(seconds, "a", "b") == 2  # the median of 2, 4 and 1; that of the medians is 1.5


def test_new_rows_take_the_place_of_old_ones(tmp_path):
    path = tmp_path / "table.csv"
    pd.DataFrame({"setting": ["c", "a", "a"], "value": [1, 2, 3]}).to_csv(path, index=False)
    new = pd.DataFrame({"setting": ["b", "a"], "value": [4, 5]})
    both = run.merged(path, new, list("abc"))
    assert list(zip(both["setting"], both["value"], strict=True)) == [("a", 5), ("b", 4), ("c", 1)]
    assert run.merged(tmp_path / "none.csv", new, list("abc"))["value"].tolist() == [5, 4]


def test_table_names_its_origin():
    about = run.origin("crf", "photo", 7)
    assert about["command"] == "python -m benchmarks crf/photo --repeats 7"
    assert f"torch {torch.__version__.partition('+')[0]}" in about["versions"]
    case = run.Case(about="Numbers.", settings={"photo": 1}, measure=None, section=lambda rows: list(rows["value"]))
    rows = pd.DataFrame([{"setting": "photo", "value": "many", "repeats": 7} | about])
    text = run.markdown(case, rows)
    assert text.startswith("Numbers.\n\n## photo\n\nmany\n\n7 rounds; ")
    assert all(value in text for value in about.values())
    assert run.markdown_table(["a", "b"], [["1", 2]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


@pytest.mark.parametrize("name", run.CASES)
def test_every_case_says_what_it_has_measured(name, tmp_path):
    """The Markdown beside each table is what the case makes of it today, and every row has a setting of the case."""
    case = run.case_of(name)
    assert set(case.default) <= set(case.settings) and (ROOT / "benchmarks" / f"{name}.py").is_file()
    if (run.RESULTS / f"{name}.csv").is_file():
        table, text = tables(run.RESULTS, name)
        assert set(table["setting"]) <= set(case.settings) and text == run.markdown(case, table)
        for setting, command in zip(table["setting"], table["command"], strict=True):
            assert command == run.origin(name, setting, int(command.rpartition(" ")[2]))["command"]


def test_the_runner_takes_cases_and_settings(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(run, "CASES", ("crf", "pieces", "gpu_step"))
    monkeypatch.setattr(run, "run", lambda *arguments: asked.append(arguments) or arguments[0])
    monkeypatch.setattr(gpu_step, "CASE", replace(gpu_step.CASE, missing=lambda: "no card"))
    run.main(["pieces/vit_b", "crf", "pieces/deit_tiny", "--repeats", "4", "--out", str(tmp_path)])
    assert asked == [("pieces", ["vit_b", "deit_tiny"], 4, tmp_path), ("crf", [], 4, tmp_path)]
    asked.clear()
    run.main([])  # all that can be measured here
    assert [name for name, *_ in asked] == ["crf", "pieces"]
    assert "gpu_step: no card; left out" in capsys.readouterr().out
    for words, message in ((["crv"], "no case crv; there are: crf, pieces"), (["crf/x"], "no setting x of crf")):
        with pytest.raises(SystemExit):
            run.main(words)
        assert message in capsys.readouterr().err


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


def test_crf(tmp_path, monkeypatch, capsys):
    sizes = ((12, 16), (24, 32))
    with_settings(monkeypatch, crf, {"small": crf.Setting(sizes, classes=(1, 3), many=3, profiled=(24, 32))})
    run.main(["crf", "--repeats", "1", "--out", str(tmp_path)])
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
    with_settings(monkeypatch, pieces, {"small": ("vit_tiny_patch16_224", 32, 6), "other": ("none", 1, 1)})
    run.main(["pieces/small", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "pieces")
    assert table["at_once"].tolist() == [6, 3, 1] and table["tokens"].tolist() == [24, 12, 4]
    assert table["to_all"].iloc[0] == 1 and (table["seconds"] > 0).all()
    assert "| vit_tiny_patch16_224, 6 images of 32 | 3 | 12 | " in text and text in capsys.readouterr().out


# --- small machine ----------------------------------------------------------------------------------------------------


def test_small_machine(tmp_path, monkeypatch, capsys):
    seen = []
    step = small_machine._step

    def counted(encoder, batch, *, is_half):
        step(encoder, batch, is_half=is_half)
        seen.append((is_half, sum(weight.grad is not None for weight in encoder.blocks.parameters())))

    monkeypatch.setattr(small_machine, "_step", counted)
    with_settings(monkeypatch, small_machine, {"small": ("vit_tiny_patch16_224", 32, 2, (0, 12))})
    run.main(["small_machine", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "small_machine")
    assert list(zip(table["precision"], table["frozen_blocks"], strict=True)) == [
        ("fp32", 0), ("fp32", 12), ("bf16", 0), ("bf16", 12),
    ]  # fmt: skip
    assert seen[:4] == seen[4:] == [(False, 144), (False, 0), (True, 144), (True, 0)]
    assert table["to_whole"].iloc[0] == 1 and (table["seconds"] > 0).all()
    assert "| vit_tiny_patch16_224, 2 crops of 32 | bf16 | 12 | " in text and text in capsys.readouterr().out


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, metrics, {"smoke": metrics.Setting("smoke", 96, images=2)})
    run.main(["metrics", "--repeats", "1", "--out", str(tmp_path)])
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
    base = SMOKE.replace(view2_size=32)
    axes = {
        "size": {side: base.replace(crop_size=side) for side in (64, 96)},
        "classes": {count: base.replace(num_classes=count) for count in (6, 9)},
    }
    compared = {"toy": base.replace(depth=4), "wide": base.replace(embed_dim=32)}
    with_settings(monkeypatch, growth, {"toy": axes, "backbone": {"backbone": compared}})
    monkeypatch.setattr(growth, "in_a_fresh_process", lambda _, cfg, __: (400.0, cfg.crop_size / 2))
    run.main(["growth/toy", "--repeats", "1", "--out", str(tmp_path)])
    monkeypatch.setattr(growth, "in_a_fresh_process", lambda *_: (np.nan, np.nan))  # no Linux
    run.main(["growth/backbone", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "growth")
    found = {(setting, axis): rows for (setting, axis), rows in table.groupby(["setting", "axis"])}
    assert found["toy", "size"]["value"].tolist() == ["64", "96"]
    assert found["backbone", "backbone"]["value"].tolist() == ["toy", "wide"]
    assert all(rows["to_first"].iloc[0] == 1 and (rows["to_floor"] > 0).all() for rows in found.values())
    assert (
        found["toy", "size"]["step_mb"].tolist() == [32, 48] and found["backbone", "backbone"]["peak_mb"].isna().all()
    )
    assert "memory 0.50." in text and "## backbone" in text and text in capsys.readouterr().out


def test_the_axes_of_growth_change_one_number_at_a_time():
    axes = growth.SETTINGS["deit_tiny"]
    assert [cfg.crop_size for cfg in axes["size"].values()] == [224, 320, 448]
    assert [cfg.batch_size for cfg in axes["batch"].values()] == [1, 2, 4]
    assert [cfg.num_classes for cfg in axes["classes"].values()] == [20, 80]
    sizes = axes["size"].values()
    assert {(cfg.batch_size, cfg.num_classes, cfg.backbone) for cfg in sizes} == {(2, 20, "deit_tiny_patch16_224")}


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


def test_the_code_that_is_timed_works():
    names: dict = {}
    for code in (*startup.IMPORTS.values(), *startup.FIRST_BATCH.values()):
        exec(code.replace("{preset!r}", "'smoke'"), names)
    assert names["cfg"].preset_name == "smoke"


def test_startup(tmp_path, monkeypatch, capsys):
    counts = iter(range(100))

    def stages(code):
        seconds = {"torch and timm": 4.0, "import toco_lab": 1.0 + next(counts)}
        return pd.DataFrame({"cpu": [seconds.get(name, 2.0) for name in code], "wall": 3.0}, index=list(code))

    monkeypatch.setattr(startup, "stages", stages)
    executed = []
    monkeypatch.setattr(
        startup, "NotebookClient", lambda notebook, **options: SimpleNamespace(execute=lambda: executed.append(options))
    )
    swept = []
    monkeypatch.setattr(startup, "run_sweep", lambda grid, **options: swept.append(startup.forked.CAN_FORK))
    monkeypatch.setattr(startup.forked, "CAN_FORK", True)
    monkeypatch.setattr(startup, "smoke_runs", lambda folder: ["one", "two"])
    monkeypatch.setattr(startup, "build_report", lambda runs, path: path.write_bytes(b"x" * 2_500_000) and [path])
    monkeypatch.setattr(startup, "seconds_to_open", lambda report: None)  # no Chromium
    run.main(["startup", "--repeats", "3", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "startup")
    table = table.set_index("what")
    # three calls a round: 0 is not counted, then 3, 6 and 9
    assert table.loc["import toco_lab", "cpu"] == 7 and table.loc["import toco_lab", "to_base"] == 7 / 4
    assert table.loc["imports, model and first batch", "cpu"] == 6
    assert table.loc[startup.OWN_KERNEL, "to_base"] == 1 and table.loc["the same in a forked kernel", "to_base"] > 0
    kinds = [options["kernel_manager_class"].__name__ for options in executed]
    assert kinds == ["AsyncKernelManager", "WarmKernelManager"] * 4
    assert swept == [False, True] * 4 and startup.forked.CAN_FORK
    assert table.loc[startup.OWN_WORKERS, "to_base"] == 1 and table.loc["the same by forked workers", "to_base"] > 0
    assert table.loc["opening a report", "megabytes"] == 2.5 and pd.isna(table.loc["opening a report", "wall"])
    assert "| opening a report | - | - | - | 2.50 |" in text and text in capsys.readouterr().out


def test_report_of_given_runs(smoke_run):
    table = startup.measure_report(0, [smoke_run]).set_index("what")
    assert table.loc["building a report of 1 runs", "cpu"] > 0 and table.loc["opening a report", "megabytes"] > 1


def test_others_give_the_same(monkeypatch):
    """Maps and scores of others are ours; where pytorch-grad-cam is not installed, all but its."""
    if packages.missing():
        ours = packages.ATTRIBUTIONS[packages.GRAD_CAM]
        monkeypatch.setattr(packages, "their_grad_cam", lambda model, batches, index: ours(model, batches[0], index))
    setting = packages.Setting("vit_tiny_patch16_224", 64, images=2, batch=2, masks=3)
    model, batches = packages.make_subject(setting)
    attention = [block.attn.fused_attn for block in model.blocks]
    packages.their_rollout(model, batches)
    assert attention == [block.attn.fused_attn for block in model.blocks]
    table = packages.measure(setting, 1).set_index("what")
    assert table["difference"].max() < 1e-4 and (table["to_ours"] > 0).all()
    assert table["to_forward"].isna().tolist() == [False, False, False, True]
    assert "| mIoU |" in "\n".join(packages.section(table.reset_index()))


def test_many_runs():
    table = many_runs.measure(20, 1)
    assert len(table) == 5 and (table["cpu"] > 0).all() and (table["runs"] == 20).all()
    assert "| 20 finished runs | processor seconds |" in many_runs.section(table)


# --- summary ----------------------------------------------------------------------------------------------------------


def test_summary(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        summary.markdown(tmp_path)
    made = {"machine": "a machine", "versions": "torch 9", "command": "python -m benchmarks some"}
    files = {
        "crf": [
            {
                "setting": "photo",
                "kind": "seconds",
                "height": 375,
                "width": 500,
                "classes": 21,
                "dense CRF": 1.501,
                "lattice": 0.2,
                "one filtering": 0.1,
            },
            {"setting": "photo", "kind": "seconds", "height": 375, "width": 500, "classes": 5, "dense CRF": 9.0},
            {"setting": "photo", "kind": "exponent", "over": "pixels", "dense CRF": 1.02},
        ],
        "inference": [
            {"setting": "toy", "what": "multi-scale CAM", "to_floor": 1.1, "images_per_second": 7},
            {"setting": "vit_b", "what": "multi-scale CAM", "to_floor": 2},
            {"setting": "memory", "what": "64 images", "to_fewer": 1.01},
        ],
        "growth": [
            {
                "setting": "toy",
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
            {"setting": "processes", "what": "import toco_lab", "cpu": 0.01},
            {"setting": "kernels", "what": "the same in a forked kernel", "to_base": 0.25},
            {"setting": "report", "what": "opening a report", "megabytes": 12.3, "wall": np.nan},
        ],
    }
    for name, rows in files.items():
        pd.DataFrame(rows).assign(**made).to_csv(tmp_path / f"{name}.csv", index=False)
    page = tmp_path / "speed.md"
    page.write_text(f"Before.\n\n{summary.BEGIN}\nold\n{summary.END}\n\nAfter.\n")
    table = summary.write(page, tmp_path)
    assert page.read_text() == f"Before.\n\n{summary.BEGIN}\n\n{table}\n{summary.END}\n\nAfter.\n"
    page.write_text("No markers.")
    with pytest.raises(ValueError, match="no place for the table"):
        summary.write(page, tmp_path)
    lines = table.splitlines()
    assert lines[2:-4] == [
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
        "| a notebook that imports this, in a forked kernel, x its own | at most 0.50 | x 0.25 | yes | startup |",
        "| size of a report | - | 12.3 MB | - | startup |",
    ], json.dumps(lines, indent=1)
    assert lines[-3] == "One thread, processor seconds; a machine; torch 9. Made by"
    assert lines[-1] == "    python -m benchmarks some"  # once, though every case has it


def test_every_target_has_a_case_and_the_page_shows_the_table():
    assert {target.case for target in summary.TARGETS} <= set(run.CASES)
    assert summary.markdown(run.RESULTS) in summary.PAGE.read_text()


# --- the loader and the explorers -------------------------------------------------------------------------------------


def test_parts_of_a_training_sample(tmp_path, monkeypatch, capsys):
    with_settings(monkeypatch, loader, {"small": 2})
    run.main(["loader", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "loader")
    spent = table.set_index("part")["ms"]
    assert {"decode JPEG", "jitter", "resize and crop", "rest"} <= set(spent.index) and spent.index[-1] == "all"
    assert spent["all"] == pytest.approx(spent.drop("all").sum(), rel=1e-3) and (spent.drop("rest") >= 0).all()
    assert "images a second per process" in text and text in capsys.readouterr().out


def test_moves_of_the_cam_explorer(tmp_path, monkeypatch):
    with_settings(monkeypatch, cam_explorer, {"small": SMOKE})
    monkeypatch.setattr(cam_explorer, "MOVES", 2)
    run.main(["cam_explorer", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "cam_explorer")
    row = table.iloc[0]
    assert 0 < row["move_ms"] <= row["p95_ms"] and row["first_ms"] > 0
    assert f"| {SMOKE.crop_size} x {SMOKE.crop_size}, 6 classes |" in text


@pytest.mark.browser
def test_answers_of_the_token_explorer(tmp_path, monkeypatch):
    if missing := token_explorer.missing():
        pytest.skip(missing)
    monkeypatch.setattr(token_explorer, "CLICKS", 3)
    with_settings(monkeypatch, token_explorer, {"small": "vit_tiny_patch16_224"})
    run.main(["token_explorer", "--repeats", "1", "--out", str(tmp_path)])
    table, text = tables(tmp_path, "token_explorer")
    assert table["models"].tolist() == [1, 1, 2, 2] and (table["count"] == 3).all()
    assert ((table["drawn_median"] > 0) & (table["drawn_median"] <= table["frame_p95"])).all()
    assert "13 layers" in text
