"""Reads a dataset in whatever layout it has: recognized from what is on disk, said in one sentence.

Where labels are numbers whose meaning is not known, the question is asked instead of guessed at.
FER2013, which has a division of its own, goes to `data`; all others are read as they are listed,
and get a test set where they bring none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fer_helpers.data import contents, divide_fer, load_fer2013
from fer_helpers.fer_csv import USAGES, csv_file, read_table
from fer_helpers.layouts import (
    EMOTIONS,
    FER_CLASSES,
    SPLIT_OF,
    DataError,
    Listing,
    canonical_emotion,
    find_dataset,
    local_path,
    match_classes,
    readable,
    split_folder,
    subfolders,
)
from fer_helpers.neighbors import (
    FER_CSV_FILES,
    LABEL_TABLES,
    LAYOUTS,
    Recognized,
    lister,
    own_name,
    recognize,
    subjects,
)
from fer_helpers.reading import DRAWN_MARKER, Reader, as_test
from fer_helpers.splits import FaceSet, Splits, slice_positions


def load_faces(
    path: str | Path,
    *,
    parameter: str = "the dataset folder",
    order: str | Sequence[str] | None = None,
    size: int | None = None,
    grey: bool | None = None,
    cache_dir: str | Path | None = None,
    selection_size: int = 3000,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    progress: bool | None = None,
    learn: bool = True,
) -> Splits:
    """Read a dataset of faces in any layout of `LAYOUTS`.

    With `val` and `test`, choices are made on `val`; with one of them, it is scored and choices
    are made on a slice of train; with neither, a fifth of the images is cut out as test first
    (for CK+ by subject: its three frames of a sequence never stand on two sides).

    Args:
        path: the folder of the dataset, a Kaggle mount of it, or a FER2013 CSV file.
        parameter: what `path` is called where it is wrong.
        order: class names in the order of the dataset's numbers, where labels are numbers.
        size: reduce larger pictures to this many pixels; None keeps their size. A CSV file's
            stay 48x48 and grey.
        grey: decode to one channel; None does so if the pictures are grey.
        cache_dir: where decoded pictures are kept; None takes the user's cache folder.
        selection_size: images to hold out of train where no split is there to choose on;
            0 holds out none.
        max_images: use at most this many images of each split, stratified; 0 uses all.
        max_bad_share: share of unreadable files (0..1) up to which they are skipped.
        progress: show a progress bar while decoding; None shows it to whoever watches.
        learn: whether anything is to be trained on. Otherwise a set with neither `val` nor `test`
            is scored whole, and train is empty.

    Raises:
        DataError: nothing known is there, labels are numbers of unknown meaning, or anything
            that the loaders of `data` refuse.
    """
    common = {
        "size": size,
        "cache_dir": cache_dir,
        "selection_size": selection_size,
        "max_images": max_images,
        "max_bad_share": max_bad_share,
        "progress": progress,
    }
    found = _find_layout(local_path(path), parameter)
    said = f"{own_name(found.root)} is read as {LAYOUTS[found.layout]}"
    if found.layout == "fer2013":
        folders = [split_folder(found.root, role) for role in ("train", "test")]
        splits = load_fer2013(*folders, grey=grey is not False, **common)
    elif found.layout == "fer2013-csv":
        splits = _load_csv(found.root, Reader(found.dataset, grey=True, **common))
    else:
        splits = _load_listed(found, order, grey, common, learn)
    return replace(splits, notes=(said, *splits.notes))


def _find_layout(path: Path, parameter: str) -> Recognized:
    path = path.absolute()  # "." has no name, and a dataset is called like its folder
    if path.is_file() and path.name.lower() in LABEL_TABLES:
        path = path.parent
    elif path.is_file() and path.suffix.lower() == ".csv":
        plain = re.sub(r"[\W_]", "", path.stem.lower())
        is_fer = "fer2013" in plain or path.name.lower() in FER_CSV_FILES
        return Recognized("fer2013-csv", "FER2013" if is_fer else readable(path.stem), path)

    def accepts(folder: Path) -> bool:
        # Of the splits inside of what was given, none may be taken for all.
        inside = folder.name != path.name and folder.name.lower() in SPLIT_OF
        if inside and any(split_folder(folder.parent, split) for split in ("val", "test")):
            return False
        return recognize(folder) is not None

    root = find_dataset(path, parameter, accepts)
    found = recognize(root)
    if found is None:
        _refuse_part(root)
        raise DataError(
            f"{root} is in no known layout (it holds {contents(root)}; known are "
            f"{'; '.join(LAYOUTS.values())}): give the folder of the dataset itself"
        )
    # By the folder that was given: the one inside may be called "archive (3)".
    return replace(found, dataset=found.dataset or own_name(path))


def _refuse_part(root: Path) -> None:
    """Say what a folder lacks that holds no train folder, or one class only."""
    train = split_folder(root, "train")
    other = split_folder(root, "test") or split_folder(root, "val")
    if other and not train:
        raise DataError(
            f"{root} holds {other.name} but no train folder: add it, or give {other}, which is "
            "read as a dataset of its own"
        )
    classes = subfolders(train or root)
    if len(classes) == 1 and canonical_emotion(classes[0]) in EMOTIONS:
        match_classes(classes, "train", train or root, None, ())  # says that one is too few


def _load_listed(found: Recognized, order, grey: bool | None, common: dict, learn: bool) -> Splits:
    relist = lister(found, order)
    listings = relist()
    if grey is None:
        grey = _all_grey(listings["train"])
    reader = Reader(found.dataset, grey=grey, **common)
    sets = {
        role: reader.read(lambda role=role: relist(role)[role], listing)
        for role, listing in listings.items()
    }
    if len(sets) > 1:
        return reader.divide_folders(sets)
    return _divide_whole(reader, sets["train"], found.layout == "ckplus", learn)


def _divide_whole(reader: Reader, faces: FaceSet, by_subject: bool, learn: bool) -> Splits:
    if by_subject:
        reader.notes.append(
            f"{reader.dataset}: the frames of a sequence count as so many images, so intervals are "
            "too narrow and p values too small."
        )
    if not learn:
        nobody = faces.take(slice(0))
        test = as_test(faces, nobody.pixel_hashes, "all")
        sentence = f"{reader.dataset}: all images ({reader.used(test)}) are scored."
        return reader.divide(nobody, None, [test], sentence)
    groups = np.array(subjects(faces.files)) if by_subject else faces.pixel_hashes
    inside = np.zeros(len(faces), bool)
    inside[slice_positions(faces, len(faces) // 5, "test", groups)] = True
    train = faces.take(~inside)
    test = as_test(faces.take(inside), train.pixel_hashes, "test")
    sentence = (
        f"{reader.dataset}: there is no test folder, so a fifth of the images, divided by "
        f"{'subject' if by_subject else 'twin group'}, is cut out as the test set "
        f"({reader.used(test)} images)."
    )
    return reader.divide(train, None, [test], sentence, groups[~inside] if by_subject else None)


def _all_grey(listing: Listing) -> bool:
    """Whether the pictures are grey, judged by up to 64 of them."""
    modes = set()
    for path in listing.sample():
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
        except Exception:  # reading it for good will say what is wrong
            continue
    return modes <= {"L", "1", "I;16"} and bool(modes)


def _load_csv(path: Path, reader: Reader) -> Splits:
    path = csv_file(path)
    table, notes = read_table(path, reader.cache_dir, reader.progress)
    name = readable(path.name)
    reader.notes.extend(f"{name}: {note}" for note in notes)
    rows = np.arange(len(table.usages))
    reader.judge("csv", path, [f"{name} row {row}" for row in rows], table.bad)

    def faces(split: str, usages: Sequence[str]) -> FaceSet:
        positions = np.concatenate([rows[table.usages == usage] for usage in usages])
        labels = [FER_CLASSES.index(name) for name in table.emotions[positions]]
        missing = [name for name in FER_CLASSES if name not in table.emotions[positions]]
        if missing:
            raise DataError(
                f"{path}: no row of {' or '.join(usages)} with {missing[0]} can be read: download "
                "it again, or put its pictures into one folder per emotion"
            )
        files = [f"{table.usages[row]}/row_{row:05d}" for row in positions]
        return FaceSet(
            pixels=table.pixels,
            rows=positions,
            labels=np.array(labels, dtype=np.int64),
            class_names=FER_CLASSES,
            files=np.array(files, dtype=object),
            split=split,
            dataset=reader.dataset,
            origin="drawn" if (path.resolve().parent / DRAWN_MARKER).exists() else "real",
            content_hash=table.content_hash,
            pixel_hashes=table.hashes[positions],
            native=np.full(len(positions), "CSV 48x48", dtype=object),
        )

    there = [usage for usage in USAGES if usage in table.usages]
    if "Training" not in there or len(there) < 2:
        raise DataError(
            f"{path} has rows for {', '.join(there) or 'no split'} only: it needs Training and at "
            "least one of PublicTest and PrivateTest; download it again"
        )
    test = faces("test", there[1:])
    owner = table.usages[test.rows]
    halves = {usage: np.flatnonzero(owner == usage) for usage in there[1:]}
    return divide_fer(reader, faces("train", there[:1]), test, halves)
