# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The model card
#
# Written by no hand: every number in it is read from the run folder, so it cannot promise more than
# was measured. The sections follow Mitchell et al. 2019, *Model Cards for Model Reporting*.

# %%
"""The model card of a run, written from the files of its folder and from nothing else."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from fer_helpers.confusions import top_confusions
from fer_helpers.exploration import slice_name
from fer_helpers.files import write_file
from fer_helpers.run_records import RunRecord, read_run
from fer_helpers.runs import Run

# %% [markdown]
# ## Names and numbers


# %%
def escape(text: Any) -> str:
    """Make any name harmless in Markdown and in the HTML that is rendered from it.

    Folder, class and file names come from outside; `<`, `&`, `|`, `$` and Markdown's own signs
    become entities, line breaks become spaces.
    """
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    escaped = re.sub(r"[|$*`~\[\]\\]", lambda sign: f"&#{ord(sign[0])};", escaped)
    # Inside a word an underscore is only an underscore.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", escaped)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _with_interval(numbers: Mapping[str, Any], name: str) -> str:
    interval = numbers.get(f"{name}_interval")
    if not interval:
        return f"{_percent(numbers[name])} (no interval)"
    return f"{_percent(numbers[name])} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _share(count: int, total: int) -> str:
    """A share with its Wilson interval (Wilson 1927), which also holds for few pictures."""
    if not total:
        return "–"
    bounds = stats.binomtest(int(count), int(total)).proportion_ci(method="wilson")
    return f"{_percent(count / total)} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(str(cell) for cell in row) for row in rows]
    return ["", *(f"| {line} |" for line in lines), ""]


def _where(stamp: Mapping[str, Any]) -> str:
    return escape(f"{stamp['dataset']} {stamp['split']}")


def model_card(run: Run | str | Path) -> str:
    """Write `MODEL_CARD.md` from what a run's folder says of itself; returns it.

    On drawn faces every line with a number carries the word *drawn*.

    Args:
        run: The run or its folder.

    Raises:
        RunError: The folder cannot be read as a run, or not be written.
    """
    record = read_run(run.folder if isinstance(run, Run) else run)
    results = record.metrics["results"]
    shown = [result for result in results if result["headline"]][:1] or results[:1]  # its own
    lines = [f"# Model card: {escape(record.name)}", ""]
    if record.origin == "drawn":
        lines += [
            "> **Made from drawn faces.** This model was trained and scored on drawings. Its "
            "numbers say whether the workflow works; they say nothing about people.",
            "",
        ]
    lines += [
        *_what_it_is(record),
        *_data_and_terms(record),
        *_scores(record, results),
        *_confidence(record, shown),
        *_where_it_fails(record, shown),
        *_other_datasets(record),
        "## What is not known",
        "",
        "- No demographic labels exist here; nothing is known about groups: not about age, sex, "
        "skin color or culture. An average can hide that one group is served badly.",
        "- A label says what somebody saw in a face, not what the person felt.",
        "",
        *_how_it_was_made(record),
    ]
    if record.origin == "drawn":
        lines = [_say_drawn(line) for line in lines]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    write_file(record.folder / "MODEL_CARD.md", text)
    return text


def _say_drawn(line: str) -> str:
    """Put *drawn* into a line that has a number and does not say it."""
    bare = re.sub(r"&#\d+;|\[95 %\]", "", line)  # signs, and the heads of tables
    if not re.search(r"\d", bare) or "drawn" in line.lower():
        return line
    if line.startswith("| "):
        first, rest = line[2:].split(" |", 1)
        return f"| {first} (drawn) |{rest}"
    return f"{line} (drawn)"


# %%
def _what_it_is(record: RunRecord) -> list[str]:
    names = record.metrics["results"][0]["class_names"]
    parts = {
        "Network": ("BACKBONE", "ATTENTION", "PRETRAINED"),
        "Input": ("IMAGE_SIZE", "INPUT_CHANNELS"),
        "Training": ("PHASES", "LOSS", "FERPLUS_WEIGHT", "OPTIMIZER", "SCHEDULE", "SEED"),
    }
    lines = ["## What it is", ""]
    for title, keys in parts.items():
        known = [f"{key} = {escape(record.params[key])}" for key in keys if key in record.params]
        if known:
            lines.append(f"- {title}: {'; '.join(known)}")
    return [
        *lines,
        f"- Classes: {', '.join(map(escape, names))}",
        "- Every parameter stands in `params.yaml`."
        + ("" if record.finished else " **The run is not marked as finished.**"),
        "",
        "## What it is for, and what not",
        "",
        "- Intended: learning how such a classifier is built and measured, research on it, and "
        "playing with one's own photos.",
        "- **Not for deciding about people**: not for hiring, teaching, policing, insurance, "
        "health, border control or attention monitoring, alone or as one sign among many.",
        "- One face, cropped, roughly frontal, is what it expects; anything else is a guess.",
        "",
    ]


def _data_and_terms(record: RunRecord) -> list[str]:
    stamps = [result["stamp"] for result in record.metrics["results"]]
    lines = ["## Data and terms", ""]
    if record.origin == "drawn":
        lines.append("- The faces are drawn by this project; no third party has rights in them.")
    for dataset in sorted({stamp["dataset"] for stamp in stamps}):
        if record.origin == "drawn":
            terms = "drawn faces in the folder layout of that dataset, not its pictures"
        elif "affectnet" in dataset.casefold():
            terms = "for research only, by the terms of AffectNet; a model made from it is too"
        elif "fer2013" in dataset.casefold():
            terms = "its terms were not verified; ask before using the model for more than research"
        else:
            terms = "its terms were not verified"
        hashes = sorted({s["content_hash"][:12] for s in stamps if s["dataset"] == dataset})
        content = ", ".join(map(escape, hashes))
        lines.append(f"- {escape(dataset)}: {terms}. Content hash {content}.")
    if record.params.get("FERPLUS_WEIGHT") and "fer2013" in record.metrics.get("training", {}):
        lines.append(
            "- FER+ votes on the training faces of FER2013 were learned beside its labels."
        )
    begun = record.params.get("PRETRAINED", "none")
    if begun not in ("none", "imagenet"):
        lines.append(
            f"- Started from *{escape(begun)}*: its data and terms apply too; it may have seen the "
            "pictures scored here."
        )
    return [*lines, "- The pictures themselves are not passed on.", ""]


def _scores(record: RunRecord, results: Sequence[Mapping[str, Any]]) -> list[str]:
    if all(result["stamp"]["selection_set"] == "none" for result in results):
        choice = "Nothing was chosen: the last epoch was kept, without a temperature"
    else:
        chosen = ["the temperature", "the thresholds"]
        if record.params.get("SCHEDULE") == "plateau":
            chosen.insert(0, "the steps of the learning rate")
        if record.params.get("KEEP") != "last":
            chosen.insert(0, "the epoch")
        choice = f"On the set named under *chosen on* were chosen: {', '.join(chosen)}"
    rows = []
    for result in results:
        stamp, numbers, twin = result["stamp"], result["numbers"], result["leak_free"]
        rows.append(
            (
                _where(stamp) + (" **(headline)**" if result["headline"] else ""),
                f"{stamp['n']:,}",
                stamp["views"],
                _with_interval(numbers, "accuracy"),
                f"{_with_interval(twin, 'accuracy')}, n = {twin['n']:,}"
                if twin
                else "no image without a twin",
                _with_interval(numbers, "macro_f1"),
                escape(stamp["selection_set"]),
                escape(stamp["note"]) or "–",
            )
        )
    head = ("set", "n", "views", "accuracy [95 %]", "leak-free accuracy [95 %]", "macro-F1 [95 %]")
    return [
        "## Scores, and how they were taken",
        "",
        f"{choice}; where a score contains the set that was chosen on, its note says so. "
        "*Leak-free* leaves out the pictures whose exact pixels also stand in train (of either "
        "phase); an official split that was chosen on is not searched. More than one *view* means "
        "an average over flips and shifts.",
        *_table((*head, "chosen on", "note"), rows),
    ]


def _confidence(record: RunRecord, results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## How far its confidence can be believed", ""]
    for result in results:
        low, high = map(_percent, result["numbers"]["ece_calibrated_range"])
        lines.append(
            f"- {_where(result['stamp'])}: confidence and accuracy differ by "
            f"{_percent(result['numbers']['ece'])} on average (ECE); a perfectly calibrated model "
            f"would show {low} to {high} on as many pictures."
        )
    silent = record.metrics.get("abstain", {})
    if silent.get("stamp") and silent["accuracy"] is not None:
        twin = silent.get("leak_free")  # None where all are twins, and in older runs
        lines.append(
            f"- {_where(silent['stamp'])}: answering only from a confidence of "
            f"{_percent(silent['threshold'])} on (chosen on the selection set), it answers "
            f"{_answered(silent, silent['stamp']['n'])}"
            + (f"; leak-free {_answered(twin, twin['n'])}." if twin else ".")
        )
    return [*lines, ""]


def _answered(judged: Mapping[str, Any], n: int) -> str:
    answered = round(judged["coverage"] * n)
    right = round((judged["accuracy"] or 0) * answered)
    return (
        f"{_percent(judged['coverage'])} of the pictures (n = {answered:,}) and is right about "
        f"{_share(right, answered)} of these"
    )


# %%
def _where_it_fails(record: RunRecord, results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["## Where it fails", ""]
    for result in results:
        names, numbers = result["class_names"], result["numbers"]
        place = f"{_where(result['stamp'])}, n = {result['stamp']['n']:,}"
        lines += [f"### {place}", "", *_class_lines(result)]
        if numbers["never_predicted"]:
            absent = ", ".join(map(escape, numbers["never_predicted"]))
            lines += [f"Never predicted on this set: {absent}.", ""]
        totals = {name: row["support"] for name, row in numbers["per_class"].items()}
        worst = top_confusions(np.asarray(numbers["confusion"]), names, k=5, above=0.0)
        rows = [
            (
                f"{escape(cell['truth'])} → {escape(cell['prediction'])}",
                cell["count"],
                totals[cell["truth"]],
                _share(cell["count"], totals[cell["truth"]]),
            )
            for cell in worst
        ]
        if rows:
            lines += [
                "Worst confusions:",
                *_table(("truth → prediction", "n", "of", "share"), rows),
            ]
        lines += _confident_mistakes(record, result["stamp"])
    return [*lines, *_slices(record)]


def _class_lines(result: Mapping[str, Any]) -> list[str]:
    numbers, twin = result["numbers"], result["leak_free"]
    rows = []
    for index, name in enumerate(result["class_names"]):
        row, right = numbers["per_class"][name], numbers["confusion"][index][index]
        rest = "–"
        if twin:
            kept = np.asarray(twin["confusion"])[index]
            rest = f"{_share(kept[index], kept.sum())}, n = {kept.sum():,}"
        rows.append(
            (
                escape(name),
                row["support"],
                _share(right, row["support"]),
                rest,
                _share(right, row["predicted"]),
                _percent(row["f1"]) if row["support"] else "–",
            )
        )
    head = ("class", "n", "recall [95 %]", "leak-free recall [95 %]", "precision [95 %]", "F1")
    return _table(head, rows)


def _confident_mistakes(record: RunRecord, stamp: Mapping[str, Any]) -> list[str]:
    table = record.predictions
    if table.empty:
        return []
    table = table[(table["dataset"] == stamp["dataset"]) & (table["split"] == stamp["split"])]
    wrong = table[table["truth"] != table["prediction"]]
    if wrong.empty:
        return []
    columns = [name for name in wrong.columns if name.startswith("p_")]
    sure = int((wrong[columns].max(axis=1) >= 0.9).sum())
    share = _share(sure, len(wrong))
    return [f"Wrong and at least 90 % sure: {sure} of {len(wrong)} mistakes, {share}.", ""]


def _slices(record: RunRecord) -> list[str]:
    lines: list[str] = []
    robustness = record.metrics.get("robustness")
    if robustness:
        accuracy, stamp = robustness["accuracy"], robustness["stamp"]
        levels = max(map(len, accuracy.values()))
        # Half the width of a 95 % interval for a share near one half: the widest one there is.
        margin = 98 / math.sqrt(stamp["n"])
        lines += [
            f"### When the picture gets worse: {_where(stamp)}, n = {stamp['n']:,}",
            "",
            f"Accuracy at growing severity (0: untouched); each number ± {margin:.1f} at most.",
            *_table(
                ("damage", *map(str, range(levels))),
                [(escape(name), *map(_percent, row)) for name, row in sorted(accuracy.items())],
            ),
        ]
    slices = record.metrics.get("slices") or {"parts": {}}
    for kind, parts in sorted(slices["parts"].items()):
        if len(parts) > 1:
            rows = [
                (escape(slice_name(part)), f"{part['n']:,}", _with_interval(part, "accuracy"))
                for part in parts
            ]
            place = f"{_where(slices['stamp'])}, n = {slices['stamp']['n']:,}"
            lines += [
                f"### By {escape(kind)}: {place}",
                "",
                SLICES.get(kind, ""),
                *_table((escape(kind), "n", "accuracy [95 %]"), rows),
            ]
    return [*lines, *_not_measured((robustness or {"accuracy": {}})["accuracy"], slices["parts"])]


SLICES = {
    "sharpness": "Thirds by the variance of the Laplacian: low is blurred, or has little contrast.",
    "size": "Thirds by the shorter side of the picture in its file, in pixels.",
}


def _not_measured(damages: Iterable[str], parts: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """Say which of blur, pose and size nobody looked at, and why."""
    damages, sizes, missing = set(damages), parts.get("size", []), []
    if not damages & {"blur"} and "sharpness" not in parts:
        missing.append("blur")
    if "rotation" in damages:
        missing.append("pose other than a turn in the picture's plane (no labels of pose exist)")
    else:
        missing.append("pose")
    if len(sizes) == 1:
        missing.append(f"size (every picture has {slice_name(sizes[0])} pixels)")
    elif not sizes:
        missing.append("size")
    return [f"Not measured in this run: {', '.join(missing)}.", ""]


def _other_datasets(record: RunRecord) -> list[str]:
    rows = [
        (
            _where(row["stamp"]) + (" (*seen*)" if row["seen"] else ""),
            f"{row['stamp']['n']:,}",
            ", ".join(map(escape, row["class_names"])),
            _with_interval(row["numbers"], "accuracy"),
            f"{_with_interval(twin, 'accuracy')}, n = {twin['n']:,}" if twin else "–",
            escape(row["seen"]) or "no exact copy found in any phase",
        )
        for row in record.metrics.get("cross_dataset", [])
        for twin in [row.get("leak_free")]  # None where all was seen, and in older runs
    ]
    head = ("set", "n", "shared classes", "accuracy [95 %]", "leak-free accuracy [95 %]", "seen?")
    return ["## Other datasets", *_table(head, rows)] if rows else []


def _how_it_was_made(record: RunRecord) -> list[str]:
    stamps = [result["stamp"] for result in record.metrics["results"]]
    versions = "; ".join(f"{k} {escape(v)}" for k, v in sorted(stamps[0]["versions"].items()))
    facts = {
        "Code": {stamp["code"] for stamp in stamps},
        "Device": {f"{stamp['device']}, {stamp['precision']}" for stamp in stamps},
        "Seed": {str(stamp["seed"]) for stamp in stamps},
    }
    return [
        "## How it was made",
        "",
        *(f"- {title}: {', '.join(map(escape, sorted(seen)))}" for title, seen in facts.items()),
        f"- Versions: {versions}",
        "",
        "Written from `run.json`, `metrics.json`, `params.yaml` and `predictions.csv` of this "
        "folder.",
    ]


# %% [markdown]
# ## Demo
#
# The card of a *made-up* run, as Markdown shows it.

# %% tags=["active-ipynb"]
# import tempfile
#
# from IPython.display import Markdown
#
# from fer_helpers.comparison import write_made_up_run
# from fer_helpers.model_card import model_card
#
# with tempfile.TemporaryDirectory() as scratch:
#     text = model_card(write_made_up_run(scratch, "made-up run"))
# # The last section names versions and commit, which change; here it is left out.
# Markdown(text.split("## How it was made")[0])
