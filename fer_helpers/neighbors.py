"""The layouts beside the two main ones: RAF-DB, CK+48, label tables, numbered and plain folders."""

from __future__ import annotations

import csv
import itertools
import re
import unicodedata
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_helpers.layouts import (
    EMOTIONS,
    FER_CLASSES,
    IMAGE_SUFFIXES,
    DataError,
    Listing,
    canonical_emotion,
    entries,
    is_folder,
    is_hidden,
    list_class_folders,
    make_listing,
    readable,
    split_folder,
    subfolders,
    walk_files,
    walk_once,
)

FER_CSV_FILES = ("icml_face_data.csv", "fer2013.csv")
LABEL_TABLES = ("labels.csv", "label.csv")
RAF_TABLES = ("train_labels.csv", "test_labels.csv", "list_patition_label.txt")

# The numbers 1..7 of RAF-DB, as its own documentation gives them.
RAF_ORDER = ("Surprise", "Fear", "Disgust", "Happy", "Sad", "Anger", "Neutral")
_RAF_NUMBERS = "1234567"
_RAF_NAME = re.compile(r"(train|test)_\d+(_aligned)?\.\w+$")
_CK_NAME = re.compile(r"S\d{3}_\d{3}_\d{8}\.\w+$")

_OTHER_SPLITS = {"publictest", "privatetest", "dev", "devel", "development", "eval", "evaluation"}
_SPLIT_COLUMNS = ("split", "usage", "set", "subset")

LAYOUTS = {
    "fer2013": "FER2013 as Kaggle folders",
    "fer2013-csv": "a CSV file like FER2013's",
    "raf-db": "RAF-DB: aligned pictures and label lists",
    "ckplus": "CK+48: three frames of each sequence",
    "labels-csv": "pictures with a table of labels",
    "folders": "one folder per class",
}


@dataclass(frozen=True)
class Recognized:
    """What stands in a folder: a key of `LAYOUTS`, the dataset's name, and where it begins.

    The name is empty where only its folder could give it one.
    """

    layout: str
    dataset: str
    root: Path


def recognize(folder: Path) -> Recognized | None:
    """Say which layout stands in `folder`, from what is on disk; None if it is none of them.

    Raises:
        DataError: a layout that is known and not read (YOLO text labels).
    """
    train = split_folder(folder, "train")
    names = set(itertools.islice(_file_names(train or folder), 200))
    if train and {"images", "labels"} <= {name.lower() for name in subfolders(train)}:
        raise DataError(
            f"{folder} is in YOLO format (labels in text files beside the images), which is not "
            "read here: use a release of the dataset with one folder per class"
        )
    # As its authors give it, RAF-DB holds more texts of annotations than pictures.
    pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    raf = sum(bool(_RAF_NAME.match(name)) for name in pictures)
    if _raf_tables(folder) and raf and raf >= len(pictures) // 2:
        return Recognized("raf-db", "RAF-DB", folder)
    if _label_table(folder):
        return Recognized("labels-csv", "", folder)
    if train:
        classes = sorted(canonical_emotion(name) for name in subfolders(train))
        # With folders of its own for PublicTest, or with Contempt (FER+), it is as any other.
        kaggle = split_folder(folder, "test") and not split_folder(folder, "val")
        fer_names = any(name.startswith("Training_") for name in names)
        if kaggle and fer_names and set(classes) <= set(FER_CLASSES):
            return Recognized("fer2013", "FER2013", folder)
        # Others have these eight classes, too (FER+), and a false name makes a set "seen".
        named = f"{own_name(folder.parent)}/{own_name(folder)}".lower()
        affectnet = classes == list(EMOTIONS) and "affectnet" in named
        # Names like train_1.png are anybody's, and other numbers may mean something else.
        is_raf = classes == list(_RAF_NUMBERS) and raf and raf >= len(pictures) // 2
        if len(classes) > 1:
            name = "RAF-DB" if is_raf else "AffectNet" if affectnet else ""
            return Recognized("folders", name, folder)
    if any((folder / name).is_file() for name in FER_CSV_FILES):
        return Recognized("fer2013-csv", "FER2013", folder)
    inside = subfolders(folder)
    if len(inside) > 1 and all(_holds_files(folder / name) for name in inside):
        if names and sum(bool(_CK_NAME.match(name)) for name in names) > len(names) // 2:
            return Recognized("ckplus", "CK+48", folder)
        return Recognized("folders", "", folder)
    return None


