# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparing runs
#
# `records` writes the folder, `run_records` reads it back, and this module lays several runs beside
# each other. It looks at nothing but the files of the folders, so the comparison can be made again
# years later, on another machine, without the pictures and without the models.
#
# Two questions are asked of a pair of runs, and they are not the same. *Do the intervals overlap?*
# compares two numbers as if they came from different pictures. *McNemar* compares the two on the
# pictures that both have seen, which is the sharper test, and needs `predictions.csv` of both.

# %%
"""Lay run folders beside each other: tables, tests and figures."""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_helpers.evaluation import compare as compare_answers
from fer_helpers.evaluation import evaluate, seeds_summary, softmax
from fer_helpers.independence import holm
from fer_helpers.plot_style import PALETTE, as_percent, clean, in_style, new_figure
from fer_helpers.records import scored, stamp, write_history, write_metrics, write_predictions
from fer_helpers.run_records import RunRecord, find_runs, read_run, read_runs, score_lines
from fer_helpers.runs import Run, open_run

# One address for reading and comparing.
__all__ = [
    "RunRecord",
    "compare",
    "compare_seeds",
    "find_runs",
    "mcnemar_matrix",
    "mcnemar_pairs",
    "plot_histories",
    "plot_intervals",
    "read_run",
    "read_runs",
    "write_made_up_run",
]

# %% [markdown]
# ## Runs beside each other


