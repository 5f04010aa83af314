"""The command line: `python -m toco_lab train toy --w-ptc 0`, `... demo`, `... --help`.

The options of `train` are made from the fields of Config, so a field exists once. Heavy modules are imported by the
command that needs them: `--help` answers at once.
"""

import ast
import dataclasses
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_type_hints

import tyro

from toco_lab.config import PRESETS, Config, config_differences
from toco_lab.runs import RunDir, atomic_write, list_runs, read_runs

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
DEMO_NOTEBOOKS = ("03_train", "04_evaluate", "05_over_smoothing")
BASELINE = {"w_ptc": 0.0, "w_ctc": 0.0, "w_seg": 0.0, "w_reg": 0.0}  # what is left is the two classification losses


@dataclasses.dataclass(kw_only=True)
class RunOptions:
    """Options of `train` that are no Config fields."""

    released: bool = False
    """switch on every quirk of the authors' released code; options that differ from the preset still count"""
    root: Path = Path("results")
    """folder that holds the runs"""
    name: str | None = None
    """folder name below it; None takes <preset>-<digest>-s<seed>"""
    evaluate: bool = True
    """score the trained model and measure its over-smoothing"""
    dry_run: bool = False
    """say what would be done, and do nothing"""


def _train_options(preset: str) -> type:
    """RunOptions plus every field of Config, with the help text of the field and the default of the preset."""
    cfg, hints = Config.preset(preset), get_type_hints(Config)
    options = [
        (
            f.name,
            Annotated[hints[f.name], tyro.conf.arg(help=f.metadata["help"])],
            dataclasses.field(default=getattr(cfg, f.name)),
        )
        for f in dataclasses.fields(Config)
        if f.name != "preset_name"
    ]
    made = dataclasses.make_dataclass("TrainOptions", options, bases=(RunOptions,), kw_only=True)
    made.preset = preset
    about = f"{cfg.dataset}, {cfg.backbone}, {cfg.steps} steps of {cfg.batch_size} images"
    return Annotated[made, tyro.conf.subcommand(preset, description=about, prefix_name=False)]


TrainOptions = Union[tuple(map(_train_options, PRESETS))]  # noqa: UP007 (made at runtime)


def _config(options: RunOptions) -> Config:
    """The Config that the options stand for."""
    base = Config.preset(options.preset)
    names = [field.name for field in dataclasses.fields(Config) if field.name != "preset_name"]
    changed = {name: value for name in names if (value := getattr(options, name)) != getattr(base, name)}
    return (base.released() if options.released else base).replace(**changed)


# --- commands ---------------------------------------------------------------------------------------------------------


def train(options: tyro.conf.OmitArgPrefixes[TrainOptions]) -> None:
    """Train, or continue, a run of a preset; then evaluate it and measure over-smoothing.

    Several GPUs: torchrun --nproc-per-node 4 -m toco_lab train ... shares each batch and the evaluation out.
    """
    from toco_lab.distributed import everywhere, is_first, process_group

    with process_group():
        first = is_first()
        begun = _begin(options) if first else None
        [(path, gap), *_] = everywhere(begun)  # the first process makes the folder, the others wait for it
        if path is None:
            return
        from toco_lab.evaluate import evaluate_run, validator
        from toco_lab.train import fit, resolve_device

        run, cfg = RunDir(path), RunDir(path).config()
        fit(cfg, run, validate=None if gap else validator(cfg))
        if options.evaluate:
            targets = ("labels",) if gap else None
            evaluation = evaluate_run(run, targets=targets, device=str(resolve_device(cfg.device)))
    if first:
        if options.evaluate:
            from toco_lab.smoothing import smoothing_of_run

            smoothing_of_run(run, device=cfg.device)
            _print_scores(evaluation)
            if gap:
                print(f"no mIoU: {gap}")
        print(f"done: {run.path}")


