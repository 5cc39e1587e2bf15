"""Download both Kaggle datasets: `python -m fer_helpers.download data` (what `make data` runs)."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from fer_helpers.files import rename
from fer_helpers.layouts import (
    AFFECTNET_CLASSES,
    FER_CLASSES,
    FER_COUNTS,
    DataError,
    find_dataset,
    list_class_folders,
)

_TRAIN, *_TESTS = (sum(counts) for counts in FER_COUNTS.values())
OFFICIAL_COUNTS = {"train": _TRAIN, "test": sum(_TESTS)}  # Kaggle pools both halves in `test`


@dataclass(frozen=True)
class Source:
    """A dataset on Kaggle: its `owner/slug`, the splits and classes it must hold, and counts."""

    handle: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    counts: dict[str, int]


SOURCES = {
    "fer2013": Source("msambare/fer2013", ("train", "test"), FER_CLASSES, OFFICIAL_COUNTS),
    "affectnet": Source(
        "dollyprajapati182/balanced-affectnet", ("train", "val"), AFFECTNET_CLASSES, {}
    ),
}


def download(name: str, folder: str | Path) -> str:
    """Bring one dataset into `folder/name`, complete or not at all.

    The Kaggle CLI is asked first, then kagglehub; public datasets need no credentials with newer
    versions of either, and both go on where an earlier download stopped. The counts are checked
    before the folder gets its name.

    Args:
        name: a key of `SOURCES`.
        folder: where the dataset's folder is to stand.

    Returns:
        One sentence on what is there now.

    Raises:
        DataError: no access, an archive that is refused or cannot be unpacked, or wrong counts.
    """
    source, folder = SOURCES[name], Path(folder)
    target = folder / name
    if target.exists():
        try:
            return f"{target} is there already: {verify(source, target)}"
        except DataError as error:
            raise DataError(f"{error}: delete {target} and run the download again") from None
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{name}"  # one name, so that what a killed download left goes with it
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        archive, said = _with_cli(source, folder / ".downloads")
        if archive is not None:
            unpack(archive, scratch / name)
        else:
            _with_hub(source, scratch / name, said)
        # The wanted folders may be nested once more inside the archive.
        try:
            found = find_dataset(scratch / name, name)
            counts = verify(source, found)
        except DataError as error:
            raise DataError(
                f"what was downloaded is not what was expected ({error}): delete "
                f"{archive or 'it from the cache of kagglehub'} and run the download again, or "
                f"take it by hand from https://www.kaggle.com/datasets/{source.handle}"
            ) from None
        rename(found, target)
        if archive is not None:
            archive.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return f"{target} is complete: {counts}"


def _with_cli(source: Source, folder: Path) -> tuple[Path | None, str]:
    """The archive that the Kaggle CLI downloads, or None and what it said."""
    program = shutil.which("kaggle", path=str(Path(sys.executable).parent)) or shutil.which(
        "kaggle"
    )
    if program is None:
        return None, "the kaggle command is not installed (pip install kaggle six)"
    # The archive stays here when the download stops, and the CLI goes on from there.
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "datasets", "download", source.handle, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archive = folder / f"{source.handle.rsplit('/', 1)[-1]}.zip"
    if done.returncode == 0 and archive.is_file():
        return archive, ""
    words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
    return None, words[-1]


def _with_hub(source: Source, target: Path, cli_said: str) -> None:
    """Copy what kagglehub downloads and unpacks into its own cache."""
    try:
        import kagglehub
    except ImportError:
        said = "kagglehub is not installed (pip install kagglehub)"
    else:
        try:
            shutil.copytree(kagglehub.dataset_download(source.handle), target)
            return
        except Exception as error:  # requests, kagglehub and the system each raise their own
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise DataError(
        f"{source.handle} cannot be downloaded (kaggle: {cli_said}; kagglehub: {said}): check the "
        "network, or put an API token where kaggle.com/settings says and accept the dataset's "
        f"terms, or download it in a browser from kaggle.com/datasets/{source.handle} and unzip "
        f"it so that it holds the folders {', '.join(source.splits)}"
    )


def unpack(archive: Path, target: Path) -> None:
    """Unzip an archive into a new folder.

    `zipfile` itself keeps everything inside: it drops what in a member's name would lead out, and
    writes a link as a plain file. But such a name says that this is not Kaggle's archive.

    Raises:
        DataError: a member's name leads out of the folder, the archive is damaged, or the disk is
            too small.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                path = PureWindowsPath(name)  # which takes both kinds of slashes for one
                if path.anchor or ".." in path.parts:
                    raise DataError(
                        f"{archive} holds {name!r}, which leads out of its folder: nothing was "
                        "unpacked, so delete it and download it again"
                    )
            size = sum(member.file_size for member in file.infolist())
            free = shutil.disk_usage(archive.parent).free
            if size > free:
                raise DataError(
                    f"{archive} unpacks to {size / 1e9:.1f} GB but {free / 1e9:.1f} GB are free: "
                    "make room and start again"
                )
            file.extractall(target)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise DataError(  # a RuntimeError: it has a password, or is packed in an unknown way
            f"{archive} cannot be unpacked ({error}): delete it and download it again"
        ) from error


def verify(source: Source, folder: Path) -> str:
    """Count a dataset's files by split and class and compare with what is known.

    Returns:
        The counts, "train 28,709, test 7,178".

    Raises:
        DataError: a split or class folder is missing or empty, or a known count differs.
    """
    counts = {}
    for split in source.splits:
        if not (folder / split).is_dir():
            raise DataError(f"{folder} lacks the folder {split}")
        listing = list_class_folders(folder / split, split, str(folder), source.classes)
        counts[split] = len(listing.names)
        expected = source.counts.get(split)
        if expected is not None and counts[split] != expected:
            raise DataError(
                f"{folder / split} holds {counts[split]:,} files instead of {expected:,}"
            )
    return ", ".join(f"{split} {count:,}" for split, count in counts.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Download the datasets named on the command line; 0 if all of them are complete."""
    parser = argparse.ArgumentParser(prog="python -m fer_helpers.download", description=__doc__)
    parser.add_argument("folder", nargs="?", default="data", help="where to put them")
    parser.add_argument("--only", choices=sorted(SOURCES), help="one dataset only")
    options = parser.parse_args(arguments)
    failed = 0
    for name in [options.only] if options.only else SOURCES:
        try:
            print(download(name, options.folder))
        except (DataError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
