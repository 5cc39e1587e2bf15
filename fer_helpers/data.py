# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data
#
# A result is only as good as the answer to *which pictures, in which split?* This module reads a
# dataset into plain arrays and decides, once and in one sentence, what is trained on, what choices
# are made on and what is scored. Training never receives a test set, and its type says so.
#
# AffectNet and FER2013 are read here, whatever else has faces in folders or in a CSV file by
# `any_layout.py`. Four files do the work behind it: `layouts.py` says what stands on disk,
# `store.py` decodes it once into a uint8 array that later starts only map, `reading.py` counts what
# cannot be read and puts the parts together, and `splits.py` holds the sets of faces themselves.

# %%
"""Find and read AffectNet and FER2013: faces as uint8 arrays with labels, splits and origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fer_helpers.fer_csv import USAGES
from fer_helpers.layouts import (
    AFFECTNET_CLASSES,
    FER_CLASSES,
    FER_COUNTS,
    FER_FOLDERS,
    SPLIT_OF,
    DataError,
    find_dataset,
    holds_class_folders,
    list_class_folders,
    split_folder,
)
from fer_helpers.reading import Reader, as_test
from fer_helpers.splits import FaceSet, Splits, TestSet

# %% [markdown]
# ## AffectNet
#
# Eight classes in `train/`, `val/` and perhaps `test/`. A score on `val` is honest only if nothing
# was chosen on it.


# %%
def load_affectnet(
    root: str | Path,
    *,
    size: int | None = None,
    grey: bool = False,
    cache_dir: str | Path | None = None,
    selection_size: int = 3000,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    progress: bool | None = None,
) -> Splits:
    """Read an AffectNet-8 folder: `train` and `val` and perhaps `test`, one folder per class.

    With `test` present, choices are made on `val` and `test` is scored. Without it, choices are
    made on a duplicate-aware slice of `train` and `val` is scored.

    Args:
        root: folder that holds the split folders, or a Kaggle mount of it in any of its forms.
        size: reduce larger pictures to this many pixels; None keeps their size.
        grey: decode to one channel.
        cache_dir: where decoded pictures are kept; None takes the user's cache folder.
        selection_size: images to hold out of train where no split is there to choose on;
            0 holds out none.
        max_images: use at most this many images of each split, stratified; 0 uses all.
        max_bad_share: share of unreadable files (0..1) up to which they are skipped.
        progress: show a progress bar while decoding; None shows it to whoever watches.

    Raises:
        DataError: folders are missing, empty or not the eight classes, or too many files are bad.
    """
    parameter = "AFFECTNET_DIR"
    reader = Reader(
        "AffectNet", size, grey, cache_dir, selection_size, max_images, max_bad_share, progress
    )
    root = find_dataset(root, parameter, attach="dollyprajapati182/balanced-affectnet")
    folders = {name: split_folder(root, name) for name in ("train", "val", "test")}
    if folders["train"] is None or not (folders["val"] or folders["test"]):
        raise DataError(
            f"{parameter}: {root} must hold the folders train and val (and perhaps test), but "
            f"holds {contents(root)}: give the folder that holds them, or unzip it again"
        )
    sets = {}
    for name, folder in folders.items():
        if folder is not None:
            sets[name] = reader.read(
                lambda folder=folder, name=name: list_class_folders(
                    folder, name, parameter, AFFECTNET_CLASSES
                )
            )
    return reader.divide_folders(sets)


def contents(folder: Path) -> str:
    """What a folder holds, in words for a message: up to eight names, or "nothing"."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"


# %% [markdown]
# ## FER2013
#
# The Kaggle folders pool both official test splits in `test/`. Only the file names remember which
# is which, so they decide.

# %%
_SELECTED = "contains the selection split"