def own_name(path: Path) -> str:
    """What a folder or file is called, as text; for `slug/versions/1` of kagglehub, its slug."""
    versioned = path.parent.name == "versions" and path.name.isdigit()
    return readable((versioned and path.parents[1].name) or path.name)


def _file_names(folder: Path) -> Iterator[str]:
    for _, files in walk_once(folder):
        yield from files[:20]  # a few per folder: names of one class would not tell the layout


def _holds_files(folder: Path) -> bool:
    return any(not is_folder(e) and not is_hidden(e.name) for e in entries(folder))


def _label_table(folder: Path) -> Path | None:
    found = [e.name for e in entries(folder) if e.name.lower() in LABEL_TABLES and e.is_file()]
    return folder / max(found, key=str.lower) if found else None


def _raf_tables(folder: Path) -> list[Path]:
    places = (folder, folder / "EmoLabel", folder / "basic" / "EmoLabel")
    return [place / name for place in places for name in RAF_TABLES if (place / name).is_file()]


# ---------------------------------------------------------------- listing


def lister(found: Recognized, order: str | Sequence[str] | None) -> Callable[..., dict]:
    """Build the function that lists a recognized dataset: `{"train": Listing, ...}`.

    Asked for one role, the function lists no other, unless one table labels them all.

    Args:
        found: what was recognized, any layout but "fer2013" and "fer2013-csv".
        order: class names in the order of the dataset's numbers, where it has numbers; a text
            is split at commas and blanks.
    """
    words = order.replace(",", " ").split() if isinstance(order, str) else list(order or [])
    names = [canonical_emotion(word) for word in words]
    if len(set(names)) < len(names):
        raise DataError(f"the label order {' '.join(names)} names a class twice: name each once")
    if found.layout in ("raf-db", "labels-csv"):
        make = _list_raf if found.layout == "raf-db" else _list_table
        return lambda role="": make(found, names)
    return lambda role="": _list_folders(found, names, role)


def _list_folders(found: Recognized, order: list[str], only: str) -> dict[str, Listing]:
    folders = _split_folders(found.root)
    wanted = {role: f for role, f in folders.items() if f is not None and only in ("", role)}
    numbers = sorted(subfolders(folders["train"]), key=_as_number)
    if any(name.isdigit() for name in numbers):
        return _list_numbered(found, wanted, numbers, order)
    listings = {
        role: list_class_folders(folder, role, "the dataset folder")
        for role, folder in wanted.items()
    }
    _same_classes(listings)
    return listings


def _split_folders(root: Path) -> dict[str, Path | None]:
    """The folders of train, val and test; the dataset's own as train where there is none."""
    folders = {role: split_folder(root, role) for role in ("train", "val", "test")}
    if folders["train"] is None:
        return {"train": root, "val": None, "test": None}
    others = [
        name
        for name in subfolders(root)
        if re.sub(r"[\W_]", "", name.lower()) in _OTHER_SPLITS and subfolders(root / name)
    ]
    if others:  # passing over them would cut a test set out of train, or choose on the wrong one
        raise DataError(
            f"{root} holds {', '.join(others)} beside {folders['train'].name}, and what they are "
            "for is not known: rename each to val or test, or move it out"
        )
    return folders


def _list_numbered(
    found: Recognized, folders: dict[str, Path], numbers: list[str], order: list[str]
) -> dict[str, Listing]:
    if not order and found.dataset == "RAF-DB":
        order = list(RAF_ORDER)
    meaning = _meaning(numbers, order, next(iter(folders.values())))
    read = ", ".join(f"{number} as {name}" for number, name in meaning.items())
    listings = {}
    for role, folder in folders.items():
        if sorted(subfolders(folder), key=_as_number) != numbers:
            raise DataError(
                f"{role} in {folder} does not hold the folders {', '.join(numbers)} of train: "
                "unzip the dataset again"
            )
        files, notes = _gather(folder, role)
        emotions = [meaning[name.split("/")[1]] for name, *_ in files]
        for number, emotion in meaning.items():
            if emotion not in emotions:  # its class would be missing, and the next ones move up
                raise DataError(
                    f"{role}: the class folder {folder / number} is empty: unzip the dataset again"
                )
        notes += [f"read the numbered folders {read}"] if role == "train" else []
        listings[role] = _named(role, folder, files, emotions, notes)
    return listings


