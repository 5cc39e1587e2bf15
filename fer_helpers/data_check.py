# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data check
#
# Before a number is believed, somebody should have looked at the pictures. This module looks at
# all of them: what is there and what should be, pictures that show nothing, pictures that stand in
# two splits or under two labels, and file names from which a net could guess the class without
# looking at the face. It reports, and on request it cleans the training set. How each of these
# flaws is found is in `flaws`.
#
# Twins matter most. About eight of a hundred FER2013 test images have an exact copy in train, so
# part of every published score is memory.

# %%
"""Say what is wrong with a dataset: counts, blanks, twins, conflicts, leaks; and act on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from fer_helpers.flaws import (
    class_clues,
    face_table,
    find_blanks,
    find_twins,
    is_blank,
    near_twins,
    parts,
)
from fer_helpers.layouts import FER_CLASSES, FER_COUNTS, DataError
from fer_helpers.splits import FaceSet, Splits, TestSet, TrainSet

# %% [markdown]
# ## What should be there
#
# The official counts of FER2013, by class and split. AffectNet-8 exists in too many editions to
# expect anything.

# %%
OFFICIAL_FER2013 = pd.DataFrame(FER_COUNTS, index=FER_CLASSES).rename(columns={"Training": "train"})


# %% [markdown]
# ## The report

# %%
STRONG_CLUE = 0.2  # Cramér's V from which a clue deserves a look


@dataclass(frozen=True, eq=False)
class DataReport:
    """What a check found.

    Attributes:
        findings: one row per check: `check`, `found`, `expected`, `advice` ("" when all is well).
        twins: every face that shares its pixels with another: `group`, `split`, `emotion`,
            `file`, `pixel_hash`, `conflict` (its group carries two labels).
        blanks: every face that shows nothing: `split`, `emotion`, `file`, `pixel_hash`.
        near: pairs that correlate and are not exact twins: `correlation`, then `split`,
            `emotion`, `file` of both with suffixes `_a` and `_b`.
    """

    findings: pd.DataFrame
    twins: pd.DataFrame
    blanks: pd.DataFrame
    near: pd.DataFrame

    def __str__(self) -> str:
        """The findings as aligned plain text."""
        width = self.findings["check"].str.len().max()
        lines = []
        for row in self.findings.itertuples():
            expected = f" (expected {row.expected})" if row.expected else ""
            advice = f" -> {row.advice}" if row.advice else ""
            lines.append(f"{row.check:{width}s}  {row.found}{expected}{advice}")
        return "\n".join(lines)


def check_data(splits: Splits, near: float | None = 0.99) -> DataReport:
    """Look at every picture of a dataset.

    Args:
        splits: what `load_affectnet`, `load_fer2013` or `load_faces` returned.
        near: correlation (0..1) from which two pictures are near-twins; None does not search.
    """
    table = face_table(splits)
    twins, blanks = find_twins(table), find_blanks(splits, table)
    counts = pd.crosstab(table["emotion"], table["split"])
    order = list(dict.fromkeys(table["split"]))
    counts = counts.reindex(splits.train.class_names)[order]
    pairs = _near_table(splits, table, near)
    unreadable = "the notes name up to five of each split, `splits.bad_files` all"
    rows = [
        *_count_findings(splits, counts),
        _finding("modes and sizes", _tally(table["native"])),
        _finding("unreadable files", f"{len(splits.bad_files):,}", "0", unreadable),
        _finding("blank pictures", _by_split(blanks, order), "0", "DROP_BLANKS"),
        *_twin_findings(table, twins, order),
        *_near_findings(splits, pairs, near),
        _name_finding(table),
        *_clue_findings(class_clues(table)),
    ]
    columns = ["check", "found", "expected", "advice"]
    report = pd.DataFrame(rows, columns=columns)
    keep = ["split", "emotion", "file", "pixel_hash"]
    return DataReport(
        findings=report,
        twins=twins[["group", *keep, "conflict"]],
        blanks=blanks[keep],
        near=pairs,
    )


def _finding(check: str, found: str, expected: str = "", advice: str = "") -> tuple:
    """One row; advice only where the finding is not what was expected."""
    return check, found, expected, "" if found == expected else advice


def _tally(values: pd.Series) -> str:
    counts = values.value_counts()
    shown = [f"{value or 'unknown'} ({count:,})" for value, count in counts.head(3).items()]
    return ", ".join(shown) + (f", and {len(counts) - 3} more" if len(counts) > 3 else "")


def _by_split(faces: pd.DataFrame, order: list[str]) -> str:
    """A count with its splits, "12 (train 11, PublicTest 1)"."""
    if faces.empty:
        return "0"
    found = faces["split"].value_counts()
    inside = ", ".join(f"{name} {found[name]:,}" for name in order if name in found)
    return f"{len(faces):,} ({inside})"


def _count_findings(splits: Splits, counts: pd.DataFrame) -> list[tuple]:
    # A folder may be called so and have other classes.
    named = splits.train.dataset == "FER2013" and splits.train.class_names == FER_CLASSES
    official = named and splits.train.origin == "real" and not splits.limited
    rows = []
    for split, column in counts.items():
        found, expected, advice = f"{column.sum():,}", "", ""
        if official and split in OFFICIAL_FER2013:
            wanted = OFFICIAL_FER2013[split]
            expected = f"{wanted.sum():,}"
            wrong = column[column != wanted]
            if len(wrong):
                off = ", ".join(f"{name} {n:,} not {wanted[name]:,}" for name, n in wrong.items())
                advice = f"not the official counts: {off}"
        rows.append((f"images in {split}", found, expected, advice))
    return rows


def _twin_findings(table: pd.DataFrame, twins: pd.DataFrame, order: list[str]) -> list[tuple]:
    groups = twins.groupby("group")
    across = groups["split"].nunique() > 1
    conflicts = groups["conflict"].first()
    surplus = len(twins) - groups.ngroups
    inside = f"{groups.ngroups:,} groups, {len(twins):,} images, {surplus:,} surplus"
    # `clean_train` looks for conflicts in what is trained on: part 0, without a selection slice.
    trained = twins[twins["part"] == 0].groupby("group")["emotion"].nunique()
    acts = f"DROP_CONFLICTS acts on {(trained > 1).sum():,}, inside train"
    rows = [
        _finding("exact twins", inside if len(twins) else "0", "0"),
        _finding("twin groups across splits", f"{across.sum():,}", "0", "DROP_TEST_TWINS"),
        _finding("twin groups, labels disagree", f"{conflicts.sum():,}", "0", acts),
    ]
    train = set(table.loc[table["split"] == "train", "pixel_hash"])
    for split in order:
        if split != "train":
            hashes = table.loc[table["split"] == split, "pixel_hash"]
            leaks = int(hashes.isin(train).sum())
            found = f"{leaks:,} ({leaks / len(hashes):.2%})" if leaks else "0"
            advice = "DROP_TEST_TWINS, or read the leak-free score"
            rows.append(_finding(f"{split} images with a twin in train", found, "0", advice))
    return rows


def _near_table(splits: Splits, table: pd.DataFrame, near: float | None) -> pd.DataFrame:
    keep = ["split", "emotion", "file"]
    columns = ["correlation", *(f"{name}_{side}" for side in "ab" for name in keep)]
    sets = parts(splits)
    if near is None or not _one_size(sets):
        return pd.DataFrame(columns=columns)
    sets = [sets[k].take(rows["position"].to_numpy()) for k, rows in table.groupby("part")]
    pairs, values = near_twins(sets, near)
    hashes = table["pixel_hash"].to_numpy()
    other = hashes[pairs[:, 0]] != hashes[pairs[:, 1]]
    pairs, values = pairs[other], values[other]
    a, b = (table.loc[pairs[:, k], keep].reset_index(drop=True) for k in (0, 1))
    found = pd.concat([a.add_suffix("_a"), b.add_suffix("_b")], axis=1)
    found.insert(0, "correlation", values.round(4))
    return found.sort_values(["correlation", "file_a"], ascending=[False, True], ignore_index=True)


def _one_size(sets: list[FaceSet]) -> bool:
    return len({faces.pixels.shape[1:] for faces in sets}) == 1


def _near_findings(splits: Splits, pairs: pd.DataFrame, near: float | None) -> list[tuple]:
    if near is None:
        return []
    check = f"near-twins (correlation {near} and more)"
    if not _one_size(parts(splits)):
        return [(check, "not searched", "", "the splits are stored at different sizes")]
    across = pairs[pairs["split_a"] != pairs["split_b"]]
    found = f"{len(pairs):,} pairs, {len(across):,} of them across splits" if len(pairs) else "0"
    return [_finding(check, found, "0")]


def _name_finding(table: pd.DataFrame) -> tuple:
    names = table["file"].str.rsplit("/", n=1).str[-1]
    shared = table.assign(name=names).groupby("name")
    splits_of, pixels_of = shared["split"].nunique(), shared["pixel_hash"].nunique()
    twice = splits_of > 1
    same = int((pixels_of[twice] == 1).sum())
    found = f"{twice.sum():,} names, {same:,} of them the same picture" if twice.any() else "0"
    return _finding("file names in two splits", found, "0", "only the same picture leaks")


def _clue_findings(clues: pd.DataFrame) -> list[tuple]:
    rows = []
    for clue in clues.itertuples():
        advice = f"a net may learn the source: {clue.example}"
        strong = clue.cramers_v >= STRONG_CLUE
        found = f"Cramér's V {clue.cramers_v:.2f}"
        rows.append((f"{clue.clue} gives the class away", found, "", advice if strong else ""))
    return rows


# %% [markdown]
# ## Acting on it
#
# Only the training set is ever cleaned. A test set that loses its hard pictures is another test.
# But a test picture whose twin has left train is no longer known from there: it is leak-free.


# %%
def clean_train(
    splits: Splits,
    *,
    drop_test_twins: bool = False,
    drop_conflicts: bool = False,
    drop_blanks: bool = False,
) -> Splits:
    """Take flawed faces out of the training set; selection and tests keep all of their faces.

    `leak_free` of a test face becomes True where its twins were dropped and none is left, neither
    in train nor in a selection slice that was cut from it.

    Args:
        splits: a dataset.
        drop_test_twins: drop faces that also stand in a selection or test set.
        drop_conflicts: drop faces that stand in train under two labels, all copies.
        drop_blanks: drop faces that show nothing.

    Returns:
        The dataset with a smaller training set and a note on each action that says how many.

    Raises:
        DataError: a class would have no training face left.
    """
    train = splits.train
    elsewhere = np.concatenate([faces.pixel_hashes for faces in parts(splits)[1:]])
    masks = {}
    if drop_test_twins:
        words = "also stand in a selection or test set (DROP_TEST_TWINS)"
        masks[words] = np.isin(train.pixel_hashes, elsewhere)
    if drop_conflicts:
        groups = pd.Series(train.labels).groupby(train.pixel_hashes)
        words = "stand in train under two labels (DROP_CONFLICTS)"
        masks[words] = (groups.transform("nunique") > 1).to_numpy()
    if drop_blanks:
        masks["show nothing (DROP_BLANKS)"] = is_blank(train)
    drop = np.zeros(len(train), bool)
    notes = []
    for words, mask in masks.items():
        notes.append(f"train: {(mask & ~drop).sum():,} images dropped that {words}")
        drop |= mask
    kept = train.take(~drop)
    if not kept.counts().all():
        empty = kept.class_names[int(np.argmin(kept.counts()))]
        advice = "drop less" if drop.any() else "add images of it, or set a smaller SELECTION_SIZE"
        raise DataError(f"no training image of {empty} would be left: {advice}")
    tests = _leaks_lifted(splits, kept, train.pixel_hashes[drop])
    return replace(splits, train=kept, tests=tests, notes=(*splits.notes, *notes))


def _leaks_lifted(splits: Splits, kept: TrainSet, dropped: np.ndarray) -> tuple[TestSet, ...]:
    """The tests of `splits`, leak-free also where the pixels (hashes) are only among `dropped`.

    A slice of train still counts as train, as in `reading.as_test`: choices are made on it. So do
    faces that MAX_IMAGES left out of train, which is why nothing but what was dropped is looked at.
    """
    remaining = [kept.pixel_hashes]
    if splits.selection is not None and splits.selection.split == "selection":
        remaining.append(splits.selection.pixel_hashes)
    gone = np.setdiff1d(dropped, np.concatenate(remaining))
    lifted = [np.isin(test.pixel_hashes, gone) & ~test.leak_free for test in splits.tests]
    return tuple(
        replace(test, leak_free=test.leak_free | now_free) if now_free.any() else test
        for test, now_free in zip(splits.tests, lifted, strict=True)
    )


# %% [markdown]
# ## For others
#
# Names and hashes of what was found, without a picture: a table that others can cite, and use.


# %%
def write_duplicates(report: DataReport, path: str | Path) -> Path:
    """Write twins, conflicts and blanks as CSV: `group,kind,split,emotion,file,pixel_hash`.

    `group` is empty for a blank without a twin; `kind` is twin, conflict (a twin whose group
    carries two labels) or blank. `pixel_hash` is BLAKE2b (16 bytes, hex) over the decoded image:
    its shape as int32 little-endian, then its pixels; for rows of a CSV the pixels alone.
    """
    blank = set(report.blanks["file"])
    table = pd.concat([report.twins, report.blanks], ignore_index=True)
    table = table.drop_duplicates("file").copy()
    conflict = table["conflict"].eq(True)
    table["kind"] = np.where(conflict, "conflict", "twin")
    table.loc[table["file"].isin(blank), "kind"] = "blank"
    table["group"] = table["group"].astype("Int64")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["group", "kind", "split", "emotion", "file", "pixel_hash"]
    table[columns].to_csv(path, index=False, lineterminator="\n")
    return path


def worst_offenders(
    splits: Splits, report: DataReport
) -> tuple[list[list[np.ndarray]], list[str], list[list[str]]]:
    """Faces to look at: twins under two labels, twins across splits, near-twins, blanks.

    Returns:
        images, row labels and captions, as `plots.plot_samples` takes them: each row at most six
        faces, uint8 (H, W, C).
    """
    twins = report.twins
    across = twins.groupby("group")["split"].transform("nunique") > 1
    near = report.near.head(3)
    near_files = [near[f"file_{side}"].iloc[i] for i in range(len(near)) for side in "ab"]
    rows = {
        "two labels": twins.loc[twins["conflict"], "file"],
        "two splits": twins.loc[across & ~twins["conflict"], "file"],
        "nearly the same": near_files,
        "blank": report.blanks["file"],
    }
    table = face_table(splits).set_index("file")
    sets = parts(splits)
    images, labels, captions = [], [], []
    for label, files in rows.items():
        shown = table.loc[list(files)[:6]]
        if shown.empty:
            continue
        faces = [sets[row.part].images([row.position])[0] for row in shown.itertuples()]
        images.append(faces)
        labels.append(label)
        captions.append([f"{row.emotion}\n{row.split}" for row in shown.itertuples()])
    return images, labels, captions


# %% [markdown]
# ## Demo
#
# The drawn faces have a few twins, conflicting labels and a broken file on purpose.

# %% tags=["active-ipynb"]
# import tempfile
# from pathlib import Path
#
# from fer_helpers.data import load_fer2013
# from fer_helpers.data_check import check_data, clean_train, worst_offenders
# from fer_helpers.demo_faces import write_demo_faces
# from fer_helpers.plots import plot_samples
#
# folder = write_demo_faces(Path(tempfile.mkdtemp()) / "drawn", per_class=25)
# splits = load_fer2013(
#     folder / "fer2013/train",
#     folder / "fer2013/test",
#     cache_dir=folder / "cache",
#     max_bad_share=0.02,
#     progress=False,
# )
# report = check_data(splits)
# print(report)

# %% [markdown]
# The faces behind these numbers.

# %% tags=["active-ipynb"]
# images, labels, captions = worst_offenders(splits, report)
# plot_samples(images, labels, captions=captions, title="Worst offenders", note="drawn faces")

# %% [markdown]
# What a parameter file can ask for.

# %% tags=["active-ipynb"]
# cleaned = clean_train(splits, drop_test_twins=True, drop_conflicts=True)
# print(*cleaned.notes[len(splits.notes) :], sep="\n")
# print(f"{len(splits.train)} training faces before, {len(cleaned.train)} after")
