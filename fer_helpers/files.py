"""Writing a file so that nobody ever finds half of it: the one mechanism for every kind of file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"


def replace_file(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write(temporary path)`, then put what it wrote at `path` in one step.

    Whoever reads during a crash, or after the disk ran full, finds the previous file whole: the
    data is on the disk before the name points to it. What `write` or the disk raises passes
    through, and what stood at `path` is untouched then.

    Args:
        path: where the file is wanted; its folder is made if it has to be.
        write: gets a path in the same folder and writes everything there.

    Returns:
        `path`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        _rename(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def _rename(source: Path, target: Path) -> None:
    """Rename; on Windows a scanner, a backup or Excel may hold the target for a moment."""
    for pause in (0.1, 0.4, 1.6, None):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt" or pause is None:
                raise
            time.sleep(pause)


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk; only POSIX can, and some network disks refuse."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partials(folder: str | Path) -> None:
    """Delete what a process that was killed in the middle of `replace_file` left in `folder`."""
    for partial in Path(folder).glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            partial.unlink()
