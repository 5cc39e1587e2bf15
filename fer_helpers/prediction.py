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

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fer_helpers.answers import Prediction, show_answer
from fer_helpers.batches import (
    Picture,
    answer_all,
    cut_faces,
    predict_images,  # noqa: F401 (here is where one looks for it)
)
from fer_helpers.classifier import PredictionError, check_options, load_classifier
from fer_helpers.detectors import Detector, DetectorError
from fer_helpers.extras import lacking
from fer_helpers.front_end import front_end
from fer_helpers.pictures import ImageError
from fer_helpers.sources import read_image

# %% [markdown]
# ## Every face of a picture
# `crop` says how the picture becomes faces:
#
# - `"detect"` looks for faces;
# - `"none"` takes the picture as one face, as the original does;
# - `"auto"` takes a picture of at most 112 pixels on both sides as a crop, and looks for faces in
#   anything larger. A detector misses a third of FER2013's 48-pixel crops, so it must not be run on
#   them. A small picture with hardly any contrast (at most 8 grey levels) shows nothing, and gets
#   no answer.


# %%
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
    picture = Picture("", read_image(image))
    cut_faces(picture, classifier, crop, detector)
    return answer_all([picture], classifier, least, views, 64)[0]


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
        CheckpointError: there is no such model, or it cannot be used.
        ExportError: the same of an ONNX file, or a package that it needs is missing.
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
# `predict_images` takes a list, a folder, or both mixed. One row per face; a file that cannot be
# read is a row with an error note and stops nothing. It stands in `batches`, with the step from a
# picture to its faces.


# %% [markdown]
# ## An upload button


# %%
def upload_widget(model: Any = None) -> Any:
    """An upload button that answers for each picture dropped on it.

    Args:
        model: as `predict_single_image` takes it.

    Returns:
        An ipywidgets box; None where ipywidgets cannot be used or no front end shows this notebook
        (papermill, nbconvert, scripts).
    """
    if not front_end():
        return None
    try:
        import ipywidgets
    except ImportError as error:
        why = lacking(error, "ipywidgets", '"ipywidgets>=8.1"')
        print(f"No upload button, as {why}.")
        return None
    if int(ipywidgets.__version__.split(".")[0]) < 8:
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
# from PIL import Image
# from sklearn.linear_model import LogisticRegression
# from torch import nn
#
# from fer_helpers.answers import annotate, plot_answer
# from fer_helpers.classifier import Classifier
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
