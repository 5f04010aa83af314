"""The tables of a report: text cells, a row for each run where they compare runs, with the protocol of every number."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from toco_lab.config import config_differences
from toco_lab.reports import ablation
from toco_lab.reports.comparison import Comparison, Number, kind_of
from toco_lab.reports.parts import BETWEEN, Table
from toco_lab.runs import scores
from toco_lab.vocabulary import ADDED_LATER, F1, TITLES
from toco_lab.words import counted

_BESIDE = ("checkpoint", "weights", "seed")  # of a protocol: said of each run even where all runs agree
_OF_RUN = (*_BESIDE, "step")  # of a protocol: the same for all numbers of a run
_KINDS = {
    "scores": "Scores in per cent",
    "boundary": "Boundary IoU in per cent: of the pixels near the edges alone",
    "over_activation": "Over-activation in per cent",
    "cosines": "Cosines of patch tokens in [0, 1], ± the standard deviation over images",
}


def asked_table(comparison: Comparison) -> Table:
    """One row per run: what it is, and how far it came."""
    rows = [
        {
            "run": run.name, "folder": "" if run.name == run.run.name else run.run.name,
            "preset": run.config.preset_name or "custom", "data": run.config.dataset,
            "backbone": run.config.backbone, "state": run.state,
            "steps": f"{run.status.get('step', 0)} of {run.config.steps}",
            "minutes": _minutes(run.status.get("seconds")), "seed": run.config.seed,
        }
        for run in comparison.runs
    ]  # fmt: skip
    return _table("runs", "The runs", rows)


def results_tables(comparison: Comparison) -> tuple[list[Table], list[str]]:
    """Scores, boundary IoU, over-activation and cosines: a row per run, a column per quantity.

    What all runs share stands in the protocol of the quantity, what differs in the column "measured with".

    Returns:
        The tables that have a number, and the quantities that were not measured in the same way in all runs.
    """
    tables, unequal = [], []
    quantities = dict.fromkeys(name for run in comparison.runs for name in run.numbers)
    for kind, caption in _KINDS.items():
        wanted = [name for name in quantities if kind_of(name) == kind]
        protocol: dict[str, str] = {}
        own: dict[str, dict[tuple[str, str], list[str]]] = {name: {} for name in comparison.names}
        for quantity in wanted:
            found = {run.name: run.numbers[quantity] for run in comparison.runs if quantity in run.numbers}
            common = _common([number.protocol for number in found.values()])
            protocol[quantity] = protocol_words(common)
            for run, number in found.items():
                rest = {key: value for key, value in number.protocol.items() if key not in common}
                unequal += [quantity] * any(_differs(key, found) for key in rest)
                for key, value in rest.items():
                    if words := protocol_words({key: value}):
                        own[run].setdefault((key, words), []).append(quantity)
        rows = [
            {"run": run.name}
            | {name: run.numbers.get(name, Number("-", {})).text for name in wanted}
            | {"measured with": _particulars(own[run.name])}
            for run in comparison.runs
        ]
        if wanted:
            tables.append(_table(kind, caption, rows, protocol=protocol, aside="measured with"))
    return tables, list(dict.fromkeys(unequal))


def _common(protocols: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some protocols say alike, but for what is always said of each run."""
    return {
        key: value
        for key, value in protocols[0].items()
        if key not in _BESIDE and all(key in one and one[key] == value for one in protocols)
    }


def _differs(key: str, numbers: Mapping[str, Number]) -> bool:
    """Whether numbers were measured in another way by what their protocols say of `key`."""
    said = [number.protocol[key] for number in numbers.values() if key in number.protocol]
    if key in ADDED_LATER:
        return any(value != said[0] for value in said)
    chosen = key == "background_threshold" and all("threshold_from" in number.protocol for number in numbers.values())
    return key not in _BESIDE and not chosen  # each run's own threshold, chosen in the same way


def _particulars(facts: Mapping[tuple[str, str], list[str]]) -> str:
    """What holds for the numbers of one run alone; (key, words) of a fact -> the quantities it is about."""
    of_run = [words for key, words in facts if key in _OF_RUN]
    others = [f"{words} ({' / '.join(about)})" for (key, words), about in facts.items() if key not in _OF_RUN]
    return BETWEEN.join(of_run + others)


def differences_table(comparison: Comparison) -> Table | None:
    """Config fields that differ, a row per run; None if none does. Seeds that are drawn as one curve share a row."""
    groups = comparison.groups
    fields = config_differences({label: run.config for label, run in comparison.first_seeds().items()})
    if comparison.grouped:
        fields.pop("seed", None)
    if not fields:
        return None
    rows = [{"run": label} | {key: values[label] for key, values in fields.items()} for label in groups]
    if comparison.grouped:
        for row, members in zip(rows, groups.values(), strict=True):
            row["seeds"] = ", ".join(str(run.config.seed) for run in members)
    return _table("differences", "Config fields that differ", rows)


def ablation_table(comparison: Comparison) -> tuple[Table, pd.DataFrame] | None:
    """Rows over seeds with their paired differences, and the summary it shows; None for one config with one seed."""
    frame = comparison.frame
    shown = [name for name in scores.SHOWN if name in frame and frame[name].notna().any()]
    if not shown or len(frame.drop_duplicates(["row", "seed"])) < 2:
        return None
    summary = ablation.summarise(frame, scores=shown, reference=comparison.reference)
    cells = ablation.wide_table(summary).rename_axis("row").reset_index().map(str)
    words = protocol_of_rows(comparison)
    compared = ", ".join(dict.fromkeys(name for name in summary["reference"] if name))
    kind = "Rows over seeds" if ablation.has_seeds(frame) else "One run of each row"
    caption = kind + (f"; differences to {compared}" if compared else "")
    return Table("ablation", caption, cells, {"": words}), summary


