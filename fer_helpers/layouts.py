"""What is on disk: finding a dataset's folders, naming its classes, listing its files."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

EMOTIONS = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
AFFECTNET_CLASSES = EMOTIONS
FER_CLASSES = tuple(name for name in EMOTIONS if name != "Contempt")
# The folders of `FER_CLASSES`, as Kaggle names them.
FER_FOLDERS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

# The official images of each of `FER_CLASSES` (Goodfellow et al. 2013, "Challenges in
# representation learning").
FER_COUNTS = {
    "Training": (3995, 436, 4097, 7215, 4965, 4830, 3171),
    "PublicTest": (467, 56, 496, 895, 607, 653, 415),
    "PrivateTest": (491, 55, 528, 879, 626, 594, 416),
}

_SPELLINGS = {
    "Anger": "anger angry angered mad",
    "Contempt": "contempt contemptuous",
    "Disgust": "disgust disgusted",
    "Fear": "fear fearful afraid scared",
    "Happy": "happy happiness happily joy joyful",
    "Neutral": "neutral neutrality",
    "Sad": "sad sadness",
    "Surprise": "surprise surprised suprise",
}
_MEANING = {word: name for name, words in _SPELLINGS.items() for word in words.split()}

ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "gif", "heic", "heif", "jfif", "jpe", "jpeg", "jpg", "mpo", "pbm"),
        *("pgm", "png", "ppm", "tif", "tiff", "webp"),
    )
)
_SYSTEM_FILES = {
    *("thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information"),
    *("lost+found", "@eadir"),
}


class DataError(ValueError):
    """Something is wrong with a dataset: one sentence says what, where and what to do."""


def canonical_emotion(name: str) -> str:
    """The project's spelling of an emotion, or the name itself when it is none of the eight.

    `"angry"`, `"ANGER"` and `"0_anger"` are all `"Anger"`; `"bored"` stays `"bored"`.
    """
    words = re.sub(r"^[\d\W_]+|[\W_]+$", "", name).lower()
    return _MEANING.get(words, name)


def readable(name: str) -> str:
    r"""A name on disk as text that can be written anywhere, one spelling for each accent.

    Archives from other systems leave names that are no UTF-8: their odd bytes become `\udce9`.
    """
    return unicodedata.normalize("NFC", name).encode("utf-8", "backslashreplace").decode()


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system, not to the dataset (`.DS_Store`, ...)."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


@dataclass(frozen=True, eq=False)
class Listing:
    """The files of one split, in the order of their names.

    `names` are posix and begin with the split's role, so they are the same wherever the folder
    stands; `stamps` is int64 (N, 2): bytes and modification time in nanoseconds; `labels` is
    int64 (N,), positions in `class_names`. `odd_paths` holds, by position, the paths of files that
    do not stand where their name says: a large set has no room for a path beside every name.
    """

    role: str
    folder: Path
    names: tuple[str, ...]
    stamps: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    odd_paths: Mapping[int, str] = field(default_factory=dict)

    def path(self, position: int) -> str:
        """Where the file at a position stands."""
        usual = _usual_path(self.folder, self.names[position])
        return self.odd_paths.get(position, usual)

    def sample(self) -> list[str]:
        """The paths of 64 to 127 files from all over the split, or of all if they are fewer."""
        positions = range(0, len(self.names), max(1, len(self.names) // 64))
        return [self.path(position) for position in positions]


# ---------------------------------------------------------------- finding


def local_path(source: str | os.PathLike) -> Path:
    """The path that a name means, with the home folder in place of `~`."""
    path = Path(os.fsdecode(source))
    if os.name == "nt" and path.parts[:1] != ("~",):
        return path  # Windows would make up a home folder for the "face" of "~face.jpg"
    try:
        return path.expanduser()
    except RuntimeError:  # "~photo.jpg" is a file, not somebody's home folder
        return path


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, without hidden ones and links back to it."""
    back = _with_parents(folder)
    return sorted(
        e.name
        for e in entries(folder)
        if is_folder(e) and not is_hidden(e.name) and os.path.realpath(e.path) not in back
    )


def _with_parents(folder: str | Path) -> set[str]:
    """The real paths of a folder and of all that it stands in."""
    real = Path(os.path.realpath(folder))
    return {str(place) for place in (real, *real.parents)}


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link that leads nowhere is a file."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def entries(folder: str | Path) -> list[os.DirEntry]:
    """What a folder holds, in no particular order."""
    with os.scandir(folder) as found:
        return list(found)


