"""Decode once: the pictures of a folder as one uint8 array on disk, found again by a key."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import joblib
import numpy as np
import PIL
import platformdirs
from PIL import Image
from tqdm import tqdm

from fer_helpers.layouts import DataError, Listing, local_path
from fer_helpers.pictures import orientation, plain_image

Loaded = TypeVar("Loaded")

FORMAT = 4  # raise it whenever what is written, or how a picture is decoded, changes
KEEP_DAYS = 60  # an entry that nobody opens for so long is thrown away
CHUNK_BYTES = 1 << 20  # decoded pixels per task: enough to hide the overhead of a task
CLOSED = "cannot be opened"  # how a reason begins that may pass without a change of the file
FILES_WORTH_A_POOL = 4000  # with fewer, one process is done before others have started


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


class _Picture(NamedTuple):
    """One file, decoded: `pixels` is None and `problem` says why if that failed."""

    digest: bytes
    pixels: np.ndarray | None = None
    pixel_hash: str = ""
    native: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""


DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)  # what a spoiled entry raises


def default_cache_dir() -> Path:
    """Where decoded pictures go unless the caller says otherwise: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("fer-helpers", appauthor=False))


def cache_key(listing: Listing, size: int | None, grey: bool) -> str:
    """Names a decoded store; changes whenever the folder or the way of decoding does.

    Pillow is part of that way: another version opens other files and rounds otherwise.
    """
    how = f"{FORMAT} {PIL.__version__} {size} {grey} {os.path.realpath(listing.folder)}\n"
    key = hashlib.sha256(how.encode("utf-8", "surrogatepass"))
    key.update("\n".join(listing.names).encode("utf-8", "surrogatepass"))
    key.update(listing.stamps.astype("<i8").tobytes())
    return key.hexdigest()[:32]


def open_store(
    listing: Listing,
    relist: Callable[[], Listing],
    *,
    size: int | None = None,
    grey: bool = False,
    cache_dir: str | Path | None = None,
    progress: bool | None = None,
) -> Store:
    """The decoded pictures of a listing: from the cache, or decoded now on every core.

    All pictures get one size: the most common one of the folder, reduced to `size` where it is
    larger. Pictures of another size are resized with Pillow's bilinear filter, which is
    anti-aliased when it reduces; the others keep their exact pixels. Rotated, transparent and
    16-bit files are read as prediction reads them.

    Args:
        listing: files to read.
        relist: lists them again, to notice a folder that changes while it is read.
        size: upper bound of height and width in pixels; None keeps the native size.
        grey: decode to one channel (ITU-R 601-2 luma, as Pillow's "L").
        cache_dir: folder of the cache; None takes the user's cache folder.
        progress: show a progress bar; None shows it on a terminal only.

    Raises:
        DataError: the folder changed while it was being read, no file of it can be read, or memory
            ran out.
    """
    build = _Builder(listing, relist, size, grey, progress)
    try:
        store, notes = cached(
            cache_dir,
            cache_key(listing, size, grey),
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


def cached(
    cache_dir: str | Path | None,
    key: str,
    write: Callable[[Path], None],
    load: Callable[[Path], Loaded],
    in_memory: Callable[[], Loaded],
) -> tuple[Loaded, tuple[str, ...]]:
    """Load the cache entry `key`, writing it first where it is missing.

    An entry appears complete or not at all: it is written beside its place and renamed. Of two
    runs that build it at once, the slower takes what the faster wrote. Whoever writes an entry
    clears away those that were not opened for `KEEP_DAYS`.

    Args:
        cache_dir: folder of the cache; None takes the user's cache folder.
        key: name of the entry.
        write: fills an empty folder.
        load: reads an entry; raises OSError, ValueError, KeyError or EOFError if it is damaged.
        in_memory: makes the same without a disk, for a cache that cannot be written.

    Returns:
        What `load` or `in_memory` made, and what to tell the reader.
    """
    folder = local_path(cache_dir) if cache_dir else default_cache_dir()
    entry = folder / key
    notes, damaged = (), False
    if entry.is_dir():
        try:
            with contextlib.suppress(OSError):  # a cache on a read-only disk is fine, too
                os.utime(entry)
            return load(entry), ()
        except DAMAGED:
            damaged = True  # not deleted here: the error's traceback holds its mapped file open
        if damaged:
            shutil.rmtree(entry, ignore_errors=True)
            notes = ("a damaged or outdated cache entry was thrown away and built again",)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_old(folder)
        temporary = folder / f"{key}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir()  # for whoever may use the cache: `mkdtemp` would make it private
        try:
            write(temporary)
            _put(temporary, entry)
            try:
                return load(entry), notes
            except DAMAGED as error:
                said = f"{entry.name} there is damaged and cannot be removed"
                raise OSError(errno.EEXIST, said) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        note = (
            f"the cache {folder} cannot be written ({reason}), so the decoded pictures stay in "
            "memory and are decoded again next time"
        )
        return in_memory(), (*notes, note)


def _put(written: Path, entry: Path) -> None:
    """Give a written entry its name, unless another run was faster: then its entry is taken."""
    for pause in (0.1, 0.4, 1.6, 0):  # virus scanners hold new files for a moment
        try:
            os.replace(written, entry)
            return
        except OSError:
            if entry.is_dir() or not pause:
                return
            time.sleep(pause)


def _clear_old(folder: Path) -> None:
    """Throw away entries that nobody opened for long: of older formats, of folders that changed.

    Only what has an entry's name and holds pixels is touched; what a killed run has left half
    written, when nothing was written there for a day.
    """
    for pixels in folder.glob("*/pixels.npy"):
        entry = pixels.parent
        name = re.fullmatch(r"[0-9a-f]{32}(\..+)?", entry.name)
        if name is None:
            continue
        newest, days = (pixels, 1) if name[1] else (entry, KEEP_DAYS)
        with contextlib.suppress(OSError):  # another run clears it, too
            if newest.stat().st_mtime < time.time() - days * 86_400:
                shutil.rmtree(entry, ignore_errors=True)


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

    def __init__(self, listing, relist, size, grey, progress):
        self.listing, self.relist, self.size, self.grey = listing, relist, size, grey
        self.progress = progress

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
        with _quiet():
            sizes = Counter(_read(path, self.grey, None).size for path in self.listing.sample())
        sizes.pop((0, 0), None)
        guess = self._bounded(sizes) if sizes else (1, 1)
        yield guess
        right = self._bounded(self.sizes)
        if right != guess:
            yield right

    def _bounded(self, sizes: Counter) -> tuple[int, int]:
        most = max(sizes.values())
        width, height = max(wh for wh, count in sizes.items() if count == most)
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
            disable=None if self.progress is None else not self.progress,
        )
        start = 0
        decoded = _in_order(self.listing, length, self.grey, target)
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
        now, then = self.relist(), self.listing
        if now.names != then.names or not np.array_equal(now.stamps, then.stamps):
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
            content.update(name.encode("utf-8", "surrogatepass") + b"\0" + digest.tobytes())
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


