"""FER2013 as one CSV file: `fer2013.csv` and `icml_face_data.csv`, read once into a store."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fer_helpers.cache import FORMAT, cached
from fer_helpers.front_end import watched
from fer_helpers.layouts import DataError, readable
from fer_helpers.neighbors import FER_CSV_FILES

# The numbers 0..6 of the competition; not alphabetical.
FER_CSV_ORDER = ("Anger", "Disgust", "Fear", "Happy", "Sad", "Surprise", "Neutral")
_NUMBERS = {str(i) for i in range(len(FER_CSV_ORDER))}
USAGES = ("Training", "PublicTest", "PrivateTest")
SIDE = 48  # pixels


class FerRow(NamedTuple):
    """One row of the file: its number from 0, what it says, or why it cannot be read."""

    number: int
    emotion: str
    usage: str
    pixels: bytes
    problem: str = ""


def csv_file(path: Path) -> Path:
    """The CSV file that a folder or a path means."""
    if path.is_dir():
        path = next((path / name for name in FER_CSV_FILES if (path / name).is_file()), path)
    if not path.is_file():
        raise DataError(f"there is no {' or '.join(FER_CSV_FILES)} at {path}: give its path")
    return path


def read_rows(path: Path) -> Iterator[FerRow]:
    """Read the file row by row; columns are found by name, whatever spaces surround it.

    Yields:
        Rows in order, also those with a `problem`.

    Raises:
        DataError: the header lacks `emotion`, `pixels` or `Usage`, an emotion has a number that
            FER2013 does not know (in a file that is not called like FER2013's), or the file is no
            CSV text.
    """
    try:
        yield from _read_rows(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable CSV file ({error}): download it again") from error


def _read_rows(path: Path) -> Iterator[FerRow]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = (row for row in csv.reader(file) if row)  # an empty line is no row
        head = [name.strip().lower() for name in next(rows, [])]
        if "usage" not in head and {"emotion", "pixels"} <= set(head):
            raise DataError(
                f"{path} has no Usage column (it looks like the competition's train.csv), so the "
                "official split cannot be known: use fer2013.csv or icml_face_data.csv"
            )
        if not {"emotion", "pixels", "usage"} <= set(head):
            raise DataError(
                f"{path} has the columns {', '.join(head) or '(none)'}, not emotion, pixels and "
                "Usage: give fer2013.csv or icml_face_data.csv"
            )
        emotion, pixels, usage = (head.index(name) for name in ("emotion", "pixels", "usage"))
        for number, row in enumerate(rows):
            try:
                cells = row[emotion].strip(), row[usage].strip(), row[pixels]
            except IndexError:
                yield FerRow(number, "", "", b"", f"has {len(row)} of {len(head)} columns")
                continue
            # Its other numbers may mean something else, too. In FER2013's own file it is a bad row.
            odd = re.fullmatch(r"-?\d+", cells[0]) and cells[0] not in _NUMBERS
            if odd and path.name.lower() not in FER_CSV_FILES:
                raise DataError(
                    f"{path} row {number} has the emotion {cells[0]}, and FER2013 knows 0 to 6, so "
                    "this is another dataset: put its pictures into one folder per emotion, or "
                    "give fer2013.csv or icml_face_data.csv"
                )
            yield _parse(number, *cells)


def _parse(number: int, emotion: str, usage: str, pixels: str) -> FerRow:
    problem = ""
    if emotion not in _NUMBERS:
        problem = f"emotion is {emotion!r}, not 0..6"
    elif usage not in USAGES:
        problem = f"Usage is {usage!r}, not {', '.join(USAGES)}"
    try:
        values = bytes(map(int, pixels.split()))
    except ValueError:
        values, problem = b"", problem or "a pixel is no number in 0..255"
    if not problem and len(values) != SIDE * SIDE:
        problem = f"{len(values):,} pixels, not {SIDE * SIDE:,}"
    if problem:
        return FerRow(number, "", "", b"", problem)
    return FerRow(number, FER_CSV_ORDER[int(emotion)], usage, values)


@dataclass(frozen=True, eq=False)
class FerTable:
    """The decoded file, one entry per row: M rows.

    Attributes:
        pixels: uint8 (M, 48, 48, 1); rows that cannot be read are zero.
        hashes: bytes (M,), BLAKE2b hex of the pixels.
        emotions: str (M,), class names.
        usages: str (M,), "Training", "PublicTest" or "PrivateTest", "" where unreadable.
        bad: `{row: reason}`.
        content_hash: SHA-256 hex over the file's name and bytes.
    """

    pixels: np.ndarray
    hashes: np.ndarray
    emotions: np.ndarray
    usages: np.ndarray
    bad: dict[int, str]
    content_hash: str


def read_table(
    path: Path, cache_dir: str | Path | None = None, progress: bool | None = None
) -> tuple[FerTable, tuple[str, ...]]:
    """The whole file, from the cache or read now; and notes on the cache.

    Raises:
        DataError: wrong columns, no rows, or the file changed while it was being read.
    """

    def write(folder: Path) -> None:
        table = _decode(path, progress)
        np.save(folder / "pixels.npy", table.pixels)
        about = {"bad": table.bad, "content_hash": table.content_hash}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        columns = {name: getattr(table, name) for name in ("hashes", "emotions", "usages")}
        np.savez(folder / "table.npz", **columns)

    def load(entry: Path) -> FerTable:
        about = json.loads((entry / "about.json").read_text(encoding="utf-8"))
        with np.load(entry / "table.npz", allow_pickle=False) as file:
            table = {name: file[name] for name in ("hashes", "emotions", "usages")}
        bad = {int(row): reason for row, reason in about["bad"].items()}
        pixels = np.load(entry / "pixels.npy", mmap_mode="r", allow_pickle=False)
        return FerTable(pixels, **table, bad=bad, content_hash=about["content_hash"])

    return cached(
        cache_dir, _cache_key(path), write, load, in_memory=lambda: _decode(path, progress)
    )


def _cache_key(path: Path) -> str:
    found = path.stat()
    text = f"csv {FORMAT} {os.path.realpath(path)} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _decode(path: Path, progress: bool | None) -> FerTable:
    """Read the whole file; the pixels of FER2013 are 83 MB of memory."""
    before = _cache_key(path)
    content = hashlib.sha256(readable(path.name).encode() + b"\0")
    lines = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            content.update(block)
            lines += block.count(b"\n")
    pixels, hashes, emotions, usages, bad = bytearray(), [], [], [], {}
    bar = tqdm(
        read_rows(path),
        total=lines - 1,
        desc=f"Reading {path.name}",
        unit="img",
        disable=not (watched() if progress is None else progress),
    )
    for row in bar:
        if row.problem:
            bad[row.number] = row.problem
        pixels += row.pixels or bytes(SIDE * SIDE)
        hashes.append(hashlib.blake2b(row.pixels, digest_size=16).hexdigest())
        emotions.append(row.emotion)
        usages.append(row.usage)
    if not hashes:
        raise DataError(f"{path} has no rows below its header: download it again")
    if _cache_key(path) != before:
        raise DataError(
            f"{path} changed while it was being read: wait until it is complete and start again"
        )
    return FerTable(
        pixels=np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE, 1),
        hashes=np.array(hashes, dtype="S32"),
        emotions=np.array(emotions),
        usages=np.array(usages),
        bad=bad,
        content_hash=content.hexdigest(),
    )
