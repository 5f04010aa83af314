"""What an executed notebook must show and leave behind."""

from pathlib import Path

import nbformat

from toco_lab.sweeps.notebooks import read_record

MOST_BYTES = 5_000_000  # of an executed notebook: GitHub and mail take it, a browser opens it at once
FILES = {  # what each notebook leaves in the folder of its run
    "00_start_here": {
        "figures/scene.png",
        "figures/cam_before_training.png",
        "figures/similarity_at_start.json",
        "figures/cam_after_first_steps.png",
    },
    "03_train": {"metrics.csv", "figures/training_curves.json", "figures/learning_rate.json"},
    "04_evaluate": {"evaluation.csv", "protocol.json", "figures/iou_per_class.json", "figures/cam_gallery.png"},
    "01_cam_explorer": {
        "figures/cam_and_attributions.png",
        "figures/faithfulness.json",
        "figures/pseudo_label_thresholds.png",
        "figures/regions_and_crops.png",
        "figures/prediction.png",
    },
    "02_losses_by_hand": {
        "figures/ptc_descent.png",
        "figures/ctc_wrong_flag.png",
        "figures/ctc_contradictory_flag.png",
    },
    "05_over_smoothing": {
        "smoothing.csv",
        "layer_cams.csv",
        "figures/similarity_per_layer.json",
        "figures/attention_or_mlp.json",
        "figures/pairs_per_layer.json",
        "figures/metrics_per_layer.json",
        "figures/cam_quality_per_layer.json",
        "figures/layer_similarity.json",
        "figures/token_similarity.png",
    },
    "06_ablation": {"live/grid.yaml", "live/sweep.csv"},
    "07_runs": {"figures/metric_by_parameter.png"},
    "09_peers": {"methods/grid.yaml", "methods/sweep.csv"},
    "10_second_stage": {"few_masks_live/grid.yaml", "few_masks_live/sweep.csv"},
    "11_boxes_and_clips": {"figures/boxes.png", "boxes.csv", "video.csv"},
    "12_own_images": {"run/domain.csv", "run/figures/cam_gallery.png", "run/figures/scan.png"},
}


def check_executed(output: Path, run_dir: Path, name: str) -> None:
    """An executed notebook has a record of success, is small, shows a figure, and left its files in its run."""
    assert read_record(output)["state"] == "done"
    assert output.stat().st_size < MOST_BYTES, "what is heavy in it?"
    cells = nbformat.read(output, as_version=4).cells
    shown = [kind for cell in cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert {"image/png", "application/vnd.plotly.v1+json"} & set(shown), "no figure in the executed notebook"
    for file in FILES[name]:
        assert (run_dir / file).stat().st_size > 0, file
