"""Writing so that nobody ever finds half of a file, and one process at a time into one folder."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, PARTIAL = ".training.lock", ".partial"
IN_USE = (
    "Another process trains in {} at this moment: wait for it, end it, or choose another RUN_NAME."
)


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
    # No process id: two containers that share a disk may both be number 17.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        sync_file(partial)
        rename(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def sync_file(path: Path) -> None:
    """Put what was written into a file on the disk, before a name points to it."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename, over a file; on Windows a scanner, a backup or Excel may hold one for a moment."""
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


def remove_partials(folder: str | Path, *, minutes: float = 0.0) -> None:
    """Delete what a process that was killed in the middle of `replace_file` left in `folder`.

    What is younger than `minutes` stays: another process may be at it.
    """
    for partial in Path(folder).glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):
            if minutes and time.time() - partial.stat().st_mtime < 60 * minutes:
                continue
            partial.unlink()


class FolderInUseError(RuntimeError):
    """Another process trains in a folder; one sentence that ends in a way out."""


@contextlib.contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Let nobody else train in `folder` meanwhile; the lock of a process that dies is free again.

    A disk that refuses to lock, as some network disks do, is taken on trust.

    Raises:
        FolderInUseError: another process holds the folder.
    """
    lock = FileLock(Path(folder) / LOCK, timeout=0)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:  # an OSError, so it comes first
        raise FolderInUseError(IN_USE.format(folder)) from None
    except (OSError, NotImplementedError):
        pass  # whether the folder can be written is found out, and said, where it is written
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether another process trains in a subfolder of `folder`, as far as the disk can tell."""
    for path in folder.glob(f"*/{LOCK}"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return True
        except (OSError, NotImplementedError):
            continue
    return False