def _begin(options: RunOptions) -> tuple[Path | None, str]:
    """The folder of the run that the options ask for, made and described; None after a dry run. With it, why the
    validation split has no mIoU ("" where it has).
    """
    from toco_lab.distributed import micro_batches, num_processes
    from toco_lab.folder import resolve, write_split
    from toco_lab.readers import missing_truth

    cfg = resolve(_config(options))
    parts = micro_batches(cfg.batch_size, cfg.accumulate, num_processes())
    if parts != cfg.accumulate:
        print(
            f"accumulate {cfg.accumulate} -> {parts}: {num_processes()} processes share a batch of {cfg.batch_size} "
            f"images, and means of losses are over micro-batches. With --accumulate {parts} any number of processes "
            "that divides it continues this run"
        )
        cfg = cfg.replace(accumulate=parts)
    tuned = Config.preset(options.preset)
    if (cfg.learning_rate, cfg.steps) == (tuned.learning_rate, tuned.steps) and cfg.batch_size != tuned.batch_size:
        print(
            f"warning: a batch of {cfg.batch_size} images, but the preset's learning rate {tuned.learning_rate} and "
            f"its {tuned.steps} steps were chosen for {tuned.batch_size}"
            + (
                f". Too little memory? --accumulate {tuned.batch_size} keeps the batch, one image at a time"
                if cfg.batch_size < tuned.batch_size
                else ""
            )
        )
    if options.dry_run:
        _dry_run(cfg, options)
        return None, ""
    if drawn := write_split(cfg):
        print(drawn)
    gap = missing_truth(cfg) if options.evaluate or cfg.val_every else ""
    if gap:
        print(f"no mIoU: {gap}")
    run = RunDir.create(cfg, options.root, name=options.name)
    print(f"run folder: {run.path}")
    return run.path, gap


def _dry_run(cfg: Config, options: RunOptions) -> None:
    """What the command would do, need and take; a data set that is not there yet does not stop it."""
    import torch

    from toco_lab.cost import measured_rate, step_cost
    from toco_lab.distributed import num_processes
    from toco_lab.labels import DataError
    from toco_lab.readers import open_dataset
    from toco_lab.train import resolve_device

    path = options.root / (options.name or cfg.run_name())
    state = RunDir(path).status() if (path / "config.json").is_file() else {"state": "new", "step": 0}
    print(f"run folder: {path} ({state['state']}, step {state['step']})")
    parts = f"in {cfg.accumulate} micro-batches" if cfg.accumulate > 1 else "at once"
    print(f"training:   {cfg.steps} steps of {cfg.batch_size} images {parts}")
    for split in dict.fromkeys((cfg.train_split, cfg.val_split)):
        try:
            found = f"{len(open_dataset(cfg, split))} images"
        except DataError as error:
            found = f"NOT READY: {error}"
        print(f"data:       {cfg.dataset} {split}: {found}")
    weights = cfg.weights or "downloaded by timm where they are not on this machine yet"
    print(f"backbone:   {cfg.backbone}, " + (f"weights: {weights}" if cfg.pretrained else "random weights"))
    device = resolve_device(cfg.device)
    print(f"device:     {device}" + (f", {num_processes()} processes" if num_processes() > 1 else ""))
    gpus = torch.cuda.device_count()
    if gpus > 1 and num_processes() == 1 and cfg.device == "auto":
        print(f"            {gpus} GPUs are here: torchrun --nproc-per-node {gpus} -m toco_lab train ... uses them all")
    cost = step_cost(cfg, processes=num_processes())
    rate = measured_rate(cfg, device, cost=cost)
    left = cfg.steps - state["step"]
    print(
        f"memory:     {cost.memory_bytes / 2**30:.1f} GiB a process at least: {cost.weight_bytes / 2**30:.1f} for "
        f"{cost.parameters / 1e6:.0f} million weights with gradients and moments, "
        f"{cost.activation_bytes / 2**30:.1f} of activations (--checkpoint-blocks, --accumulate and --precision bf16 "
        "lower them)"
    )
    print(
        f"time:       {left} steps of {cost.flops / 1e12:.2g} TFLOP at {rate / 1e12:.2g} TFLOP/s, measured just now: "
        f"about {timedelta(seconds=round(left * cost.flops / rate))} for the encoder passes; the rest of a step comes "
        "on top"
    )
    print("fields that differ from the defaults of Config:")
    for name, values in config_differences({"default": Config(), "here": cfg}).items():
        print(f"  {name} = {values['here']!r} (default {values['default']!r})")