def split_folder(root: Path, split: str) -> Path | None:
    """The folder of `root` that holds "train", "val" or "test", whatever its case."""
    found = [name for name in subfolders(root) if name.lower() in SPLIT_FOLDERS[split]]
    if len(found) > 1:
        raise DataError(
            f"{root} holds {len(found)} folders for {split} ({', '.join(found)}): keep one of them"
        )
    return root / found[0] if found else None


def holds_split_folders(folder: Path) -> bool:
    """Whether a folder looks like the root of a dataset with a train folder."""
    return split_folder(folder, "train") is not None


def holds_class_folders(folder: Path) -> bool:
    """Whether a folder looks like one split: at least one of its folders names an emotion."""
    return any(canonical_emotion(name) in EMOTIONS for name in subfolders(folder))


def find_dataset(
    path: str | Path,
    parameter: str,
    accepts: Callable[[Path], bool] = holds_split_folders,
    attach: str = "",
) -> Path:
    """The folder that `path` means, probing the forms in which Kaggle mounts a dataset.

    Kaggle mounts `owner/slug` at `/kaggle/input/slug` or `/kaggle/input/datasets/owner/slug`, and
    the wanted folder may be nested once more. Tried in this order: the path itself, its folders,
    and for a path below `kaggle/input` the same with the other mounts.

    Args:
        path: what the user wrote, a folder.
        parameter: name of the parameter that holds it, for the error.
        accepts: says whether a folder that exists looks like the wanted one.
        attach: `owner/slug` to attach on Kaggle, for the error.

    Returns:
        The first folder accepted; `path` itself if it exists but nothing is accepted (the
        listing then says what it lacks).

    Raises:
        DataError: nothing is there (names the parameter, the paths tried and the nearest folder),
            or a folder may not be read and nothing else is accepted.
    """
    if not str(path).strip():
        raise DataError(f"{parameter} is empty: set it to the folder of the dataset")
    path = local_path(path)
    if os.path.isfile(path):
        name = os.fspath(path).lower()
        advice = "unzip it and " if name.endswith(ARCHIVE_SUFFIXES) else ""
        if name.endswith(".csv"):
            advice = "training takes folders of pictures, one per class; "
        raise DataError(f"{parameter} is the file {path}: {advice}give the folder")
    tried = list(dict.fromkeys(_candidates(path)))
    for candidate in tried:
        with contextlib.suppress(OSError):  # one that may not be read
            if candidate.is_dir() and accepts(candidate):
                return candidate
    if os.path.isdir(path):
        try:
            accepts(path)
        except OSError as error:
            raise DataError(
                f"{parameter}: {error.filename} cannot be listed ({error.strerror}): make it "
                "readable for you, or move it out"
            ) from error
        return path
    where = "attach the dataset" + (f" {attach!r}" if attach else "") + f" or set {parameter}"
    hint = where if _below_kaggle(path) else f"set {parameter} to the folder of the dataset"
    raise DataError(
        f"{parameter}: there is no folder {path} (tried {', '.join(map(str, tried))}; "
        f"{nearest_folder(path)}): {hint}"
    )


def _below_kaggle(path: Path) -> int:
    """Number of leading parts up to and including `kaggle/input`, 0 if it is not below it."""
    parts = path.parts
    ends = [i + 2 for i in range(len(parts) - 2) if parts[i : i + 2] == ("kaggle", "input")]
    return ends[0] if ends else 0


def _candidates(path: Path) -> Iterator[Path]:
    yield path
    yield from _inside(path)
    end = _below_kaggle(path)
    if not end:
        return
    base, rest = Path(*path.parts[:end]), path.parts[end:]
    if rest[0] == "datasets" and len(rest) >= 3:
        slug, below = rest[2], Path(*rest[3:])
    else:
        slug, below = rest[0], Path(*rest[1:])
    for mount in (base / slug, *sorted(base.glob(f"datasets/*/{slug}"))):
        yield mount / below
        yield from (folder / below for folder in _inside(mount))
        yield from _inside(mount / below)


def _inside(folder: Path) -> list[Path]:
    """The folders in a folder; none where it is not there or may not be listed."""
    try:
        return [folder / name for name in subfolders(folder)]
    except OSError:
        return []