@contextlib.contextmanager
def _quiet():
    """Pillow's remarks on odd files are no news here, but a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _in_order(
    listing: Listing, length: int, grey: bool, target: tuple[int, int]
) -> Iterator[list[_Picture]]:
    """Yield the pictures of all files, `length` at a time, decoded on every core if they are many.

    By processes, since opening a small picture holds the GIL for most of its time: two threads were
    slower than one. joblib's do not import the caller's script again, as multiprocessing's would.
    """
    # Not in a process of multiprocessing: a daemon may have none of its own, and any other would
    # not end before these have been idle for their time.
    count = len(listing.names)
    alone = count < FILES_WORTH_A_POOL or multiprocessing.parent_process() is not None
    workers = 1 if alone else joblib.cpu_count()
    once = 8 * workers * length  # what may wait in memory until it is taken
    with joblib.Parallel(workers, return_as="generator", idle_worker_timeout=60) as pool:
        for begin in range(0, count, once):
            end = min(begin + once, count)
            parts = (
                [listing.path(i) for i in range(start, min(start + length, end))]
                for start in range(begin, end, length)
            )
            results = pool(joblib.delayed(_read_all)(part, grey, target) for part in parts)
            try:
                for pictures in results:  # noqa: UP028 (`yield from` would close it on its own)
                    yield pictures
            finally:
                with _quiet():  # joblib has a remark on work that nobody waits for any more
                    results.close()


def _read_all(paths: Sequence[str], grey: bool, target: tuple[int, int]) -> list[_Picture]:
    with _quiet():
        return [_read(path, grey, target) for path in paths]


def _read(path: str, grey: bool, target: tuple[int, int] | None) -> _Picture:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return _Picture(bytes(32), problem=f"{CLOSED} ({error.strerror or error})")
    digest = hashlib.sha256(data).digest()
    if not data:
        return _Picture(digest, problem="empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            native = _upright(image).convert("L" if grey else "RGB")
    except (MemoryError, ImportError):
        raise  # the machine's fault: no answer about this file, and nothing to keep in a cache
    # Broken files raise OSError, ValueError, SyntaxError, struct.error and more, by format.
    except Exception as error:
        first = str(error).split("<")[0].strip() or type(error).__name__
        return _Picture(digest, problem=f"not a readable picture ({first})")
    raw = np.asarray(native)
    fingerprint = hashlib.blake2b(np.int32(raw.shape).tobytes(), digest_size=16)
    fingerprint.update(raw)
    if target and native.size != target:
        raw = np.asarray(native.resize(target, Image.Resampling.BILINEAR))
    return _Picture(
        digest,
        pixels=raw.reshape(*raw.shape[:2], -1),
        pixel_hash=fingerprint.hexdigest(),
        native=f"{mode} {native.width}x{native.height}",
        size=native.size,
    )


def _upright(image: Image.Image) -> Image.Image:
    """The picture as prediction would read it: upright, 8 bits, without transparency."""
    rotated = orientation(image) in range(2, 9)
    if image.mode in ("L", "RGB") and not rotated and not image.has_transparency_data:
        return image
    return plain_image(image)
