"""FER+ votes for FER2013 faces: ten annotators a picture, joined to the files people have.

`python -m fer_helpers.ferplus fer2013.csv fer2013new.csv` writes the table for FERPLUS_VOTES.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import pairwise_distances_argmin_min

from fer_helpers.data import load_fer2013, official_split
from fer_helpers.fer_csv import USAGES, csv_file, read_table
from fer_helpers.files import replace_file
from fer_helpers.layouts import SPLIT_OF, DataError, canonical_emotion
from fer_helpers.splits import FaceSet, Splits

# Columns of microsoft/FERPlus, fer2013new.csv, in its order; NF is "not a face".
VOTES = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
)
EMOTION_VOTES = 8
"""The first so many of `VOTES` are emotions."""
MAX_ERROR = 12.0
"""Largest root mean square difference, in grey levels 0..255, of a picture and its row."""


def match_ferplus(
    fer_csv: str | Path,
    ferplus_csv: str | Path,
    faces: FaceSet,
    *,
    cache_dir: str | Path | None = None,
) -> pd.DataFrame:
    """Join FER+ votes to the files of a FER2013 face set by comparing pixels.

    FER+ names match no file on Kaggle; its rows stand in the order of `fer2013.csv`. Kaggle's
    files are JPEG copies of those rows, close but not equal. So each file takes the nearest row
    with its label, of the official split that its name tells, and files whose pixels are equal
    share the equal rows among them.

    Args:
        fer_csv: the user's `fer2013.csv`, or the folder that holds it.
        ferplus_csv: the user's `fer2013new.csv`.
        faces: FER2013 faces, uint8 (N, 48, 48, 1), of any split or several.
        cache_dir: where the decoded CSV is kept; None takes the user's cache folder.

    Returns:
        One row per face, in order: `file`, `ferplus_name` ("" where FER+ has none), the ten
        columns of `VOTES`, and `error`, the difference in grey levels. Faces without a match have
        `error` NaN and no votes.

    Raises:
        DataError: the two tables do not have the same rows, or the faces are not 48 x 48 grey.
    """
    if faces.pixels.shape[1:] != (48, 48, 1):
        raise DataError(
            f"FER+ is matched by 48x48 grey pixels, but these faces are {faces.pixels.shape[1:]}: "
            "read FER2013 at its native size in grey"
        )
    table, _ = read_table(csv_file(Path(fer_csv)), cache_dir)
    votes = _read_votes(ferplus_csv, table.usages)
    row_of = np.full(len(faces), -1)
    error = np.full(len(faces), np.nan)
    # A face may have a twin in another split, with votes of its own.
    owners = np.array([official_split(name) for name in faces.files])
    for label, owner in product(range(len(faces.class_names)), ("", *USAGES)):
        positions = np.flatnonzero((faces.labels == label) & (owners == owner))
        wanted = table.usages == owner if owner else table.usages != ""
        rows = np.flatnonzero((table.emotions == faces.class_names[label]) & wanted)
        if len(positions) and len(rows):
            nearest, distance = _nearest(faces.images(positions), table.pixels[rows])
            good = distance <= MAX_ERROR
            found = _deal(nearest[good], table.hashes[rows])
            row_of[positions[good]] = np.where(found >= 0, rows[found], -1)
            error[positions[good]] = distance[good]
    matched = row_of >= 0
    error[~matched] = np.nan
    joined = votes.iloc[row_of].reset_index(drop=True)
    joined.loc[~matched, list(VOTES)] = 0
    joined.loc[~matched, "ferplus_name"] = ""
    joined.insert(0, "file", faces.files)
    joined["error"] = error.round(3)
    return joined


def _read_votes(path: str | Path, usages: np.ndarray) -> pd.DataFrame:
    try:
        votes = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own are ValueErrors
        raise DataError(f"FER+ votes {path} cannot be read ({error})") from error
    missing = [name for name in ("Usage", "Image name", *VOTES) if name not in votes]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}: give fer2013new.csv of FERPlus"
        )
    if len(votes) != len(usages) or (votes["Usage"].to_numpy() != usages)[usages != ""].any():
        raise DataError(
            f"{path} ({len(votes):,} rows) does not follow the rows of fer2013.csv "
            f"({len(usages):,}): both must be the original, unsorted files"
        )
    return votes.rename(columns={"Image name": "ferplus_name"})[["ferplus_name", *VOTES]]


def _nearest(images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image the nearest row and its root mean square difference in grey levels."""
    flat = (faces.reshape(len(faces), -1).astype(np.float32) for faces in (images, rows))
    nearest, distance = pairwise_distances_argmin_min(*flat)
    return nearest, distance / np.sqrt(rows[0].size)


def _deal(nearest: np.ndarray, row_hashes: np.ndarray) -> np.ndarray:
    """Give each image a row of its own among the rows whose pixels equal the nearest one's.

    Returns the rows' positions, -1 for images that are left over.
    """
    found = np.full(len(nearest), -1)
    free = {}
    for row, row_hash in enumerate(row_hashes):
        free.setdefault(row_hash, []).append(row)
    for image, row in enumerate(nearest):
        rows = free[row_hashes[row]]
        if rows:
            found[image] = rows.pop(0)
    return found


