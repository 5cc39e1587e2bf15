# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a run writes
#
# A score needs a stamp to be understood in a year: which split, how many pictures, what the epoch
# was chosen on, which files by their content, which code. In `metrics.json` everything is sorted
# and no score stands beside a clock, so that two equal runs leave an equal one, and so does a run
# that was killed and continued.

# %%
"""The files of a run: stamped metrics, history, predictions, figures and the executed notebook."""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from fer_helpers.files import RunError, explained, write_file
from fer_helpers.plain import plain_values
from fer_helpers.plots import savefig
from fer_helpers.runs import Run
from fer_helpers.versions import code_version, threads, versions

# %% [markdown]
# ## Stamps


# %%
def stamp(
    split: str,
    n: int,
    views: int,
    seed: int,
    selection_set: str,
    content_hash: str,
    origin: str,
    *,
    dataset: str,
    device: str = "cpu",
    precision: str = "fp32",
    note: str = "",
) -> dict[str, Any]:
    """Say what a score was taken on, as a JSON-able dict; it adds code, versions and threads.

    Args:
        split: Name of the split as data.py gives it, such as `"PrivateTest"`.
        n: Number of pictures scored.
        views: Views averaged per picture; 1 is without test-time augmentation.
        seed: The seed of the run.
        selection_set: What choices were made on, in words: `"PublicTest (3,589)"`, or `"none"`.
        content_hash: Hash over names and bytes of the files the pictures came from.
        origin: `"drawn"` or `"real"`.
        dataset: Name of the dataset.
        device: Kind of device, such as `"cpu"` or `"cuda"`.
        precision: `"fp32"`, `"bf16"` or `"fp16"`.
        note: What a reader must know, such as `"contains the selection split"`.
    """
    return {
        "dataset": dataset,
        "split": split,
        "n": int(n),
        "views": int(views),
        "seed": int(seed),
        "selection_set": selection_set,
        "content_hash": content_hash,
        "origin": origin,
        "note": note,
        "device": str(device),
        "precision": precision,
        "threads": threads(),
        "code": code_version(),
        "versions": versions(),
    }


def scored(
    stamp: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    leak_free: Mapping[str, Any] | None = None,
    headline: bool = False,
) -> dict[str, Any]:
    """Join a stamp and its numbers: one entry of `metrics["results"]`.

    Args:
        stamp: From `stamp`.
        numbers: From `evaluation.evaluate`, over all pictures of the split.
        leak_free: The same without the pictures that also stand in train; None if all do.
        headline: Whether this is the number to quote for its dataset.

    Raises:
        RunError: `numbers` are over another number of pictures than the stamp says.
    """
    if stamp["n"] != numbers["n"] or (leak_free is not None and leak_free["n"] > numbers["n"]):
        raise RunError(
            f"The stamp of {stamp['split']} says {stamp['n']} pictures and its numbers "
            f"{numbers['n']}; stamp the set that was scored."
        )
    return {
        "headline": bool(headline),
        "stamp": dict(stamp),
        # The keys of a JSON file are sorted, so the order of the classes is kept in a list.
        "class_names": list(numbers["per_class"]),
        "numbers": dict(numbers),
        "leak_free": None if leak_free is None else dict(leak_free),
    }


# %% [markdown]
# ## Numbers


# %%
def _origins(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["origin"]} if isinstance(value.get("origin"), str) else set()
        return own.union(*map(_origins, value.values()))
    return set().union(*map(_origins, value)) if isinstance(value, list) else set()


