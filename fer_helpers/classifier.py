"""What answers: a model with its preprocessing, class names and temperature, never mixed up."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fer_helpers.faces import AFFECTNET_MARGIN, FER_MARGIN
from fer_helpers.inference import predict_logits
from fer_helpers.layouts import canonical_emotion
from fer_helpers.preprocess import Preprocess

MIN_CONFIDENCE = 0.5
"""Below it an answer is uncertain, if its model says nothing else: a calibrated one is more likely
wrong than right there."""

DRAWN_NOTE = "model trained on drawn faces"
CROPS = ("auto", "detect", "none")


class PredictionError(ValueError):
    """A prediction that cannot be made as asked; the message says what to change."""


@dataclass(frozen=True)
class Classifier:
    """A model with everything that an answer needs.

    Attributes:
        model: takes float32 (N, C, H, W), gives logits (N, K).
        preprocess: one picture -> float32 (C, H, W): a `Preprocess`, or any transform that takes an
            RGB PIL image.
        class_names: names of the K outputs, in order.
        temperature: the logits of one view are divided by it before the softmax.
        temperatures: the same by number of views, `{"10": 0.9}`; numbers that are not in it take
            `temperature`, and are calibrated only roughly.
        min_confidence: probability (0 to 1) below which an answer is uncertain.
        note: stands in the note of every answer; "model trained on drawn faces" for such a model.
        shift: added to the logits, one number per class; empty for none. The balanced operating
            point is such a shift.
        path: the file that the model was loaded from; None for one that was given as an object.
        margin: of the training crops, see `faces.crop_face`; None takes AffectNet's for a model
            that knows Contempt, else FER2013's.
    """

    model: Callable[[torch.Tensor], torch.Tensor]
    preprocess: Callable[[Any], torch.Tensor]
    class_names: tuple[str, ...]
    temperature: float = 1.0
    min_confidence: float = MIN_CONFIDENCE
    note: str = ""
    shift: tuple[float, ...] = ()
    path: Path | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    margin: float | None = None

    def __post_init__(self) -> None:
        """Take the margin that fits the classes where none was given."""
        if self.margin is None:  # frozen, so it is set past the lock
            object.__setattr__(self, "margin", _margin(self.class_names))

    @property
    def size(self) -> int | None:
        """Side of the model input in pixels, None where the transform does not say."""
        return getattr(self.preprocess, "size", None) if self._ours else None

    @property
    def _ours(self) -> bool:
        return isinstance(self.preprocess, Preprocess)

    def probabilities(
        self, faces: Sequence[Image.Image], *, views: int = 1, batch_size: int = 64
    ) -> np.ndarray:
        """Calibrated probabilities (N, K), float64, of face crops of any sizes (PIL, L or RGB).

        Args:
            faces: the crops.
            views: 1, or more for test-time augmentation (see `inference.predict_logits`).
            batch_size: crops per forward pass.
        """
        if not faces:
            return np.zeros((0, len(self.class_names)))
        logits = self._logits(faces, views, batch_size)
        if logits.shape != (len(faces), len(self.class_names)):
            raise PredictionError(
                f"The model gives {logits.shape[-1]} classes and class_names has "
                f"{len(self.class_names)}: give the names it was trained with, in order."
            )
        if not np.isfinite(logits).all():
            raise PredictionError("The model's outputs are not finite: its weights are damaged.")
        temperature = self.temperature
        if views > 1:
            temperature = self.temperatures.get(str(views), temperature)
        scaled = torch.from_numpy(logits + np.array(self.shift or 0.0)).double() / temperature
        return torch.softmax(scaled, dim=1).numpy()

    def _logits(self, faces: Sequence[Image.Image], views: int, batch_size: int) -> np.ndarray:
        network = isinstance(self.model, nn.Module)
        if views > 1 and not self._ours:
            raise PredictionError(
                "views above 1 need the model's own Preprocess: leave transform out."
            )
        if views > 1 and not network:
            raise PredictionError("views above 1 need the PyTorch model, not an exported one.")
        if self._ours:
            pictures = [np.atleast_3d(np.asarray(face)) for face in faces]
        else:
            pictures = [face.convert("RGB") for face in faces]
        given, preprocess = _Prepared(pictures, self.preprocess), nn.Identity()
        if not network:
            return self._run(given, batch_size)
        # Equal shapes are preprocessed together; in a folder of crops that is all of them.
        if self._ours and len({picture.shape for picture in pictures}) == 1:
            given, preprocess = np.stack(pictures), self.preprocess
        first = next(self.model.parameters(), None)
        return predict_logits(
            self.model,
            given,
            preprocess,
            batch_size=batch_size,
            device="cpu" if first is None else first.device,
            views=views,
        )

    def _run(self, prepared: _Prepared, batch_size: int) -> np.ndarray:
        """Logits of what is no PyTorch network: an exported file, or somebody's own function."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(prepared), batch_size):
                batch = prepared.inputs(range(start, min(start + batch_size, len(prepared))))
                parts.append(torch.as_tensor(self.model(batch)).float().cpu())
        return torch.cat(parts).numpy()