def _as_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (-1, name)


def _gather(
    folder: Path, role: str, listed: Container[str] = ()
) -> tuple[list[tuple[str, str, int, int]], list[str]]:
    """Every file below a folder of folders, named from its role, and notes.

    Files that are in no folder there are left out, unless a table has `listed` them.
    """
    found, hidden, loops = walk_files(folder)
    files = [(f"{role}/{name}", *rest) for name, *rest in found]
    notes = [f"{role}: {hidden} hidden or system files ignored"] if hidden else []
    notes += [f"{role}: {loops} folder links that lead back not followed"] if loops else []

    def is_loose(name: str) -> bool:
        below = name.split("/", 1)[1]
        places = _plain(below), _plain(f"{folder.name}/{below}")
        return "/" not in below and not any(place in listed for place in places)

    tables = {f"{role}/{name}" for name in LABEL_TABLES}  # a table is not one of its pictures
    loose = sum(is_loose(name) and name.lower() not in tables for name, *_ in files)
    beside = (
        "files without a label beside the folders" if listed else "files beside the class folders"
    )
    notes += [f"{role}: {loose} {beside} ignored"] if loose else []
    return [file for file in files if not is_loose(file[0])], notes


def _meaning(numbers: Sequence[str], order: list[str], where: Path) -> dict[str, str]:
    if not any(re.fullmatch(r"-?\d+(\.\d+)?", number) for number in numbers):
        return {name: canonical_emotion(name) for name in numbers}
    if not order:
        way = "write them into the table" if where.is_file() else "rename the folders to them"
        raise DataError(
            f"{where} labels its pictures with the numbers {', '.join(numbers)}, and their "
            f"meaning differs between releases: which emotion is each? Find out and {way}, or "
            "give load_faces the names in their order as `order`, for the official AffectNet "
            "order 'neutral happy sad surprise fear disgust anger contempt'"
        )
    if len(order) != len(numbers):
        raise DataError(
            f"{where} has {len(numbers)} numbers ({', '.join(numbers)}) but the label order has "
            f"{len(order)} names ({', '.join(order)}): give one name for each number"
        )
    return dict(zip(numbers, order, strict=True))


def _named(role, folder, files, emotions: Sequence[str], notes) -> Listing:
    classes = tuple(sorted(set(emotions)))
    if len(classes) < 2:
        raise DataError(
            f"{role} in {folder} has {len(classes)} class: a classifier needs at least two"
        )
    rows = ((*file, classes.index(e)) for file, e in zip(files, emotions, strict=True))
    return make_listing(role, folder, rows, classes, notes)


def _same_classes(listings: dict[str, Listing]) -> None:
    first = next(iter(listings.values()))  # train, unless one is listed alone
    for role, listing in listings.items():
        if listing.class_names != first.class_names:
            odd = sorted(set(listing.class_names) ^ set(first.class_names))
            raise DataError(
                f"train and {role} in {first.folder.parent} do not have the same classes "
                f"({', '.join(odd)} in only one of them): make their class folders equal"
            )


# ---------------------------------------------------------------- tables


def _read_rows(table: Path, delimiter: str = ",") -> list[list[str]]:
    text = table.read_text(encoding="utf-8-sig", errors="replace")
    return [
        [cell.strip() for cell in row]
        for row in csv.reader(text.splitlines(), delimiter=delimiter)
        if row
    ]


def _list_raf(found: Recognized, order: list[str]) -> dict[str, Listing]:
    """RAF-DB: `train_00001_aligned.jpg` and lists of `train_00001.jpg` with 1..7."""
    numbers = {}
    tables = _raf_tables(found.root)
    for table in tables:
        for row in _read_rows(table, "," if table.suffix == ".csv" else " "):
            if len(row) > 1 and _RAF_NAME.match(row[0]):
                numbers[row[0].replace("_aligned", "").rsplit(".", 1)[0]] = row[1]
    values = sorted(set(numbers.values()), key=_as_number)
    if not order and values == list(_RAF_NUMBERS):
        order = list(RAF_ORDER)
    meaning = _meaning(values, order, tables[0])
    every, hidden, _ = walk_files(found.root)
    pictures = [file for file in every if _RAF_NAME.match(file[0].rsplit("/", 1)[-1])]
    aligned = [file for file in pictures if "_aligned." in file[0]]
    listings, unlisted = {}, 0
    for role in ("train", "test"):
        files, emotions = [], []
        for file in aligned or pictures:
            base = file[0].rsplit("/", 1)[-1]
            number = numbers.get(base.replace("_aligned", "").rsplit(".", 1)[0])
            unlisted += number is None and base.startswith(role)
            if number is not None and base.startswith(role):
                files.append((f"{role}/{base}", *file[1:]))
                emotions.append(meaning[number])
        notes = [f"{hidden} hidden or system files ignored"] if hidden and role == "train" else []
        if files:
            listings[role] = _named(role, found.root, files, emotions, notes)
    _complete(listings, found.root, unlisted, len(numbers))
    return listings


