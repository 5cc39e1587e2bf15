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
# Five files do the work behind it: `layouts.py` and `neighbors.py` say what stands on disk,
# `store.py` decodes it once into a uint8 array that later starts only map, `reading.py` counts what
# cannot be read and puts the parts together, and `splits.py` holds the sets of faces themselves.

# %%
"""Find and read a dataset: faces as uint8 arrays with labels, class names, splits and origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

from fer_helpers.fer_csv import USAGES, csv_file, read_table
from fer_helpers.layouts import (
    AFFECTNET_CLASSES,
    FER_CLASSES,
    SPLIT_FOLDERS,
    DataError,
    Listing,
    find_dataset,
    holds_class_folders,
    list_class_folders,
    local_path,
    split_folder,
)
from fer_helpers.neighbors import LAYOUTS, Recognized, lister, recognize, subjects
from fer_helpers.reading import DRAWN_MARKER, Reader, as_test
from fer_helpers.splits import FaceSet, Splits, TestSet, slice_positions

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
        progress: show a progress bar while decoding; None shows it on a terminal only.

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
            f"holds {_contents(root)}: give the folder that holds them, or unzip it again"
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


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) + (", ..." if len(names) > 8 else "")) or "nothing"


# %% [markdown]
# ## FER2013
#
# The Kaggle folders pool both official test splits in `test/`. Only the file names remember which
# is which, so they decide.

# %%
_SELECTED = "contains the selection split"
_FER_FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")


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
        progress: show a progress bar while decoding; None shows it on a terminal only.

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
        others = [name for r, names in SPLIT_FOLDERS.items() if r != role for name in names]

        def accepts(folder: Path, others=others) -> bool:
            # Given the folder above both, neither may be taken for the other.
            return holds_class_folders(folder) and folder.name.lower() not in others

        places[role] = parameter, find_dataset(folder, parameter, accepts, owner)
    if places["train"][1].resolve() == places["test"][1].resolve():
        raise DataError(
            f"FER_TRAIN_DIR and FER_TEST_DIR are the same folder {places['train'][1]}: give two"
        )
    sets = {}
    for role, (parameter, folder) in places.items():
        sets[role] = reader.read(
            lambda role=role, parameter=parameter, folder=folder: list_class_folders(
                folder, role, parameter, FER_CLASSES, _FER_FOLDERS
            )
        )
    return _divide_fer(reader, sets["train"], sets["test"], official_halves(**sets))


def _divide_fer(
    reader: Reader, train: FaceSet, test: FaceSet, halves: Mapping[str, np.ndarray]
) -> Splits:
    hashes = train.pixel_hashes
    reader.notes.extend(_compare_with_official(train, halves))
    if len(halves) == 1:
        name, positions = next(iter(halves.items()))
        sentence = f"FER2013: {name} ({len(test):,} images) is the test set."
        if name == "test":
            reader.notes.append(
                "test: the names carry no PublicTest_ or PrivateTest_ prefix, so the official "
                "split is lost and the whole folder is the test set"
            )
        only = as_test(test.take(positions), hashes, name)
        return reader.divide(train, None, [only], sentence)
    public = as_test(test.take(halves["PublicTest"]), hashes, "PublicTest", _SELECTED)
    private = as_test(test.take(halves["PrivateTest"]), hashes, "PrivateTest")
    sentence = f"FER2013: PrivateTest ({len(private):,} images) is scored once."
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
        owners[faces.split] = np.array([_official_split(name) for name in faces.files])
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


def _official_split(file: str) -> str:
    name = file.rsplit("/", 1)[-1]
    return next((split for split in USAGES if name.startswith(split + "_")), "")


def _compare_with_official(train: FaceSet, halves: Mapping[str, np.ndarray]) -> list[str]:
    """Notes on splits that do not have the official number of images."""
    if train.origin == "drawn":
        return []
    sizes = {"Training": (len(train), 28_709)}
    sizes |= {name: (len(positions), 3_589) for name, positions in halves.items() if name != "test"}
    return [
        f"{name} has {count:,} images, the official split {official:,}: is it complete?"
        for name, (count, official) in sizes.items()
        if count != official
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
# ## Whatever else is there
#
# The layout is recognized from what is on disk and said in one sentence. Where labels are numbers
# whose meaning is not known, the question is asked instead of guessed at.


# %%
def load_faces(
    path: str | Path,
    *,
    layout: str = "auto",
    order: str | Sequence[str] | None = None,
    size: int | None = None,
    grey: bool | None = None,
    cache_dir: str | Path | None = None,
    selection_size: int = 3000,
    max_images: int = 0,
    max_bad_share: float = 0.01,
    progress: bool | None = None,
) -> Splits:
    """Read a dataset of faces in any layout of `LAYOUTS`.

    With `val` and `test`, choices are made on `val`; with one of them, it is scored and choices
    are made on a slice of train; with neither, a fifth of the images is cut out as test first
    (for CK+ by subject: its three frames of a sequence never stand on two sides).

    Args:
        path: the folder of the dataset, a Kaggle mount of it, or a FER2013 CSV file.
        layout: a key of `LAYOUTS`, or "auto" to recognize it.
        order: class names in the order of the dataset's numbers, where labels are numbers.
        size: reduce larger pictures to this many pixels; None keeps their size.
        grey: decode to one channel; None does so if the pictures are grey.
        cache_dir: where decoded pictures are kept; None takes the user's cache folder.
        selection_size: images to hold out of train where no split is there to choose on;
            0 holds out none.
        max_images: use at most this many images of each split, stratified; 0 uses all.
        max_bad_share: share of unreadable files (0..1) up to which they are skipped.
        progress: show a progress bar while decoding; None shows it on a terminal only.

    Raises:
        DataError: nothing known is there, labels are numbers of unknown meaning, or anything
            that the loaders above refuse.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise DataError(f"layout {layout!r} is none of auto, {', '.join(LAYOUTS)}: use one of them")
    common = {
        "size": size,
        "cache_dir": cache_dir,
        "selection_size": selection_size,
        "max_images": max_images,
        "max_bad_share": max_bad_share,
        "progress": progress,
    }
    found = _find_layout(local_path(path), layout)
    said = f"{found.root.name} is read as {LAYOUTS[found.layout]}"
    if found.layout == "fer2013":
        folders = [split_folder(found.root, role) for role in ("train", "test")]
        if None in folders:
            raise DataError(f"{found.root} lacks the folder train or test: unzip FER2013 again")
        splits = load_fer2013(*folders, grey=grey is not False, **common)
    elif found.layout == "affectnet":
        splits = load_affectnet(found.root, grey=bool(grey), **common)
    elif found.layout == "fer2013-csv":
        splits = _load_csv(found.root, Reader("FER2013", grey=True, **common))
    else:
        splits = _load_listed(found, order, grey, common)
    return replace(splits, notes=(said, *splits.notes))


