"""Series: the numbers that both kinds of figures draw."""

import numpy as np
import pandas as pd
import pytest

from toco_lab.figures import across_runs, series
from toco_lab.vocabulary import MEAN_ABSOLUTE_COSINE

STABLE_RANK = ("stable rank", "not centred")


def layer_rows(model="a", metric=MEAN_ABSOLUTE_COSINE, images=(0.0, 0.1, 0.2, 0.3, 0.4)):
    """Two blocks at every site; attention adds 0.1 and the MLP takes 0.02 away; images differ by the given offsets."""
    places = [("patch embedding", 0, 0.2), ("after attention", 1, 0.3), ("after block", 1, 0.28)]
    places += [("after attention", 2, 0.38), ("after block", 2, 0.36), ("final norm", 2, 0.5)]
    rows = [
        (
            model,
            site,
            "LayerNorm" if site == "final norm" else "none",
            layer,
            "patch tokens",
            16,
            image,
            *metric,
            value + offset,
        )
        for site, layer, value in places
        for image, offset in enumerate(images)
    ]
    return pd.DataFrame(rows, columns="model site norm layer token_set tokens image metric variant value".split())


def test_layer_series_mean_and_quartiles_at_every_place():
    found = series.layer_series(layer_rows(), norm_x=7)
    assert list(found["x"]) == [0, 0.5, 1, 1.5, 2, 7]
    assert list(found["apart"]) == [False] * 5 + [True]
    np.testing.assert_allclose(found["mean"], [0.4, 0.5, 0.48, 0.58, 0.56, 0.7])
    np.testing.assert_allclose(found["low"], found["mean"] - 0.1)
    np.testing.assert_allclose(found["high"], found["mean"] + 0.1)
    assert list(found["over"]) == ["5 images"] * 6
    two = pd.concat([layer_rows().assign(run="s0"), layer_rows().assign(run="s1")])
    assert list(series.layer_series(two, norm_x=7)["over"]) == ["5 images of each of 2 runs"] * 6


def test_sublayer_changes_are_differences_of_means():
    found = series.sublayer_changes(layer_rows())
    assert list(found.index) == [1, 2] and list(found) == ["attention", "MLP"]
    np.testing.assert_allclose(found["attention"], [0.1, 0.1])
    np.testing.assert_allclose(found["MLP"], [-0.02, -0.02])


def test_rows_of_metrics_and_an_error_that_lists_what_is_there():
    frame = pd.concat([layer_rows(), layer_rows(metric=STABLE_RANK)])
    assert series.metrics_of(frame) == [MEAN_ABSOLUTE_COSINE, STABLE_RANK]
    assert set(series.rows_of_metrics(frame, [STABLE_RANK])["metric"]) == {"stable rank"}
    assert len(series.rows_of_metric(frame, ("stable rank", "centred"))) == 0
    with pytest.raises(
        ValueError, match=r"no rows of MAD \(x\); the table has pairwise cosine .*; stable rank \(not c"
    ):
        series.rows_of_metrics(frame, [("MAD", "x")])


def test_ticks_leave_room_for_the_norm():
    deep = pd.DataFrame(
        {"site": ["patch embedding"] + ["after block"] * 12 + ["final norm"], "layer": [*range(13), 12]}
    )
    assert series.layer_ticks(deep) == {**{layer: str(layer) for layer in range(13)}, 13: "norm"}
    assert series.layer_ticks(deep, sparse=True) == {0: "0", 3: "3", 6: "6", 9: "9", 13: "norm"}
    assert series.layer_ticks(deep[1:-1], sparse=True) == {1: "1", 4: "4", 7: "7", 10: "10"}


def test_measured_at_names_sites_norms_tokens():
    assert series.measured_at(layer_rows()) == (
        "absolute, off-diagonal; patch embedding (raw), after attention (raw), after block (raw), final norm "
        "(LayerNorm); patch tokens, N = 16; over 5 images"
    )
    mixed = pd.concat([layer_rows(), layer_rows().assign(tokens=4)])
    assert series.measured_at(mixed, variants=False).endswith("; patch tokens, N = 4 to 16; over 5 images")


def test_models_measured_over_other_numbers_of_images_are_named():
    frame = pd.concat([layer_rows(), layer_rows("b", images=(0.0, 0.1)), layer_rows("c")])
    assert series.measured_at(frame).endswith("; over 5 images (a, c), 2 images (b)")
    lacking = frame[(frame["model"] == "a") & ~((frame["image"] == 0) & (frame["site"] == "final norm"))]
    assert series.measured_at(lacking).endswith("; over 4 to 5 images")
    pooled = layer_rows(images=(0.0,)).assign(image="all images")
    assert series.measured_at(pooled).endswith("; over tokens of all images pooled")
    assert series.measured_at(pd.concat([layer_rows(), pooled])).endswith("; over 5 images")


def quality_rows():
    rows = [
        ("after block", 1, 0.5, 0.4, True, False), ("after block", 1, 0.6, 0.5, False, True),
        ("final norm", 1, 0.5, 0.3, True, True), ("final norm", 1, 0.6, 0.2, False, False),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns="site layer threshold miou own best".split()).assign(model="a")


def test_cam_quality_in_per_cent_at_own_and_best_threshold():
    own, best = (series.cam_quality_series(quality_rows(), name) for name in ("own", "best"))
    assert list(own["x"]) == [1, 2] and list(own["apart"]) == [False, True]
    np.testing.assert_allclose(own["mean"], [40, 30])
    np.testing.assert_allclose(best["mean"], [50, 30])
    assert list(best["threshold"]) == [0.6, 0.5]


