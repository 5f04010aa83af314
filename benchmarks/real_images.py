"""Token contrast on photographs: a plain classifier, with PTC, with PTC and CTC, over seeds, small enough for a CPU.

    python benchmarks/real_images.py voc data/VOC2012 --steps 300
    python benchmarks/real_images.py folder my/folder --seeds 3 --workers 2

A ViT of the toy world's size with its weights, crops of 128 pixels and some hundred steps: this shows that the pipeline
works on real images, not how well ToCo does; for that there are the presets `voc_*`. Runs go to results/sweeps; left
are benchmarks/results/real_<name>.csv, .md and .png. Killed, it continues.
"""

import argparse
from pathlib import Path

from ablations import write_tables

from toco_lab.config import Config
from toco_lab.data.own_folder import complete_config
from toco_lab.sweeps.grid import ROOT, Grid
from toco_lab.sweeps.sweep import run_sweep

OUT = Path(__file__).parent / "results"
ROWS = {
    "baseline": {"w_ptc": 0.0, "w_ctc": 0.0},
    "+ PTC": {"w_ctc": 0.0},
    "+ PTC + CTC": {},
}
SMALL = {  # what fits a CPU
    "crop_size": 128, "view2_size": 64, "local_crop_size": 32, "scale_range": (0.3, 0.6), "eval_cam_size": 128,
    "batch_size": 8, "learning_rate": 8e-4, "warmup_steps": 20, "log_every": 10, "checkpoint_every": 50,
    "num_workers": 0, "par_dilations": (1, 2, 4, 8), "par_iterations": 5,
    "eval_seg_scales": (0.3,), "eval_seg_flip": False,  # the decoder is not trained here
    "w_ptc": 1.5, "w_ctc": 0.2, "w_seg": 0.0, "w_reg": 0.0, "contrast_start_step": 100,
}  # fmt: skip
BACKBONE = ("backbone", "weights", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "normalisation",
            "decoder_width", "head_hidden", "head_bottleneck", "head_out", "cam_scales")  # fmt: skip


def real_grid(dataset: str, data_root: Path, *, steps: int, seeds: int) -> Grid:
    """The three rows on a data set: `voc`, `coco` or any `folder`."""
    toy = Config.preset("toy")
    preset = "folder" if dataset == "folder" else f"{dataset}_deit_b"
    fields = {name: getattr(toy, name) for name in BACKBONE} | SMALL
    fields |= {"data_root": str(data_root.resolve()), "steps": steps}
    cfg = complete_config(Config.preset(preset).replace(**fields))
    if dataset == "folder":
        fields |= {name: getattr(cfg, name) for name in ("label_source", "classes", "num_classes")}
    about = f"Real photographs ({data_root.name}): what do PTC and CTC do to the CAM of a small ViT in {steps} steps?"
    return Grid(
        name=f"real_{data_root.name}", about=about, preset=preset, overrides=fields, rows=ROWS, reference="baseline",
        seeds=seeds,
    )  # fmt: skip


def main() -> None:
    """Make the runs and write their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=("voc", "coco", "folder"))
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    grid = real_grid(args.dataset, args.data_root, steps=args.steps, seeds=args.seeds)
    run_sweep(grid, root=args.root, workers=args.workers)
    command = f"python benchmarks/real_images.py {args.dataset} DATA_ROOT --steps {args.steps}"
    print(write_tables(grid, args.root, args.out, command=command))


if __name__ == "__main__":
    main()
