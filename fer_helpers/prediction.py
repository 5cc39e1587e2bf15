# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a picture to an emotion
#
# One photo in, one answer out, and the honesty to say *not sure*. Four things make such an answer
# worth something, and each of them stands in one place:
#
# - the face is found and cut out the way the training faces were (`faces`), or the picture is taken
#   as a crop, and the answer says which;
# - its pixels go through the same `Preprocess` as in training, and its classes keep their order:
#   both come with the checkpoint, as a `Classifier`;
# - the probabilities are calibrated with the temperature that the checkpoint carries (Guo et al.
#   2017, "On Calibration of Modern Neural Networks");
# - a picture without a face gets no label, and a weak answer is marked as uncertain (`answers`).

# %%
"""Predict the emotion of faces in pictures: one, many, or a whole folder."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from fer_helpers.answers import NO_FACE_NOTE, Prediction, annotate, answer_from, show_answer
from fer_helpers.classifier import Classifier, PredictionError, check_columns, load_classifier
from fer_helpers.detectors import Detector, DetectorError, shared_detector
from fer_helpers.faces import crop_face, find_faces
from fer_helpers.files import replace_file
from fer_helpers.front_end import front_end
from fer_helpers.layouts import local_path
from fer_helpers.pictures import ImageError
from fer_helpers.sources import named_sources, read_image

if TYPE_CHECKING:
    import pandas as pd

MAX_CROP_SIDE = 112  # pixels; a picture no larger is taken as a face crop by crop="auto"
CROPS = ("auto", "detect", "none")
CROPPED_NOTE = "assumed already cropped"
BOX_COLUMNS = ("left", "top", "right", "bottom")
FIRST_COLUMNS = ("file", "face", *BOX_COLUMNS, "label", "confidence")  # then the classes
LAST_COLUMNS = ("uncertain", "note", "error")
JPEG_MAX_SIDE = 65_500  # pixels; libjpeg writes no larger picture


# %% [markdown]
# ## Every face of a picture
# `crop` says how the picture becomes faces:
#
# - `"detect"` looks for faces;
# - `"none"` takes the picture as one face, as the original does;
# - `"auto"` takes a picture of at most 112 pixels on both sides as a crop, and looks for faces in
#   anything larger. A detector misses a third of FER2013's 48-pixel crops, so it must not be run on
#   them.


# %%
@dataclass
class _Picture:
    """A picture on its way: what was cut out of it, waiting to be classified."""

    name: str
    image: Image.Image | None = None
    crops: list[Image.Image] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int] | None] = field(default_factory=list)
    note: str = ""


def _cut(
    picture: _Picture, classifier: Classifier, crop: str, detector: Detector | str | Path | None
) -> None:
    """Fill in the crops of a picture, or the note that says why there are none."""
    image = picture.image
    if "reduced_by" in image.info:
        picture.note = f"read at 1/{image.info['reduced_by']} of its size"
    if crop == "none" or (crop == "auto" and max(image.size) <= MAX_CROP_SIDE):
        picture.crops, picture.boxes = [image], [None]
        picture.note = "; ".join(filter(None, (picture.note, CROPPED_NOTE * (crop == "auto"))))
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


def _answer(
    pictures: Sequence[_Picture],
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


def check_options(
    classifier: Classifier, crop: str, min_confidence: float | None, views: int
) -> float:
    """The threshold that counts.

    Raises:
        PredictionError: an unknown crop, a threshold outside 0 to 1, or too many views.
    """
    if crop not in CROPS:
        raise PredictionError(f"crop is {crop!r}: give one of {', '.join(map(repr, CROPS))}.")
    if views not in range(1, 11):
        raise PredictionError(f"views is {views}: give 1 to 10.")
    least = classifier.min_confidence if min_confidence is None else min_confidence
    if not 0 <= least <= 1:
        raise PredictionError(
            f"min_confidence is {least:g}: give a probability from 0 to 1 (60 percent is 0.6)."
        )
    return least


def predict_faces(
    image: Any,
    model: Any = None,
    transform: Callable[[Any], torch.Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    crop: str = "auto",
    min_confidence: float | None = None,
    views: int = 1,
    temperature: float | None = None,
    detector: Detector | str | Path | None = None,
) -> list[Prediction]:
    """Answer for every face of one picture, largest first.

    Takes what `predict_single_image` takes. The list is never empty: a picture without a face gives
    one `Prediction` whose label is None.
    """
    classifier = load_classifier(model, transform, class_names, temperature=temperature)
    least = check_options(classifier, crop, min_confidence, views)
    picture = _Picture("", read_image(image))
    _cut(picture, classifier, crop, detector)
    return _answer([picture], classifier, least, views, 64)[0]


# %% [markdown]
# ## One picture
# The function that readers of the original notebook look for, with its name and the order of its
# arguments.


# %%
def predict_single_image(
    image_path: Any,
    model: Any = None,
    transform: Callable[[Any], torch.Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    show: bool = True,
    *,
    crop: str = "auto",
    min_confidence: float | None = None,
    views: int = 1,
    temperature: float | None = None,
    detector: Detector | str | Path | None = None,
) -> Prediction:
    """Predict the emotion of the largest face in one picture.

    Args:
        image_path: a path or anything else that `read_image` takes.
        model: see `load_classifier`; None is the newest real-face run's or the shipped model.
        transform: the preprocessing; None is the checkpoint's.
        class_names: the outputs' names in order; None is the checkpoint's.
        show: print the answer and every class, and show the figure where a notebook can.
        crop: "auto", "detect" or "none" (see above).
        min_confidence: probability (0 to 1) below which the answer is uncertain; None is the
            checkpoint's, or 0.5.
        views: 1, or up to 10 for test-time augmentation.
        temperature: for the softmax; None is the checkpoint's, or 1.
        detector: from `detectors.load_detector`, or the path of YuNet's file; None looks for it.

    Returns:
        A `Prediction`, which unpacks as `label, confidence` (percent). Without a face the label is
        None and the confidence 0.

    Raises:
        ImageError: the picture cannot be read.
        PredictionError: something that the model needs is missing or does not fit.
        DetectorError: `detector` was given and is not usable.
    """
    answers = predict_faces(
        image_path,
        model,
        transform,
        class_names,
        crop=crop,
        min_confidence=min_confidence,
        views=views,
        temperature=temperature,
        detector=detector,
    )
    answer = answers[0]
    if len(answers) > 1:
        more = f"{len(answers)} faces found, this is the largest; predict_images gives all"
        answer = replace(answer, note="; ".join(filter(None, (answer.note, more))))
    if show:
        show_answer(answer)
    return answer


# %% [markdown]
# ## Many pictures
# A list, a folder, or both mixed. One row per face; a file that cannot be read is a row with an
# error note and stops nothing.


# %%
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

    Args:
        sources: a folder (searched with its subfolders), one picture, or a list of both; pictures
            as `read_image` takes them.
        model: see `load_classifier`; None is the newest real-face run's or the shipped model.
        transform: the preprocessing; None is the checkpoint's.
        class_names: the outputs' names in order; None is the checkpoint's.
        crop: "auto", "detect" or "none" (see above).
        min_confidence: probability (0 to 1) below which an answer is uncertain; None is the
            checkpoint's, or 0.5.
        views: 1, or up to 10 for test-time augmentation.
        detector: from `detectors.load_detector`, or the path of YuNet's file; None looks for it.
        batch_size: faces per forward pass.
        annotate_to: folder for copies of the pictures with boxes and labels, not one that holds
            the pictures (below one, it is passed over); no file that is there is replaced; None
            writes none.
        progress: show a bar where the output is a terminal.

    Returns:
        One row per face, pictures in the order given, faces of a picture largest first. Columns:
        file; face (number from 1, missing where there is none); left, top, right, bottom (pixels
        of the picture as it was read, missing for crops); label; confidence (percent); one column
        per class (probability 0 to 1); uncertain; note; error (True where the file could not be
        read).

    Raises:
        PredictionError: something that the model needs is missing or does not fit, or the copies
            would stand beside the pictures.
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
    waiting: list[_Picture] = []

    def flush() -> None:
        for picture, answers in zip(
            waiting, _answer(waiting, classifier, least, views, batch_size), strict=True
        ):
            found = [
                {
                    "file": picture.name,
                    "face": number if answer.label is not None else None,
                    **answer.columns(),
                    "note": answer.note,
                    "error": picture.image is None,
                }
                for number, answer in enumerate(answers, start=1)
            ]
            if annotate_to is not None and picture.image is not None:
                try:
                    said = _save_annotated(picture, answers, annotate_to)
                except OSError as error:  # a full disk costs the copy, not the answers
                    said = f"annotated copy not written ({error.strerror or error})"
                for row in found:
                    row["note"] = "; ".join(filter(None, (row["note"], said)))
            rows.extend(found)
        waiting.clear()

    for name, source in tqdm(
        named, unit="picture", disable=None if progress else True, leave=False
    ):
        picture = _Picture(name)
        waiting.append(picture)
        try:
            if isinstance(source, ImageError):
                raise source
            picture.image = read_image(source)
        except ImageError as error:
            picture.note = str(error)
        else:
            _cut(picture, classifier, crop, detector)
        # What waits is bounded in faces and in pixels: photos of 12 megapixels add up quickly.
        pixels = sum(w.image.width * w.image.height for w in waiting if w.image)
        if sum(len(w.crops) for w in waiting) >= batch_size or pixels > 30_000_000:
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


def _table(rows: list[dict[str, Any]], class_names: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    table = pd.DataFrame(rows, columns=[*FIRST_COLUMNS, *class_names, *LAST_COLUMNS])
    whole = dict.fromkeys(("face", *BOX_COLUMNS), "Int64")
    numbers = whole | dict.fromkeys(class_names, "float64")
    return table.astype({**numbers, "confidence": "float64", "uncertain": bool, "error": bool})


def _save_annotated(picture: _Picture, answers: Sequence[Prediction], folder: Path) -> str:
    """Write the annotated copy under a free name, and say which if it is not the picture's own."""
    stem = (
        re.sub(r'[\\/:*?"<>|\x00-\x1f]', "_", Path(picture.name).stem).strip(". ")[-50:]
        or "picture"
    )
    path, number = folder / f"{stem}.jpg", 1
    while path.exists():
        number += 1
        path = folder / f"{stem} ({number}).jpg"
    copy = annotate(picture.image, answers)
    copy.thumbnail((JPEG_MAX_SIDE, JPEG_MAX_SIDE))
    replace_file(path, functools.partial(copy.save, format="JPEG", quality=90))
    return f"annotated copy: {path.name}" if number > 1 else ""