# %%
def compare(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Lay the scores of several runs beside each other: one line per run and scored set.

    Shares are 0..1, `low` and `high` bound the 95 % interval (empty without bootstrap), and
    `leak_free_...` is the same without pictures that also stand in train. Only lines of the same
    dataset, split and `content` (the hash of the files) are about the same pictures.
    """
    lines = [line for record in records for line in score_lines(record)]
    table = pd.DataFrame(lines)
    order = ["dataset", "split", "views", "content", "run"]
    return table.sort_values(order, ignore_index=True) if lines else table


def compare_seeds(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Mean and standard deviation over runs that differ in nothing but the seed.

    Same parameters, same code, same data (whatever was scored in any phase, by its hash).

    One line per group of at least two seeds and scored set: `n` (pictures), `seeds`, `mean`, `sd`
    (over seeds - 1) of the accuracy, 0..1, `low` and `high`, the 95 % interval of the mean
    (Student's t), and `note`, what the stamps say: that the set contains the selection split, or
    that it is the balanced operating point (without tau, which every seed chooses for itself). A
    seed that was run twice counts once, an unfinished run not at all.
    """
    groups: dict[tuple, dict[int, tuple[str, float]]] = {}
    for record in (record for record in records if record.finished):
        recipe = {k: v for k, v in record.fingerprint.items() if k.lower() != "seed"}
        stamps = [result["stamp"] for result in record.metrics["results"]]
        data = sorted({(s["dataset"], s["content_hash"], s.get("code", "")) for s in stamps})
        for result in record.metrics["results"]:
            stamp = result["stamp"]
            note = re.sub(r", tau [\d.]+", "", stamp["note"])
            shown = (stamp["dataset"], stamp["split"], stamp["views"], note, stamp["n"])
            content = (stamp["content_hash"], json.dumps([recipe, data], sort_keys=True))
            key = (*shown, record.origin, *content)
            score = (record.name, result["numbers"]["accuracy"])
            groups.setdefault(key, {}).setdefault(stamp["seed"], score)
    lines = []
    for (dataset, split, views, note, n, origin, *_), seeds in sorted(groups.items()):
        if len(seeds) < 2:
            continue
        summary = seeds_summary([accuracy for _, accuracy in seeds.values()])
        lines.append(
            {
                "runs": ", ".join(sorted(name for name, _ in seeds.values())),
                "origin": origin,
                "dataset": dataset,
                "split": split,
                "n": n,
                "views": views,
                "seeds": summary["n"],
                "mean": summary["mean"],
                "sd": summary["sd"],
                "low": max(0.0, summary["low"]),
                "high": min(1.0, summary["high"]),
                "note": note,
            }
        )
    columns = ["runs", "origin", "dataset", "split", "n", "views", "seeds", "mean", "sd"]
    return pd.DataFrame(lines, columns=[*columns, "low", "high", "note"])


# %%
def mcnemar_pairs(records: Sequence[RunRecord], dataset: str, split: str) -> pd.DataFrame:
    """Compare every two runs on the pictures that both predicted, joined by file name.

    Columns: `run_a, run_b, n, only_a, only_b` (pictures that only one of them got right),
    `difference` (accuracy a - b, 0..1), `low` and `high` (its 95 % interval, by a paired bootstrap;
    empty where no draw differs from another), `p_value` (McNemar, exact), `p_holm`
    (corrected for the number of pairs; Holm 1979), `note` (why there is no test, or on which
    pictures it is). Runs on files of another content hash are not tested: equal names need not be
    equal pictures.
    """
    parts, content = {}, {}
    for record in records:
        stamps = [result["stamp"] for result in record.metrics["results"]]
        content[record.name] = {
            s["content_hash"] for s in stamps if (s["dataset"], s["split"]) == (dataset, split)
        }
        table = record.predictions
        if len(table):
            table = table[(table["dataset"] == dataset) & (table["split"] == split)]
            parts[record.name] = table[["file", "truth", "prediction"]]
    lines = []
    for a, b in combinations([record.name for record in records], 2):
        line: dict[str, Any] = {"run_a": a, "run_b": b, "n": 0, "note": ""}
        lines.append(line)
        if not all(len(parts.get(name, ())) for name in (a, b)):
            line["note"] = "one of them has no predictions of this split"
            continue
        if content[a] != content[b]:
            line["note"] = "the content hashes differ: not the same files"
            continue
        if parts[a]["file"].duplicated().any() or parts[b]["file"].duplicated().any():
            line["note"] = "file names are not unique, so pictures cannot be matched"
            continue
        both = parts[a].merge(parts[b], on="file", suffixes=("_a", "_b"))
        line["n"] = len(both)
        if not len(both):
            line["note"] = "no file in common"
            continue
        if differing := int((both["truth_a"] != both["truth_b"]).sum()):
            line["note"] = f"{differing} of {len(both)} labels differ: not the same data"
            continue
        if len(both) < max(len(parts[a]), len(parts[b])):
            line["note"] = "only the files that both have"
        right = [(both[f"prediction_{x}"] == both[f"truth_{x}"]).to_numpy(bool) for x in "ab"]
        test = compare_answers(*right)
        line["low"], line["high"] = test.pop("interval") or (None, None)
        line |= test
    counts, numbers = ["n", "only_a", "only_b"], ["difference", "low", "high", "p_value", "p_holm"]
    table = pd.DataFrame(lines, columns=["run_a", "run_b", *counts, *numbers, "note"])
    table[numbers] = table[numbers].astype(np.float64)
    tested = table["p_value"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"])
    return table


def mcnemar_matrix(pairs: pd.DataFrame) -> pd.DataFrame:
    """Turn `p_holm` of `mcnemar_pairs` into a square table, symmetric, empty on its diagonal."""
    names = list(dict.fromkeys([*pairs["run_a"], *pairs["run_b"]]))
    matrix = pd.DataFrame(np.nan, index=names, columns=names)
    for pair in pairs.to_dict("records"):
        matrix.loc[pair["run_a"], pair["run_b"]] = pair["p_holm"]
        matrix.loc[pair["run_b"], pair["run_a"]] = pair["p_holm"]
    return matrix


# %%
@in_style
def plot_intervals(table: pd.DataFrame) -> Figure:
    """Draw the accuracies of `compare` with their 95 % intervals, and their leak-free twins."""
    rows = table.to_dict("records")
    title = "Accuracy and 95 % interval"
    figure, axes = new_figure(1.6 + 0.45 * len(rows), title, _origin(table["origin"]))
    ax = axes[0, 0]
    kinds = ((-0.12, "", "o", "all pictures"), (0.12, "leak_free_", "D", "without twins of train"))
    for (shift, prefix, marker, label), color in zip(kinds, PALETTE, strict=False):
        known = [(i, row) for i, row in enumerate(rows) if pd.notna(row[f"{prefix}accuracy"])]
        if not known:
            continue
        ends = {end: [row[f"{prefix}{end}"] for _, row in known] for end in ("low", "high")}
        values = np.array([row[f"{prefix}accuracy"] for _, row in known], dtype=np.float64)
        low, high = (np.array(ends[end], dtype=np.float64) for end in ("low", "high"))
        # An interval of few bootstrap draws may leave out its value.
        spread = np.maximum(np.nan_to_num([values - low, high - values]), 0)
        heights = [i + shift for i, _ in known]
        style = {"fmt": marker, "color": color, "markersize": 5, "capsize": 3, "label": label}
        ax.errorbar(values, heights, xerr=spread, **style)
    labels = [f"{row['run']}: {row['dataset']} {row['split']}" for row in rows]
    labels = [
        f"{clean(label, 48)}, n = {row['n']:,}"
        + f", {row['views']} views" * (row["views"] > 1)
        + ", balanced" * ("balanced" in row["note"])
        + ", stopped early" * ("stopped early" in row["note"])
        for label, row in zip(labels, rows, strict=True)
    ]
    ax.set_yticks(range(len(rows)), labels)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    as_percent(ax.xaxis)
    ax.grid(axis="x")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


# %%
@in_style
def plot_histories(records: Sequence[RunRecord], column: str = "selection_accuracy") -> Figure:
    """Draw one column of `history.csv` of several runs over each other, one panel per phase.

    Args:
        records: The runs; those without this column are left out.
        column: A column of `history.csv`, such as `"train_loss"`.
    """
    shown = {  # a run keeps its color in the figure of every column
        place: record
        for place, record in enumerate(records)
        if column in record.history and record.history[column].notna().any()
    }
    phases = sorted({phase for record in shown.values() for phase in record.history["phase"]})
    note = _origin(record.origin for record in shown.values())
    title = f"{column.replace('_', ' ')}, run over run".capitalize()
    room = 0.22 * max(0, -(-len(shown) // 3) - 2)  # inches; two lines of the legend always fit
    figure, axes = new_figure(3.4 + room, title, note, columns=max(len(phases), 1))
    lines = {}
    for ax, phase in zip(axes[0], phases, strict=False):
        for index, record in shown.items():
            rows = record.history[record.history["phase"] == phase]
            color = PALETTE[index % len(PALETTE)]
            dashes = ("-", "--", ":")[index // len(PALETTE) % 3]
            epochs = rows["epoch"].astype(int)
            (line,) = ax.plot(epochs, rows[column], dashes, color=color, marker="o", markersize=3)
            lines[record.name] = line
        ax.set_title(phase)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if column.endswith("accuracy"):
            as_percent(ax.yaxis)
    if lines:
        # Long names differ at their end as often as at their beginning.
        names = [n if len(n) <= 32 else f"{n[:15]}…{n[-16:]}" for n in lines]
        names = [clean(name, 32) for name in names]
        figure.legend(lines.values(), names, loc="outside lower center", ncols=3)
    else:
        axes[0, 0].text(0.5, 0.5, f"no run has a history of {column}", ha="center", va="center")
    return figure


def _origin(origins: Iterable[str]) -> str:
    known = set(origins)
    return "drawn faces" if known == {"drawn"} else " and ".join(sorted(known)) * (len(known) > 1)


# %% [markdown]
# ## Runs for trying it out


# %%
def write_made_up_run(
    output_dir: str | Path, name: str, *, seed: int = 0, skill: float = 2.5
) -> Run:
    """Write a run folder in which no model was trained: every number is made up.

    For the demo and for the tests. All its runs are about the same 300 made-up pictures, some of
    them harder than others for everybody; `skill` moves the accuracy.
    """
    classes = ("Anger", "Happy", "Sad", "Surprise")
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    n = 300
    labels = shared.integers(len(classes), size=n)
    hard = shared.normal(size=(n, len(classes)))
    logits = skill * np.eye(len(classes))[labels] + hard + own.normal(size=hard.shape)
    leak_free = shared.random(n) > 0.08
    fingerprint = {"SEED": seed, "SKILL": skill}
    run = open_run(output_dir, name, fingerprint, fingerprint, "never", origin="drawn")

    results, half = [], n // 2
    private = np.arange(n) % 2 == 0
    for split, part, chosen_on, note in (
        ("PrivateTest", private, f"PublicTest ({half})", ""),
        ("PublicTest", ~private, "itself", "contains the selection split"),
    ):
        taken_on = stamp(
            split, half, 1, seed, chosen_on, "made-up", "drawn", dataset="made-up", note=note
        )
        numbers = evaluate(logits[part], labels[part], classes, bootstrap=1000)
        kept = part & leak_free
        twin = evaluate(logits[kept], labels[kept], classes, bootstrap=1000)
        results.append(scored(taken_on, numbers, leak_free=twin, headline=not note))
        write_predictions(
            run,
            files=[f"test/{split}_{index}.png" for index in np.flatnonzero(part)],
            labels=labels[part],
            probabilities=softmax(logits[part]),
            class_names=classes,
            dataset="made-up",
            split=split,
            leak_free=leak_free[part],
        )
    write_metrics(run, {"results": results})
    end = results[1]["numbers"]["accuracy"]
    for phase, epochs in (("affectnet", 8), ("fer2013", 6)):
        grown = end * (1 - np.exp(-np.arange(1, epochs + 1) / 2)) + own.normal(0, 0.01, epochs)
        rows = [
            {"epoch": epoch, "train_loss": 2 * (1 - value), "selection_accuracy": value}
            for epoch, value in enumerate(grown, start=1)
        ]
        write_history(run, phase, rows)
    run.finish()
    return run


# %% [markdown]
# ## Demo
#
# Three *made-up* runs: two seeds of one recipe and a better recipe. McNemar compares them on the
# same pictures, and tells the better recipe from its first rival although their intervals touch.
# (With real runs ask on PrivateTest, where it is there: PublicTest contains the selection split.)

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers import comparison
#
# scratch = tempfile.TemporaryDirectory()
# for name, seed, skill in (("plain 1", 1, 2.5), ("plain 2", 2, 2.5), ("better", 3, 3.2)):
#     comparison.write_made_up_run(scratch.name, f"made-up {name}", seed=seed, skill=skill)
# records, skipped = comparison.read_runs(comparison.find_runs(scratch.name))
# table = comparison.compare(records)
# shown = ["run", "origin", "split", "n", "accuracy", "low", "high", "leak_free_accuracy", "note"]
# table[shown].round(3)

# %% tags=["active-ipynb"]
# comparison.compare_seeds(records).round(3)

# %% tags=["active-ipynb"]
# pairs = comparison.mcnemar_pairs(records, "made-up", "PublicTest")
# comparison.mcnemar_matrix(pairs).round(3)

# %% tags=["active-ipynb"]
# comparison.plot_intervals(table)

# %% tags=["active-ipynb"]
# comparison.plot_histories(records)

# %% tags=["active-ipynb"]
# scratch.cleanup()