def _find_layout(path: Path, layout: str) -> Recognized:
    if path.is_file() and path.suffix.lower() == ".csv" and path.name.lower() != "labels.csv":
        return Recognized("fer2013-csv", "FER2013", path)
    if path.is_file() and path.name.lower() == "labels.csv":
        path = path.parent
    root = find_dataset(path, "the dataset folder", lambda folder: recognize(folder) is not None)
    found = recognize(root)
    if layout != "auto":
        return Recognized(layout, found.dataset if found else root.name, root)
    if found is None:
        raise DataError(
            f"{root} is in no known layout (it holds {_contents(root)}; known are "
            f"{'; '.join(LAYOUTS.values())}): give the folder of the dataset itself"
        )
    return found


def _load_listed(found: Recognized, order, grey: bool | None, common: dict) -> Splits:
    relist = lister(found, order)
    listings = relist()
    if grey is None:
        grey = _all_grey(listings["train"])
    reader = Reader(found.dataset, grey=grey, **common)
    sets = {
        role: reader.read(lambda role=role: relist()[role], listing)
        for role, listing in listings.items()
    }
    if len(sets) > 1:
        return reader.divide_folders(sets)
    return _divide_whole(reader, sets["train"], by_subject=found.layout == "ckplus")


def _divide_whole(reader: Reader, faces: FaceSet, by_subject: bool) -> Splits:
    groups = np.array(subjects(faces.files)) if by_subject else faces.pixel_hashes
    inside = np.zeros(len(faces), bool)
    inside[slice_positions(faces, len(faces) // 5, "test", groups)] = True
    train = faces.take(~inside)
    test = as_test(faces.take(inside), train.pixel_hashes, "test")
    sentence = (
        f"{reader.dataset}: there is no test folder, so {len(test):,} of {len(faces):,} images, "
        f"divided by {'subject' if by_subject else 'twin group'}, are cut out as the test set."
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
    reader.notes.extend(f"{path.name}: {note}" for note in notes)
    rows = np.arange(len(table.usages))
    reader.judge("csv", path, [f"{path.name} row {row}" for row in rows], table.bad)
    sets = {}
    for usage in USAGES:
        positions = rows[table.usages == usage]
        if len(positions):
            labels = [FER_CLASSES.index(name) for name in table.emotions[positions]]
            sets[usage] = FaceSet(
                pixels=table.pixels,
                rows=positions,
                labels=np.array(labels, dtype=np.int64),
                class_names=FER_CLASSES,
                files=np.array([f"{usage}/row_{row:05d}" for row in positions], dtype=object),
                split=usage,
                dataset="FER2013",
                origin="drawn" if (path.resolve().parent / DRAWN_MARKER).exists() else "real",
                content_hash=table.content_hash,
                pixel_hashes=table.hashes[positions],
                native=np.full(len(positions), "CSV 48x48", dtype=object),
            )
    if "Training" not in sets or len(sets) < 2:
        raise DataError(
            f"{path} has rows for {', '.join(sets) or 'no split'} only: it needs Training and at "
            "least one of PublicTest and PrivateTest; download it again"
        )
    train = sets.pop("Training").take(slice(None), split="train")
    test = _union(list(sets.values()))
    owner = np.concatenate([np.full(len(part), name) for name, part in sets.items()])
    halves = {name: np.flatnonzero(owner == name) for name in sets}
    return _divide_fer(reader, train, test, halves)


def _union(parts: Sequence[FaceSet]) -> FaceSet:
    """Parts of one store, one after the other."""
    whole = parts[0]
    names = ("rows", "labels", "files", "pixel_hashes", "native")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return replace(whole, split="test", **joined)


# %% [markdown]
# ## Class weights
#
# From the labels alone; no picture is decoded for them.


# %%
def train_class_weights(labels: np.ndarray, num_classes: int, kind: str = "balanced") -> np.ndarray:
    """Weights for the loss, one per class.

    Args:
        labels: int64 (N,), 0..num_classes - 1.
        num_classes: number of classes K.
        kind: "balanced" is N / (K n_c) (scikit-learn's `compute_class_weight`); "effective" is
            (1 - 0.999) / (1 - 0.999**n_c), scaled to mean 1 (Cui et al. 2019, "Class-balanced loss
            based on effective number of samples"); "none" is 1.

    Returns:
        float64 (K,). A class without a face gets weight 0.

    Raises:
        ValueError: `kind` is none of the three, or there are no labels.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if kind not in ("balanced", "effective", "none"):
        raise ValueError(f"class weights are balanced, effective or none, not {kind!r}")
    if not len(labels):
        raise ValueError("class weights need at least one label")
    present = np.flatnonzero(counts)
    weights = np.zeros(num_classes)
    if kind == "none":
        weights[present] = 1.0
    elif kind == "balanced":
        weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    else:
        weights[present] = (1 - 0.999) / (1 - 0.999 ** counts[present])
        weights[present] /= weights[present].mean()
    return weights


# %% [markdown]
# ## Demo
#
# The drawn faces come in the same folders as the Kaggle datasets, with twins, conflicting labels
# and one broken file on purpose.

# %% tags=["active-ipynb"]
# import tempfile
# from pathlib import Path
#
# from fer_helpers.data import load_affectnet, load_fer2013, train_class_weights
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
# The weights that a loss may use, from the labels alone.

# %% tags=["active-ipynb"]
# weights = train_class_weights(splits.train.labels, len(splits.train.class_names))
# for name, count, weight in zip(
#     splits.train.class_names, splits.train.counts(), weights, strict=True
# ):
#     print(f"{name:10s}{count:4d}  {weight:.3f}")

# %% [markdown]
# The other dataset, in color and with one class more. Without `test/`, choices are made on a slice
# of train.

# %% tags=["active-ipynb"]
# splits = load_affectnet(folder / "affectnet", cache_dir=cache, progress=False)
# print(splits.sentence)
