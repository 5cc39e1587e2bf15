"""Decode once: the pictures of a folder as one uint8 array on disk, found again by a key."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from tqdm import tqdm

from fer_helpers.cache import FORMAT, cached
from fer_helpers.decoding import CLOSED, decode_in_order, quiet, read_picture
from fer_helpers.front_end import watched
from fer_helpers.layouts import DataError, Listing

CHUNK_BYTES = 1 << 20  # decoded pixels per task: enough to hide the overhead of a task


@dataclass(frozen=True, eq=False)
class Store:
    """The decoded pictures of one listing.

    Attributes:
        pixels: uint8 (M, H, W, C), one row per listed file (rows of bad files are zero).
        hashes: bytes (M,), BLAKE2b hex of each picture's decoded pixels before any resize.
        native: str (M,), mode and size in the file, "L 48x48"; references to a few strings.
        bad: `{position: reason}` of the files that could not be read.
        content_hash: SHA-256 hex over sorted names and file bytes: the same on every machine.
        notes: what a reader should know: sizes brought together, no cache, ...
    """

    pixels: np.ndarray
    hashes: np.ndarray
    native: np.ndarray
    bad: dict[int, str]
    content_hash: str
    notes: tuple[str, ...] = ()


def cache_key(
    listing: Listing, size: int | None, grey: bool, scattered: tuple[int, int] | None = None
) -> str:
    """Names a decoded store; changes whenever the folder or the way of decoding does.

    Pillow is part of that way: another version opens other files and rounds otherwise.
    """
    folder = os.path.realpath(listing.folder)
    how = f"{FORMAT} {PIL.__version__} {size} {grey} {scattered} {folder}\n"
    key = hashlib.sha256(how.encode("utf-8", "surrogatepass"))
    key.update("\n".join(listing.names).encode())
    key.update(listing.stamps.astype("<i8").tobytes())
    return key.hexdigest()[:32]


def open_store(
    listing: Listing,
    relist: Callable[[], Listing],
    *,
    size: int | None = None,
    grey: bool = False,
    scattered: tuple[int, int] | None = None,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> Store:
    """The decoded pictures of a listing: from the cache, or decoded now on every core.

    All pictures get one size: the most common one of the folder or, where less than half of them
    have it, the median width and height; reduced to `size` where that is larger. Pictures of
    another size are resized with Pillow's bilinear filter, which is anti-aliased when it reduces;
    the others keep their exact pixels. Rotated, transparent and 16-bit files are read as
    prediction reads them.

    Args:
        listing: files to read.
        relist: lists them again, to notice a folder that changes while it is read.
        size: upper bound of height and width in pixels; None keeps the native size.
        grey: decode to one channel (ITU-R 601-2 luma, as Pillow's "L").
        scattered: width and height in place of the medians, those of a split read before.
        cache_dir: folder of the cache; None takes the user's cache folder.
        progress: show a progress bar; None shows it in a terminal or an open notebook.

    Raises:
        DataError: the folder changed while it was being read, no file of it can be read, or memory
            ran out.
    """
    build = _Builder(listing, relist, size, grey, scattered, progress)
    try:
        store, notes = cached(
            cache_dir,
            cache_key(listing, size, grey, scattered),
            write=build.write,
            load=lambda entry: _load(entry, listing),
            in_memory=build.in_memory,
        )
    except (MemoryError, ImportError) as error:
        said = f" ({error})" if str(error) else ""
        raise DataError(
            f"{listing.role}: memory ran out{said} while {len(listing.names):,} pictures of "
            f"{listing.folder} were decoded: close other programs, set CACHE_DIR to a disk with "
            "more room, or lower IMAGE_SIZE or MAX_IMAGES"
        ) from error
    return replace(store, notes=(*(f"{listing.role}: {note}" for note in notes), *store.notes))


def _load(entry: Path, listing: Listing) -> Store:
    about = json.loads((entry / "about.json").read_text(encoding="utf-8"))
    pixels = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
    with np.load(entry / "table.npz", allow_pickle=False) as table:
        hashes, native = table["hashes"], table["kinds"].astype(object)[table["kind"]]
    if not len(pixels) == len(hashes) == len(native) == len(listing.names):
        raise ValueError("the cache entry does not fit its key")
    bad = {int(position): reason for position, reason in about["bad"].items()}
    # Permission to read a file is given without changing the file.
    closed = [listing.path(i) for i, reason in bad.items() if reason.startswith(CLOSED)]
    if any(_opens(path) for path in closed):
        raise OSError("a file can be opened now")
    return Store(
        pixels=pixels,
        hashes=hashes,
        native=native,
        bad=bad,
        content_hash=about["content_hash"],
        notes=tuple(about["notes"]),
    )


def _opens(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            file.read()
    except OSError:
        return False
    return True


class _Builder:
    """Decodes one listing, to a folder or to memory."""

    def __init__(self, listing, relist, size, grey, scattered, progress):
        self.listing, self.relist, self.size, self.grey = listing, relist, size, grey
        self.scattered, self.progress = scattered, progress

    def write(self, folder: Path) -> None:
        """Write the store into `folder`; chunk by chunk, so that memory stays flat."""
        for target in self._targets():
            with open(folder / "pixels.npy", "wb") as file:
                shape = (len(self.listing.names), *target[::-1], 1 if self.grey else 3)
                # Said before hours of decoding, and before the disk is full for everybody.
                if math.prod(shape) > shutil.disk_usage(folder).free:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                head = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, head)
                self._decode(target, lambda start, chunk, file=file: file.write(chunk.data))
        table = self.summary()
        kinds, kind = np.unique(table.native.astype(str), return_inverse=True)
        np.savez(folder / "table.npz", hashes=table.hashes, kinds=kinds, kind=kind.astype(np.int32))
        about = {
            "content_hash": table.content_hash,
            "bad": {str(position): reason for position, reason in table.bad.items()},
            "notes": table.notes,
        }
        (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def in_memory(self) -> Store:
        """The same store without a disk."""
        for target in self._targets():
            channels = 1 if self.grey else 3
            pixels = np.zeros((len(self.listing.names), *target[::-1], channels), np.uint8)

            def put(start, chunk, pixels=pixels):
                pixels[start : start + len(chunk)] = chunk

            self._decode(target, put)
        pixels.flags.writeable = False
        return replace(self.summary(), pixels=pixels)

    def _targets(self) -> Iterator[tuple[int, int]]:
        """Yield the size to decode to: a guess from a sample, then another if it was wrong."""
        with quiet():
            sizes = Counter(
                read_picture(path, self.grey, None).size for path in self.listing.sample()
            )
        sizes.pop((0, 0), None)
        guess = self._bounded(sizes) if sizes else (1, 1)
        yield guess
        right = self._bounded(self.sizes)
        if right != guess:
            yield right

    def _bounded(self, sizes: Counter) -> tuple[int, int]:
        most = max(sizes.values())
        width, height = max(wh for wh, count in sizes.items() if count == most)
        if 2 * most < sizes.total():  # the commonest is an accident, and may have any shape
            medians = (statistics.median_low(side) for side in zip(*sizes.elements(), strict=True))
            width, height = self.scattered or medians
        bound = self.size or max(width, height)
        return min(width, bound), min(height, bound)

    def _decode(self, target, put: Callable[[int, np.ndarray], object]) -> None:
        """Decode every file on every core, handing over chunks (n, H, W, C) in order."""
        count = len(self.listing.names)
        width, height = target
        length = max(1, CHUNK_BYTES // (width * height * (1 if self.grey else 3)))
        self.target, self.sizes, self.problems = target, Counter(), {}
        self.digests = np.zeros((count, 32), np.uint8)
        self.hashes = np.zeros(count, "S32")
        self.native = np.full(count, "", object)
        channels = 1 if self.grey else 3
        bar = tqdm(
            total=count,
            desc=f"Decoding {self.listing.role}",
            unit="img",
            disable=not (watched() if self.progress is None else self.progress),
        )
        start = 0
        decoded = decode_in_order(self.listing, length, self.grey, target)
        try:
            with bar, contextlib.closing(decoded):  # a full disk must not leave processes at work
                for pictures in decoded:
                    chunk = np.zeros((len(pictures), height, width, channels), np.uint8)
                    for i, picture in enumerate(pictures):
                        self.digests[start + i] = np.frombuffer(picture.digest, np.uint8)
                        if picture.problem:
                            self.problems[start + i] = picture.problem
                            continue
                        chunk[i] = picture.pixels
                        self.hashes[start + i] = picture.pixel_hash
                        self.native[start + i] = sys.intern(picture.native)
                        self.sizes[picture.size] += 1
                    put(start, chunk)
                    start += len(pictures)
                    bar.update(len(pictures))
        except BrokenProcessPool:
            raise DataError(
                f"{self.listing.role}: a process that decoded {self.listing.folder} was ended from "
                "outside, most likely because memory ran out: close other programs and start again"
            ) from None
        self._check()

    def _check(self) -> None:
        then = self.listing
        try:
            now = self.relist()
        except OSError:  # gone with its disk; to `cached` it would be a cache that is full
            now = None
        if not now or now.names != then.names or not np.array_equal(now.stamps, then.stamps):
            raise DataError(
                f"{then.role}: {then.folder} changed while it was being read: wait until it is "
                "unpacked or copied completely, then start again"
            )
        if not self.sizes:
            raise DataError(
                f"{then.role}: none of the {len(then.names)} files in {then.folder} can be read "
                f"as a picture (the first, {then.names[0]}: {self.problems[0]}): unzip the "
                "dataset again"
            )

    def summary(self) -> Store:
        """The decoded table, without pixels."""
        content = hashlib.sha256()
        for name, digest in zip(self.listing.names, self.digests, strict=True):
            content.update(name.encode() + b"\0" + digest.tobytes())
        notes = []
        if len(self.sizes) > 1:
            shown = ", ".join(f"{w}x{h} ({n})" for (w, h), n in self.sizes.most_common(3))
            notes.append(
                f"{self.listing.role}: {len(self.sizes)} picture sizes ({shown}, ...) brought to "
                f"{self.target[0]}x{self.target[1]} pixels (anti-aliased bilinear)"
            )
        elif (only := next(iter(self.sizes))) != self.target:
            notes.append(
                f"{self.listing.role}: {only[0]}x{only[1]} pictures reduced to "
                f"{self.target[0]}x{self.target[1]} pixels (anti-aliased bilinear)"
            )
        return Store(
            pixels=np.empty(0, np.uint8),
            hashes=self.hashes,
            native=self.native,
            bad=self.problems,
            content_hash=content.hexdigest(),
            notes=tuple(notes),
        )