def _complete(listings: dict[str, Listing], root: Path, unlisted: int, rows: int) -> None:
    count = sum(len(listing.names) for listing in listings.values())
    if "train" not in listings or unlisted or count != rows:
        raise DataError(
            f"{root}: {rows} labels, {count} pictures with a label and {unlisted} pictures "
            "without one do not fit together: unzip the dataset again or repair its label table"
        )
    _same_classes(listings)


def _list_table(found: Recognized, order: list[str]) -> dict[str, Listing]:
    """Pictures whose label stands in `labels.csv`, whatever folder they are in."""
    table = _label_table(found.root)
    head, *rows = _read_rows(table) or [[]]
    columns = [name.lower() for name in head]
    try:
        path_column = next(i for i, name in enumerate(columns) if name in _PATH_COLUMNS)
        label_column = next(i for i, name in enumerate(columns) if name in _LABEL_COLUMNS)
    except StopIteration:
        raise DataError(
            f"{table} has the columns {', '.join(head) or '(none)'}: it needs one named path (or "
            "pth, image, file) and one named label (or emotion)"
        ) from None
    labels = {}
    for row in (row for row in rows if len(row) == len(head)):
        # Tables that went through pandas may have 3.0 for 3.
        label = re.sub(r"(?<=\d)\.0+$", "", row[label_column])
        first = labels.setdefault(_plain(row[path_column]), label)
        if label != first:
            raise DataError(
                f"{table} labels {row[path_column]} as {first} and as {label}: keep one of the rows"
            )
    values = sorted(set(labels.values()), key=_as_number)
    meaning = _meaning(values, order, table)
    folders = _split_folders(found.root)
    divided = next((name for name in columns if name in _SPLIT_COLUMNS), None)
    if divided and folders["train"] == found.root:
        parts = sorted({row[columns.index(divided)] for row in rows if len(row) == len(head)})
        if len(parts) > 1:  # another division would not compare with anybody's numbers
            raise DataError(
                f"{table} divides the pictures in its column {divided} ({', '.join(parts[:4])}), "
                "which is not read: put them into folders train, val and test, or remove it"
            )
    listings, unlisted, moved = {}, 0, 0
    for role, folder in folders.items():
        if folder is None:
            continue
        files, notes = _gather(folder, role, labels)
        known, emotions = [], []
        for file in files:
            below = file[0].split("/", 1)[1]
            label = labels.get(_plain(below)) or labels.get(_plain(f"{folder.name}/{below}"))
            if label is None:
                unlisted += 1
                continue
            known.append(file)
            emotions.append(meaning[label])
            folder_says = canonical_emotion(below.split("/")[0])
            moved += folder_says != meaning[label] and folder_says in meaning.values()
        if not known:
            raise DataError(
                f"{table} names none of the pictures in {folder}: its paths must be relative to it"
            )
        if moved and role == "train":
            notes.append(f"the label table overrules the folder of {moved} training pictures")
        listings[role] = _named(role, folder, known, emotions, notes)
    _complete(listings, found.root, unlisted, len(labels))
    return listings


_PATH_COLUMNS = ("pth", "path", "image", "file", "filename", "filepath")
_LABEL_COLUMNS = ("label", "emotion", "class")


def _plain(path: str) -> str:
    """A path as a table and a disk can agree on it."""
    text = unicodedata.normalize("NFC", path.replace("\\", "/")).lower()
    return re.sub(r"^(\./)+", "", text)


def subjects(files: Sequence[str]) -> list[str]:
    """The person on each CK+ picture, from its name: `S010_002_00000014.png` -> `S010`."""
    return [file.rsplit("/", 1)[-1].split("_")[0] for file in files]