def evaluate(
    run: tyro.conf.Positional[Path], split: str | None = None, targets: tuple[str, ...] = (), device: str = "auto"
) -> None:
    """Score the last checkpoint of a run again; writes evaluation.csv and protocol.json.

    torchrun --nproc-per-node 8 -m toco_lab evaluate ... shares the images out, dense CRF included.

    Args:
        run: Folder of the run.
        split: List to evaluate; None takes the one of the config.
        targets: Among cam, cam_aux, cam_refined, seg, seg_crf, labels; none given takes all the config asks for.
        device: auto, cpu, cuda ...
    """
    from toco_lab.distributed import is_first, process_group
    from toco_lab.evaluate import evaluate_run
    from toco_lab.train import resolve_device

    with process_group():
        found = evaluate_run(RunDir(run), targets=targets or None, split=split, device=str(resolve_device(device)))
        if is_first():
            _print_scores(found)


def _print_scores(evaluation: Any) -> None:
    """A compact table: each mean score with what it depends on."""
    shown = "score split images image_size scales true_labels_mask_cam crf miou_over checkpoint".split()
    table = evaluation.summary.set_index("target")
    print(f"\nscores in per cent; seed {table['seed'].iloc[0]}")
    print(table[shown].to_string(float_format="{:.1f}".format))


def pseudo_labels(
    run: tyro.conf.Positional[Path],
    split: str | None = None,
    out: Path | None = None,
    kinds: tuple[Literal["seed", "refined", "crf", "aux"], ...] = ("seed", "refined", "crf"),
    thresholds: tuple[float, ...] = (),
    uncertain: bool = False,
    scores: bool = False,
    images: Literal["link", "copy"] | None = None,
    device: str = "auto",
) -> None:
    """Write the pseudo labels of a run as a data set for a second stage: palette PNGs in VOC's layout, and a protocol.

    Killed, the same command continues. OUT/seed and its like are folders of their own; `toco_lab/pseudo_labels.py` says
    what lies in them.

    Args:
        run: Folder of the run.
        split: List to label; None takes the training list of the config.
        out: Folder to write; None takes pseudo_labels/<split> in the run's folder.
        kinds: seed (final CAM, what `evaluate` calls cam), refined (by PAR: cam_refined), crf (CAM and dense CRF),
            aux (auxiliary CAM: cam_aux). All are masked by the true image labels.
        thresholds: One background score, or a low and a high one with 255 (ignored) between them; none given takes
            background_threshold of the config, as `evaluate` does.
        uncertain: Take low_threshold and high_threshold of the config.
        scores: Also write the soft scores of seed and aux, float16 in one .npz per image.
        images: Put the images there too, as links or copies: OUT/<kind> is then a data_root of the preset `folder`.
        device: auto, cpu, cuda ...
    """
    from toco_lab.pseudo_labels import Thresholds, write_pseudo_labels

    found = RunDir(run)
    cfg = found.config()
    if len(thresholds) > 2 or (thresholds and uncertain):
        raise ValueError("give one threshold, or a low and a high one, or --uncertain without --thresholds")
    if uncertain:
        thresholds = (cfg.low_threshold, cfg.high_threshold)
    chosen = Thresholds(thresholds[0], thresholds[-1]) if thresholds else None
    written = write_pseudo_labels(
        found, split=split, out=out, kinds=kinds, thresholds=chosen, scores=scores, images=images, device=device
    )
    print(written)
    _write_pictures(cfg, written.shown, written.out / "contact_sheet.png")


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
    wrong = [path for path in out if path.suffix not in (".html", ".md")]
    if wrong or not out:
        raise ValueError(f"a report is a file .html or .md, got {wrong[0] if wrong else 'no name'}")
    from toco_lab.appendix import build_appendix
    from toco_lab.findings import compare
    from toco_lab.report import build_report

    comparison = compare(runs)
    for path in out:
        print((build_report if path.suffix == ".html" else build_appendix)(comparison, path, title=title))


