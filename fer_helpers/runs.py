# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One run, one folder
#
# A number without its circumstances is a rumor. So everything that one training run leaves behind
# stands in one folder, and every score in it says which split it was taken on, how many pictures
# that were, what the epoch was chosen on, which files were read (by their content) and which code
# did it:
#
# | file | what it holds |
# |---|---|
# | `params.yaml` | every parameter, resolved; papermill takes it back with `-f` |
# | `run.json` | what decides whether the run may be continued, and whether it is finished |
# | `history.csv` | one line per epoch |
# | `metrics.json` | the scores and their stamps; no clock, so two equal runs give equal bytes |
# | `timing.json` | what the clock said, kept apart |
# | `predictions.csv` | one line per picture and split: truth, prediction, every probability |
# | `figures/` | each figure as PNG and SVG |
# | `MODEL_CARD.md` | the story of the run, written from the files above and from nothing else |
#
# A folder is never overwritten and never deleted: it is continued, or moved aside.

# %%
"""The run folder: what one run leaves behind, its stamps, its model card and its comparison."""

import csv
import errno
import html
import io
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.text import Text

from fer_helpers.files import replace_file
from fer_helpers.mounts import attached_files
from fer_helpers.plots import savefig

STATE = "run.json"
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")


# %% [markdown]
# ## Writing without leaving halves
#
# A file is written beside its place and then renamed over it. Whoever reads during a crash, or
# after the disk ran full, finds the previous file whole.


# %%
class RunError(RuntimeError):
    """A run folder cannot be opened, written or read; one sentence that ends in a way out."""


@contextmanager
def _explained(doing: str, where: Path) -> Iterator[None]:
    """Turn an `OSError` into one sentence that says what a person can do about it."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        advice = (
            "the disk is full: free some space or set OUTPUT_DIR to another disk"
            if full
            else "set OUTPUT_DIR to a folder that can be written"
        )
        raise RunError(f"Cannot {doing} {where} ({error.strerror or error}); {advice}.") from error


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file so that at every moment either the old or the new content stands there, whole.

    Raises:
        RunError: The folder cannot be written or the disk is full; the old file is untouched then.
    """
    data = content.encode() if isinstance(content, str) else content
    with _explained("write", Path(path)):
        return replace_file(path, lambda partial: partial.write_bytes(data))


def _probe(folder: Path) -> None:
    """Write 4 MiB into `folder` and take them away again; raises `OSError` where that fails.

    Permission bits do not answer the question (root, read-only mounts, quotas); writing does.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as stream:
            stream.write(bytes(4 << 20))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        probe.unlink(missing_ok=True)


# %% [markdown]
# ## The folder of this run
#
# Whether a folder may be continued is decided by its *fingerprint*: the parameters and the data
# hashes that change the result. Paths, time budgets and the number of workers are not part of it,
# so a run may move to another machine and go on there. On Kaggle an unfinished run of the same
# fingerprint among the attached inputs, the output of an earlier session, is copied and continued.


# %%
@dataclass(frozen=True)
class Run:
    """An open run folder.

    `origin` is `"drawn"` or `"real"`; `resumed` says that files of an earlier session stand in the
    folder; `sentence` says what was decided and why.
    """

    folder: Path
    origin: str
    resumed: bool
    sentence: str

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether `finish` was called for this folder, in this session or an earlier one."""
        return bool(_read_state(self.folder)["finished"])

    def path(self, name: str) -> Path:
        """Where a file of this run stands; its folder is made if it has to be."""
        path = self.folder / name
        with _explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self) -> None:
        """Mark the run as finished: `RESUME=auto` without a name starts a new one from now on."""
        _write_state(self.folder, {**_read_state(self.folder), "finished": True})


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{folder} is not a run folder (its {STATE} is missing or broken); "
            "choose a new RUN_NAME, or set RESUME to never, which moves it aside."
        ) from error
    if not isinstance(state, dict) or not {"fingerprint", "finished", "created"} <= state.keys():
        raise RunError(
            f"{folder / STATE} does not describe a run; choose a new RUN_NAME, or set RESUME to "
            "never, which moves the folder aside."
        )
    return state


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    write_file(folder / STATE, json.dumps(state, indent=2, sort_keys=True) + "\n")