def write_metrics(run: Run, metrics: Mapping[str, Any]) -> Path:
    """Write `metrics.json`: keys sorted, floats exact, no clock, so equal runs give equal bytes.

    `metrics["results"]` is a list of `scored(...)`, headline first. The model card also reads,
    where they are present,

    - `"robustness"`: `{"stamp": stamp(...), "accuracy": {"blur": [level 0, level 1, ...], ...}}`,
    - `"slices"`: `{"stamp": stamp(...), "parts": {"sharpness": [...], ...}}`, with the rows of
      `exploration.accuracy_by_third`,
    - `"abstain"`: `{"stamp": stamp(...), "threshold", "coverage", "accuracy", "leak_free"}`; the
      last is None or `{"threshold", "coverage", "accuracy", "n"}`,
    - `"cross_dataset"`: a list of rows of `cross_dataset.cross_dataset`.

    Anything else is kept as it is.

    Raises:
        RunError: A value is NaN, infinite or no plain data; drawn and real data meet; the disk is
            full.
    """
    plain = plain_values(metrics, "metrics")
    foreign = _origins(plain) - {run.origin}
    if foreign:
        raise RunError(
            f"This run is on {run.origin} faces and its metrics hold {', '.join(sorted(foreign))} "
            "ones; drawn and real data never meet in one run, so open one run for each."
        )
    plain["origin"] = run.origin
    text = json.dumps(plain, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write_file(run.folder / "metrics.json", text + "\n")


def write_timing(run: Run, timing: Mapping[str, Any]) -> Path:
    """Add what the clock said (name -> seconds) to `timing.json`; equal names are replaced."""
    path = run.folder / "timing.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    both = {**before, **plain_values(timing, "timing")}
    return write_file(path, json.dumps(both, indent=1, sort_keys=True) + "\n")


# %%
def _replace_rows(path: Path, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> Path:
    """Put `rows` into a CSV in place of those with the same keys, and sort by the keys.

    What was written before is kept as text: nothing is parsed, so nothing can change. Sorted, a
    resumed run leaves the same bytes as one that went through.
    """
    fresh = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    replaced = {tuple(row[key] for key in keys) for row in fresh}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as stream:
            old = list(csv.DictReader(stream))
        fresh += [row for row in old if tuple(row.get(key, "") for key in keys) not in replaced]
    fresh.sort(key=lambda row: tuple(row.get(key, "") for key in keys))
    columns = list(dict.fromkeys(name for row in fresh for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(fresh)
    return write_file(path, text.getvalue())


def write_history(run: Run, phase: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the epochs of a phase to `history.csv`; earlier lines of the same phase are replaced.

    Args:
        run: The run.
        phase: `"affectnet"` or `"fer2013"`.
        rows: One mapping per epoch, as `training.train_phase` returns them.
    """
    lines = [{"phase": phase, "origin": run.origin, **row} for row in rows]
    return _replace_rows(run.folder / "history.csv", lines, ("phase",))


def write_predictions(
    run: Run,
    *,
    files: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    dataset: str,
    split: str,
    leak_free: np.ndarray,
) -> Path:
    """Write one line per picture to `predictions.csv`; the split's earlier lines are replaced.

    Columns: `dataset, split, file, truth, prediction, leak_free, origin, p_<class>` ... A class
    that this split does not know has no probability.

    Args:
        run: The run.
        files: (N,) names relative to the dataset.
        labels: (N,) int.
        probabilities: (N, K) in 0..1, each row adding up to 1.
        class_names: K names.
        dataset: Name of the dataset.
        split: Name of the split.
        leak_free: (N,) bool, False for pictures that also stand in train.

    Raises:
        RunError: Lengths disagree, or rows are no probabilities (logits, NaN).
    """
    exact = np.asarray(probabilities)
    probabilities = exact.astype(np.float32)
    labels = np.asarray(labels)
    shape = (len(files), len(class_names))
    if probabilities.shape != shape or labels.shape != shape[:1]:
        raise RunError(
            f"{split}: {shape[0]} files and {shape[1]} classes do not go with {labels.shape} "
            f"labels and {probabilities.shape} probabilities; give the arrays of one split."
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    if not (np.all(probabilities >= 0) and np.allclose(sums, 1, atol=1e-3)):
        raise RunError(
            f"{split}: the rows are no probabilities; pass logits through evaluation.softmax."
        )
    # Not of the rounded ones: to float32 two near chances may be the same.
    answers = exact.argmax(axis=1)
    lines = [
        {
            "dataset": dataset,
            "split": split,
            "file": file,
            "truth": class_names[label],
            "prediction": class_names[answer],
            "leak_free": free,
            "origin": run.origin,
            **{f"p_{name}": value for name, value in zip(class_names, row, strict=True)},
        }
        for file, label, answer, row, free in zip(
            files, labels, answers, probabilities, leak_free, strict=True
        )
    ]
    return _replace_rows(run.folder / "predictions.csv", lines, ("dataset", "split"))


# %%
def save_figure(run: Run, fig: Figure, name: str) -> Path:
    """Save a figure as `figures/<name>.png` and `.svg`, the same bytes each time; returns the PNG.

    A figure of a run on drawn faces that does not say so gets the words into its corner.
    """
    words = " ".join(text.get_text().lower() for text in fig.findobj(Text))
    if run.origin == "drawn" and "drawn" not in words:
        fig.text(0.995, 0.005, "drawn faces", ha="right", va="bottom", fontsize=7, alpha=0.7)
    plain_name = re.sub(r"[^\w.-]+", "_", name)
    with explained("write", run.folder / "figures"):
        png, _ = savefig(fig, run.folder / "figures", plain_name)
    return png


def attach_notebook(executed_ipynb: str | Path, run_folder: str | Path) -> Path:
    """Copy the executed notebook into the run folder and render it as HTML beside it.

    Returns:
        The HTML file.

    Raises:
        RunError: The notebook cannot be read, or the folder is missing or cannot be written.
    """
    import nbformat
    from nbconvert import HTMLExporter

    source, folder = Path(executed_ipynb), Path(run_folder)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder: give the folder of the run.")
    try:
        notebook = nbformat.read(source, as_version=4)
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise RunError(f"{source} is no notebook that can be read ({error}).") from error
    copy = folder / source.name
    if copy.resolve() != source.resolve():
        write_file(copy, source.read_bytes())
    body, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": "notebook"}})
    # Older nbconvert writes the name into the title as it is, newer escapes it: set it ourselves.
    title = f"<title>{html.escape(source.stem)}</title>"
    body = re.sub(r"<title>.*?</title>", lambda _: title, body, count=1, flags=re.DOTALL)
    return write_file(copy.with_suffix(".html"), body)


# %% [markdown]
# ## Demo
#
# A score and its stamp, as they stand in `metrics.json` (made-up numbers).

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.records import scored, stamp, write_metrics
# from fer_helpers.runs import open_run
#
# numbers = {"n": 100, "accuracy": 0.81, "accuracy_interval": [0.73, 0.88], "per_class": {}}
# taken_on = stamp(
#     "PrivateTest", 100, 1, 42, "PublicTest (100)", "4f2a", "drawn", dataset="FER2013"
# )
# scratch = tempfile.TemporaryDirectory()
# run = open_run(scratch.name, "demo", {"seed": 42}, {"seed": 42}, origin="drawn")
# path = write_metrics(run, {"results": [scored(taken_on, numbers, headline=True)]})
# print([line.strip() for line in path.read_text().splitlines() if "accuracy" in line])
# print({key: taken_on[key] for key in ("dataset", "split", "n", "selection_set", "origin")})
# print(sorted(path.name for path in run.folder.iterdir()))
# scratch.cleanup()
