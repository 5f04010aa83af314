"""The real packages, without a network: what was told is read back from the files they wrote. Skipped where absent."""

import io
import json
import os
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from helpers.finished_runs import make_gallery, make_run
from PIL import Image

from toco_lab.commands.app import main
from toco_lab.evaluation.gallery import save_gallery
from toco_lab.runs.run_dir import RunDir
from toco_lab.trackers import logbook
from toco_lab.trackers.said import final_scalars, row_scalars, smoothing_per_layer

WHY = "{0} is not installed: pip install 'toco_lab[{0}]'"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A finished run with 30 rows; the machine's own settings of trackers are not seen."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no login lies there
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run = make_run(tmp_path / "runs", name="toco")
    save_gallery(run, make_gallery(0.5), "0123456789ab")
    return run


def expected(run: RunDir) -> dict[str, dict[int, float]]:
    """Every number by name and step, from the files of the run."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in run.metrics().to_dict("records"):
        for name, value in row_scalars(row).items():
            found[name][int(row["step"])] = value
    for name, value in final_scalars(run).items():
        found[name][300] = value
    return found


def killed_and_continued(run: RunDir, name: str) -> None:
    """Rows up to 60 are told; after a kill all those after 40, where the checkpoint was, are made and told again."""
    rows = run.metrics()
    run.truncate_metrics(60)
    with logbook.tracking(run, (name,)) as book:
        for row in rows[rows["step"] <= 60].to_dict("records"):
            book.row(row)
    run.truncate_metrics(40)
    with logbook.tracking(run, (name,)) as book:
        for row in rows[rows["step"] > 40].to_dict("records"):
            run.append_metrics(row)
            book.row(row)
        book.finish()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def events(run: RunDir) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def test_tensorboard_shows_numbers_config_curves_and_pictures(run: RunDir, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tensorboard", reason=WHY.format("tensorboard"))
    for _ in range(2):  # the second sends nothing
        assert main(["runs", "log", "toco", "--root", str(run.path.parent), "--log-to", "tensorboard"]) == 0
    assert f"tensorboard: tensorboard --logdir {run.path / 'tensorboard'}" in capsys.readouterr().err
    found = events(run)
    for name, points in expected(run).items():
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in points.items()], name
    curve = smoothing_per_layer(run)["smoothing/pairwise_cosine"]
    shown = {event.step: event.value for event in found.Scalars("smoothing/pairwise_cosine_per_layer")}
    assert shown == {layer: pytest.approx(value, rel=1e-6) for layer, value in curve.items()} and len(shown) == 12
    (picture,) = found.Images("cams_at_the_end")
    assert picture.step == 300 and Image.open(io.BytesIO(picture.encoded_image_string)).size[0] > 300
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    config = texts["config/text_summary"]
    assert all(f"| {field} |" in config for field in vars(run.config()))
    assert "0123456789ab" in texts["scores/text_summary"] and "| target |" in texts["scores/text_summary"]


def test_a_run_that_goes_on_has_each_step_once_in_tensorboard(run: RunDir) -> None:
    pytest.importorskip("tensorboard", reason=WHY.format("tensorboard"))
    killed_and_continued(run, "tensorboard")
    assert [event.step for event in events(run).Scalars("train/cls_loss")] == list(range(10, 301, 10))


def test_events_without_a_record_are_replaced(run: RunDir) -> None:
    """The record is lost (a copy of the folder without it): the events are hidden and written anew."""
    pytest.importorskip("tensorboard", reason=WHY.format("tensorboard"))
    for _ in range(2):
        logbook.log_run(run, "tensorboard")
        (run.path / "tracker_tensorboard.json").unlink()
    assert [event.step for event in events(run).Scalars("train/cls_loss")] == list(range(10, 301, 10))


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def records_of(file: Path) -> list[bytes]:
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB, pieces with a header of 7 bytes."""
    data, records, piece, at = file.read_bytes(), [], b"", 7  # the file has a header of its own
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        piece += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(piece)
            piece = b""
    return records


def wandb_run(run: RunDir) -> tuple[list[dict[str, Any]], dict[str, Any], set[str]]:
    """Rows of history, config and ids of all offline folders of a run, oldest first."""
    from wandb.proto import wandb_internal_pb2

    rows, config, ids = [], {}, set()
    for file in sorted((run.path / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for content in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    return rows, config, ids


@pytest.mark.slow
def test_wandb_keeps_everything_offline_where_nobody_is_logged_in(run: RunDir, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("wandb", reason=WHY.format("wandb"))
    killed_and_continued(run, "wandb")
    assert "wandb: kept in" in capsys.readouterr().err
    history, config, ids = wandb_run(run)
    assert len(ids) == 1, "the id is kept in the run's folder"
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in history:
        for name, value in row.items():
            if name.startswith(("train/", "validation/", "final/")):
                assert row["step"] not in found[name], "a step came twice"
                found[name][row["step"]] = value
    assert found == expected(run)
    assert config["backbone"] == run.config().backbone and set(vars(run.config())) <= set(config)
    layers = {row["layer"]: row["smoothing/pairwise_cosine"] for row in history if "smoothing/pairwise_cosine" in row}
    assert layers == pytest.approx(smoothing_per_layer(run)["smoothing/pairwise_cosine"])
    kinds = {name: value for row in history for name, value in row.items() if name.endswith("/_type")}
    assert kinds == {
        "pictures/cams_at_the_end/_type": "image-file",
        "tables/scores/_type": "table-file",
        "tables/iou_per_class/_type": "table-file",
    }


# --- MLflow -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflow_keeps_a_database_beside_the_runs(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason=WHY.format("mlflow"))
    pytest.importorskip("alembic", reason="mlflow-skinny keeps no database: pip install 'toco_lab[mlflow]'")
    from mlflow import MlflowClient

    killed_and_continued(run, "mlflow")
    logbook.log_run(run, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")
    (there,) = client.search_runs([client.get_experiment_by_name("toco_lab").experiment_id])
    assert there.info.run_name == "toco" and there.info.status == "FINISHED"
    assert there.data.params == {name: str(value) for name, value in vars(run.config()).items()}
    for name, points in expected(run).items():
        history = client.get_metric_history(there.info.run_id, name)
        assert [(point.step, point.value) for point in history] == list(points.items()), name
    curve = client.get_metric_history(there.info.run_id, "smoothing/pairwise_cosine_per_layer")
    assert {point.step: point.value for point in curve} == smoothing_per_layer(run)["smoothing/pairwise_cosine"]
    files = {path.name for path in (run.path.parent / "mlartifacts").rglob("*") if path.is_file()}
    assert files == {"cams_at_the_end_00000300.png", "scores.csv", "iou_per_class.csv"}

    other = f"sqlite:///{run.path.parent / 'other.db'}"  # the run is not there: it is opened anew, with all its rows
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.chdir(run.path.parent)
    logbook.log_run(run, "mlflow")
    client = MlflowClient(tracking_uri=other)
    (there,) = client.search_runs([client.get_experiment_by_name("toco_lab").experiment_id])
    assert len(client.get_metric_history(there.info.run_id, "train/cls_loss")) == 30


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said(run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("mlflow", reason=WHY.format("mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["runs", "log", "toco", "--root", str(run.path.parent), "--log-to", "mlflow"]) == 2
    assert "mlflow gets nothing more of this run" in capsys.readouterr().err
