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
# Pictures are decoded once into a uint8 array on disk and found again by a key, so the second
# start takes a second, and nothing waits for Pillow during training.

# %%
"""Find and read a dataset: faces as uint8 arrays with labels, class names, splits and origin."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from fer_helpers.layouts import (
    AFFECTNET_CLASSES,
    EMOTIONS,
    FER_CLASSES,
    DataError,
    Listing,
    canonical_emotion,
    find_dataset,
    holds_class_folders,
    list_class_folders,
    split_folder,
)
from fer_helpers.store import Store, open_store

__all__ = [
    "AFFECTNET_CLASSES",
    "EMOTIONS",
    "FER_CLASSES",
    "DataError",
    "FaceSet",
    "SelectionSet",
    "Splits",
    "TestSet",
    "TrainSet",
    "canonical_emotion",
    "find_dataset",
    "load_affectnet",
    "load_fer2013",
    "train_class_weights",
]

# %% [markdown]
# ## Faces and splits
#
# A set of faces is a store of pixels and the rows of it that belong to the set. Taking a part
# copies numbers, never pictures.


# %%
@dataclass(frozen=True, eq=False)
class FaceSet:
    """Faces with their labels, and where they come from.

    Attributes:
        pixels: uint8 (M, H, W, C), C 1 or 3: all decoded pictures of a folder, usually a
            read-only memory map.
        rows: int64 (N,), where the faces of this set stand in `pixels`.
        labels: int64 (N,), positions in `class_names`.
        class_names: K names, alphabetical; the eight emotions in the project's spelling.
        files: str (N,), posix names relative to the dataset, "train/angry/Training_3908.jpg".
        split: "train", "selection", "val", "test", "PublicTest", "PrivateTest", ...
        dataset: "AffectNet", "FER2013" or what else was recognized.
        origin: "drawn" or "real".
        content_hash: SHA-256 hex over sorted names and file bytes of the whole dataset.
        pixel_hashes: bytes (N,), one hash per face of its decoded pixels: equal means twins.
            Computed from `pixels` when not given.
        native: str (N,), mode and size in the file, "L 48x48"; empty when unknown.
    """

    pixels: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    files: np.ndarray
    split: str
    dataset: str
    origin: str
    content_hash: str
    pixel_hashes: np.ndarray = field(default=None, kw_only=True)
    native: np.ndarray = field(default=None, kw_only=True)

    def __post_init__(self):
        """Fill in what can be derived."""
        if self.pixel_hashes is None:
            hashes = [hashlib.blake2b(x, digest_size=16).hexdigest() for x in self.images()]
            object.__setattr__(self, "pixel_hashes", np.array(hashes, dtype="S32"))
        if self.native is None:
            object.__setattr__(self, "native", np.full(len(self), "", dtype="U1"))

    def __len__(self) -> int:
        """Number of faces N."""
        return len(self.rows)

    def images(self, positions=None) -> np.ndarray:
        """The faces at `positions` of this set (all of them for None): uint8 (n, H, W, C)."""
        rows = self.rows if positions is None else self.rows[positions]
        return np.asarray(self.pixels[rows])

    def take(self, positions, as_type: type | None = None, **changes) -> FaceSet:
        """The part of this set at `positions` (indices or a mask), sharing its pixels.

        Args:
            positions: anything that indexes an array of length N.
            as_type: type of the result, this set's own by default.
            changes: fields to set differently, such as `split`.
        """
        kind = as_type or type(self)
        known = {f.name for f in fields(kind)} & {f.name for f in fields(self)}
        values = {name: getattr(self, name) for name in known}
        for name in _PER_FACE & known:
            values[name] = values[name][positions]
        return kind(**{**values, **changes})

    def counts(self) -> np.ndarray:
        """Number of faces of each class: int64 (K,)."""
        return np.bincount(self.labels, minlength=len(self.class_names))


_PER_FACE = {"rows", "labels", "files", "pixel_hashes", "native", "leak_free"}


class TrainSet(FaceSet):
    """Faces that weights are fitted to."""


class SelectionSet(FaceSet):
    """Faces that choices are made on: epoch, learning-rate step, temperature, threshold."""


@dataclass(frozen=True, eq=False)
class TestSet(FaceSet):
    """Faces that are scored and nothing else.

    Attributes:
        leak_free: bool (N,), True where no picture of the train folder has the same pixels.
        stamp: "" or what must stand beside every number, "contains the selection split".
    """

    leak_free: np.ndarray
    stamp: str = ""

    __test__ = False  # tells pytest that this is no test


@dataclass(frozen=True, eq=False)
class Splits:
    """One dataset, divided.

    Attributes:
        train: what is trained on.
        selection: what choices are made on; None trains on everything and chooses nothing.
        tests: what is scored, the headline first.
        sentence: which rule divided it, for the reader.
        notes: what else the reader should know: bad files skipped, folders renamed, ...
        bad_files: `(name, reason)` of every file that was skipped.
    """

    train: TrainSet
    selection: SelectionSet | None
    tests: tuple[TestSet, ...]
    sentence: str
    notes: tuple[str, ...] = ()
    bad_files: tuple[tuple[str, str], ...] = ()


# %% [markdown]
# ## Choosing faces without a random generator
#
# Which faces are held out must not depend on the seed of a run, on the order of a directory
# listing or on the version of a generator. So faces are put in the order of a hash of their name:
# the same files give the same slice on every machine. Twins stay on one side.


# %%
def _shares(counts: np.ndarray, size: int) -> np.ndarray:
    """Divide `size` among classes in proportion to `counts`: int64 (K,), largest remainders."""
    exact = counts * (size / max(counts.sum(), 1))
    shares = np.floor(exact).astype(np.int64)
    first = np.argsort(shares - exact, kind="stable")[: size - shares.sum()]
    shares[first] += 1
    return shares


def _shuffle_keys(files: np.ndarray, purpose: str) -> np.ndarray:
    """A pseudo-random key for each name: uint64 (N,)."""
    text = (f"{purpose}:{name}".encode("utf-8", "surrogatepass") for name in files)
    digests = b"".join(hashlib.blake2b(t, digest_size=8).digest() for t in text)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def selection_positions(faces: FaceSet, size: int) -> np.ndarray:
    """Positions of a stratified slice of about `size` faces, whole groups of twins together."""
    left = _shares(faces.counts(), size)
    _, group = np.unique(faces.pixel_hashes, return_inverse=True)
    by_group = np.argsort(group, kind="stable")
    members = np.split(by_group, np.cumsum(np.bincount(group))[:-1])
    keys = _shuffle_keys(faces.files, "selection")
    chosen = []
    for positions in sorted(members, key=lambda positions: keys[positions].min()):
        need = np.bincount(faces.labels[positions], minlength=len(left))
        if (need <= left).all():
            left = left - need
            chosen.append(positions)
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def limit_faces(faces: FaceSet, max_images: int) -> FaceSet:
    """At most `max_images` faces, in the proportions of the classes (0: all of them).

    Raises:
        DataError: fewer faces are asked for than there are classes.
    """
    if not max_images or len(faces) <= max_images:
        return faces
    present = faces.counts() > 0
    if max_images < present.sum():
        raise DataError(
            f"MAX_IMAGES is {max_images}, fewer than the {present.sum()} classes of "
            f"{faces.dataset}: set it to at least {present.sum()}, or to 0 for all images"
        )
    shares = present + _shares(np.maximum(faces.counts() - 1, 0), max_images - int(present.sum()))
    keys = _shuffle_keys(faces.files, "limit")
    chosen = []
    for label, share in enumerate(shares):
        positions = np.flatnonzero(faces.labels == label)
        chosen.append(positions[np.argsort(keys[positions], kind="stable")][:share])
    return faces.take(np.sort(np.concatenate(chosen)))


# %% [markdown]
# ## Reading folders
#
# Files that cannot be read are listed and counted. Below a stated share they are skipped with a
# note, above it they are an error: a half-unpacked download must not become a result.


# %%
@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads the splits of one dataset the same way and collects what is worth saying."""

    dataset: str
    size: int | None
    grey: bool
    cache_dir: str | Path | None
    max_bad_share: float
    progress: bool | None
    origin: str
    notes: list[str] = field(default_factory=list)
    bad_files: list[tuple[str, str]] = field(default_factory=list)

    def read(self, folder: Path, role: str, parameter: str, **classes) -> FaceSet:
        """Read one folder of class folders; `classes` are `expected` and `usual` names."""

        def relist() -> Listing:
            return list_class_folders(folder, role, parameter, **classes)

        listing = relist()
        store = open_store(
            listing,
            relist,
            size=self.size,
            grey=self.grey,
            cache_dir=self.cache_dir,
            progress=self.progress,
        )
        self.notes.extend(listing.notes + store.notes)
        return self._faces(listing, store, role)

    def _faces(self, listing: Listing, store: Store, role: str) -> FaceSet:
        self._judge(listing, store.bad)
        good = np.array([i for i in range(len(listing.names)) if i not in store.bad], np.int64)
        counts = np.bincount(listing.labels[good], minlength=len(listing.class_names))
        if not counts.all():
            empty = listing.class_names[int(np.argmin(counts))]
            raise DataError(
                f"{role}: no file of the class {empty} in {listing.folder} can be read: "
                "unzip the dataset again"
            )
        return FaceSet(
            pixels=store.pixels,
            rows=good,
            labels=listing.labels[good],
            class_names=listing.class_names,
            files=np.array(listing.names)[good],
            split=role,
            dataset=self.dataset,
            origin=self.origin,
            content_hash=store.content_hash,
            pixel_hashes=store.hashes[good],
            native=store.native[good],
        )

    def _judge(self, listing: Listing, bad: dict[int, str]) -> None:
        if not bad:
            return
        found = [(listing.names[i], reason) for i, reason in sorted(bad.items())]
        shown = "; ".join(f"{name}: {reason}" for name, reason in found[:5])
        shown += f"; and {len(found) - 5} more" if len(found) > 5 else ""
        share = len(found) / len(listing.names)
        if share > self.max_bad_share:
            raise DataError(
                f"{listing.role}: {len(found)} of {len(listing.names)} files in {listing.folder} "
                f"cannot be read ({shown}): that is {share:.2%}, more than MAX_BAD_SHARE "
                f"{self.max_bad_share:.2%}; repair or remove them, or raise MAX_BAD_SHARE"
            )
        self.notes.append(
            f"{listing.role}: {len(found)} of {len(listing.names)} files cannot be read and are "
            f"skipped ({shown})"
        )
        self.bad_files.extend(found)


