"""Run folders as they are read back: files in, plain records out, nothing drawn."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fer_helpers.runs import STATE, RunError

HISTORY = ("phase", "origin", "epoch")
PREDICTIONS = ("dataset", "split", "file", "truth", "prediction", "leak_free", "origin")


@dataclass(frozen=True)
class RunRecord:
    """A run folder as read: `history` and `predictions` are empty tables where there is no file."""

    folder: Path
    name: str
    origin: str
    finished: bool
    fingerprint: dict[str, Any]
    params: dict[str, Any]
    metrics: dict[str, Any]
    history: pd.DataFrame
    predictions: pd.DataFrame


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder.

    Raises:
        RunError: It is no run folder, or one of its files is missing or broken; one sentence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder: give the folder of a run, such as runs/demo.")
    for name in (STATE, "params.yaml", "metrics.json"):
        if not (folder / name).is_file():
            raise RunError(f"{folder} has no {name}: the run did not get that far, or it is none.")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        record = RunRecord(
            folder=folder,
            name=folder.resolve().name,
            origin=metrics["origin"],
            finished=bool(state["finished"]),
            fingerprint=dict(state["fingerprint"]),
            params=dict(params),
            metrics=metrics,
            history=_read_table(folder / "history.csv", HISTORY),
            predictions=_read_table(folder / "predictions.csv", PREDICTIONS),
        )
        score_lines(record)  # every number that the tables need is there
        if not metrics["results"]:
            raise RunError(f"{folder} holds no result yet.")
        return record
    except (OSError, LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RunError(
            f"{folder} cannot be read as a run, one of its files is broken ({reason})."
        ) from error


def _read_table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV without guessing: a class called `NA` stays text."""
    if not path.is_file():
        return pd.DataFrame(columns=needed)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}")
    for name in table.columns.difference([*HISTORY[:2], *PREDICTIONS]):
        table[name] = table[name].replace("", "nan").astype(np.float64)
    return table


def score_lines(record: RunRecord) -> list[dict[str, Any]]:
    """The scores of a run, one line each, with the columns of `comparison.compare`."""
    lines = []
    for result in record.metrics["results"]:
        stamp, numbers, twin = result["stamp"], result["numbers"], result["leak_free"] or {}
        low, high = numbers["accuracy_interval"] or (None, None)
        twin_low, twin_high = twin.get("accuracy_interval") or (None, None)
        lines.append(
            {
                "run": record.name,
                "origin": record.origin,
                "dataset": stamp["dataset"],
                "split": stamp["split"],
                "n": stamp["n"],
                "views": stamp["views"],
                "seed": stamp["seed"],
                "accuracy": numbers["accuracy"],
                "low": low,
                "high": high,
                "macro_f1": numbers["macro_f1"],
                "leak_free_n": twin.get("n"),
                "leak_free_accuracy": twin.get("accuracy"),
                "leak_free_low": twin_low,
                "leak_free_high": twin_high,
                "chosen_on": stamp["selection_set"],
                "note": stamp["note"],
                "headline": result["headline"],
                "content": stamp["content_hash"][:12],
            }
        )
    return lines


def read_runs(folders: Iterable[str | Path]) -> tuple[list[RunRecord], list[str]]:
    """Read several folders; what cannot be read is skipped with a sentence.

    Returns:
        The runs, their names made different from each other, and one sentence per skipped folder.
        A folder that is named twice is read once.
    """
    records, skipped = [], []
    for folder in {Path(folder).resolve(): folder for folder in folders}.values():
        try:
            records.append(read_run(folder))
        except RunError as error:
            skipped.append(f"Skipped: {error}")
    for longer in (lambda r: f"{r.folder.resolve().parent.name}/{r.name}", lambda r: str(r.folder)):
        names = [record.name for record in records]
        records = [replace(r, name=longer(r)) if names.count(r.name) > 1 else r for r in records]
    return records, skipped


def find_runs(output_dir: str | Path) -> list[Path]:
    """All run folders directly below `output_dir` that are not hidden, sorted by name."""
    return sorted(path.parent for path in Path(output_dir).glob(f"[!.]*/{STATE}"))