@dataclass(frozen=True)
class _Prepared:
    """Pictures of any sizes that are preprocessed one by one, when their batch is asked for."""

    pictures: Sequence[Any]
    preprocess: Callable[[Any], torch.Tensor]

    def __len__(self) -> int:
        return len(self.pictures)

    def inputs(self, positions: Iterable[int]) -> torch.Tensor:
        """Model inputs (N, C, H, W)."""
        return torch.stack([self.preprocess(self.pictures[i]) for i in positions])

    def images(self, positions: Iterable[int]) -> np.ndarray:
        """The same (N, H, W, C), as `predict_logits` takes faces."""
        return self.inputs(positions).movedim(1, -1).cpu().numpy()


def _margin(class_names: Sequence[str]) -> float:
    return AFFECTNET_MARGIN if "Contempt" in map(canonical_emotion, class_names) else FER_MARGIN


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


def load_classifier(
    model: Any = None,
    transform: Callable[[Any], torch.Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    temperature: float | None = None,
    balanced: bool = False,
) -> Classifier:
    """Bring whatever was given as a model together with what belongs to it.

    Args:
        model: None for the newest real-face run's or the shipped model; a path to a checkpoint or
            an ONNX file; a loaded one; a `Classifier`; or an `nn.Module`, which needs `transform`
            and `class_names`.
        transform: wins over the checkpoint's preprocessing.
        class_names: win over the checkpoint's; each name once.
        temperature: wins over the checkpoint's, for any number of views.
        balanced: read the model at its balanced operating point, which finds more of the rare
            classes and is right a little less often (see `protocol.balance`).

    Raises:
        PredictionError: a bare module without transform or class names, class names that are no
            list of different names, a model that carries no balanced operating point, or one whose
            temperatures or thresholds are no numbers.
        CheckpointError: no such checkpoint, one that cannot be used, or none at all.
        ExportError: no such ONNX file, one that is not of this project, or a missing package.
    """
    if model is None or isinstance(model, str | os.PathLike):
        if model is not None and Path(model).suffix.lower() == ".onnx":
            from fer_helpers.export import load_onnx

            model = load_onnx(model)
        else:
            from fer_helpers.checkpoints import load_model

            model = load_model(model)
    # Whatever attributes a module has, they are its own business: it is the network itself.
    whole = hasattr(model, "class_names") and hasattr(model, "preprocess")
    if isinstance(model, nn.Module) or not whole:
        if transform is None or class_names is None:
            missing = "transform" if transform is None else "class_names"
            raise PredictionError(
                f"The model is a bare {type(model).__name__}: give the {missing} of its training."
            )
        model = Classifier(model, transform, _checked_names(class_names))
    names = _checked_names(model.class_names if class_names is None else class_names)
    # The model's own names count: in another language they say nothing of the training faces.
    margin = getattr(model, "margin", None)
    if margin is None:
        margin = _margin(model.class_names)
    extra = getattr(model, "extra", None) or {}
    path = getattr(model, "path", None)
    by_views = {}
    shift = tuple(getattr(model, "shift", ()))
    least = getattr(model, "min_confidence", None)
    try:  # a file may say anything of itself
        if temperature is None:
            temperature = float(getattr(model, "temperature", 1.0))
            named = getattr(model, "temperatures", None) or extra.get("temperatures") or {}
            by_views = {views: float(value) for views, value in named.items()}
        least = float(extra.get("min_confidence", MIN_CONFIDENCE) if least is None else least)
        if balanced and not shift:
            shift = tuple(map(float, extra.get("balanced_shift") or ()))
    except (AttributeError, TypeError, ValueError) as error:
        raise PredictionError(
            f"What {path or 'the model'} says of its temperatures, min_confidence or "
            f"balanced_shift is not understood ({error}): save it again with this version."
        ) from None
    for value in (temperature, *by_views.values()):
        if not 0 < value < math.inf:
            raise PredictionError(f"temperature is {value:g}: give a number above 0.")
    if balanced and len(shift) != len(names):
        raise PredictionError(
            "The model carries no balanced operating point: train it with this version and a "
            "selection set, or leave balanced out."
        )
    note = getattr(model, "note", "") or DRAWN_NOTE * (extra.get("origin") == "drawn")
    return Classifier(
        # A checkpoint holds the module, an exported model runs by itself.
        model.model if hasattr(model, "model") else model.run,
        transform or model.preprocess,
        names,
        temperature,
        least,
        note,
        shift,
        path,
        by_views,
        margin,
    )


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names that somebody gave, refused where they cannot be the names of the outputs."""
    if isinstance(names, str | Mapping | Set) or not isinstance(names, Iterable):
        raise PredictionError(
            f"class_names is a {type(names).__name__}: give a list of names, in the order of the "
            "model's outputs."
        )
    names = tuple(names)
    odd = next((name for name in names if not isinstance(name, str)), None)
    if odd is not None:
        raise PredictionError(f"class_names holds {odd!r}, which is no text: give names.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PredictionError(f"class_names names {twice[0]!r} twice: each output needs its own.")
    return names


def check_columns(class_names: Sequence[str], others: Sequence[str]) -> None:
    """Refuse classes whose column would have the name of another one of the same table.

    Raises:
        PredictionError: there is such a class.
    """
    both = sorted(set(class_names) & set(others))
    if both:
        raise PredictionError(
            f"A class is called {both[0]!r}, and so is a column of the table: give other "
            "class_names."
        )