def run(
    notebooks: tyro.conf.Positional[tuple[Path, ...]],
    parameters: tuple[str, ...] = (),
    output: Path | None = None,
    timeout: float = 3600,
) -> None:
    """Execute notebooks with other parameters. One that fails does not stop the others.

    Args:
        notebooks: For example notebooks/04_evaluate.ipynb.
        parameters: Each as name=value; a value is a Python literal or else text, like preset=smoke
            'overrides={"w_ptc": 0.0}'.
        output: Folder of the executed notebooks; None takes the folder `notebooks` of run_dir.
        timeout: Seconds one cell may take.
    """
    from toco_lab.batch import NotebookJob, run_notebooks

    values = dict(map(_parse_parameter, parameters))
    for name in {"run_dir", "compare_with"} & set(values):  # notebooks run in a folder of their own
        folders = values[name] if isinstance(values[name], list) else [values[name]]
        absolute = [str(Path(folder).resolve()) for folder in folders]
        values[name] = absolute[0] if name == "run_dir" else absolute
    output = output or Path(values.get("run_dir", "results/scratch"), "notebooks")
    records = run_notebooks([NotebookJob(path, output / path.name, values) for path in notebooks], timeout=timeout)
    failed = []
    for record in records:
        print(f"{record['state']}: {output / record['notebook']} ({record['seconds']:.0f} s)")
        if error := record.get("error"):
            where = f", cell {error['cell']!r}" if error["cell"] else ""
            failed.append(f"{record['notebook']}{where}: {error['name']}: {error['message']}")
    if failed:
        raise ValueError("\n".join(failed))


