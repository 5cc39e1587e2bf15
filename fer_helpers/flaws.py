"""Finds what may be wrong with the pictures of a dataset: twins, near-twins, blanks and clues.

Twins and clues are asked of one table with a row for each face, near-twins and blanks of pixels.
What the answers mean, and what to do about them, is the business of `data_check`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from scipy.stats import chi2_contingency
from torch.nn.functional import adaptive_avg_pool2d

from fer_helpers.splits import FaceSet, Splits


def face_table(splits: Splits) -> pd.DataFrame:
    """One row per face of a dataset, each file once, in the order of names within splits.

    Columns: `split` (a selection slice counts as the train it was cut from), `file`, `emotion`,
    `pixel_hash`, `native` (mode and size in the file), and `part` and `position`: the set of
    `parts(splits)` that holds it and where.
    """
    frames = []
    for part, faces in enumerate(parts(splits)):
        frames.append(
            pd.DataFrame(
                {
                    "split": "train" if faces.split == "selection" else faces.split,
                    "file": faces.files,
                    "emotion": np.array(faces.class_names)[faces.labels],
                    "pixel_hash": np.char.decode(faces.pixel_hashes, "ascii"),
                    "native": faces.native,
                    "part": part,
                    "position": np.arange(len(faces)),
                }
            )
        )
    return pd.concat(frames, ignore_index=True).drop_duplicates(["file"], ignore_index=True)


def parts(splits: Splits) -> list[FaceSet]:
    """The sets of a dataset, without the pooled test set that repeats others."""
    chosen_on = [splits.selection] if splits.selection is not None else []
    return [splits.train, *chosen_on, *(t for t in splits.tests if "+" not in t.split)]


def find_twins(table: pd.DataFrame) -> pd.DataFrame:
    """The faces of `face_table` whose pixels occur more than once, group by group."""
    twins = table[table.duplicated("pixel_hash", keep=False)].copy()
    twins["conflict"] = twins.groupby("pixel_hash")["emotion"].transform("nunique") > 1
    first = twins.groupby("pixel_hash")["file"].transform("min")
    twins = twins.assign(first=first).sort_values(["first", "file"], ignore_index=True)
    twins.insert(0, "group", pd.factorize(twins["pixel_hash"])[0] + 1)
    return twins.drop(columns="first")


def near_twins(
    sets: Iterable[FaceSet], threshold: float = 0.99, block: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of faces whose pixels correlate, exact twins among them.

    The same picture saved twice, a little sharper or darker, has other bytes and nearly the same
    pixels. All pairs are compared at 16 x 16 pixels as one product of matrices, block by block;
    what looks alike there is compared again at full size.

    Args:
        sets: faces, all of one stored size; counted on from one set to the next.
        threshold: smallest Pearson correlation of the grey pixels that counts, 0..1. Pairs that
            fall short by more than 0.02 in the rough comparison are not looked at again.
        block: faces compared at once; bounds memory to `block` squared, and to the bytes of
            `block` pictures of FER2013.

    Returns:
        pairs, int64 (P, 2), the smaller position first; correlations, float32 (P,).
    """
    sets = list(sets)
    starts = np.cumsum([0, *(len(faces) for faces in sets)])
    at_once = _at_once(sets[0], block)
    rough = np.concatenate(
        [
            _unit(faces.images(slice(start, start + at_once)), rough=True)
            for faces in sets
            for start in range(0, len(faces), at_once)
        ]
    )
    pairs, values = [], []
    for i in range(0, len(rough), block):
        for j in range(i, len(rough), block):
            alike = rough[i : i + block] @ rough[j : j + block].T >= threshold - 0.02
            if i == j:
                alike = np.triu(alike, 1)
            found = np.argwhere(alike) + np.array([i, j])
            for start in range(0, len(found), at_once):
                pair = found[start : start + at_once]
                value = _correlation(sets, starts, pair)
                pairs.append(pair[value >= threshold])
                values.append(value[value >= threshold])
    empty = np.empty((0, 2), np.int64)
    return np.concatenate([empty, *pairs]), np.concatenate([np.empty(0, np.float32), *values])


