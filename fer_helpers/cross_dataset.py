"""Other people's datasets: the honest test of a face classifier was no part of its training.

Whether that is so is looked up, not assumed: the same files, the same name, or single pictures that
some phase trained or chose on make a set *seen*. Without such pictures it is scored again, which is
its *leak-free* score. Copies that were compressed or resized anew are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fer_helpers.any_layout import load_faces
from fer_helpers.evaluation import evaluate
from fer_helpers.layouts import DataError
from fer_helpers.runs import RunError
from fer_helpers.splits import Splits, TestSet


def why_seen(faces: Any, used: Sequence[Any]) -> tuple[str, np.ndarray]:
    """Say why a set counts as seen (an empty text if no exact copy was found), and which part.

    Looks for the same files (content hash), the same dataset name, and the same pixels in pictures
    of the same size; blank pictures, which are all alike anyway, are left out.

    Args:
        faces: The `FaceSet` to be scored.
        used: Every `FaceSet` that any phase trained or chose on.

    Returns:
        The reason, and bool (N,): True for a seen picture, and for all of a set with the same files
        or name.
    """
    seen, reasons = np.ones(len(faces), bool), []
    for other in used:
        if other.content_hash == faces.content_hash:
            return f"the same files as {other.dataset} {other.split}", seen
        if other.dataset.casefold() == faces.dataset.casefold():
            return f"{other.dataset} was used ({other.split})", seen
    own, seen = _pixel_hashes(faces), ~seen
    for other in used:
        known = _known(other)
        shared = np.array([digest in known for digest in own], bool)
        if shared.any():
            where = f"{other.dataset} {other.split}"
            reasons.append(f"{shared.sum():,} of {len(own):,} pictures are in {where} too")
        seen |= shared
    return "; ".join(reasons), seen


def mark_seen(splits: Splits, earlier: Splits) -> Splits:
    """The same with tests that are leak-free of an earlier phase too, and says how many were not.

    Args:
        splits: what the second phase learns and is scored on; its `leak_free` knows its own train.
        earlier: what the first phase learns and chooses on. Pictures of the same size with the same
            pixels are found, in color or grey.
    """
    learned = _known(earlier.train)
    if earlier.selection is not None:
        learned |= _known(earlier.selection)
    tests = []
    for test in splits.tests:
        seen = np.array([digest in learned for digest in _pixel_hashes(test)], bool)
        count = f"{seen.sum():,} of {len(test):,} faces"
        print(f"{test.dataset} {test.split}: {count} also stand in {earlier.train.dataset}.")
        tests.append(replace(test, leak_free=test.leak_free & ~seen))
    return replace(splits, tests=tuple(tests))


def _known(faces: Any) -> set[str]:
    return set(_pixel_hashes(faces)) - {""}


def _pixel_hashes(faces: Any) -> list[str]:
    """One hash per picture, "" for blank ones.

    Not `FaceSet.pixel_hashes`: a color picture has to get the hash of its grey copy, whichever of
    the two was trained on.
    """
    hashes = []
    for start in range(0, len(faces), 1024):
        for image in faces.images(np.arange(start, min(start + 1024, len(faces)))):
            if image.shape[-1] == 3:
                image = np.asarray(Image.fromarray(image).convert("L"))[..., None]
            blank = image.min() == image.max()
            content = repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()
            hashes.append("" if blank else hashlib.sha256(content).hexdigest())
    return hashes


def load_others(
    folders: str, model_classes: Sequence[str], origin: str, **reading: Any
) -> list[TestSet]:
    """Read the sets that `EXTRA_TEST_DIRS` names: of each the test split, else all of it.

    Done before training, so that a misspelled folder costs a second and not the night.

    Args:
        folders: separated by commas; empty for none.
        model_classes: names of the classes that the model will answer with.
        origin: `"drawn"` or `"real"`, as of the run.
        **reading: other arguments of `any_layout.load_faces`.

    Raises:
        DataError: a folder cannot be read.
        RunError: a set shares fewer than two classes with the model, or drawn and real faces meet.
    """
    tests = []
    # Nothing is learned or chosen on these sets: one without a test folder is scored whole.
    reading |= {"parameter": "EXTRA_TEST_DIRS", "selection_size": 0, "learn": False}
    for folder in filter(None, (part.strip() for part in folders.split(","))):
        try:
            splits = load_faces(folder, **reading)
        except DataError as error:
            named = str(error).startswith("EXTRA_TEST_DIRS")
            raise error if named else DataError(f"EXTRA_TEST_DIRS: {error}") from error
        test = splits.tests[0]
        if test.origin != origin:
            raise RunError(
                f"EXTRA_TEST_DIRS: {folder} holds {test.origin} faces and this run is on {origin} "
                "ones; drawn and real data never meet in one run, so leave it out."
            )
        _shared_classes(test, model_classes)
        print(splits.scored)
        for note in splits.notes:
            print("  -", note)
        tests.append(test)
    return tests


def _shared_classes(faces: Any, model_classes: Sequence[str]) -> list[str]:
    shared = [name for name in model_classes if name in faces.class_names]
    if len(shared) < 2:
        raise RunError(
            f"{faces.dataset} shares {len(shared)} of the classes {', '.join(model_classes)}; at "
            "least two are needed, so look at the names of its class folders."
        )
    return shared


def cross_dataset(
    faces: Any,
    logits: np.ndarray,
    model_classes: Sequence[str],
    used: Sequence[Any],
    stamp: Mapping[str, Any],
    *,
    temperature: float = 1.0,
    bootstrap: int = 10_000,
) -> dict[str, Any]:
    """Score a set on the classes that it shares with the model: one line of the table.

    Pictures of other classes are left out, and so are the model's scores of classes that the set
    does not have.

    Args:
        faces: The `FaceSet` that was scored.
        logits: (N, K) float, one column per class of the model.
        model_classes: K names.
        used: Every `FaceSet` that any phase trained or chose on; see `why_seen`.
        stamp: From `records.stamp`; its `n` becomes the number of pictures that were counted.
        temperature: What the logits are divided by for NLL, Brier and ECE.
        bootstrap: Draws for the intervals; 0 for none.

    Returns:
        `{"stamp", "seen" (a reason or ""), "class_names", "left_out" (pictures), "numbers",
        "leak_free"}`; the last are the numbers without the seen pictures, None if none is left.

    Raises:
        RunError: Fewer than two classes are shared.
    """
    shared = _shared_classes(faces, model_classes)
    position = {name: index for index, name in enumerate(shared)}
    labels = np.array([position.get(name, -1) for name in faces.class_names])[faces.labels]
    kept = labels >= 0
    columns = [list(model_classes).index(name) for name in shared]
    why, seen = why_seen(faces, used)
    free = kept & ~seen

    def numbers_of(part: np.ndarray) -> dict[str, Any]:
        return evaluate(
            np.asarray(logits)[part][:, columns],
            labels[part],
            shared,
            temperature=temperature,
            bootstrap=bootstrap,
            seed=stamp["seed"],
        )

    return {
        "stamp": {**stamp, "n": int(kept.sum())},
        "seen": why,
        "class_names": shared,
        "left_out": int((~kept).sum()),
        "numbers": numbers_of(kept),
        "leak_free": numbers_of(free) if free.any() else None,
    }


def cross_dataset_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Lay the entries of `cross_dataset` under each other; shares are 0..1."""
    lines = []
    for row in rows:
        low, high = row["numbers"]["accuracy_interval"] or (None, None)
        lines.append(
            {
                "dataset": row["stamp"]["dataset"],
                "split": row["stamp"]["split"],
                "origin": row["stamp"]["origin"],
                "n": row["stamp"]["n"],
                "left_out": row["left_out"],
                "classes": len(row["class_names"]),
                "accuracy": row["numbers"]["accuracy"],
                "low": low,
                "high": high,
                "macro_f1": row["numbers"]["macro_f1"],
                "leak_free_accuracy": row["leak_free"]["accuracy"] if row["leak_free"] else None,
                "status": f"seen: {row['seen']}" if row["seen"] else "no exact copy found",
            }
        )
    return pd.DataFrame(lines)
