"""An answer: what the network says of one face, and how it is printed, drawn and put on the photo.

It unpacks as `label, confidence`, as the original function's did. A picture without a face is an
answer, too: one without a label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_helpers.front_end import in_notebook
from fer_helpers.sources import read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_FACE_NOTE = "no face found"
BOX_COLUMNS = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Prediction:
    """The answer for one face, or for a picture without one.

    Attributes:
        label: the likeliest class, None where there is no answer.
        confidence: its calibrated probability in percent, 0.0 where there is no answer.
        probabilities: calibrated probability (0 to 1) by class name; empty where there is no
            answer.
        uncertain: True where there is no answer or its probability is below `min_confidence`.
        face_box: left, top, right, bottom of the detected face, in whole pixels of the upright
            picture as it was read: half the file's where the note says "read at 1/2 of its size".
            May reach beyond the picture (below 0, too) where the face is cut off. None for a crop.
        note: how to read the answer, e.g. "assumed already cropped" or "no face found"; "" for
            nothing special.
        face: the crop that was classified, None where there is no answer.
    """

    label: str | None
    confidence: float
    probabilities: dict[str, float] = field(default_factory=dict)
    uncertain: bool = False
    face_box: tuple[int, int, int, int] | None = None
    note: str = ""
    face: Image.Image | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Any]:
        """Unpack as `label, confidence`."""
        return iter((self.label, self.confidence))

    def columns(self) -> dict[str, Any]:
        """What a table says of it: box, label, confidence, each class, uncertain.

        `left`, `top`, `right` and `bottom` are None where there is no box.
        """
        box = self.face_box or (None,) * 4
        return {
            **dict(zip(BOX_COLUMNS, box, strict=True)),
            "label": self.label,
            "confidence": self.confidence,
            **self.probabilities,
            "uncertain": self.uncertain,
        }

    @property
    def top2(self) -> tuple[tuple[str, float], ...]:
        """The two likeliest classes with their percent, likeliest first; or nothing."""
        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        return tuple((name, 100 * probability) for name, probability in ranked[:2])

    def __str__(self) -> str:
        """One line for people: "Happy 46.5 % (then Surprise 20.1 %), uncertain"."""
        if self.label is None:
            return self.note or NO_FACE_NOTE
        text = f"{self.label} {self.confidence:.1f} %"
        if len(self.top2) > 1:
            text += " (then {} {:.1f} %)".format(*self.top2[1])
        return text + ", uncertain" * self.uncertain + f" [{self.note}]" * bool(self.note)


def answer_from(
    probabilities: np.ndarray,
    class_names: Sequence[str],
    min_confidence: float,
    *,
    box: tuple[int, int, int, int] | None = None,
    note: str = "",
    face: Image.Image | None = None,
) -> Prediction:
    """The answer that probabilities give.

    Args:
        probabilities: calibrated, 0 to 1 (K,).
        class_names: names of the K classes, in order.
        min_confidence: probability (0 to 1) below which the answer is uncertain.
        box: where the face is, see `Prediction.face_box`.
        note: how to read the answer.
        face: the crop that was classified.
    """
    best = int(probabilities.argmax())
    return Prediction(
        label=class_names[best],
        confidence=100 * float(probabilities[best]),
        probabilities=dict(zip(class_names, probabilities.tolist(), strict=True)),
        uncertain=bool(probabilities[best] < min_confidence),
        face_box=box,
        note=note,
        face=face,
    )


def show_answer(answer: Prediction) -> None:
    """Print an answer, and show its figure where there is a notebook to show it in."""
    print(answer)
    for name, probability in answer.probabilities.items():
        print(f"  {name:<10} {100 * probability:6.2f} %")
    if answer.label is not None and in_notebook():
        from IPython.display import display

        display(plot_answer(answer))


def plot_answer(answer: Prediction) -> Figure:
    """Draw the face that was classified and a bar per class (needs an answer with a label)."""
    from fer_helpers.plots import plot_prediction  # matplotlib takes a second to import

    return plot_prediction(
        np.asarray(answer.face),
        list(answer.probabilities.values()),
        list(answer.probabilities),
        title=str(replace(answer, note="")),
        note=answer.note,
    )


def annotate(image: Any, predictions: Sequence[Prediction]) -> Image.Image:
    """Copy a picture with a box and a label for every face; grey and with a "?" if uncertain.

    Args:
        image: the picture that was predicted, as `read_image` takes it.
        predictions: from `predict_faces`; those without a box label the whole picture.

    Returns:
        An RGB picture, at least 200 pixels wide and high so that labels can be read; a strip only
        as far as its long side stays below 2,000.
    """
    picture = read_image(image).convert("RGB")
    scale = max(1, min(math.ceil(200 / min(picture.size)), 2000 // max(picture.size)))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale))
    draw = ImageDraw.Draw(picture)
    for answer in predictions:
        if answer.label is None:
            text = answer.note or NO_FACE_NOTE
        else:
            text = f"{answer.label} {answer.confidence:.0f} %" + "?" * answer.uncertain
        color = "#8a8a8a" if answer.uncertain else "#0a7d32"
        if answer.face_box is None:
            left, top, right, bottom = 0, 0, picture.width, picture.height
        else:
            left, top, right, bottom = (value * scale for value in answer.face_box)
            width = max(2, round((right - left) / 60))
            draw.rectangle(
                (left, top, max(right, left), max(bottom, top)), outline=color, width=width
            )
        # Small faces of a group get small letters, so that neighbors keep their labels apart.
        letters = max(min(max((right - left) / 7, 10), picture.width / 12, 40), 1)
        font = ImageFont.load_default(size=letters)
        x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
        x = min(max(left, 0), max(picture.width - (x1 - x0) - 4, 0))
        y = top - (y1 - y0) - 6
        if y < 0:
            y = min(max(top, 0), picture.height - (y1 - y0) - 6)
        draw.rectangle((x, y, x + x1 - x0 + 4, y + y1 - y0 + 5), fill=color)
        draw.text((x + 2 - x0, y + 2 - y0), text, font=font, fill="white")
    return picture