def fingerprint_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two fingerprints, sorted: `"seed: 42 there, 43 now"`."""

    def shown(side: Mapping[str, Any], key: str) -> str:
        text = json.dumps(side[key]) if key in side else "not set"
        return text if len(text) <= 40 else text[:37] + "..."

    keys = sorted(before.keys() | now.keys())
    return [
        f"{key}: {shown(before, key)} there, {shown(now, key)} now"
        for key in keys
        if key not in before or key not in now or before[key] != now[key]
    ]


def _free_name(parent: Path, name: str) -> Path:
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"


# %%
def open_run(
    output_dir: str | Path,
    run_name: str,
    config_dict: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    resume: str | Path = "auto",
    *,
    origin: str,
) -> Run:
    """Decide which folder this run writes to, and make sure, before any training, that it can.

    With `resume="auto"` a named folder of the same fingerprint is continued, and without a name the
    newest unfinished one is; where there is none, a copy of the newest unfinished one among
    Kaggle's attached inputs is. With `resume="never"` an existing named folder is moved aside to
    `name-1`, `name-2` ... With a path as `resume` that folder is continued; if it cannot be written
    it is copied to `output_dir` first. No run is overwritten or deleted.

    Args:
        output_dir: The folder of all runs; made if it does not exist.
        run_name: The name of the run's folder; empty for `fer-YYYYmmdd-HHMMSS`.
        config_dict: Every parameter, for `params.yaml`.
        fingerprint: What changes the result: parameter or data hash -> a JSON-able value.
        resume: `"auto"`, `"never"` or a run folder.
        origin: `"drawn"` or `"real"`: where the pictures of this run come from.

    Raises:
        RunError: The output folder cannot be written or is full, the named folder belongs to a run
            with other result-relevant parameters, or `resume` names no run folder.
    """
    if origin not in {"drawn", "real"}:
        raise RunError(f"origin is 'drawn' or 'real', not {origin!r}.")
    if run_name != Path(run_name).name or run_name == "..":
        raise RunError(f"RUN_NAME {run_name!r} is not a plain folder name; leave out slashes.")
    output = Path(output_dir)
    with _explained("write to the output folder", output):
        output.mkdir(parents=True, exist_ok=True)
        _probe(output)
    wanted = json.loads(json.dumps({**fingerprint, "origin": origin}, default=str))

    named = output / run_name
    resume = str(resume)
    if resume not in {"auto", "never"}:
        run = _continue(Path(resume), output, run_name, wanted, origin)
    elif not run_name or not named.exists() or _holds_no_run(named):
        run = _begin(output, run_name, wanted, origin, look=resume == "auto")
    elif resume == "never":
        aside = _free_name(output, run_name)
        with _explained("move aside", named):
            named.rename(aside)
        run = _start(named, wanted, origin, f"A new run; the earlier one now stands in {aside}.")
    else:
        run = _continue(named, output, run_name, wanted, origin)

    parameters = {str(key).upper(): _plain(value, str(key)) for key, value in config_dict.items()}
    write_file(
        run.folder / "params.yaml", yaml.safe_dump(parameters, sort_keys=False, allow_unicode=True)
    )
    return run


def _holds_no_run(folder: Path) -> bool:
    """Whether a folder is empty but for notebooks: papermill wants its output's folder to exist."""
    return folder.is_dir() and all(
        item.suffix in {".ipynb", ".html"} or item.name == ".ipynb_checkpoints"
        for item in folder.iterdir()
    )


def _now() -> str:
    return datetime.now().isoformat(timespec="microseconds")


def _time_named(output: Path) -> Path:
    # The clock names the folder and decides nothing else.
    name = f"fer-{datetime.now():%Y%m%d-%H%M%S}"
    return _free_name(output, name) if (output / name).exists() else output / name


def _begin(output: Path, run_name: str, fingerprint: dict, origin: str, *, look: bool) -> Run:
    """Start a new run, unless we may `look` for an unfinished one and it fits: here or attached."""
    sentence = "A new run."
    if look and not run_name:
        for folder, state in _unfinished(output.glob(f"*/{STATE}")):
            if state["fingerprint"] == fingerprint:
                return _continue(folder, output, "", fingerprint, origin)
    attached = _unfinished(attached_files(re.escape(STATE))) if look else []
    for folder, state in attached:
        if state["fingerprint"] == fingerprint:
            return _continue(folder, output, run_name, fingerprint, origin, copied=True)
    if attached:
        folder, state = attached[0]
        differences = "; ".join(fingerprint_differences(state["fingerprint"], fingerprint))
        sentence = f"A new run: {folder} is unfinished, but has other parameters ({differences})."
    folder = output / run_name if run_name else _time_named(output)
    return _start(folder, fingerprint, origin, sentence)


