"""Faces as arrays: the sets that are trained on, chosen on and scored, and how they are divided."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

import numpy as np

from fer_helpers.layouts import DataError


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Faces with their labels, and where they come from.

    Attributes:
        pixels: uint8 (M, H, W, C), C 1 or 3: all decoded pictures of a folder, usually a
            read-only memory map.
        rows: int64 (N,), where the faces of this set stand in `pixels`.
        labels: int64 (N,), positions in `class_names`.
        class_names: K names, alphabetical; the eight emotions in the project's spelling.
        files: str (N,), posix names relative to the dataset, "train/angry/Training_3908.jpg";
            references (dtype object), so that parts of a set share the text.
        split: "train", "selection", "val", "test", "PublicTest", "PrivateTest", ...
        dataset: "AffectNet", "FER2013" or what else was recognized.
        origin: "drawn" or "real".
        content_hash: SHA-256 hex over sorted names and file bytes of the whole dataset, and its
            labels where a table or numbers give them.
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
            object.__setattr__(self, "native", np.full(len(self), "", dtype=object))

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

    def fingerprint(self) -> str:
        """A hash of these faces only: names, labels and pixels. `content_hash` is of all files."""
        listing = "\n".join(self.files.tolist()).encode() + self.labels.tobytes()
        return hashlib.sha256(listing + self.pixel_hashes.tobytes()).hexdigest()[:16]

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
        leak_free: bool (N,), True where no picture of the train folder, a selection slice of it
            included, has the same pixels. An official split that choices are made on (PublicTest,
            val) is no part of train and is not searched. `data_check.clean_train` makes it True
            where train loses the last such picture.
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
        scored: the part of `sentence` that says what is scored.
        limited: whether MAX_IMAGES may have left images out.

    Raises:
        TypeError: a set stands where its type does not belong.
    """

    train: TrainSet
    selection: SelectionSet | None
    tests: tuple[TestSet, ...]
    sentence: str
    notes: tuple[str, ...] = ()
    bad_files: tuple[tuple[str, str], ...] = ()
    scored: str = ""
    limited: bool = False

    def __post_init__(self):
        """Keep what is scored apart from what is learned and chosen on."""
        wanted = [("train", self.train, TrainSet)]
        wanted += [("selection", self.selection, SelectionSet)] * (self.selection is not None)
        wanted += [("tests", test, TestSet) for test in self.tests]
        for role, faces, kind in wanted:
            if not isinstance(faces, kind):
                raise TypeError(
                    f"Splits.{role} has a {type(faces).__name__}, but what is learned, chosen on "
                    f"and scored must be kept apart: give it a {kind.__name__}."
                )

    def learned(self) -> dict[str, str | None]:
        """Fingerprints of what is trained and chosen on: what a run that goes on has to have."""
        chosen_on = None if self.selection is None else self.selection.fingerprint()
        return {"training data": self.train.fingerprint(), "selection data": chosen_on}


def _shares(counts: np.ndarray, size: int) -> np.ndarray:
    """Divide `size` among classes in proportion to `counts`: int64 (K,), largest remainders."""
    exact = counts * (size / max(counts.sum(), 1))
    shares = np.floor(exact).astype(np.int64)
    first = np.argsort(shares - exact, kind="stable")[: size - shares.sum()]
    shares[first] += 1
    return shares


def _shuffle_keys(files: np.ndarray, purpose: str) -> np.ndarray:
    """A pseudo-random key for each name: uint64 (N,)."""
    text = (f"{purpose}:{name}".encode() for name in files)
    digests = b"".join(hashlib.blake2b(t, digest_size=8).digest() for t in text)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def slice_positions(
    faces: FaceSet, size: int, purpose: str = "selection", groups: np.ndarray | None = None
) -> np.ndarray:
    """Positions of a stratified slice of about `size` faces, whole groups together.

    Args:
        faces: what to cut from.
        size: number of faces wanted.
        purpose: slices for different purposes are cut at different places.
        groups: (N,), equal for faces that must stay together; twins by default.

    Returns:
        int64, sorted. The size is exact unless groups are large.
    """
    left = _shares(faces.counts(), size)
    _, group = np.unique(faces.pixel_hashes if groups is None else groups, return_inverse=True)
    members, ends = np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))
    starts = ends - np.bincount(group)
    keys = np.minimum.reduceat(_shuffle_keys(faces.files, purpose)[members], starts)
    chosen = [np.empty(0, np.int64)]
    for which in np.argsort(keys, kind="stable"):
        if not left.any():
            break
        positions = members[starts[which] : ends[which]]
        need = np.bincount(faces.labels[positions], minlength=len(left))
        if (need <= left).all():
            left = left - need
            chosen.append(positions)
    return np.sort(np.concatenate(chosen))


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