def nearest_folder(path: Path) -> str:
    """What there is in place of a folder that is missing, in words."""
    parent = path
    while not os.path.isdir(parent) and parent != parent.parent:
        parent = parent.parent
    missing = path.relative_to(parent).parts[0] if parent != path else ""
    lower = {folder.name.lower(): folder.name for folder in _inside(parent)}
    close = difflib.get_close_matches(missing.lower(), list(lower), n=1, cutoff=0.6)
    nearest = parent / lower[close[0]] if close else parent
    return f"the nearest that exists is {nearest}"


# ---------------------------------------------------------------- listing


def walk_once(
    folder: str | Path,
    passed: Iterable[str | Path] = (),
    onerror: Callable[[OSError], object] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Every visible folder below a folder, once each however its links are tied, and its files.

    Args:
        folder: where to begin.
        passed: folders below it that are left out.
        onerror: is told why a folder may not be read.

    Yields:
        The path of a folder and the sorted names of its visible files. What may not be read is
        left out.
    """
    seen = {os.path.realpath(place) for place in (folder, *passed)}

    def is_new(path: str) -> bool:
        real = os.path.realpath(path)
        return not (real in seen or seen.add(real))

    for place, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        visible = (name for name in sorted(folders) if not is_hidden(name))
        folders[:] = [name for name in visible if is_new(os.path.join(place, name))]
        yield place, sorted(name for name in files if not is_hidden(name))


def walk_files(
    folder: Path, passed: Iterable[str] = ()
) -> tuple[list[tuple[str, str, int, int]], int, int]:
    """All files below a folder, once each, however its links are tied.

    Args:
        folder: where to begin. Links to a folder that it stands in lead back.
        passed: real paths of other folders that a link leads back to.

    Returns:
        Sorted `(name below the folder, path, bytes, time in ns)`, the number of hidden or system
        files left out, and the number of folder links that lead back (not followed).

    Raises:
        DataError: a folder below may not be read, or is gone.
    """
    files, hidden, loops = [], 0, 0
    seen = _with_parents(folder).union(passed)
    todo = [(str(folder), "")]
    while todo:
        place, below = todo.pop()
        try:
            inside = entries(place)
        except OSError as error:
            raise DataError(
                f"{place} cannot be listed ({error.strerror}): make it readable for you, or unzip "
                "the dataset again"
            ) from error
        for entry in inside:
            if is_hidden(entry.name):
                hidden += 1
            elif is_folder(entry):
                real = os.path.realpath(entry.path)
                if real in seen:
                    loops += 1
                else:
                    seen.add(real)
                    todo.append((entry.path, f"{below}{entry.name}/"))
            else:
                size, time = _stamp(entry)
                files.append((readable(below + entry.name), entry.path, size, time))
    return sorted(files), hidden, loops


def _stamp(entry: os.DirEntry) -> tuple[int, int]:
    try:
        found = entry.stat()
    except OSError:  # a link to nowhere: reading it says so, file by file
        return 0, 0
    return found.st_size, found.st_mtime_ns


def match_classes(
    folders: Iterable[str],
    role: str,
    folder: Path,
    expected: Sequence[str] | None,
    usual: Iterable[str],
) -> tuple[dict[str, str], list[str]]:
    """Class folders -> class names, matched by meaning.

    Args:
        folders: names found on disk.
        role: which split this is, for messages.
        folder: where they were found, for messages.
        expected: class names that must all be there and no others; None takes what is there.
        usual: folder names that need no note.

    Returns:
        `{folder name: class name}` and notes on the folders that are spelled differently.

    Raises:
        DataError: a class is missing, unknown or there twice, or there is only one.
    """
    names = {name: canonical_emotion(readable(name)) for name in sorted(folders)}
    twice = sorted({c for c in names.values() if list(names.values()).count(c) > 1})
    if twice:
        both = [name for name, c in names.items() if c == twice[0]]
        raise DataError(
            f"{role} in {folder} has {len(both)} folders for {twice[0]} ({', '.join(both)}): "
            "merge them into one"
        )
    if expected is not None:
        extra = [name for name, c in names.items() if c not in expected]
        missing = [c for c in expected if c not in names.values()]
        if extra or missing:
            wrong = [f"lacks {', '.join(missing)}"] if missing else []
            wrong += [f"has unknown class folders ({', '.join(extra)})"] if extra else []
            raise DataError(
                f"{role} in {folder} {' and '.join(wrong)}: it must hold exactly the "
                f"{len(expected)} class folders {', '.join(expected)} (unzip again if it stopped "
                "half-way, move anything else out)"
            )
    if len(names) < 2:
        what = f"only one class folder ({next(iter(names))})" if names else "no class folders"
        raise DataError(f"{role} in {folder} has {what}: a classifier needs at least two classes")
    usual = set(usual)
    spelled = {readable(name): c for name, c in names.items()}
    renamed = [f"{name} as {c}" for name, c in spelled.items() if name not in usual and name != c]
    notes = [f"{role}: read the class folders {', '.join(renamed)}"] if renamed else []
    return names, notes


def list_class_folders(
    folder: Path,
    role: str,
    parameter: str,
    expected: Sequence[str] | None = None,
    usual: Iterable[str] = (),
) -> Listing:
    """List one split that is stored as one folder per class.

    Hidden and system files are left out and counted in the notes; files of any other kind are
    listed, so that reading them says what is wrong with them.

    Raises:
        DataError: class folders are missing, empty, unknown or there twice.
    """
    try:
        found = subfolders(folder)
    except OSError as error:
        raise DataError(f"{parameter}: {folder} cannot be listed ({error.strerror})") from error
    if not found:
        raise DataError(
            f"{parameter}: {folder} holds no class folders: it should hold one folder per emotion"
        )
    classes, notes = match_classes(found, role, folder, expected, usual)
    class_names = tuple(sorted(classes.values()))
    hidden, loops = 0, 0
    # A link from one class to another would put the same pictures under both labels.
    real = {os.path.realpath(folder / name): name for name in classes}
    if len(real) < len(classes):
        twice = sorted(set(classes).difference(real.values()))
        raise DataError(
            f"{role}: {', '.join(twice)} in {folder} is the folder of another class by a link: "
            "remove the link"
        )
    passed = _with_parents(folder).union(real)

    def files() -> Iterator[tuple[str, str, int, int, int]]:
        nonlocal hidden, loops
        for name, emotion in classes.items():
            inside, skipped, circles = walk_files(folder / name, passed)
            if not inside:
                raise DataError(
                    f"{role}: the class folder {folder / name} is empty: unzip the dataset again "
                    "or remove the class everywhere"
                )
            label = class_names.index(emotion)
            yield from ((f"{role}/{readable(name)}/{f[0]}", *f[1:], label) for f in inside)
            hidden, loops = hidden + skipped, loops + circles

    listing = make_listing(role, folder, files(), class_names, notes)
    beside = [e for e in entries(folder) if e.name not in classes]
    hidden += sum(is_hidden(e.name) for e in beside)
    back = [is_folder(e) for e in beside if not is_hidden(e.name)]
    loops += sum(back)
    loose = len(back) - sum(back)
    for count, what in (
        (hidden, "hidden or system files ignored"),
        (loops, "folder links that lead back not followed"),
        (loose, "files beside the class folders ignored"),
    ):
        if count:
            notes.append(f"{role}: {count} {what}")
    return replace(listing, notes=tuple(notes))


def make_listing(
    role: str,
    folder: Path,
    files: Iterable[tuple[str, str, int, int, int]],
    class_names: Sequence[str],
    notes: Iterable[str] = (),
) -> Listing:
    """Put `(name, path, bytes, time, label)` in the order of the names."""
    names, odd, stamps, labels = [], {}, array("q"), array("q")
    for name, path, *stamp, label in files:
        if path != _usual_path(folder, name):
            odd[len(names)] = path
        names.append(name)
        stamps.extend(stamp)
        labels.append(label)
    order = np.argsort(np.array(names, dtype=object), kind="stable")
    return Listing(
        role=role,
        folder=folder,
        names=tuple(names[i] for i in order),
        stamps=np.array(stamps, dtype=np.int64).reshape(-1, 2)[order],
        labels=np.array(labels, dtype=np.int64)[order],
        class_names=tuple(class_names),
        notes=tuple(notes),
        odd_paths={new: odd[old] for new, old in enumerate(order) if old in odd} if odd else {},
    )


def _usual_path(folder: Path, name: str) -> str:
    return os.path.join(folder, *name.split("/")[1:])
