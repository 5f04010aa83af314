"""Commands about a trained run: `evaluate`, `pseudo_labels`, `report`, and `import_released`, which makes one."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from toco_lab.commands.data import write_pictures
from toco_lab.config import Config

if TYPE_CHECKING:
    from toco_lab.evaluation.evaluate import Evaluation


def evaluate(
    run: tyro.conf.Positional[Path],
    split: str | None = None,
    targets: tuple[str, ...] = (),
    refine: str | None = None,
    device: str = "auto",
) -> None:
    """Score the last checkpoint of a run again; writes evaluation.csv and protocol.json.

    Several GPUs: torchrun --nproc-per-node 8 -m toco_lab evaluate ... shares the images out, dense CRF included.

    Args:
        run: Folder of the run.
        split: List to evaluate; None takes the one of the config.
        targets: Among cam, cam_aux, cam_refined, seg, seg_crf, labels; none given takes all the config asks for. Each
            CAM is scored twice: at background_threshold, and (cam_tuned ...) at the threshold that is best on
            threshold_images training images.
        refine: What refines the CAM of cam_refined, in place of eval_refine of the config: par, pamr, crf, patch, walk,
            patch+par, walk+par.
        device: auto, cpu, cuda ...
    """
    from toco_lab.evaluation.evaluate import evaluate_run
    from toco_lab.runs.run_dir import RunDir
    from toco_lab.training.processes import is_first, process_group, resolve_device

    with process_group():
        found = evaluate_run(
            RunDir(run), targets=targets or None, split=split, refine=refine, device=str(resolve_device(device))
        )
        if is_first():
            print_scores(found)
            print_doubtful_truth(RunDir(run).config(), split)


def print_doubtful_truth(cfg: Config, split: str | None = None) -> None:
    """Print why scores on a split may be wrong, where the masks and the labels disagree."""
    from toco_lab.data.doubts import truth_warnings

    for line in truth_warnings(cfg, split):
        print(line)


def print_scores(evaluation: "Evaluation") -> None:
    """Print a compact table: each mean score, and beside it what it depends on."""
    shown = "score boundary_iou background_threshold split images image_size scales true_labels_mask_cam crf miou_over"
    table = evaluation.summary.set_index("target")
    print(f"\nscores in per cent; seed {table['seed'].iloc[0]}")
    digits = {"score": "{:.1f}".format, "boundary_iou": "{:.1f}".format, "background_threshold": "{:.2f}".format}
    print(table[[*shown.split(), "checkpoint"]].to_string(formatters=digits, na_rep="-"))
    for target, record in evaluation.protocol.items():
        if word := record.get("refinement"):
            print(f"{target}: refined by {word}, not by PAR alone")
        if source := record.get("threshold_from"):
            print(f"{target}: threshold from {source}")
        elif reason := record.get("not_defined"):
            print(f"{target}: -, because {reason}")
    if evaluation.empty_cam_note:
        print(f"note: {evaluation.empty_cam_note}")


def pseudo_labels(
    run: tyro.conf.Positional[Path],
    split: str | None = None,
    out: Path | None = None,
    kinds: tuple[Literal["seed", "refined", "crf", "aux", "seg"], ...] = ("seed", "refined", "crf"),
    thresholds: tuple[float, ...] = (),
    uncertain: bool = False,
    scores: bool = False,
    images: Literal["link", "copy"] | None = None,
    refine: str | None = None,
    device: str = "auto",
) -> None:
    """Write the pseudo labels of a run as a data set for a second stage: palette PNGs in VOC's layout, and a protocol.

    A killed command continues when it is given again. Each kind has a folder of its own, like OUT/seed;
    `toco_lab/evaluation/pseudo_labels.py` says what lies in it.

    Args:
        run: Folder of the run.
        split: List to label; None takes the training list of the config.
        out: Folder to write; None takes pseudo_labels/<split> in the run's folder.
        kinds: seed (final CAM, what `evaluate` calls cam), refined (by PAR: cam_refined), crf (CAM and dense CRF),
            aux (auxiliary CAM: cam_aux), all masked by the true image labels; seg (the decoder's segmentation: seg).
        thresholds: One background score, or a low and a high one with 255 (ignored) between them; none given takes
            background_threshold of the config, as `evaluate` does.
        uncertain: Take low_threshold and high_threshold of the config.
        scores: Also write the soft scores of seed and aux, float16 in one .npz per image.
        images: Put the images there too, as links or copies: OUT/<kind> is then a data_root of the preset `folder`.
        refine: How the kind refined is made, in place of eval_refine of the config; words as of `evaluate`.
        device: auto, cpu, cuda ...
    """
    from toco_lab.evaluation.pseudo_labels import Thresholds, write_pseudo_labels
    from toco_lab.runs.run_dir import RunDir

    found = RunDir(run)
    cfg = found.config()
    if len(thresholds) > 2 or (thresholds and uncertain):
        raise ValueError("give one threshold, or a low and a high one, or --uncertain without --thresholds")
    if uncertain:
        thresholds = (cfg.low_threshold, cfg.high_threshold)
    chosen = Thresholds(thresholds[0], thresholds[-1]) if thresholds else None
    written = write_pseudo_labels(
        found, split=split, out=out, kinds=kinds, thresholds=chosen, scores=scores, images=images, refine=refine,
        device=device,
    )  # fmt: skip
    print(written)
    write_pictures(cfg, written.shown, written.out / "contact_sheet.png")


def report(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    out: tuple[Path, ...] = (Path("report.html"),),
    title: str | None = None,
) -> None:
    """Write a report about some runs: one offline HTML file, or Markdown with figures and tables for a paper.

    Args:
        runs: Folders of the runs, or of a sweep.
        out: Files to write: .html is the page; .md is Markdown, and beside it a folder of PNGs, and of each table as
            CSV and LaTeX.
        title: Heading; None takes the names of the runs.
    """
    from toco_lab.reports.export import build_report

    for path in build_report(runs, *out, title=title):
        print(path)


def attributions(
    run: tyro.conf.Positional[Path],
    num_images: int = 20,
    methods: tuple[str, ...] = (),
    blocks: tuple[int, ...] = (),
    steps: int = 16,
    tolerance: float | None = None,
    split: str | None = None,
    device: str = "auto",
) -> None:
    """Measure how faithful CAMs and other attributions of a run are: insertion, deletion and the pointing game.

    Writes attributions.csv, attribution_curves.csv and figures/attributions.json into the run's folder;
    `docs/attributions.md` says what the numbers say, and what they do not.

    Args:
        run: Folder of the run.
        num_images: How many images of the split, the first ones that show a class.
        methods: Like CAM, "auxiliary CAM", Grad-CAM, "attention rollout", "random map"; none given takes all that the
            model can give, and the controls.
        blocks: Read attributions at these blocks, from 1; none given reads each where it is usual.
        steps: Steps of insertion and deletion, each a pass of every masked copy.
        tolerance: How many pixels beside the class still are a hit of the pointing game; None takes 3 percent of the
            longer side of the images.
        split: List of images; None takes the one of the config.
        device: auto, cpu, cuda ...
    """
    from toco_lab.attribution.measured import measure_attributions
    from toco_lab.figures.faithfulness import faithfulness_curves
    from toco_lab.files import check_writable
    from toco_lab.runs.run_dir import RunDir

    found = RunDir(run)
    check_writable(found.path / "attributions.csv")
    measured = measure_attributions(
        found, images=num_images, methods=methods or None, blocks=blocks or None, steps=steps, tolerance=tolerance,
        split=split, device=device,
    )  # fmt: skip
    found.write_table("attributions", measured.table)
    found.write_table("attribution_curves", measured.curves)
    found.save_figure("attributions", faithfulness_curves(measured.curves))
    print(f"\n{measured}")


def import_released(
    preset: tyro.conf.Positional[str],
    checkpoint: tyro.conf.Positional[Path],
    root: Path = Path("results"),
    name: str | None = None,
) -> None:
    """Make a run of a checkpoint the authors released, ready for `evaluate`, `report` and the notebooks.

    Args:
        preset: The preset it belongs to, like voc_vit_b; the run has the released behaviour.
        checkpoint: The authors' file; read without running code in it.
        root: Folder that holds the runs.
        name: Folder name below it; None takes the name of the file.
    """
    from toco_lab.training.released import run_of_released

    run, found = run_of_released(Config.preset(preset).released(), checkpoint, root, name=name)
    print(f"{found}\nrun folder: {run.path}")