def protocol_of_rows(comparison: Comparison) -> str:
    """How the scores of the runs that have some came about."""
    frame = comparison.frame
    shown = [name for name in scores.SHOWN if name in frame]
    used = set(frame.loc[frame[shown].notna().any(axis=1), "run"])
    configs = [run.config for run in comparison.runs if run.name in used]
    return ablation.protocol_text(configs, frame[frame["run"].isin(used)])


def classes_table(comparison: Comparison) -> Table | None:
    """IoU per class and target, a column per run (or per config, mean over seeds)."""
    found = class_scores(comparison)
    if found is None:
        return None
    cells = zip(found["iou"], found["seeds"], found["of"], strict=True)
    found = found.assign(iou=[_mean_cell(100 * value, seeds, of) for value, seeds, of in cells])
    order = found[["target", "class"]].drop_duplicates()
    wide = found.pivot(index=["target", "class"], columns="run", values="iou")[list(dict.fromkeys(found["run"]))]
    wide = wide.reindex(pd.MultiIndex.from_frame(order)).fillna("-").reset_index()
    wide.insert(0, "quantity", [TITLES.get(target, str(target)) for target in wide.pop("target")])
    shared = {
        name.rsplit(", ", 1)[0]: words
        for table in results_tables(comparison)[0]
        for name, words in table.protocol.items()
    }
    protocol = {name: shared.get(name, "") for name in dict.fromkeys(wide["quantity"])}
    lacking = "; - is a class in neither truth nor prediction" if (wide == "-").to_numpy().any() else ""
    caption = f"IoU per class in per cent{lacking}"
    return Table("iou_per_class", caption, wide.map(str).rename_axis(columns=None), protocol, folded=True)


def _mean_cell(value: float, seeds: int, of: int) -> str:
    """A mean over the seeds that have a value; how many these are where some have none."""
    if not seeds:
        return "-"
    return f"{value:.1f}" + f" ({seeds} of {counted(of, 'seed')})" * (seeds < of)


def class_scores(comparison: Comparison) -> pd.DataFrame | None:
    """run (label of its group), target, class, iou: the mean over the seeds of a group that have one.

    seeds and of say how many have one, and of how many that have the class in their table; iou is NaN where none has.
    """
    tables = [
        run.evaluation.assign(run=label)
        for label, members in comparison.groups.items()
        for run in members
        if run.evaluation is not None and len(run.evaluation)
    ]
    if not tables:
        return None
    frame = pd.concat(tables)
    frame = frame[frame["class"] != F1]
    return frame.groupby(["run", "target", "class"], sort=False, as_index=False).agg(
        iou=("iou", "mean"), seeds=("iou", "count"), of=("iou", "size")
    )


def environment_table(comparison: Comparison) -> Table | None:
    """What numbers may depend on besides the config; runs that agree share a column. None if no run recorded it."""
    facts: dict[str, dict[str, str]] = {}
    starts: dict[str, list[str]] = {}
    members: dict[str, list[str]] = {}
    for run in comparison.runs:
        if run.environments:
            shown = _environment(run.environments[-1])
            key = json.dumps(shown)
            facts[key] = shown
            members.setdefault(key, []).append(run.name)
            starts.setdefault(key, []).extend(str(record.get("start", "-")) for record in run.environments)
    if not facts:
        return None
    columns = {}
    for key, names in members.items():
        times = {"first start": min(starts[key]), "last start": max(starts[key]), "starts": str(len(starts[key]))}
        columns["all runs" if len(facts) == 1 < len(names) else ", ".join(names)] = times | facts[key]
    frame = pd.DataFrame(columns).fillna("-").rename_axis(index="").reset_index()
    return Table("environment", "Environment", frame)


def _environment(record: Mapping[str, Any]) -> dict[str, str]:
    """One record of env.json as text."""
    git = record.get("git")
    commit = git["commit"][:12] + " with local changes" * git["dirty"] if git else "not in a git checkout"
    shown = {"commit": commit} | {key: record.get(key) for key in ("device", "cpu_count", "platform", "python")}
    return {name: str(value or "-") for name, value in (shown | record.get("packages", {})).items()}


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """A protocol as text: "split val · images 100 · flip · no crf"; what does not apply is left out."""
    words = []
    for key, value in protocol.items():
        name = key.replace("_", " ")
        if isinstance(value, bool):
            words.append(name if value else f"no {name}")
        elif isinstance(value, list):
            words.append(f"{name} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in value)}")
        elif value not in (None, ""):
            words.append(f"{name} {value}")
    return BETWEEN.join(words)


def _table(name: str, caption: str, rows: Iterable[Mapping[str, Any]], **more: Any) -> Table:
    """A table of any values; a missing one is shown as -, a column without any word is left out."""
    frame = pd.DataFrame(list(rows)).astype(object)
    frame = frame.where(frame.notna(), "-").map(str)
    return Table(name, caption, frame.loc[:, (frame != "").any()], **more)


def _minutes(seconds: Any) -> str:
    return f"{seconds / 60:.1f}" if isinstance(seconds, int | float) else "-"