def read_ferplus_votes(path: str | Path, faces: FaceSet) -> np.ndarray:
    """Votes for faces from a ready table keyed by file name, as `match_ferplus` makes it.

    Args:
        path: CSV with `file` ("train/angry/Training_3908.jpg") and the ten columns of `VOTES`.
        faces: FER2013 faces of any split.

    Returns:
        int64 (N, 10), columns as in `VOTES`; a row of zeros where FER+ has no votes.

    Raises:
        DataError: the table lacks a column, names a file twice, holds anything but counts, or knows
            none of the faces.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"FERPLUS_VOTES {path} cannot be read ({error})") from error
    missing = [name for name in ("file", *VOTES) if name not in table]
    if missing:
        raise DataError(
            f"FERPLUS_VOTES {path} lacks the columns {', '.join(missing)}: make the table with "
            "match_ferplus"
        )
    keys = _keys(table["file"])
    if keys.duplicated().any():
        twice = keys[keys.duplicated()].iloc[0].lstrip("/")
        raise DataError(f"FERPLUS_VOTES {path} names {twice} twice: give each file one row")
    cells = table[list(VOTES)]
    votes = cells.apply(pd.to_numeric, errors="coerce")
    wrong = (votes.isna() & (cells != "")) | (votes < 0) | (votes % 1 > 0)
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong.to_numpy())[0]
        raise DataError(
            f"FERPLUS_VOTES {path} gives {keys.iloc[row]} {cells.iat[row, column]} votes for "
            f"{VOTES[column]}: give how many people voted for what, as whole numbers"
        )
    votes = votes.fillna(0).astype(np.int64)
    votes.index = keys
    wanted = _keys(pd.Series(faces.files))
    if not any(keys.str.split("/").str[0]):  # a table that knows no splits
        wanted = "/" + wanted.str.split("/", n=1).str[1]
    if not wanted.isin(votes.index).any():
        raise DataError(
            f"FERPLUS_VOTES {path} has votes for none of the {len(faces):,} faces of "
            f"{faces.split}, such as {faces.files[0]}: give the table of this dataset"
        )
    return votes.reindex(wanted, fill_value=0).to_numpy()


def vote_shares(votes: np.ndarray) -> np.ndarray:
    """What share of those who saw an emotion in a face saw which: what a network can learn.

    Args:
        votes: int (N, 10), columns as in `VOTES`.

    Returns:
        float32 (N, 8), the emotions of `VOTES`; rows add up to 1, or are zeros where nobody voted
        for an emotion.
    """
    emotions = votes[:, :EMOTION_VOTES]
    return (emotions / np.maximum(emotions.sum(1, keepdims=True), 1)).astype(np.float32)


def _keys(files: pd.Series) -> pd.Series:
    """Split, class and name of each file, however its folders are spelled.

    Class and name are not unique where every split counts from one; without a folder that is known
    to be a split, the split is "".
    """
    parts = ("//" + files.astype(str)).str.rsplit("/", n=3)
    splits = parts.str[-3].str.lower().map(SPLIT_OF).fillna("")
    return splits + "/" + parts.str[-2].map(canonical_emotion) + "/" + parts.str[-1]


def _all_faces(splits: Splits) -> FaceSet:
    """Every face of a dataset once, whatever parts it is divided into."""
    parts, known = [], set()
    for part in (splits.train, splits.selection, *splits.tests):
        if part is not None:
            parts.append(part.take([name not in known for name in part.files], FaceSet))
            known.update(part.files)
    pixels = np.concatenate([part.images() for part in parts])
    per_face = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("labels", "files", "pixel_hashes", "native")
    }
    return replace(parts[0], pixels=pixels, rows=np.arange(len(pixels)), **per_face)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the votes of every FER2013 file; 0 if that worked."""
    parser = argparse.ArgumentParser(prog="python -m fer_helpers.ferplus", description=__doc__)
    parser.add_argument("fer_csv", help="fer2013.csv of the competition")
    parser.add_argument("ferplus_csv", help="fer2013new.csv of FERPlus")
    parser.add_argument("--data", default="data/fer2013", help="holds train and test")
    parser.add_argument("--out", default="data/ferplus.csv", help="the table to write")
    options = parser.parse_args(arguments)
    folder = Path(options.data)
    if not all((folder / split).is_dir() for split in ("train", "test")):
        print(
            f"--data {folder} does not hold train and test: give FER2013's folder.", file=sys.stderr
        )
        return 1
    try:
        splits = load_fer2013(folder / "train", folder / "test", selection_size=0)
        table = match_ferplus(options.fer_csv, options.ferplus_csv, _all_faces(splits))
        replace_file(options.out, partial(table.to_csv, index=False, lineterminator="\n"))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    found = int(table["error"].notna().sum())
    print(f"Votes for {found:,} of {len(table):,} files in {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