def _start(folder: Path, fingerprint: dict, origin: str, sentence: str) -> Run:
    with _explained("make", folder):
        folder.mkdir(exist_ok=True)
    state = {
        "created": _now(),
        "code": code_version(),
        "fingerprint": fingerprint,
        "finished": False,
        "origin": origin,
    }
    _write_state(folder, state)
    return Run(folder, origin, resumed=False, sentence=sentence)


def _unfinished(states: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """The unfinished runs whose state files these are, the newest first."""
    found = []
    for folder in (path.parent for path in states):
        try:
            state = _read_state(folder)
        except RunError:
            continue  # a broken neighbor is no reason not to start
        if not state["finished"]:
            found.append((folder, state))

    def begun(run: tuple[Path, dict[str, Any]]) -> tuple[str, Path]:
        folder, state = run
        # A copy has come further than its original, whose date of creation it keeps.
        return str(state.get("copied", state["created"])), folder

    return sorted(found, key=begun, reverse=True)


def _continue(
    folder: Path,
    output: Path,
    run_name: str,
    fingerprint: dict,
    origin: str,
    *,
    copied: bool = False,
) -> Run:
    if not folder.is_dir():
        raise RunError(
            f"RESUME names no folder: {folder}; give an existing run folder, 'auto' or 'never'."
        )
    state = _read_state(folder)
    differences = fingerprint_differences(state["fingerprint"], fingerprint)
    if differences:
        raise RunError(
            f"{folder} was made with other parameters ({'; '.join(differences)}); choose a new "
            "RUN_NAME, or set RESUME to never, which moves the old folder aside, or take those "
            "values back."
        )
    source = folder
    if copied or not _writable(folder):
        folder = _copy_of(source, output, run_name)
    sentence = f"Continues {source}" + (f", copied to {folder}." if folder != source else ".")
    if state.get("code") != code_version():
        sentence += f" It was begun by code {state.get('code')}, this is {code_version()}."
    return Run(folder, origin, resumed=True, sentence=sentence)


def _writable(folder: Path) -> bool:
    try:
        _probe(folder)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            with _explained("write to", folder):
                raise
        return False
    return True


def _copy_of(source: Path, output: Path, run_name: str) -> Path:
    """Copy a folder that cannot be written; an earlier copy of the same folder is used again."""
    origin = str(source.resolve())
    target = output / (run_name or source.name)
    if target.exists():
        try:
            if _read_state(target).get("copied_from") == origin:
                return target
        except RunError:
            pass
        target = _free_name(output, target.name)
    partial = target.with_name(f".{target.name}.partial")
    with _explained("copy the run to", target):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(source, partial)
            # A copy carries the permissions of its original, and those forbid to write.
            for path in (partial, *partial.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
            _write_state(partial, {**_read_state(partial), "copied_from": origin, "copied": _now()})
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


# %% [markdown]
# ## Stamps
#
# What a score needs to be understood in a year.


# %%
def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def code_version() -> str:
    """The commit of this code: from `FER_COMMIT`, else from git, else `"unknown"`.

    A commit from git ends in `+changes` when tracked files of the code differ from it.
    """
    return os.environ.get("FER_COMMIT", "").strip() or _git_commit()


@cache
def _git_commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    code = [".", "../notebooks/*.py"]
    try:
        # Installed below another project's repository, that project's commit would be the answer.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


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
    """Say what a score was taken on, as a JSON-able dict.

    Args:
        split: Name of the split as data.py gives it, such as `"PrivateTest"`.
        n: Number of pictures scored.
        views: Views averaged per picture; 1 is without test-time augmentation.
        seed: The seed of the run.
        selection_set: What the epoch was chosen on, in words: `"PublicTest (3,589)"`, or `"none"`.
        content_hash: Hash over names and bytes of the files the pictures came from.
        origin: `"drawn"` or `"real"`.
        dataset: Name of the dataset.
        device: Kind of device, such as `"cpu"` or `"NVIDIA T4"`.
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
        leak_free: The same without the pictures that also stand in train; None if nobody looked.
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
# ## What a run writes


# %%
def _plain(value: Any, where: str) -> Any:
    """Numpy and tuples to what JSON has; refuses what it has not, saying where it stands."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise RunError(f"{where} is {value}, which no result may be; find out where it comes from.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RunError(f"{where} is a {type(value).__name__}; keep numbers, text, lists, dicts only.")


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
    - `"abstain"`: `{"stamp": stamp(...), "threshold", "coverage", "accuracy"}`,
    - `"cross_dataset"`: a list of rows of `cross_dataset.cross_dataset`.

    Anything else is kept as it is.

    Raises:
        RunError: A value is NaN, infinite or no plain data; drawn and real data meet; the disk is
            full.
    """
    plain = _plain(metrics, "metrics")
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
    both = {**before, **_plain(timing, "timing")}
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
    leak_free: np.ndarray | None = None,
) -> Path:
    """Write one line per picture to `predictions.csv`; the split's earlier lines are replaced.

    Columns: `dataset, split, file, truth, prediction, leak_free, origin, p_<class>` ... A class
    that this split does not know has no probability. `leak_free` is empty where nobody looked.

    Args:
        run: The run.
        files: (N,) names relative to the dataset.
        labels: (N,) int.
        probabilities: (N, K) in 0..1, each row adding up to 1.
        class_names: K names.
        dataset: Name of the dataset.
        split: Name of the split.
        leak_free: (N,) bool; None where train was not searched for twins.

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
    if len(files) and not (np.all(probabilities >= 0) and np.allclose(sums, 1, atol=1e-3)):
        raise RunError(
            f"{split}: the rows are no probabilities; pass logits through evaluation.softmax."
        )
    # Not of the rounded ones: to float32 two near chances may be the same.
    answers = exact.argmax(axis=1)
    known = np.asarray([""] * len(files) if leak_free is None else leak_free)
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
            files, labels, answers, probabilities, known, strict=True
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
    with _explained("write", run.folder / "figures"):
        png, _ = savefig(fig, run.folder / "figures", plain_name)
    return png


def attach_notebook(executed_ipynb: str | Path, run_folder: str | Path) -> Path:
    """Copy the executed notebook into the run folder and render it as HTML beside it.

    Returns:
        The HTML file.

    Raises:
        RunError: The notebook cannot be read or the folder cannot be written.
    """
    import nbformat
    from nbconvert import HTMLExporter

    source, folder = Path(executed_ipynb), Path(run_folder)
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
# Two starts of the same run, and one with another seed: the first two share a folder, the third is
# refused with the reason.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.runs import RunError, open_run, scored, stamp, write_metrics
#
# scratch = tempfile.TemporaryDirectory()
# parameters = {"seed": 42, "batch_size": 32}
# first = open_run(scratch.name, "demo", parameters, {"seed": 42}, origin="drawn")
# again = open_run(scratch.name, "demo", parameters, {"seed": 42}, origin="drawn")
# print("same folder:", first.folder == again.folder, "| resumed:", again.resumed)
# try:
#     open_run(scratch.name, "demo", parameters, {"seed": 43}, origin="drawn")
# except RunError as error:
#     print(str(error).replace(str(first.folder), "runs/demo"))

# %% [markdown]
# A score and its stamp, as they stand in `metrics.json` (made-up numbers).

# %% tags=["active-ipynb"]
# numbers = {"n": 100, "accuracy": 0.81, "accuracy_interval": [0.73, 0.88], "per_class": {}}
# taken_on = stamp(
#     "PrivateTest", 100, 1, 42, "PublicTest (100)", "4f2a", "drawn", dataset="FER2013"
# )
# path = write_metrics(first, {"results": [scored(taken_on, numbers, headline=True)]})
# print([line.strip() for line in path.read_text().splitlines() if "accuracy" in line])
# print({key: taken_on[key] for key in ("dataset", "split", "n", "selection_set", "origin")})
# print(sorted(path.name for path in first.folder.iterdir()))
# scratch.cleanup()