def load_fer2013(
    train_dir: str | Path,
    test_dir: str | Path,
    *,
    size: int | None = None,
    grey: bool = True,
    cache_dir: str | Path | None = None,
    selection_size: int = 3000,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    progress: bool | None = None,
) -> Splits:
    """Read FER2013 as Kaggle folders and recover the official split from the file names.

    With both halves of the test folder present, choices are made on PublicTest and PrivateTest is
    the headline; PublicTest and the pooled test folder follow with the stamp *contains the
    selection split*. With one half, or names without prefix, what is there is the test set and
    choices are made on a duplicate-aware slice of train.

    Args:
        train_dir: folder with the seven class folders of `Training_*` images, or a Kaggle mount.
        test_dir: the same for `PublicTest_*` and `PrivateTest_*`.
        size: reduce larger pictures to this many pixels; None keeps their size.
        grey: decode to one channel, as the dataset is.
        cache_dir: where decoded pictures are kept; None takes the user's cache folder.
        selection_size: images to hold out of train where no split is there to choose on;
            0 holds out none.
        max_images: use at most this many images of each split, stratified; 0 uses all.
        max_bad_share: share of unreadable files (0..1) up to which they are skipped.
        progress: show a progress bar while decoding; None shows it to whoever watches.

    Raises:
        DataError: folders are missing, empty or not the seven classes, names and folders
            disagree, or too many files are bad.
    """
    reader = Reader(
        "FER2013", size, grey, cache_dir, selection_size, max_images, max_bad_share, progress
    )
    owner = "msambare/fer2013"
    places = {}
    for role, parameter, folder in (
        ("train", "FER_TRAIN_DIR", train_dir),
        ("test", "FER_TEST_DIR", test_dir),
    ):

        def accepts(folder: Path, role=role) -> bool:
            # Given the folder above both, neither may be taken for the other.
            return holds_class_folders(folder) and SPLIT_OF.get(folder.name.lower(), role) == role

        places[role] = parameter, find_dataset(folder, parameter, accepts, owner)
    if places["train"][1].resolve() == places["test"][1].resolve():
        raise DataError(
            f"FER_TRAIN_DIR and FER_TEST_DIR are the same folder {places['train'][1]}: give two"
        )
    sets = {}
    for role, (parameter, folder) in places.items():
        sets[role] = reader.read(
            lambda role=role, parameter=parameter, folder=folder: list_class_folders(
                folder, role, parameter, FER_CLASSES, FER_FOLDERS
            )
        )
    return divide_fer(reader, sets["train"], sets["test"], official_halves(**sets))


def divide_fer(
    reader: Reader, train: FaceSet, test: FaceSet, halves: Mapping[str, np.ndarray]
) -> Splits:
    """Put together what FER2013 is trained on, chosen on and scored on, from folders or a CSV file.

    Other datasets in a CSV file of its form are divided the same way, under their own name.

    Args:
        reader: what read both sets; notes on a lost or incomplete split are added to it.
        train: the faces of Training.
        test: all other faces, one half or both.
        halves: positions in `test` of each official half, as `official_halves` gives them.

    Returns:
        with both halves PublicTest to choose on and PrivateTest, PublicTest and the two pooled as
        test sets; with one, it is the test set and choices are made on a slice of train.
    """
    hashes = train.pixel_hashes
    reader.notes.extend(_compare_with_official(train, halves))
    if len(halves) == 1:
        name, positions = next(iter(halves.items()))
        sentence = f"{reader.dataset}: {name} ({reader.used(test)} images) is the test set."
        if name == "test":
            reader.notes.append(
                "test: the names carry no PublicTest_ or PrivateTest_ prefix, so the official "
                "split is lost and the whole folder is the test set"
            )
        only = as_test(test.take(positions), hashes, name)
        return reader.divide(train, None, [only], sentence)
    public = as_test(test.take(halves["PublicTest"]), hashes, "PublicTest", _SELECTED)
    private = as_test(test.take(halves["PrivateTest"]), hashes, "PrivateTest")
    sentence = f"{reader.dataset}: PrivateTest ({reader.used(private)} images) is scored once."
    chosen = public.take(slice(None), as_type=FaceSet)
    splits = reader.divide(train, chosen, [private, public], sentence)
    return replace(splits, tests=(*splits.tests, _pool(test, splits.tests)))


