"""Reads the splits of one dataset the same way, and puts train, selection and test sets together.

Files that cannot be read are listed and counted. Below a stated share they are skipped with a note,
above it they are an error: a half-unpacked download must not become a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fer_helpers.layouts import DataError, Listing, canonical_emotion
from fer_helpers.splits import (
    FaceSet,
    SelectionSet,
    Splits,
    TestSet,
    TrainSet,
    limit_faces,
    slice_positions,
)
from fer_helpers.store import Store, open_store

DRAWN_MARKER = "drawn_faces.json"  # what `demo_faces.write_demo_faces` leaves beside its folders


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the splits of one dataset the same way and collects what is worth saying."""

    dataset: str
    size: int | None
    grey: bool
    cache_dir: str | Path | None
    selection_size: int
    max_images: int
    max_bad_share: float
    progress: bool | None
    notes: list[str] = field(default_factory=list)
    bad_files: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height as stored

    def __post_init__(self):
        """Refuse sizes that mean nothing before anything is decoded."""
        if self.selection_size < 0 or self.max_images < 0:
            raise DataError("SELECTION_SIZE and MAX_IMAGES count images: set them to 0 or more")

    def read(self, relist: Callable[[], Listing], listing: Listing | None = None) -> FaceSet:
        """Decode what a function lists."""
        listing = listing or relist()
        store = open_store(
            listing,
            relist,
            size=self.size,
            grey=self.grey,
            scattered=self.sizes[0] if self.sizes else None,  # a test set is stored like train
            cache_dir=self.cache_dir,
            progress=self.progress,
        )
        height, width = store.pixels.shape[1:3]
        self.sizes.append((width, height))
        self.notes.extend(listing.notes + store.notes)
        self.judge(listing.role, listing.folder, listing.names, store.bad)
        return self._faces(listing, store)

    def _faces(self, listing: Listing, store: Store) -> FaceSet:
        good = np.delete(np.arange(len(listing.names)), list(store.bad))
        counts = np.bincount(listing.labels[good], minlength=len(listing.class_names))
        if not counts.all():
            empty = listing.class_names[int(np.argmin(counts))]
            raise DataError(
                f"{listing.role}: no file of the class {empty} in {listing.folder} can be read: "
                "unzip the dataset again"
            )
        places = list(listing.folder.resolve().parents)[:2]
        drawn = any((place / DRAWN_MARKER).exists() for place in places)
        return FaceSet(
            pixels=store.pixels,
            rows=good,
            labels=listing.labels[good],
            class_names=listing.class_names,
            files=np.array(listing.names, dtype=object)[good],
            split=listing.role,
            dataset=self.dataset,
            origin="drawn" if drawn else "real",
            content_hash=_with_labels(store.content_hash, listing),
            pixel_hashes=store.hashes[good],
            native=store.native[good],
        )

    def judge(self, role: str, where: Path, names: Sequence[str], bad: Mapping[int, str]) -> None:
        """Note the bad files, or raise if they are too many."""
        if not bad:
            return
        found = [(names[i], reason) for i, reason in sorted(bad.items())]
        shown = "; ".join(f"{name}: {reason}" for name, reason in found[:5])
        shown += f"; and {len(found) - 5} more" if len(found) > 5 else ""
        share = len(found) / len(names)
        if share > self.max_bad_share:
            raise DataError(
                f"{role}: {len(found)} of {len(names)} files in {where} cannot be read ({shown}): "
                f"that is {share:.2%}, more than MAX_BAD_SHARE {self.max_bad_share:.2%}; repair "
                "or remove them, or raise MAX_BAD_SHARE"
            )
        self.notes.append(
            f"{role}: {len(found)} of {len(names)} files cannot be read and are skipped ({shown})"
        )
        self.bad_files.extend(found)

    def divide(
        self,
        train: FaceSet,
        selection: FaceSet | None,
        tests: Sequence[TestSet],
        sentence: str,
        groups: np.ndarray | None = None,
    ) -> Splits:
        """Put the parts together; without an official selection set, cut one from train.

        Args:
            train: the whole train folder.
            selection: the official split to choose on, None where there is none.
            tests: what is scored.
            sentence: says what is scored.
            groups: (N,), equal for training faces that must stay together; twins by default.
        """
        scored = sentence
        if selection is not None:
            sentence += f" Choices are made on {selection.split} ({self.used(selection)} images)."
        elif self.selection_size == 0:
            sentence += " Nothing is chosen: all training images are trained on (SELECTION_SIZE 0)."
        else:
            train, selection = self._cut_selection(train, groups)
            sentence += (
                f" Choices are made on a stratified slice of {self.used(selection)} training "
                f"images; {'twins' if groups is None else 'people'} stay on one side."
            )
        contents = [faces.content_hash for faces in (train, *tests)]
        if selection is not None and selection.content_hash not in contents:
            contents.append(selection.content_hash)  # files of its own, not a part of the others
        common = {"content_hash": hashlib.sha256("\n".join(contents).encode()).hexdigest()}
        if self.max_images:
            self.notes.append(
                f"at most {self.max_images:,} images of each split are used (MAX_IMAGES)"
            )

        def finish(faces, kind):
            limited = limit_faces(faces, self.max_images)
            return limited.take(slice(None), as_type=kind, **common)

        return Splits(
            train=finish(train, TrainSet),
            selection=None if selection is None else finish(selection, SelectionSet),
            tests=tuple(finish(test, TestSet) for test in tests),
            sentence=sentence,
            notes=tuple(self.notes),
            bad_files=tuple(self.bad_files),
            scored=scored,
            limited=bool(self.max_images),
        )

    def used(self, faces: FaceSet) -> str:
        """How many of the faces MAX_IMAGES leaves, as a sentence writes it."""
        return f"{min(len(faces), self.max_images or len(faces)):,}"

    def _cut_selection(self, train: FaceSet, groups) -> tuple[FaceSet, FaceSet]:
        size = min(self.selection_size, len(train) // 5)
        if size < self.selection_size:
            self.notes.append(
                f"the selection slice is {size:,} images, a fifth of train, not SELECTION_SIZE "
                f"{self.selection_size:,}"
            )
        inside = np.zeros(len(train), bool)
        inside[slice_positions(train, size, groups=groups)] = True
        return train.take(~inside), train.take(inside, split="selection")

    def divide_folders(self, sets: Mapping[str, FaceSet]) -> Splits:
        """Divide what stands in `train` and perhaps `val` and `test` by the usual rule."""
        train, val, test = sets["train"], sets.get("val"), sets.get("test")
        scored = val if test is None else test
        headline = as_test(scored, train.pixel_hashes)
        sentence = f"{self.dataset}: {scored.split} ({self.used(scored)} images) is scored."
        return self.divide(train, val if test is not None else None, [headline], sentence)


def _with_labels(content_hash: str, listing: Listing) -> str:
    """The hash of the files, and of their labels where the folders do not say these."""
    emotions = [listing.class_names[label] for label in listing.labels]
    folders = (name.split("/")[1] for name in listing.names)
    pairs = set(zip(folders, emotions, strict=True))
    if all(canonical_emotion(folder) == emotion for folder, emotion in pairs):
        return content_hash
    return hashlib.sha256("\n".join([content_hash, *emotions]).encode()).hexdigest()


def as_test(faces: FaceSet, train_hashes: np.ndarray, split: str = "", stamp: str = "") -> TestSet:
    """A set of faces to score: marks the ones whose pixels no training face has.

    Args:
        faces: the faces.
        train_hashes: `pixel_hashes` of the whole train folder, with the selection slice that is
            cut from it; an official split to choose on (val, PublicTest) is not among them.
        split: new name of the split, if it gets one.
        stamp: what must stand beside its numbers.
    """
    leak_free = ~np.isin(faces.pixel_hashes, train_hashes)
    return faces.take(
        slice(None), as_type=TestSet, split=split or faces.split, leak_free=leak_free, stamp=stamp
    )
