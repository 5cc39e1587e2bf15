"""Pictures in batches: their faces cut out, classified together, and put in a table."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from fer_helpers.answers import BOX_COLUMNS, NO_FACE_NOTE, Prediction, annotate, answer_from
from fer_helpers.classifier import (
    Classifier,
    PredictionError,
    check_columns,
    check_options,
    load_classifier,
)
from fer_helpers.detectors import Detector, DetectorError, shared_detector
from fer_helpers.faces import crop_face, find_faces
from fer_helpers.files import replace_file
from fer_helpers.front_end import watched
from fer_helpers.layouts import local_path
from fer_helpers.pictures import ImageError
from fer_helpers.sources import named_sources, read_image

if TYPE_CHECKING:
    import pandas as pd

MAX_CROP_SIDE = 112  # pixels; a picture no larger is taken as a face crop by crop="auto"
CROPPED_NOTE = "assumed already cropped"
BLANK_SPREAD = 8  # grey levels between darkest and brightest pixel, as in `flaws.is_blank`
BLANK_NOTE = "shows nothing"
FIRST_COLUMNS = ("file", "face", *BOX_COLUMNS, "label", "confidence")  # then the classes
LAST_COLUMNS = ("uncertain", "note", "error")
JPEG_MAX_SIDE = 65_500  # pixels; libjpeg writes no larger picture


@dataclass
class Picture:
    """A picture on its way: what was cut out of it, waiting to be classified."""

    name: str
    image: Image.Image | None = None
    crops: list[Image.Image] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int] | None] = field(default_factory=list)
    note: str = ""


def cut_faces(
    picture: Picture, classifier: Classifier, crop: str, detector: Detector | str | Path | None
) -> None:
    """Fill in the crops of a picture, or the note that says why there are none."""
    image = picture.image
    if "reduced_by" in image.info:
        picture.note = f"read at 1/{image.info['reduced_by']} of its size"
    small = crop == "auto" and max(image.size) <= MAX_CROP_SIDE
    if small and np.ptp(np.asarray(image), axis=(0, 1)).max() <= BLANK_SPREAD:
        picture.note = BLANK_NOTE
        return
    if small or crop == "none":
        picture.crops, picture.boxes = [image], [None]
        picture.note = "; ".join(filter(None, (picture.note, CROPPED_NOTE * small)))
        return
    try:
        loaded = shared_detector(detector)
    except DetectorError as error:
        if detector is not None:  # somebody named a file: that it cannot be used is their answer
            raise
        picture.note = str(error)
        return
    found = find_faces(image, detector=loaded)
    picture.crops = [
        crop_face(image, face, classifier.margin, size=classifier.size) for face in found
    ]
    picture.boxes = [face.whole_box for face in found]
    notes = (picture.note, loaded.note, NO_FACE_NOTE * (not found))
    picture.note = "; ".join(filter(None, notes))


def answer_all(
    pictures: Sequence[Picture],
    classifier: Classifier,
    min_confidence: float,
    views: int,
    batch_size: int,
) -> list[list[Prediction]]:
    """Classify the crops of all pictures together; at least one answer for each picture."""
    crops = [crop for picture in pictures for crop in picture.crops]
    rows = iter(classifier.probabilities(crops, views=views, batch_size=batch_size))
    answers = []
    for picture in pictures:
        note = "; ".join(filter(None, (picture.note, classifier.note)))
        mine = [
            answer_from(
                next(rows), classifier.class_names, min_confidence, box=box, note=note, face=crop
            )
            for crop, box in zip(picture.crops, picture.boxes, strict=True)
        ]
        answers.append(mine or [Prediction(None, 0.0, uncertain=True, note=picture.note)])
    return answers


def predict_images(
    sources: Any,
    model: Any = None,
    transform: Callable[[Any], torch.Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    crop: str = "auto",
    min_confidence: float | None = None,
    views: int = 1,
    detector: Detector | str | Path | None = None,
    batch_size: int = 64,
    annotate_to: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Predict the emotions of all faces in many pictures.

    Takes what `prediction.predict_single_image` takes, but for `show` and `temperature`; and

    - `sources`: a folder (searched with its subfolders), one picture, or a list of both; pictures
      as `read_image` takes them;
    - `batch_size`: faces per forward pass;
    - `annotate_to`: folder for copies of the pictures with boxes and labels, not one that holds the
      pictures (below one, it is passed over); no file that is there is replaced; None writes none;
    - `progress`: show a bar in a terminal or an open notebook.

    Returns:
        One row per face, pictures in the order given, faces of a picture largest first. Columns:
        file; face (number from 1, missing where there is none); left, top, right, bottom (pixels
        of the picture as it was read, missing for crops); label; confidence (percent); one column
        per class (probability 0 to 1); uncertain; note; error (True where the file could not be
        read).

    Raises:
        PredictionError: something that the model needs is missing or does not fit, or the copies
            would stand beside the pictures.
        CheckpointError: there is no such model, or it cannot be used.
        ExportError: the same of an ONNX file, or a package that it needs is missing.
        DetectorError: `detector` was given and is not usable.
    """
    from tqdm import tqdm

    classifier = load_classifier(model, transform, class_names)
    check_columns(classifier.class_names, FIRST_COLUMNS + LAST_COLUMNS)
    least = check_options(classifier, crop, min_confidence, views)
    if batch_size < 1:
        raise PredictionError(f"batch_size is {batch_size}: give 1 or more.")
    if detector is not None and crop != "none":
        shared_detector(detector)  # one that cannot be used is said now, not at the last picture
    annotate_to = None if annotate_to is None else local_path(annotate_to)
    named = list(named_sources(sources, skip=annotate_to))
    if annotate_to is not None:
        _keep_originals(named, annotate_to)
    rows: list[dict[str, Any]] = []
    waiting: list[Picture] = []

    def flush() -> None:
        answered = answer_all(waiting, classifier, least, views, batch_size)
        for picture, answers in zip(waiting, answered, strict=True):
            rows.extend(_rows(picture, answers, annotate_to))
        waiting.clear()

    hidden = not (progress and watched())
    for name, source in tqdm(named, unit="picture", disable=hidden, leave=False):
        picture = Picture(name)
        waiting.append(picture)
        try:
            if isinstance(source, ImageError):
                raise source
            picture.image = read_image(source)
        except ImageError as error:
            picture.note = str(error)
        else:
            cut_faces(picture, classifier, crop, detector)
        # What waits is bounded in faces and in pixels: photos of 12 megapixels add up quickly.
        # And in number, as all that waits is counted each time.
        pixels = sum(w.image.width * w.image.height for w in waiting if w.image)
        faces = sum(len(w.crops) for w in waiting)
        if faces >= batch_size or pixels > 30_000_000 or len(waiting) >= 256:
            flush()
    flush()
    return _table(rows, classifier.class_names)