def sweep(
    grid: tyro.conf.Positional[Path],
    root: Path = Path("results/sweeps"),
    workers: int = 1,
    executor: Literal["local", "ray"] = "local",
    gpus: float = 0.0,
    cpus: float = 1.0,
    address: str | None = None,
    retry_failed: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a notebook, or train, over a grid of config fields and seeds. Killed, the same command continues it.

    Args:
        grid: YAML file, like grids/smoke.yaml.
        root: Folder that holds the sweeps.
        workers: Runs at a time on this machine (local); its cores are shared between them.
        executor: Processes of this machine, or a ray cluster.
        gpus: GPUs per run; 0.5 lets two share one (ray).
        cpus: CPU cores per run (ray).
        address: Of the ray cluster: auto or host:port; None starts one on this machine.
        retry_failed: Also make runs that failed before.
        dry_run: Say what would be done and how long it may take, and do nothing.
    """
    from toco_lab.grid import Grid
    from toco_lab.sweep import outlook, plan, run_sweep, sweep_summary

    wanted = Grid.from_yaml(grid)
    if dry_run:
        planned = plan(wanted, root=root, data=executor == "local")
        print(planned.to_string(index=False, float_format="{:.0f}".format, na_rep="?"))
        print(outlook(planned, workers=workers, retry_failed=retry_failed))
        return
    table = run_sweep(
        wanted, root=root, workers=workers, executor=executor, gpus=gpus, cpus=cpus, address=address,
        retry_failed=retry_failed,
    )  # fmt: skip
    print(sweep_summary(table))
    print(f"every run: {root / wanted.name / 'sweep.csv'}")
    failed = table[table["state"] == "failed"].drop_duplicates("run")
    if len(failed):
        lines = [f"{path}: {error}" for path, error in zip(failed["run"], failed["error"], strict=True)]
        hint = "failure.json in its folder has the traceback, --retry-failed tries again"
        raise ValueError("\n".join([f"{len(failed)} failed; {hint}", *lines]))


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a parameter is name=value, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _data_config(what: str, **changes: Any) -> Config:
    """The config of a preset, or of any folder, with what that folder says of itself; changes of None are left out."""
    from toco_lab.folder import resolve

    if what not in PRESETS and not Path(what).is_dir():
        raise ValueError(f"{what!r} is neither a folder nor a preset; presets are: {', '.join(PRESETS)}")
    cfg = Config.preset(what) if what in PRESETS else Config.preset("folder").replace(data_root=what)
    return resolve(cfg.replace(**{name: value for name, value in changes.items() if value is not None}))


def check(
    what: tyro.conf.Positional[str],
    split: str | None = None,
    data_root: str | None = None,
    label_source: str | None = None,
    count: int = 8,
    out: Path = Path("data.png"),
) -> None:
    """Read a whole data set: list every problem, sum up what is there, and show the worst images.

    Args:
        what: A preset whose data set is meant, or any folder.
        split: List to read; None checks the training and the validation list.
        data_root: Folder of the preset's data set; None takes the preset's.
        label_source: masks, xml, annotations, or a label file; None takes the preset's, of a folder what is there.
        count: Images to show of each list.
        out: PNG to write, and beside it a .txt with all problems, where they are many.
    """
    from toco_lab.check import SHOWN_PROBLEMS, check_dataset, contact_sheet, shared_pictures

    cfg = _data_config(what, data_root=data_root, label_source=label_source)
    found = [
        check_dataset(cfg, name) for name in ([split] if split else dict.fromkeys((cfg.train_split, cfg.val_split)))
    ]
    if len(found) == 2:
        found[1].notes += shared_pictures(*found)
    print(*found, sep="\n\n")
    rows = [row for report in found if report.num_images for row in contact_sheet(cfg, report, count)]
    if rows:
        _write_pictures(cfg, rows, out)
    if any(len(report.problems) > SHOWN_PROBLEMS for report in found):
        with atomic_write(out.with_suffix(".txt"), "w") as file:
            file.write("\n\n".join(report.text() for report in found) + "\n")
        print(out.with_suffix(".txt"))
    if problems := sum(len(report.problems) for report in found):
        raise ValueError(f"{problems} problems in {cfg.dataset} {', '.join(report.split for report in found)}")


def show(
    what: tyro.conf.Positional[str],
    split: str | None = None,
    data_root: str | None = None,
    count: int = 4,
    out: Path = Path("data.png"),
) -> None:
    """Draw the first images of a list with their masks.

    Args:
        what: A preset whose data set is meant, or any folder.
        split: List to read; None takes the validation list.
        data_root: Folder of the preset's data set; None takes the preset's.
        count: Images to show.
        out: PNG to write.
    """
    from toco_lab.readers import open_dataset

    cfg = _data_config(what, data_root=data_root)
    reader = open_dataset(cfg, split or cfg.val_split)
    chosen = range(min(count, len(reader)))
    _write_pictures(cfg, [(reader.names[i], {"image": reader.image(i), "mask": reader.mask(i)}) for i in chosen], out)


def _write_pictures(cfg: Config, named: list[tuple[str, dict[str, Any]]], out: Path) -> None:
    from toco_lab import figures
    from toco_lab.labels import PALETTE, class_names

    known = ("background", *class_names(cfg))
    legend = (*known, *(f"number {value}" for value in range(len(known), 255)))  # a wrong mask may hold any number
    names, rows = zip(*named, strict=True)
    figure = figures.cam_gallery(rows, palette=PALETTE, class_names=legend, names=names)
    with atomic_write(out) as file:
        figure.savefig(file, format="png")
    print(out)


def labels(
    what: tyro.conf.Positional[str],
    source: Literal["masks", "xml"] = "masks",
    data_root: str | None = None,
    out: Path | None = None,
) -> None:
    """Write the image labels of a data set as a table, from its masks or from its XML files.

    Args:
        what: A preset whose data set is meant, or any folder.
        source: masks, or xml (Annotations/*.xml).
        data_root: Folder of the preset's data set; None takes the preset's.
        out: The file, .csv or .json; None takes labels.csv in the data set's folder.
    """
    from toco_lab.prepare import label_table, write_labels

    cfg = Config.preset(what) if what in PRESETS else Config.preset("folder").replace(data_root=what)
    cfg = cfg.replace(data_root=data_root) if data_root else cfg
    out = out or Path(cfg.data_root, "labels.csv")
    table = label_table(cfg, source)
    write_labels(out, table)
    empty = [name for name, found in table.items() if not found]
    print(f"{out}: {len(table)} images, {len(set().union(*table.values()))} classes")
    if empty:
        print(f"without a class, so not for training: {len(empty)} ({', '.join(empty[:5])})")


def voc(folder: tyro.conf.Positional[Path], download: bool = False, subset: bool = False) -> None:
    """VOC 2012 and SBD: unpack the archives, write SBD's masks and the list train_aug of 10,582 images.

    Args:
        folder: Holds the archives, or what was in them; it is then the data_root.
        download: Fetch archives that are missing (3.4 GB) and check them.
        subset: Allow another number of images: a part of VOC.
    """
    from toco_lab.prepare import prepare_voc

    print(prepare_voc(folder, download=download, subset=subset))


def coco(
    folder: tyro.conf.Positional[Path], crowds: Literal["class", "ignore"] = "class", subset: bool = False
) -> None:
    """COCO 2014: unpack the archives, paint the masks from the annotations, write the lists.

    Args:
        folder: Holds the archives, or what was in them; it is then the data_root.
        crowds: Crowd regions are painted as their class, or as 255 (not counted); train with the same --crowds.
        subset: Allow another number of images: a part of COCO.
    """
    from toco_lab.prepare import prepare_coco

    print(*prepare_coco(folder, crowds=crowds, subset=subset), sep="\n")


def _commands(*functions: Any) -> Any:
    """A type that makes tyro offer these functions as commands, and call the chosen one."""
    return Union[  # noqa: UP007 (made at runtime)
        tuple(
            Annotated[Any, tyro.conf.subcommand(function.__name__.strip("_"), constructor=function, prefix_name=False)]
            for function in functions
        )
    ]


def prepare(command: tyro.conf.OmitArgPrefixes[_commands(voc, coco)]) -> None:
    """Make a downloaded data set ready. A killed command continues when it is given again."""
    # tyro has called the chosen function already


def data(command: tyro.conf.OmitArgPrefixes[_commands(check, show, labels, prepare)]) -> None:
    """Check, show, label and prepare data sets."""
    # tyro has called the chosen function already


def list_(
    root: Path = Path("results"),
    where: str = "",
    columns: tuple[str, ...] = (),
    sort: str = "run",
    descending: bool = False,
    csv: Path | None = None,
) -> None:
    """List the runs below a folder: state, config fields that differ, scores. This is what `runs` alone does.

    Args:
        root: Folder that holds the runs, at any depth.
        where: A condition on columns, like 'w_ptc > 0 and cam_mIoU > 0.5' or '"demo" in run'.
        columns: Columns to show; any config field, score or last training metric.
        sort: Column that orders the rows.
        descending: Largest first.
        csv: Write all columns of these runs into this file as well.
    """
    from toco_lab import run_table

    table = run_table.filter_runs(list_runs(root, everything=True), where)
    table = run_table.sort_runs(table, sort, descending=descending)
    shown = run_table.overview(table)
    if columns:
        shown = table[[run_table.check_column(table.columns, name) for name in dict.fromkeys(("run", *columns))]]
    if len(shown):
        print(shown.map(run_table.cell_text).to_string(index=False))
    print(f"{run_table.count_text(len(shown), 'run')} below {root}")
    if csv is not None:
        with atomic_write(csv, "w") as file:
            table.to_csv(file, index=False, lineterminator="\n")
        print(csv)


def compare(runs: tyro.conf.Positional[tuple[str, ...]], root: Path = Path("results")) -> None:
    """Show in which config fields runs differ, and what was measured.

    Args:
        runs: Folders, or names below `root`; two or more.
        root: Folder that holds the runs.
    """
    from toco_lab import run_table

    if len(set(runs)) < 2:
        raise ValueError("give two runs or more, `runs list` shows them")
    table = read_runs({name: run_table.find_run(root, name).path for name in runs}, everything=True)
    print(run_table.compare_runs(table, list(dict.fromkeys(runs))).map(run_table.cell_text).to_string())


def plot(
    metric: tyro.conf.Positional[str],
    parameter: tyro.conf.Positional[str],
    root: Path = Path("results"),
    where: str = "",
    colour: str | None = None,
    out: Path = Path("plot.html"),
) -> None:
    """Plot a metric against a parameter: every run, and mean and standard deviation over runs of equal parameter.

    Args:
        metric: Column of numbers, like cam_mIoU or total_loss.
        parameter: Column, like w_ptc; words become categories.
        root: Folder that holds the runs, at any depth.
        where: Which runs, as in `runs list`.
        colour: Column that splits the runs into groups.
        out: The file: .html (works offline) or .png.
    """
    from toco_lab import curves, run_table

    if out.suffix not in (".html", ".png"):
        raise ValueError(f"out must end in .html or .png, got {out}")
    table = run_table.filter_runs(list_runs(root, everything=True), where)
    found = run_table.relate(table, metric, parameter, colour=colour)
    if not len(found.points):
        raise ValueError(f"none of {len(table)} runs below {root} has values of {metric} and {parameter}")
    shared = {"metric": metric, "parameter": parameter, "colour": colour, "note": found.note}
    if out.suffix == ".html":
        text = curves.metric_by_parameter(found.points, found.means, **shared).to_html(include_plotlyjs=True)
        with atomic_write(out, "w") as file:
            file.write(text)
    else:
        from toco_lab import figures

        colours = curves.run_colours(found.means["group"])
        figure = figures.metric_by_parameter(found.points, found.means, colours=colours, **shared)
        with atomic_write(out) as file:
            figure.savefig(file, format="png", dpi=150)
    print(f"{out}: {found.note}")


def open_(run: tyro.conf.Positional[str], root: Path = Path("results"), show: str | None = None) -> None:
    """Say what lies in a run: notebooks, figures, reports, checkpoints, with their sizes.

    Args:
        run: Folder, or name below `root`.
        root: Folder that holds the runs.
        show: Name of one of them, like cam_gallery or 04_evaluate, to be shown in the web browser.
    """
    from toco_lab import run_table

    found = run_table.find_run(root, run)
    files = run_table.run_files(found)
    if show is None:
        print(run_table.deletion_notice(found))
        for file in files:
            print(f"{file.kind:14}{run_table.size_text(file.size):>10}  {file.path}")
        return
    pages = [file.path for file in files if file.kind != "checkpoint"]
    chosen = [path for path in pages if show in (path.stem, path.name)]
    if not chosen:
        raise ValueError(f"{found.path} has no {show!r} to show; there are: {', '.join(path.name for path in pages)}")
    import webbrowser

    page = run_table.as_page(chosen[0]).resolve()
    opened = webbrowser.open(page.as_uri())
    print(page if opened else f"no web browser could be started; the page is {page}")


def delete(runs: tyro.conf.Positional[tuple[str, ...]], root: Path = Path("results"), yes: bool = False) -> None:
    """Delete runs for good: shows what would go and asks, unless `--yes`.

    Args:
        runs: Folders, or names below `root`.
        root: Folder that holds the runs.
        yes: Do not ask.
    """
    from toco_lab import run_table

    doomed = {found.path.resolve(): found for found in (run_table.find_run(root, name) for name in runs)}
    if not doomed:
        raise ValueError("give the runs to delete, `runs list` shows them")
    for found in doomed.values():
        found.check_deletable()
        print(run_table.deletion_notice(found))
    if not yes:
        if not sys.stdin.isatty():
            raise ValueError("nothing deleted: there is no terminal to ask at; --yes deletes without asking")
        if input("delete for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return
    for found in doomed.values():
        found.delete()
        print(f"deleted {found.path}")


RUNS_COMMANDS = {function.__name__.strip("_"): function for function in (list_, compare, plot, open_, delete)}


def runs(command: tyro.conf.OmitArgPrefixes[_commands(*RUNS_COMMANDS.values())]) -> None:
    """List, filter, compare, plot, open and delete runs."""
    # tyro has called the chosen function already


def import_released(
    preset: tyro.conf.Positional[str], checkpoint: tyro.conf.Positional[Path], root: Path = Path("results"),
    name: str | None = None,
) -> None:  # fmt: skip
    """Make a run of a checkpoint the authors released, ready for `evaluate`, `report` and the notebooks.

    Args:
        preset: The preset it belongs to, like voc_vit_b; the run has the released behaviour.
        checkpoint: The authors' file; read without running code in it.
        root: Folder that holds the runs.
        name: Folder name below it; None takes the name of the file.
    """
    from toco_lab import checkpoints
    from toco_lab.model import ToCo
    from toco_lab.train import Learner

    cfg = Config.preset(preset).released()
    model = ToCo(cfg)
    found = checkpoints.import_released(model, checkpoint)
    run = RunDir.create(cfg, root, name=name or f"released-{checkpoint.stem}")
    checkpoints.save_checkpoint(run.checkpoint_path(cfg.steps), Learner.of(model, cfg).state(), cfg.steps, cfg)
    run.set_status("done", step=cfg.steps)
    run.log(f"imported {checkpoint} ({checkpoints.weights_hash(checkpoint)}); {found}")
    print(f"{found}\nrun folder: {run.path}")


def demo(root: Path = Path("results"), preset: str = "toy") -> None:
    """Train a plain baseline and ToCo, execute their notebooks, write a report. What is finished is skipped.

    Args:
        root: The demo goes into the folder `demo` below.
        preset: `toy`, or `smoke` to see the machinery run in seconds.
    """
    folder, page, made, worked = root / "demo", root / "demo" / "report.html", [], False
    for name, overrides in (("baseline", BASELINE), ("toco", {})):
        cfg = Config.preset(preset).replace(**overrides)
        run = _finished(folder / name, cfg)
        if run is None:
            from toco_lab.train import fit

            run, worked = RunDir.create(cfg, folder, name=name), True
            fit(cfg, run)
        made.append(run)
        for notebook in DEMO_NOTEBOOKS:
            # absolute paths: a notebook runs in a folder of its own
            parameters = {"preset": preset, "overrides": overrides, "run_dir": str(run.path.resolve())}
            if notebook == "05_over_smoothing" and name != "baseline":
                parameters["compare_with"] = [str(made[0].path.resolve())]
            worked |= _executed(
                NOTEBOOKS / f"{notebook}.ipynb", run.path / "notebooks" / f"{notebook}.ipynb", parameters
            )
    if worked or not page.is_file():
        from toco_lab.report import build_report

        build_report(made, page)
    print(page)


def _finished(path: Path, cfg: Config) -> RunDir | None:
    """The run at `path` if it was trained to the end with this config."""
    if not (path / "config.json").is_file():
        return None
    run = RunDir(path)
    return run if run.status()["state"] == "done" and run.config().digest() == cfg.digest() else None


def _executed(notebook: Path, output: Path, parameters: dict[str, Any]) -> bool:
    """Execute a notebook unless this very one was executed to the end with these parameters; whether it had to be."""
    from toco_lab.batch import NotebookJob, execute_notebook, is_done

    if is_done(NotebookJob(notebook, output, parameters)):
        return False
    print(f"{output.parents[1].name}: {notebook.stem}", flush=True)
    execute_notebook(notebook, output, parameters)
    return True


COMMANDS = {
    function.__name__: function
    for function in (train, evaluate, pseudo_labels, report, run, sweep, data, runs, import_released, demo)
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend is one line, `--debug` shows the traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug, arguments = "--debug" in arguments, [word for word in arguments if word != "--debug"]
    if arguments and (name := arguments[0].replace("-", "_")) in COMMANDS:  # `pseudo-labels`, written like an option
        arguments = [name, *arguments[1:]]
    if arguments[:1] == ["runs"] and not {*RUNS_COMMANDS, "--help", "-h"} & set(arguments[1:2]):
        arguments = ["runs", "list", *arguments[1:]]
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="python -m toco_lab",
            args=arguments,
            description="Train and look into ToCo. `COMMAND --help` shows its options, `--debug` an error's traceback.",
        )
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except _user_errors() as error:
        if debug:
            raise
        print(f"error: {_in_short(error)}", file=sys.stderr)
        return 2
    return 0


def _in_short(error: Exception) -> str:
    """The message; of an error that a loader process passed on with its traceback, the last one."""
    name = f"{type(error).__name__}: "
    text = str(error)
    return text.rpartition(name)[2].strip() if text.startswith("Caught ") and name in text else text


def _user_errors() -> tuple[type[Exception], ...]:
    """Asked only after something was raised: an error of a module that is not imported can not have been."""
    special = {"toco_lab.train": "TrainingError", "toco_lab.batch": "NotebookError"}
    loaded = (getattr(sys.modules[home], name) for home, name in special.items() if home in sys.modules)
    return (ValueError, FileNotFoundError, *loaded)


if __name__ == "__main__":
    sys.exit(main())