def _at_once(faces: FaceSet, count: int) -> int:
    """How many faces have the bytes of `count` pictures of FER2013, however large they are."""
    return max(1, count * 48 * 48 // math.prod(faces.pixels.shape[1:]))


def _correlation(sets: list[FaceSet], starts: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    full = []
    for column in pairs.T:
        owner = np.searchsorted(starts, column, side="right") - 1
        images = np.empty((len(column), *sets[0].pixels.shape[1:]), np.uint8)
        for k in np.unique(owner):
            images[owner == k] = sets[k].images(column[owner == k] - starts[k])
        full.append(_unit(images, rough=False))
    return np.einsum("ij,ij->i", *full)


def _unit(images: np.ndarray, rough: bool) -> np.ndarray:
    """Grey images (n, H, W, C) as float32 rows of mean 0 and length 1 (0 for blank images)."""
    grey = images.mean(axis=-1, dtype=np.float32)
    if rough:
        sides = [min(16, side) for side in grey.shape[1:]]
        grey = adaptive_avg_pool2d(torch.from_numpy(grey), sides).numpy()
    flat = grey.reshape(len(grey), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > 1e-3, length, np.inf)


def find_blanks(splits: Splits, table: pd.DataFrame) -> pd.DataFrame:
    """The faces of `face_table` that show nothing, as `is_blank` has it."""
    blank = np.zeros(len(table), bool)
    for part, faces in enumerate(parts(splits)):
        inside = (table["part"] == part).to_numpy()
        positions = table.loc[inside, "position"].to_numpy()
        blank[inside] = is_blank(faces)[positions]
    return table[blank].reset_index(drop=True)


def is_blank(faces: FaceSet) -> np.ndarray:
    """Which faces show nothing: their brightest pixel is at most 8 above their darkest.

    A little spread is allowed because JPEG may have added it. Returns bool (N,).
    """
    blank = [np.zeros(0, bool)]
    at_once = _at_once(faces, 4096)
    for start in range(0, len(faces), at_once):
        images = faces.images(slice(start, start + at_once))
        low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
        blank.append((high - low <= 8).all(axis=1))
    return np.concatenate(blank)


def class_clues(table: pd.DataFrame) -> pd.DataFrame:
    """How much file name, suffix, and mode and size say about the class in train.

    If portraits from one source are mostly happy, a net can learn the source. Cramér's V measures
    how much a clue says about the class: 0 nothing, 1 everything. Chance alone lifts it above 0,
    the more the fewer files there are, so it is corrected for that (`corrected_cramers_v`).

    Args:
        table: from `face_table`.

    Returns:
        One row per clue with more than one value: `clue`, `cramers_v` (0..1) and `example` (the
        value most lopsided towards a class).
    """
    faces = table[table["split"] == "train"]
    clues = {
        "file name family": faces["file"].map(file_family),
        "file suffix": faces["file"].str.rsplit(".", n=1).str[-1].str.lower(),
        "mode and size": faces["native"],
    }
    rows = []
    for clue, values in clues.items():
        counts = pd.crosstab(values, faces["emotion"])
        # A handful of odd files is a remark, not a clue that a net could learn.
        counts = counts[counts.sum(axis=1) >= max(20, len(faces) // 1000)]
        counts = counts.loc[:, counts.any()]  # a class whose files are all of the odd ones
        if min(counts.shape) < 2:
            continue
        share = counts / counts.sum()
        value, emotion = (share - share.mean(axis=1).to_numpy()[:, None]).stack().idxmax()
        rows.append(
            {
                "clue": clue,
                "cramers_v": corrected_cramers_v(counts.to_numpy()),
                "example": f"{value} is {share.loc[value, emotion]:.0%} of {emotion}, "
                f"{share.loc[value].min():.0%} of {share.loc[value].idxmin()}",
            }
        )
    return pd.DataFrame(rows, columns=["clue", "cramers_v", "example"])


def corrected_cramers_v(counts: np.ndarray) -> float:
    """Cramér's V (0..1) of a table of counts (R, C), R and C at least 2, without its bias.

    Source: Bergsma 2013, "A bias-correction for Cramér's V and Tschuprow's T", Journal of the
    Korean Statistical Society 42.
    """
    rows, columns, n = *counts.shape, counts.sum()
    phi2 = chi2_contingency(counts, correction=False).statistic / n
    phi2 = max(0.0, phi2 - (rows - 1) * (columns - 1) / (n - 1))
    rows, columns = (k - (k - 1) ** 2 / (n - 1) for k in (rows, columns))
    return float(np.sqrt(phi2 / (min(rows, columns) - 1)))


def file_family(file: str) -> str:
    """The part of a file name that says where it comes from: its letters before the number."""
    name = file.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return re.split(r"[\d\W_]", name, maxsplit=1)[0].lower() or "(number)"