def test_training_series_over_seeds_and_columns_that_are_not_zero():
    seeds = pd.DataFrame(
        {"step": [10, 20, 10], "total_loss": [2.0, 1.0, 4.0], "ptc_loss": 0.0, "val_cam": [np.nan, 0.5, 1]}
    )
    assert series.training_columns([seeds, seeds[["step"]]]) == ["total_loss", "val_cam"]
    found = series.training_series(seeds, "total_loss")
    assert found[["x", "mean", "low", "high"]].values.tolist() == [[10, 3, 2, 4], [20, 1, 1, 1]]
    shares = series.training_series(seeds, "val_cam")  # a step without a value has no point
    assert shares[["x", "mean"]].values.tolist() == [[10, 100], [20, 50]]  # per cent
    assert series.training_title("val_cam") == "CAM mIoU, %" and series.training_title("ptc_loss").endswith("(PTC)")


def test_a_loss_begins_where_it_is_first_counted():
    frame = pd.DataFrame({"step": [1, 2, 3, 4], "seg_loss": [0, 0, 0.5, 0.0], "ptc_loss": 0.0, "positive_cosine": 0.0})
    assert series.training_series(frame, "seg_loss")[["x", "mean"]].values.tolist() == [[3, 0.5], [4, 0]]
    assert series.training_series(frame, "ptc_loss").empty  # not used, so not drawn as 0
    assert len(series.training_series(frame, "positive_cosine")) == 4


def test_class_bars_in_per_cent_with_the_mean_last():
    table = pd.DataFrame(
        {
            "run": ["a"] * 4 + ["b"] * 2,
            "target": ["cam"] * 3 + ["labels"] + ["cam"] * 2,
            "class": ["mIoU", "background", "cat", "F1", "cat", "mIoU"],
            "iou": [0.6, 0.9, 0.3, 0.8, 0.5, np.nan],
        }
    )
    (bars,) = series.class_bars(table)
    assert (bars.target, bars.classes) == ("cam", ["background", "cat", "mIoU"])
    np.testing.assert_allclose(bars.percent["a"], [90, 30, 60])
    np.testing.assert_allclose(bars.percent["b"], [np.nan, 50, np.nan])


def test_ablation_points_have_runs_means_and_the_row_compared_with():
    frame = pd.DataFrame({"row": ["a", "a", "b"], "seed": [0, 1, 0], "cam_mIoU": [0.2, 0.4, np.nan], "x": [1, 2, 3.0]})
    lines = [("b", "x", 3.0, np.nan, 1, "a"), ("a", "x", 1.5, 0.7, 2, ""), ("a", "cam_mIoU", 0.3, 0.1, 2, "")]
    lines.append(("b", "cam_mIoU", np.nan, np.nan, 0, "a"))
    summary = pd.DataFrame(lines, columns=["row", "score", "mean", "sd", "seeds", "reference"])
    assert series.ablation_rows(summary) == ["b", "a"]
    plain, share = series.ablation_points(frame, summary)
    assert (plain.score, plain.in_points, plain.compared) == ("x", False, 1.5)
    assert plain.runs.values.tolist() == [["a", 0, 1], ["a", 1, 2], ["b", 0, 3]]
    assert plain.means[["row", "mean", "sd", "seeds"]].values.tolist() == [["b", 3, 0, 1], ["a", 1.5, 0.7, 2]]
    assert (share.score, share.in_points) == ("cam_mIoU", True)
    np.testing.assert_allclose(share.runs["value"], [20, 40])  # a run without the score is no point
    assert share.compared == pytest.approx(30)
    alone = series.ablation_points(frame[frame["seed"] == 0], summary.assign(seeds=summary["seeds"].clip(upper=1)))
    assert [one.means.empty for one in alone] == [True, True] and alone[0].compared == 1.5  # one seed has no mean


def test_where_the_reference_lacks_a_score_nothing_is_compared():
    frame = pd.DataFrame({"row": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "seg_mIoU": [np.nan, np.nan, 0.2, 0.4]})
    lines = [("a", "seg_mIoU", np.nan, np.nan, 0, ""), ("b", "seg_mIoU", 0.3, 0.1, 2, "a")]
    summary = pd.DataFrame(lines, columns=["row", "score", "mean", "sd", "seeds", "reference"])
    (points,) = series.ablation_points(frame, summary)
    assert points.compared is None and points.over == "2 seeds" and points.means["row"].tolist() == ["b"]
    assert not across_runs.ablation_plot(frame, summary).layout.shapes
    assert len(across_runs.ablation_plot(frame.fillna(0.1), summary.fillna(0.1)).layout.shapes) == 1


def test_lines_for_paper_are_the_same_series_side_by_side():
    frame = pd.concat([layer_rows("a"), layer_rows("b", images=(0.1, 0.3))])
    lines = series.layer_lines(frame, [MEAN_ABSOLUTE_COSINE])
    assert set(lines["panel"]) == {"pairwise cosine\nabsolute, off-diagonal"} and set(lines["line"]) == {"a", "b"}
    own = lines[lines["line"] == "b"].drop(columns=["panel", "line"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, series.layer_series(layer_rows("b", images=(0.1, 0.3)), norm_x=3))
    training = series.training_lines({"a": pd.DataFrame({"step": [1, 2], "total_loss": [2.0, 1.0]})})
    assert training[["panel", "line", "x", "mean", "apart"]].values.tolist() == [
        ["total loss", "a", 1, 2, False],
        ["total loss", "a", 2, 1, False],
    ]
    assert series.training_lines({}).empty
    quality = series.cam_quality_lines(quality_rows())
    assert quality["panel"].unique().tolist() == ["CAM mIoU, %, own threshold", "CAM mIoU, %, best threshold"]
    np.testing.assert_allclose(quality["mean"], [40, 30, 50, 30])