def official_halves(train: FaceSet, test: FaceSet) -> dict[str, np.ndarray]:
    """Positions of the test folder's images by official split, from their names.

    Returns:
        `{"PublicTest": positions, "PrivateTest": positions}`, one of them, or
        `{"test": positions}` when no name carries a prefix.

    Raises:
        DataError: a name belongs to another folder, or only some names carry a prefix.
    """
    owners = {}
    for faces, allowed in ((train, ("Training",)), (test, ("PublicTest", "PrivateTest"))):
        owners[faces.split] = np.array([official_split(name) for name in faces.files])
        wrong = ~np.isin(owners[faces.split], ("", *allowed))
        if wrong.any():
            raise DataError(
                f"{faces.split}: {wrong.sum()} images carry the name of another official split "
                f"(such as {faces.files[wrong][0]}): move them to the folder their name says"
            )
    prefix = owners["test"]
    found = [name for name in ("PublicTest", "PrivateTest") if (prefix == name).any()]
    if found and (prefix == "").any():
        stray = test.files[prefix == ""]
        raise DataError(
            f"test: {len(stray)} images have no official prefix (such as {stray[0]}) beside "
            f"{' and '.join(found)} images: remove them or restore their names"
        )
    return {name: np.flatnonzero(prefix == name) for name in found} or {
        "test": np.arange(len(test))
    }


def official_split(file: str) -> str:
    """What a name tells: of a file ("test/sad/PublicTest_5.jpg") or a row ("PublicTest/row_5")."""
    folder, name = ["", *file.split("/")][-2:]
    return next((split for split in USAGES if name.startswith(f"{split}_") or folder == split), "")


def _compare_with_official(train: FaceSet, halves: Mapping[str, np.ndarray]) -> list[str]:
    """Notes on splits of FER2013 that do not have the official number of images."""
    if train.origin == "drawn" or train.dataset != "FER2013":
        return []
    found = {"Training": len(train)} | {name: len(where) for name, where in halves.items()}
    return [
        f"{name} has {found[name]:,} images, the official split {official:,}: is it complete?"
        for name, official in ((name, sum(counts)) for name, counts in FER_COUNTS.items())
        if found.get(name, official) != official
    ]


def _pool(test: FaceSet, halves: Sequence[TestSet]) -> TestSet:
    """Both halves as one test set, in the order of the folder."""
    leak_free = {
        row: free for half in halves for row, free in zip(half.rows, half.leak_free, strict=True)
    }
    both = np.isin(test.rows, list(leak_free))
    return test.take(
        both,
        as_type=TestSet,
        split="Public + Private",
        content_hash=halves[0].content_hash,
        leak_free=np.array([leak_free[row] for row in test.rows[both]], bool),
        stamp=_SELECTED,
    )


# %% [markdown]
# ## Demo
#
# The drawn faces come in the same folders as the Kaggle datasets, with twins, conflicting labels
# and one broken file on purpose.

# %% tags=["active-ipynb"]
# import tempfile
# from pathlib import Path
#
# from fer_helpers.data import load_affectnet, load_fer2013
# from fer_helpers.demo_faces import write_demo_faces
# from fer_helpers.plots import plot_class_counts, plot_samples
#
# folder = write_demo_faces(Path(tempfile.mkdtemp()) / "drawn", per_class=25)
# cache = folder / "cache"
# splits = load_fer2013(
#     folder / "fer2013/train", folder / "fer2013/test", cache_dir=cache, progress=False
# )
# print(splits.sentence)
# print(*splits.notes, sep="\n")

# %% [markdown]
# What is trained on, what choices are made on, and what is scored. *Leak-free* counts the test
# images without a twin in train.

# %% tags=["active-ipynb"]
# for faces in (splits.train, splits.selection, *splits.tests):
#     leak_free = f"{faces.leak_free.sum():4d} leak-free" if faces in splits.tests else ""
#     print(f"{faces.split:18s}{len(faces):5d} faces  {faces.images([0]).shape[1:]}  {leak_free}")

# %% [markdown]
# The other dataset, in color and with one class more. Without `test/`, choices are made on a slice
# of train.

# %% tags=["active-ipynb"]
# splits = load_affectnet(folder / "affectnet", cache_dir=cache, progress=False)
# print(splits.sentence)