# %% [markdown]
# ## An upload button


# %%
def upload_widget(model: Any = None) -> Any:
    """An upload button that answers for each picture dropped on it.

    Args:
        model: as `predict_single_image` takes it.

    Returns:
        An ipywidgets box; None where ipywidgets is missing or no front end shows this notebook
        (papermill, nbconvert, scripts).
    """
    if not front_end():
        return None
    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None
    if ipywidgets is None or int(ipywidgets.__version__.split(".")[0]) < 8:
        print('The upload button needs ipywidgets 8: pip install "ipywidgets>=8.1".')
        return None
    from fer_helpers.checkpoints import CheckpointError
    from fer_helpers.export import ExportError

    cannot = CheckpointError, DetectorError, ExportError, ImageError, PredictionError
    button = ipywidgets.FileUpload(accept="image/*", multiple=True, description="Photo")
    shown = ipywidgets.Output()

    def answer(change: dict[str, Any]) -> None:
        with shown:
            shown.clear_output()
            for upload in change["new"]:
                try:
                    predict_single_image(bytes(upload["content"]), model)
                except cannot as error:
                    print(f"{upload['name']}: {error}")

    button.observe(answer, names="value")
    return ipywidgets.VBox([button, shown])


# %% [markdown]
# ## Demo
# A linear classifier on 24×24 pixels, fitted to drawn faces within seconds, stands in for the
# network. It is right about one time in three and its low probabilities say so: with
# `min_confidence` such answers are marked as uncertain.