def _origin(*folders: Path) -> str:
    """Read "drawn" from the marker that `demo_faces.write_demo_faces` leaves, else "real"."""
    places = {place for folder in folders for place in (folder, *list(folder.parents)[:2])}
    return "drawn" if any((place / DRAWN_MARKER).exists() for place in places) else "real"


DRAWN_MARKER = "DRAWN_FACES.txt"


def _as_test(faces: FaceSet, train_hashes: np.ndarray, split: str, stamp: str = "") -> TestSet:
    leak_free = ~np.isin(faces.pixel_hashes, train_hashes)
    return faces.take(slice(None), as_type=TestSet, split=split, leak_free=leak_free, stamp=stamp)


def _divide(
    reader: _Reader,
    train: FaceSet,
    selection: FaceSet | None,
    tests: Sequence[TestSet],
    selection_size: int,
    max_images: int,
    sentence: str,
) -> Splits:
    """Put the parts together; without an official selection set, cut one from train."""
    if selection_size < 0 or max_images < 0:
        raise DataError("SELECTION_SIZE and MAX_IMAGES count images: set them to 0 or more")
    if selection is not None:
        sentence += f" Choices are made on {selection.split} ({len(selection):,} images)."
    elif selection_size == 0:
        sentence += " Nothing is chosen: all training images are trained on (SELECTION_SIZE 0)."
    else:
        size = min(selection_size, len(train) // 5)
        if size < selection_size:
            reader.notes.append(
                f"the selection slice is {size:,} images, a fifth of train, not SELECTION_SIZE "
                f"{selection_size:,}"
            )
        inside = np.zeros(len(train), bool)
        inside[selection_positions(train, size)] = True
        selection = train.take(inside, split="selection")
        train = train.take(~inside)
        sentence += (
            f" Choices are made on a stratified slice of {len(selection):,} training images; "
            "twins stay on one side."
        )
    content = hashlib.sha256("\n".join(s.content_hash for s in (train, *tests)).encode())
    common = {"content_hash": content.hexdigest()}
    if max_images:
        reader.notes.append(f"at most {max_images:,} images of each split are used (MAX_IMAGES)")

    def finish(faces, kind):
        return limit_faces(faces, max_images).take(slice(None), as_type=kind, **common)

    return Splits(
        train=finish(train, TrainSet),
        selection=None if selection is None else finish(selection, SelectionSet),
        tests=tuple(finish(test, TestSet) for test in tests),
        sentence=sentence,
        notes=tuple(reader.notes),
        bad_files=tuple(reader.bad_files),
    )


# %% [markdown]
# ## AffectNet
#
# Eight classes in `train/`, `val/` and perhaps `test/`. Scores on `val` are honest only if nothing
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
    root = find_dataset(root, parameter, attach="dollyprajapati182/balanced-affectnet")
    folders = {name: split_folder(root, name) for name in ("train", "val", "test")}
    if folders["train"] is None or not (folders["val"] or folders["test"]):
        raise DataError(
            f"{parameter}: {root} must hold the folders train and val (and perhaps test), but "
            f"holds {_contents(root)}: give the folder that holds them, or unzip it again"
        )
    reader = _Reader("AffectNet", size, grey, cache_dir, max_bad_share, progress, _origin(root))
    sets = {
        name: reader.read(folder, name, parameter, expected=AFFECTNET_CLASSES)
        for name, folder in folders.items()
        if folder is not None
    }
    train, val, test = sets["train"], sets.get("val"), sets.get("test")
    scored = val if test is None else test
    headline = _as_test(scored, train.pixel_hashes, scored.split)
    sentence = f"AffectNet: {scored.split} ({len(scored):,} images) is scored."
    selection = val if test is not None else None
    return _divide(reader, train, selection, [headline], selection_size, max_images, sentence)


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"


# %% [markdown]
# ## FER2013
#
# The Kaggle folders pool both official test splits in `test/`. Only the file names remember which
# is which, so they decide.

# %%
_OFFICIAL = ("Training", "PublicTest", "PrivateTest")
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
        progress: show a progress bar while decoding; None shows it on a terminal only.

    Raises:
        DataError: folders are missing, empty or not the seven classes, names and folders
            disagree, or too many files are bad.
    """
    owner = "msambare/fer2013"
    train_dir = find_dataset(train_dir, "FER_TRAIN_DIR", holds_class_folders, attach=owner)
    test_dir = find_dataset(test_dir, "FER_TEST_DIR", holds_class_folders, attach=owner)
    if train_dir.resolve() == test_dir.resolve():
        raise DataError(
            f"FER_TRAIN_DIR and FER_TEST_DIR are the same folder {train_dir}: give two folders"
        )
    reader = _Reader(
        "FER2013", size, grey, cache_dir, max_bad_share, progress, _origin(train_dir, test_dir)
    )
    usual = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    classes = {"expected": FER_CLASSES, "usual": usual}
    train = reader.read(train_dir, "train", "FER_TRAIN_DIR", **classes)
    test = reader.read(test_dir, "test", "FER_TEST_DIR", **classes)
    halves = official_halves(train, test)

    hashes = train.pixel_hashes
    if len(halves) == 2:
        public = _as_test(test.take(halves["PublicTest"]), hashes, "PublicTest", _SELECTED)
        private = _as_test(test.take(halves["PrivateTest"]), hashes, "PrivateTest")
        tests = [private, public]
        selection = public.take(slice(None), as_type=FaceSet)
        sentence = f"FER2013: PrivateTest ({len(private):,} images) is scored once."
    else:
        name, positions = next(iter(halves.items()))
        tests = [_as_test(test.take(positions), hashes, name)]
        selection = None
        sentence = f"FER2013: {name} ({len(test):,} images) is the test set."
        if name == "test":
            reader.notes.append(
                "test: the names carry no PublicTest_ or PrivateTest_ prefix, so the official "
                "split is lost and the whole folder is the test set"
            )
    reader.notes.extend(_compare_with_official(train, halves, test))
    splits = _divide(reader, train, selection, tests, selection_size, max_images, sentence)
    if len(halves) == 2:
        splits = replace(splits, tests=(*splits.tests, _pool(test, splits.tests)))
    return splits


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
    return next((split for split in _OFFICIAL if name.startswith(split + "_")), "")


def _compare_with_official(train: FaceSet, halves: dict, test: FaceSet) -> list[str]:
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
    rows = np.concatenate([half.rows for half in halves])
    leak_free = np.concatenate([half.leak_free for half in halves])[np.argsort(rows)]
    return test.take(
        np.isin(test.rows, rows),
        as_type=TestSet,
        split="Public + Private",
        content_hash=halves[0].content_hash,
        leak_free=leak_free,
        stamp=_SELECTED,
    )


# %% [markdown]
# ## Class weights
#
# From the labels alone; no picture is decoded for them.


# %%
def train_class_weights(
    labels: np.ndarray, num_classes: int, kind: str = "balanced", beta: float = 0.999
) -> np.ndarray:
    """Weights for the loss, one per class.

    Args:
        labels: int64 (N,), 0..num_classes - 1.
        num_classes: number of classes K.
        kind: "balanced" is N / (K n_c) (scikit-learn's `compute_class_weight`); "effective" is
            (1 - beta) / (1 - beta**n_c), scaled to mean 1 (Cui et al. 2019, "Class-balanced loss
            based on effective number of samples"); "none" is 1.
        beta: for "effective", 0..1: nearer to 1 weighs rare classes more.

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
        weights[present] = (1 - beta) / (1 - beta ** counts[present])
        weights[present] /= weights[present].mean()
    return weights


# %% [markdown]
# ## Demo
#
# The drawn faces come in the same folders as the Kaggle datasets, with one broken file on purpose.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.data import load_fer2013, train_class_weights
# from fer_helpers.demo_faces import write_demo_faces
#
# folder = write_demo_faces(tempfile.mkdtemp(), per_class=24)
# splits = load_fer2013(
#     folder / "fer2013/train", folder / "fer2013/test", cache_dir=folder / "cache", progress=False
# )
# print(splits.sentence)
# print(*splits.notes, sep="\n")
