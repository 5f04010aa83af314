"""The tables of a report, each built once: HTML, Markdown, CSV and LaTeX are written from the same cells."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from toco_lab.config import config_differences
from toco_lab.reports import ablation
from toco_lab.reports.comparison import Comparison, Number, is_cosine
from toco_lab.reports.tables import BETWEEN, Table
from toco_lab.runs import scores
from toco_lab.vocabulary import F1, TITLES

_ALWAYS_SHOWN = ("checkpoint", "weights", "seed")  # of a protocol: beside each number even where all runs agree
_OF_RUN = (*_ALWAYS_SHOWN, "step")  # of a protocol: the same for all numbers of a run


def asked_table(comparison: Comparison) -> Table:
    """One row per run: what it is, and how far it came."""
    rows = [
        {
            "run": run.name, "row": comparison.rows[run.name], "preset": run.config.preset_name or "custom",
            "data": run.config.dataset, "backbone": run.config.backbone, "state": run.status.get("state", "unknown"),
            "step": f"{run.status.get('step', 0)} / {run.config.steps}", "time": _duration(run.status.get("seconds")),
            "seed": run.config.seed,
        }
        for run in comparison.runs
    ]  # fmt: skip
    table = Table.of("runs", "The runs", rows)
    return table if comparison.many or comparison.about else replace(table, frame=table.frame.drop(columns="row"))


def results_tables(comparison: Comparison) -> tuple[list[Table], list[str]]:
    """Scores, and cosines: quantities with a column per run, of many a row per run; and the names of those quantities
    that were not measured in the same way in all runs.

    What all runs share stands in the protocol of the quantity, what differs beside the number itself.
    """
    names = dict.fromkeys(name for run in comparison.runs for name in run.numbers)
    kinds = {
        "scores": ("Scores in per cent", [name for name in names if not is_cosine(name)]),
        "cosines": (
            "Cosines of patch tokens in [0, 1], ± the standard deviation over images",
            [name for name in names if is_cosine(name)],
        ),
    }
    tables, unequal = [], []
    for kind, (caption, quantities) in kinds.items():
        rows, details, shared = [], [], {}
        for quantity in quantities:
            found = {run.name: run.numbers[quantity] for run in comparison.runs if quantity in run.numbers}
            common = _common([number.protocol for number in found.values()])
            shared[quantity] = protocol_words(common)
            row, own = {"quantity": quantity}, {"quantity": ""}
            for run in comparison.names:
                number = found.get(run, Number("-", {}))
                rest = {key: value for key, value in number.protocol.items() if key not in common}
                row[run], own[run] = number.text, protocol_words(rest)
                unequal += [quantity] * bool(set(rest) - set(_ALWAYS_SHOWN))
            rows.append(row)
            details.append(own)
        if rows:
            table = Table(kind, caption, pd.DataFrame(rows), shared, pd.DataFrame(details), _OF_RUN)
            tables.append(table.turned("run") if comparison.many else table)
    return tables, list(dict.fromkeys(unequal))


def _common(protocols: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of some protocols say alike, but for what is always said beside each number."""
    return {
        key: value
        for key, value in protocols[0].items()
        if key not in _ALWAYS_SHOWN and all(key in one and one[key] == value for one in protocols)
    }


def differences_table(comparison: Comparison) -> Table | None:
    """Config fields that differ; None if none does. Of many runs that are seeds, a row per config without the seed."""
    firsts = comparison.first_seeds()
    configs = {label: run.config for label, run in firsts.items()}
    fields = config_differences(configs)
    if comparison.grouped:
        fields.pop("seed", None)
    if not fields:
        return None
    table = Table.of("differences", "Config fields that differ", [{"field": key} | fields[key] for key in fields])
    if comparison.many:
        table = table.turned("row" if comparison.grouped else "run")
        if comparison.grouped:
            seeds = [", ".join(str(run.config.seed) for run in members) for members in comparison.groups.values()]
            table = Table(table.name, table.caption, table.frame.assign(seeds=seeds))
    return table


def ablation_table(comparison: Comparison) -> tuple[Table, pd.DataFrame] | None:
    """Rows over seeds with paired differences, and the summary it shows; None for one config with one seed."""
    frame = comparison.frame
    shown = [name for name in scores.SHOWN if name in frame and frame[name].notna().any()]
    if len(frame.drop_duplicates(["row", "seed"])) < 2 or not shown:
        return None
    summary = ablation.summarise(frame, scores=shown, reference=comparison.reference)
    cells = ablation.wide_table(summary).rename_axis("row").reset_index().map(str)
    used = set(frame.loc[frame[shown].notna().any(axis=1), "run"])
    configs = [run.config for run in comparison.runs if run.name in used]
    words = ablation.protocol_text(configs, frame[frame["run"].isin(used)])
    compared = ", ".join(dict.fromkeys(name for name in summary["reference"] if name))
    caption = "Rows over seeds" + (f"; differences to {compared}" if compared else "")
    return Table("ablation", caption, cells, {"": words}), summary


def classes_table(comparison: Comparison) -> Table | None:
    """IoU per class and target, a column per run (or per config, mean over seeds)."""
    found = class_scores(comparison)
    if found is None:
        return None
    found = found.assign(iou=[f"{100 * value:.1f}" if pd.notna(value) else "-" for value in found["iou"]])
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
    return Table("iou_per_class", "IoU per class in per cent", wide.map(str).rename_axis(columns=None), protocol)


def class_scores(comparison: Comparison) -> pd.DataFrame | None:
    """run (label of its group), target, class, iou: the mean over the seeds of a group."""
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
    return frame.groupby(["run", "target", "class"], sort=False, as_index=False)["iou"].mean()


def environment_table(comparison: Comparison) -> Table | None:
    """What numbers may depend on besides the config; runs that agree share a column. None if no run recorded it."""
    columns: dict[str, dict[str, str]] = {}
    starts: dict[str, list[dict[str, Any]]] = {}
    members: dict[str, list[str]] = {}
    for run in comparison.runs:
        if run.environments:
            last = run.environments[-1]
            git = last.get("git")
            commit = git["commit"][:12] + " with local changes" * git["dirty"] if git else "not in a git checkout"
            shown = {"commit": commit} | {key: last.get(key) for key in ("device", "cpu_count", "platform", "python")}
            shown |= last.get("packages", {})
            key = json.dumps(shown, default=str)
            columns[key] = {name: str(value or "-") for name, value in shown.items()}
            members.setdefault(key, []).append(run.name)
            starts.setdefault(key, []).extend(run.environments)
    if not columns:
        return None
    heads = {key: "all runs" if len(columns) == 1 < len(names) else ", ".join(names) for key, names in members.items()}
    rows: dict[str, dict[str, Any]] = {"first start": {}, "last start": {}, "starts": {}}
    for key, shown in columns.items():
        times = sorted(str(record.get("start", "-")) for record in starts[key])
        said = {"first start": times[0], "last start": times[-1], "starts": len(times)} | shown
        for name, value in said.items():
            rows.setdefault(name, {})[heads[key]] = value
    return Table.of("environment", "Environment", [{"": name} | values for name, values in rows.items()])


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


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "-"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