# %% tags=["active-ipynb"]
# import numpy as np
# from sklearn.linear_model import LogisticRegression
# from torch import nn
#
# from fer_helpers.answers import plot_answer
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.preprocess import Preprocess
#
# names = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# preprocess = Preprocess(size=24, channels=1)
# drawn = [(name, seed) for name in names for seed in range(30)]
# inputs = torch.stack([preprocess(draw_face(name, seed, size=48)) for name, seed in drawn])
# fitted = LogisticRegression(C=0.02, max_iter=500)
# fitted.fit(inputs.flatten(1).numpy(), [names.index(name) for name, _ in drawn])
# linear = nn.Linear(24 * 24, 7)
# with torch.no_grad():
#     linear.weight.copy_(torch.from_numpy(fitted.coef_))
#     linear.bias.copy_(torch.from_numpy(fitted.intercept_))
# pixels_to_logits = nn.Sequential(nn.Flatten(), linear)
# model = Classifier(
#     pixels_to_logits, preprocess, names, min_confidence=0.3, note="model trained on drawn faces"
# )
# print(len(drawn), "drawn faces seen in training")

# %% [markdown]
# One face it has not seen.

# %% tags=["active-ipynb"]
# face = draw_face("Happy", 1001, size=75)
# label, confidence = answer = predict_single_image(face, model, show=False)
# print(label, "| the two likeliest:", [name for name, _ in answer.top2], "|", answer.note)
# plot_answer(answer)

# %% [markdown]
# A photo with several people: one row each, and a copy with boxes. Without a face detector the
# answer is that there is none, not a guess.

# %% tags=["active-ipynb"]
# photo = Image.new("RGB", (560, 220), (214, 219, 224))
# for i, expression in enumerate(("Happy", "Surprise", "Anger")):
#     photo.paste(draw_face(expression, 1020 + i, size=170), (15 + 180 * i, 25))
# everybody = predict_faces(photo, model)
# annotate(photo, everybody)

# %% [markdown]
# A list may mix everything, and what cannot be read is a row that says so.

# %% tags=["active-ipynb"]
# mixed = [face, np.asarray(draw_face("Fear", 1002, size=48)), b"not a picture"]
# table = predict_images(mixed, model, progress=False)
# table[["file", "label", "uncertain", "note"]]
