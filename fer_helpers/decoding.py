"""Files to pixels on every core: what one picture is, and why it is none where it is broken."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import joblib
import numpy as np
from PIL import Image

from fer_helpers.layouts import Listing
from fer_helpers.pictures import known_formats, orientation, plain_image

CLOSED = "cannot be opened"  # how a reason begins that may pass without a change of the file
FILES_WORTH_A_POOL = 4000  # with fewer, one process is done before others have started


class Picture(NamedTuple):
    """One file, decoded: `pixels` is None and `problem` says why if that failed."""

    digest: bytes
    pixels: np.ndarray | None = None
    pixel_hash: str = ""
    native: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""


@contextlib.contextmanager
def quiet():
    """Pillow's remarks on odd files are no news here, but a decompression bomb is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_in_order(
    listing: Listing, length: int, grey: bool, target: tuple[int, int]
) -> Iterator[list[Picture]]:
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
                with quiet():  # joblib has a remark on work that nobody waits for any more
                    results.close()


def _read_all(paths: Sequence[str], grey: bool, target: tuple[int, int]) -> list[Picture]:
    with quiet():
        return [read_picture(path, grey, target) for path in paths]


def read_picture(path: str, grey: bool, target: tuple[int, int] | None) -> Picture:
    """Decode one file to (H, W, C), uint8, resized to `target` (width, height) where it is given.

    Raises:
        MemoryError, ImportError: the machine's fault, which says nothing about the file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return Picture(bytes(32), problem=f"{CLOSED} ({error.strerror or error})")
    digest = hashlib.sha256(data).digest()
    if not data:
        return Picture(digest, problem="empty file")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", *known_formats()]) as image:
            mode = image.mode
            native = _upright(image).convert("L" if grey else "RGB")
    except (MemoryError, ImportError):
        raise  # no answer about this file, and nothing to keep in a cache
    # Broken files raise OSError, ValueError, SyntaxError, struct.error and more, by format.
    except Exception as error:
        first = str(error).split("<")[0].strip() or type(error).__name__
        return Picture(digest, problem=f"not a readable picture ({first})")
    raw = np.asarray(native)
    fingerprint = hashlib.blake2b(np.int32(raw.shape).tobytes(), digest_size=16)
    fingerprint.update(raw)
    if target and native.size != target:
        raw = np.asarray(native.resize(target, Image.Resampling.BILINEAR))
    return Picture(
        digest,
        pixels=raw.reshape(*raw.shape[:2], -1),
        pixel_hash=fingerprint.hexdigest(),
        native=f"{mode} {native.width}x{native.height}",
        size=native.size,
    )


def _upright(image: Image.Image) -> Image.Image:
    """The picture as prediction would read it: upright, 8 bits, without transparency."""
    # Asked last, as it decodes a PNG, whose one clear color must be scaled before.
    plain = image.mode in ("L", "RGB") and not image.has_transparency_data
    if plain and orientation(image) not in range(2, 9):
        return image
    return plain_image(image)
