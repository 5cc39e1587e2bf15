"""Writing so that nobody ever finds half of a file, and one process at a time into one folder.

What cannot be written is said in one sentence that ends in a way out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

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
    """Rename, over a file; on Windows a scanner, a backup or Excel may hold one for a moment.

    Raises:
        OSError: it cannot be, still after two seconds where it was forbidden.
    """
    for pause in (0.1, 0.4, 1.6, None):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if pause is None:
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


class RunError(RuntimeError):
    """A run folder cannot be opened, written or read; one sentence that ends in a way out."""


@contextlib.contextmanager
def explained(doing: str, where: Path) -> Iterator[None]:
    """Turn an `OSError` into one sentence that says what a person can do about it."""
    try:
        yield
    except OSError as error:
        # Copying a folder collects its errors into one that has their texts, but no number.
        if error.errno in {errno.ENOSPC, errno.EDQUOT} or os.strerror(errno.ENOSPC) in str(error):
            advice = "the disk is full: free some space or set OUTPUT_DIR to another disk"
        elif os.name == "nt" and isinstance(error, PermissionError):
            # Windows says the same of a folder in which a program holds a file.
            advice = (
                "close the program that has it, or a file in it, open and start again, or set "
                "OUTPUT_DIR to a folder that can be written"
            )
        else:
            advice = "set OUTPUT_DIR to a folder that can be written"
        raise RunError(f"Cannot {doing} {where} ({error.strerror or error}); {advice}.") from error


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file so that at every moment either the old or the new content stands there, whole.

    Raises:
        RunError: The folder cannot be written or the disk is full; the old file is untouched then.
    """
    data = content.encode() if isinstance(content, str) else content
    with explained("write", Path(path)):
        return replace_file(path, lambda partial: partial.write_bytes(data))


def probe(folder: Path) -> None:
    """Write 4 MiB into `folder` and take them away again; raises `OSError` where that fails.

    Permission bits do not answer the question (root, read-only mounts, quotas); writing does.
    """
    file = folder / f".probe-{uuid.uuid4().hex[:8]}{PARTIAL}"
    try:
        with file.open("wb") as stream:
            stream.write(bytes(4 << 20))
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        with contextlib.suppress(OSError):  # held by a scanner: `remove_partials` takes it later
            file.unlink(missing_ok=True)


class FolderInUseError(RuntimeError):
    """Another process trains in a folder; one sentence that ends in a way out."""


@contextlib.contextmanager
def sole_writer(folder: str | Path) -> Iterator[None]:
    """Let nobody else train in `folder` meanwhile; the lock of a process that dies is free again.

    A disk that refuses to lock, as some network disks do, is taken on trust.

    Raises:
        FolderInUseError: another process holds the folder.
    """
    with contextlib.suppress(OSError):  # said where it is written
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        lock = _lock(Path(folder) / LOCK)
    except Timeout:
        raise FolderInUseError(IN_USE.format(folder)) from None
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether another process trains in a subfolder of `folder`, as far as the disk can tell."""
    for path in folder.glob(f"*/{LOCK}"):
        try:
            _lock(path).release()
        except Timeout:
            return True
    return False


def _lock(path: Path) -> BaseFileLock:
    """Lock a file, if the disk can; raises `Timeout` where another process has."""
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:  # an OSError, so it comes first
        if not isinstance(lock, SoftFileLock):
            raise
    except (OSError, NotImplementedError):
        pass  # whether the folder can be written is found out, and said, where it is written
    if isinstance(lock, SoftFileLock):
        # What filelock becomes on a disk without locks: its file outlives a process that is killed.
        lock.release()
    return lock
