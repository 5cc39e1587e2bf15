"""A cache on disk whose entries appear complete or not at all, and go when nobody opens them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import platformdirs

from fer_helpers.files import rename, sync_file
from fer_helpers.layouts import local_path

Loaded = TypeVar("Loaded")

FORMAT = 6  # raise it whenever what is written, or how a picture is decoded, changes
KEEP_DAYS = 60  # an entry that nobody opens for so long is thrown away
DAMAGED = (OSError, ValueError, KeyError, EOFError, BadZipFile)  # what a spoiled entry raises


def default_cache_dir() -> Path:
    """Where decoded pictures go unless the caller says otherwise: the user's cache folder."""
    return Path(platformdirs.user_cache_dir("fer-helpers", appauthor=False))


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
            for file in temporary.iterdir():  # power may fail: the name must not come first
                sync_file(file)
            with contextlib.suppress(OSError):  # another run was faster: its entry is taken
                rename(temporary, entry)
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


def _clear_old(folder: Path) -> None:
    """Throw away entries that nobody opened for long: of older formats, of folders that changed.

    Only what has an entry's name and holds pixels is touched; what a killed run has left half
    written, when nothing was written there for an hour.
    """
    for pixels in folder.glob("*/pixels.npy"):
        entry = pixels.parent
        name = re.fullmatch(r"[0-9a-f]{32}(\..+)?", entry.name)
        if name is None:
            continue
        newest, days = (pixels, 1 / 24) if name[1] else (entry, KEEP_DAYS)
        with contextlib.suppress(OSError):  # another run clears it, too
            if newest.stat().st_mtime < time.time() - days * 86_400:
                shutil.rmtree(entry, ignore_errors=True)