def _keep_originals(named: Sequence[tuple[str, Any]], folder: Path) -> None:
    """Refuse to write copies beside the pictures: they would be predicted, too, next time."""
    written = folder.resolve()
    for name, source in named:
        if not isinstance(source, str | os.PathLike):
            continue
        path = local_path(source)
        if os.path.isfile(path) and path.parent.resolve() == written:  # whatever a name is like
            raise PredictionError(
                f"{folder} holds pictures that are to be predicted (such as {name}), and copies "
                "would be taken for more of them: give the annotated copies a folder of their own."
            )


def _rows(
    picture: Picture, answers: Sequence[Prediction], annotate_to: Path | None
) -> list[dict[str, Any]]:
    """A row for each answer; where a folder is given, the annotated copy goes there."""
    said = ""
    if annotate_to is not None and picture.image is not None:
        try:
            said = _save_annotated(picture, answers, annotate_to)
        except OSError as error:  # a full disk costs the copy, not the answers
            said = f"annotated copy not written ({error.strerror or error})"
    return [
        {
            "file": picture.name,
            "face": number if answer.label is not None else None,
            **answer.columns(),
            "note": "; ".join(filter(None, (answer.note, said))),
            "error": picture.image is None,
        }
        for number, answer in enumerate(answers, start=1)
    ]


def _table(rows: list[dict[str, Any]], class_names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=[*FIRST_COLUMNS, *class_names, *LAST_COLUMNS])
    whole = dict.fromkeys(("face", *BOX_COLUMNS), "Int64")
    numbers = whole | dict.fromkeys(class_names, "float64")
    return table.astype({**numbers, "confidence": "float64", "uncertain": bool, "error": bool})


def _save_annotated(picture: Picture, answers: Sequence[Prediction], folder: Path) -> str:
    """Write the annotated copy under a free name, and say which if it is not the picture's own."""
    stem = re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", Path(picture.name).stem[-50:])
    stem = stem.strip(". ") or "picture"  # last, as a dot at the front would hide the copy
    path, number = folder / f"{stem}.jpg", 1
    while path.exists():
        number += 1
        path = folder / f"{stem} ({number}).jpg"
    copy = annotate(picture.image, answers)
    copy.thumbnail((JPEG_MAX_SIDE, JPEG_MAX_SIDE))
    replace_file(path, functools.partial(copy.save, format="JPEG", quality=90))
    return f"annotated copy: {path.name}" if number > 1 else ""
