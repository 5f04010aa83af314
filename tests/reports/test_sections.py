"""What stands in each section: of complete, broken and many run folders, without a notebook."""

import base64
import html
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_runs import make_gallery, make_run
from matplotlib import colormaps
from PIL import Image

from toco_lab.config import Config
from toco_lab.evaluation.gallery import save_gallery
from toco_lab.reports import sections
from toco_lab.reports.comparison import compare
from toco_lab.reports.parts import PLOTLY
from toco_lab.reports.repeat import repeat_lines, train_command
from toco_lab.reports.sections import Report
from toco_lab.runs.run_dir import RunDir


def contents(section):
    """MIME bundles of the parts of a section."""
    return [part._repr_mimebundle_()[0] for part in section]


def source(section):
    return "\n".join(bundle.get("text/html", "") for bundle in contents(section))


def words(section):
    """The words of a section as a reader sees them."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", source(section))))


def figures(section):
    return [bundle[PLOTLY] for bundle in contents(section) if PLOTLY in bundle]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    return [make_run(root, level=0.6), make_run(root, level=0.45, w_ptc=0.0, seed=3)]


@pytest.fixture(scope="module")
def report(runs):
    return Report(compare(runs), title="With & without PTC")


def test_numbers_stand_with_their_protocol(report, runs):
    shown = words(report.results())
    for name, cells, seed in (("toy", r"60\.0 70\.0 50\.0", 0), ("toy, no PTC", r"45\.0 70\.0 35\.0", 3)):
        assert re.search(rf"{name} {cells} 90\.0 ", shown)
        assert f"{name} : checkpoint 0123456789ab · seed {seed} " in shown
    shared = (
        "split val", "images 100", "scales 1, 0.5, 1.5", "flip", "true labels mask cam", "no crf", "miou over present",
    )  # fmt: skip
    for said in shared:
        assert said in shown, said
    assert shown.count("CAM, mIoU / auxiliary CAM, mIoU: split val · images 100") == 1  # said once where runs agree
    assert "image labels, F1: not recorded" in shown
    assert "background threshold" not in shown  # does not apply
    first = 1 / 15 * 0.7 + 0.02  # mean over images 0..4 in the run of level 0.6
    assert "Similarity, first block" in shown and f"{first:.3f} ±" in shown
    assert "|cos| of negative pairs, in training" in shown and " 0.300 " in shown and " 0.225 " in shown
    assert "Not measured in the same way" not in shown


def test_different_protocols_are_pointed_out(runs, tmp_path):
    copy = RunDir(shutil.copytree(runs[0].path, tmp_path / "copy"))
    protocol = copy.read_json("protocol")
    protocol["cam"]["true_labels_mask_cam"] = False
    copy.write_json("protocol", protocol)
    shown = words(Report(compare([runs[0], copy])).results())
    assert "Not measured in the same way in all runs: CAM, mIoU." in shown
    assert "seed 0 · no true labels mask cam (CAM, mIoU)" in shown


def test_a_run_of_an_older_version_is_measured_in_the_same_way(runs, tmp_path):
    newer, other = (RunDir(shutil.copytree(runs[0].path, tmp_path / name)) for name in ("newer", "other"))
    for run, rule in ((newer, "EXIF applied"), (other, "as stored")):
        protocol = run.read_json("protocol")
        protocol["cam"]["decoder"] = rule
        run.write_json("protocol", protocol)
    shown = words(Report(compare([runs[0], newer])).results())
    assert "decoder EXIF applied (CAM, mIoU)" in shown and "Not measured in the same way" not in shown
    shown = words(Report(compare([runs[0], newer, other])).results())
    assert "Not measured in the same way in all runs: CAM, mIoU." in shown


def test_differences_and_commands(report, runs, monkeypatch):
    shown = words(report.differences())
    assert f"toy {Config.preset('toy').w_ptc} 0 toy, no PTC 0.0 3" in shown
    shown = words(report.repeat())
    root = runs[1].path.parent
    assert f"# toy, no PTC python -m toco_lab train toy --w-ptc 0.0 --seed 3 --root {root} " in shown
    assert "--name" not in shown  # the folder has the name that `train` gives
    monkeypatch.chdir(root.parent)  # as short as it can be typed
    shown = words(report.repeat())
    assert f"--seed 3 --root {root.name} # this report python -m toco_lab report {root.name}/{runs[0].name} " in shown
    assert "--title 'With & without PTC' --out report.html report.md" in shown


def test_the_commands_make_this_very_folder(tmp_path, monkeypatch):
    run = make_run(tmp_path / "results" / "mine", name="my run", w_ptc=0.0)
    monkeypatch.chdir(tmp_path)
    line = repeat_lines(compare([run]), "a title").splitlines()[1]
    options = shlex.split(line)
    assert options[:5] == ["python", "-m", "toco_lab", "train", "toy"]
    assert Path(options[options.index("--root") + 1], options[options.index("--name") + 1]).resolve() == run.path
    plain = make_run(tmp_path / "results")
    assert repeat_lines(compare([plain]), "a title").splitlines()[1] == "python -m toco_lab train toy"


def test_runs_are_compared_by_row(report):
    """Two configs with one seed each, 0 and 3: no seed is common, so there is no difference."""
    shown = words(report.ablation())
    assert "row toy toy, no PTC seeds 1 1 final CAM 60.0 45.0" in shown  # turned on its side: a column per row
    assert "Data toy" in shown and "One run of each row" in shown and "±" not in shown
    (figure,) = figures(report.ablation())
    assert {trace["name"] for trace in figure["data"]} == {"a run"}  # one seed has neither mean nor spread


def test_the_class_table_has_the_numbers_that_are_drawn(report):
    shown = words(report.classes())
    assert re.search(r"CAM disc 65\.0 50\.0", shown)  # level + 1/20
    assert [trace["name"] for trace in figures(report.classes())[0]["data"][:2]] == report.comparison.names


def test_every_drawing_says_over_how_many_images(report, runs, tmp_path):
    (bars,) = figures(report.classes())
    assert "over 100 images" in bars["layout"]["title"]["text"]
    for drawn in figures(report.similarity()):
        assert "over 5 images" in drawn["layout"]["title"]["text"]
    (ablation,) = figures(report.ablation())
    assert ablation["layout"]["xaxis"]["title"]["text"] == "points<br><sub>100 images, 1 seed</sub>"
    few = RunDir(shutil.copytree(runs[0].path, tmp_path / "few"))
    protocol = few.read_json("protocol")
    few.write_json("protocol", {target: record | {"images": 20} for target, record in protocol.items()})
    rows = few.read_table("smoothing")
    few.write_table("smoothing", rows[rows["image"] < 2])
    made = Report(compare([runs[0], few]))
    (bars,) = figures(made.classes())
    assert "over 100 images (toy, seed 0), 20 images (few)" in bars["layout"]["title"]["text"]
    assert "over 5 images (toy, seed 0), 2 images (few)" in figures(made.similarity())[0]["layout"]["title"]["text"]
    assert "images 20 (CAM, mIoU" in words(made.results()) and "Not measured in the same way" in words(made.results())


def test_what_is_not_defined_is_a_dash_with_its_reason(tmp_path):
    run = make_run(tmp_path, level=0.6)
    table = run.read_table("evaluation").assign(over_activation=0.25)
    table.loc[(table["target"] == "cam") & table["class"].isin(["star"]), "iou"] = np.nan
    table.loc[(table["target"] == "cam") & (table["class"] == "mIoU"), ["iou", "over_activation"]] = np.nan
    run.write_table("evaluation", table)
    made = Report(compare([run]))
    shown = words(made.results())
    assert "not defined a class is in neither truth nor prediction" in shown
    assert "not defined no foreground class is predicted" in shown
    assert re.search(r"toy - 70\.0 50\.0", shown) and re.search(r"toy - 25\.0 25\.0", shown)
    shown = words(made.classes())
    assert re.search(r"CAM star - ", shown) and "- is a class in neither truth nor prediction" in shown


def test_a_mean_over_fewer_seeds_says_so(tmp_path):
    runs = [make_run(tmp_path, name=f"{w}-{seed}", w_ptc=w, seed=seed) for w in (0.0, 1.0) for seed in range(4)]
    table = runs[0].read_table("evaluation")
    table.loc[(table["target"] == "cam") & (table["class"] == "disc"), "iou"] = np.nan
    runs[0].write_table("evaluation", table)
    shown = words(Report(compare(runs)).classes())
    assert "CAM disc 65.0 (3 of 4 seeds) 65.0" in shown and "Mean over the seeds of a config: 4 seeds." in shown


def test_galleries_show_each_image_once_with_a_column_per_run(runs, tmp_path):
    copies = [RunDir(shutil.copytree(run.path, tmp_path / name)) for run, name in zip(runs, "ab", strict=True)]
    for run, level in zip(copies, (0.25, 0.75), strict=True):
        save_gallery(run, make_gallery(level), "0123456789ab")
    made = Report(compare(copies))
    pictures = dict(re.findall(r'<img alt="([^"]*)" src="([^"]*)"', source(made.gallery())))
    for name in ("one", "two"):
        for alt in (f"image of {name}", f"truth of {name}", f"CAM of {name}, a", f"auxiliary CAM of {name}, b"):
            assert alt in pictures, alt
    assert "CAM as label of one, a" not in pictures  # was not saved
    assert "cam gallery" not in words(made.pictures())  # the notebook's picture shows the same
    data = base64.b64decode(pictures["CAM of two, b"].partition(",")[2])
    pixel = np.asarray(Image.open(io.BytesIO(data)))[4, 6] / 255
    wanted = 0.55 * np.array(colormaps["inferno"](0.75)[:3]) + 0.45 * 130 / 255
    assert pixel == pytest.approx(wanted, abs=0.03)


def test_many_seeds_become_one_curve_and_tables_have_a_row_per_run(tmp_path):
    """Two configs with four seeds each."""
    runs = [
        make_run(tmp_path, name=f"{kind}-{seed}", level=level + seed / 100, w_ptc=weight, seed=seed)
        for kind, level, weight in (("plain", 0.4, 0.0), ("full", 0.6, 1.5))
        for seed in range(4)
    ]
    made = Report(compare(runs))
    shown = words(made.ablation())
    assert "row toy, no PTC toy seeds 4 4 final CAM 41.5 ± 1.3 61.5 ± 1.3" in shown  # mean and sd of 60..63
    assert "difference, final CAM +20.0 [+20.0, +20.0]* " in shown  # each seed gains 20
    assert re.search(
        r"full-3 63\.0 70\.0 53\.0 90\.0 .*full-3 : checkpoint 0123456789ab · seed 3", words(made.results())
    )
    assert words(made.pictures()).count("Of runs that differ only in the seed, the first is shown.") == 1
    (training,) = figures(made.training())
    assert {trace["name"] for trace in training["data"] if trace.get("showlegend")} == {"toy, no PTC", "toy"}
    curve = next(t for t in training["data"] if t["name"] == "toy" and t["y"][0] == pytest.approx(0.3075))
    assert curve["x"][0] == 10  # the mean of PTC terms 0.5 * level over the seeds


def test_failed_run_says_what_is_not_there_and_why(tmp_path):
    run = RunDir.create(Config.preset("smoke"), tmp_path)
    run.set_status("failed", step=2, error="TrainingError: loss ptc is not finite at step 3")
    made = Report(compare([run]))
    for section, what, name in (
        (made.results(), "scores", "evaluation.csv"),
        (made.training(), "training curves", "metrics.csv"),
        (made.pictures(), "pictures", "figures"),
        (made.similarity(), "similarity per layer", "smoothing.csv"),
        (made.classes(), "scores per class", "evaluation.csv"),
        (made.tokens(), "tokens of probe images", "tokens"),
        (made.gallery(), "gallery", "gallery.npz"),
    ):
        assert f"smoke : {what} not there because its folder has no {name}." in words(section)
        assert "failed: TrainingError: loss ptc is not finite at step 3, at step 2" in words(section)
    assert "There is one run only" in words(made.differences()) and "nothing is compared" in words(made.ablation())
    assert "1 run, 0 finished; 1 unfinished or failed" in words(made.heading())


def test_damaged_files_are_said_to_be_so(runs, tmp_path):
    run = RunDir(shutil.copytree(runs[0].path, tmp_path / "damaged"))
    for name in ("protocol.json", "env.json", "status.json"):
        (run.path / name).write_text("{")
    for name in ("smoothing.csv", "gallery.npz"):
        (run.path / name).write_text("")
    (run.path / "figures" / "cam_gallery.png").write_text("no picture")
    (run.path / "figures" / "curve.json").write_text("[1")
    made = Report(compare([run]))
    assert "smoothing.csv is damaged: a table with a line of column names" in words(made.similarity())
    assert "damaged/gallery.n" in words(made.gallery()) and "writes it again" in words(made.gallery())
    assert "env.json is damaged: JSON was expected" in words(made.environment())
    shown = words(made.pictures())
    assert "cam_gallery.png cannot be shown" in shown and "curve.json cannot be shown" in shown
    assert "60.0" in words(made.results()) and "unknown" in words(made.asked())


def test_many_snapshots_are_thinned_to_the_size_of_a_page(smoke_run, monkeypatch):
    made = Report(compare([smoke_run]))
    whole = len(source(made.tokens()))
    monkeypatch.setattr(sections, "TOKEN_BYTES", 2 * 2 * 5 * 144 * (24 + 1))  # two steps of each of two images
    thin = len(source(made.tokens()))
    # one step of three is gone; tokens and lengths travel compressed, as base64
    assert whole - thin == pytest.approx(2 * 5 * 144 * (24 + 1) * 4 / 3, rel=0.2)


def test_train_command():
    cfg = Config.preset("smoke").replace(refine=False, cam_scales=(1.0, 0.75), weights="my file", embed_dim=None)
    assert train_command(cfg) == (
        "python -m toco_lab train smoke --weights 'my file' --embed-dim None --cam-scales 1.0 0.75 --no-refine"
    )
    assert train_command(Config()).startswith("python -m toco_lab train voc_deit_b")


def test_a_report_reads_no_torch(tmp_path):
    """Run folders alone: nothing that takes seconds to import."""
    import subprocess
    import sys

    run = make_run(tmp_path)
    code = (
        "import sys; from toco_lab.reports import Report, compare_folders; "
        "report = Report(compare_folders(sys.argv[1:])); report.results(); report.training(); report.tokens(); "
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, run.path], capture_output=True, text=True, cwd=root)
    assert done.stdout == "False\n", done.stderr
