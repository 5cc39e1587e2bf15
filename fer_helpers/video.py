"""Emotions in a video or before a webcam: the same faces, the same answers, frame by frame."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fer_helpers.answers import BOX_COLUMNS, NO_FACE_NOTE, Prediction, annotate, answer_from
from fer_helpers.classifier import PredictionError, check_columns, check_options, load_classifier
from fer_helpers.detectors import Detector, Face, opencv, shared_detector
from fer_helpers.faces import crop_face, find_faces
from fer_helpers.files import rename
from fer_helpers.layouts import local_path

if TYPE_CHECKING:
    import pandas as pd

FRAMES_PER_BATCH = 8  # bounds memory: eight frames of 4K are 200 MB
FIRST_COLUMNS = ("frame", "seconds", "person", *BOX_COLUMNS, "label", "confidence")
LAST_COLUMNS = ("uncertain", "note")
LOST_AFTER = 0.5  # seconds without a person after which a face there counts as somebody new


@dataclass
class _Person:
    """A face that is followed from frame to frame."""

    number: int
    face: Face
    probabilities: np.ndarray
    seen: float


def predict_video(
    source: str | Path | int,
    model: Any = None,
    transform: Callable[[Any], Any] | None = None,
    class_names: Sequence[str] | None = None,
    *,
    output: str | Path | None = None,
    smoothing: float = 0.0,
    every: int = 1,
    max_frames: int | None = None,
    min_confidence: float | None = None,
    detector: Detector | str | Path | None = None,
) -> pd.DataFrame:
    """Predict the emotion of every face in a video file or before a webcam.

    `model`, `transform`, `class_names`, `min_confidence` and `detector` are as in
    `prediction.predict_single_image`; and

    - `source`: path of a video that OpenCV reads, or the number of a webcam (0 is the first);
    - `output`: video file for the frames with boxes and labels (.mp4 or .avi), there when all of
      them are written; None writes none;
    - `smoothing`: share of a person's earlier probabilities that is kept in each new frame, 0 for
      none to below 1; 0.8 settles within about ten frames;
    - `every`: look at every n-th frame only;
    - `max_frames`: stop after so many frames were looked at; a webcam needs it.

    Returns:
        One row per face and frame: frame (from 0), seconds, person (number from 1, kept while the
        face is followed), left, top, right, bottom (pixels), label, confidence (percent), one
        column per class (probability 0 to 1), uncertain, note. A frame without a face has one row
        whose label is missing.

    Raises:
        DetectorError: OpenCV or the detector is missing.
        PredictionError: the video cannot be read or written, an option is out of range, or
            something that the model needs is missing or does not fit.
        CheckpointError: there is no such model, or it cannot be used.
        ExportError: the same of an ONNX file, or a package that it needs is missing.
    """
    import pandas as pd

    if not 0 <= smoothing < 1:
        raise PredictionError(f"smoothing is {smoothing:g}: give 0 to below 1.")
    if every < 1 or (max_frames is not None and max_frames < 1):
        raise PredictionError("every and max_frames count frames: give 1 or more.")
    if isinstance(source, int) and max_frames is None:
        raise PredictionError("A webcam never ends: give max_frames.")
    classifier = load_classifier(model, transform, class_names)
    check_columns(classifier.class_names, FIRST_COLUMNS + LAST_COLUMNS)
    least = check_options(classifier, "detect", min_confidence, 1)
    loaded = shared_detector(detector)
    names = list(classifier.class_names)
    note = "; ".join(filter(None, (loaded.note, classifier.note)))
    nobody = "; ".join(filter(None, (loaded.note, NO_FACE_NOTE)))

    rows: list[dict[str, Any]] = []
    people: list[_Person] = []
    with _Video(source, output, every) as video:
        lost_after = max(LOST_AFTER, 1.5 * every / video.rate)  # the next look must come in time
        frames = video.frames(max_frames)
        for batch in iter(lambda: list(itertools.islice(frames, FRAMES_PER_BATCH)), []):
            found = [find_faces(image, detector=loaded, thorough=False) for _, image in batch]
            crops = [
                crop_face(image, face, classifier.margin, size=classifier.size)
                for (_, image), faces in zip(batch, found, strict=True)
                for face in faces
            ]
            values = iter(classifier.probabilities(crops))
            for (number, image), faces in zip(batch, found, strict=True):
                seconds = number / video.rate
                present = [
                    _follow(people, face, next(values), smoothing, seconds, lost_after)
                    for face in faces
                ]
                answers = [
                    answer_from(
                        person.probabilities, names, least, box=person.face.whole_box, note=note
                    )
                    for person in present
                ]
                row = {"frame": number, "seconds": seconds}
                rows += [
                    row | {"person": person.number, "note": note} | answer.columns()
                    for person, answer in zip(present, answers, strict=True)
                ] or [row | {"confidence": 0.0, "uncertain": True, "note": nobody}]
                video.write(image, answers)
    table = pd.DataFrame(rows, columns=[*FIRST_COLUMNS, *names, *LAST_COLUMNS])
    whole = dict.fromkeys(("person", *BOX_COLUMNS), "Int64")
    return table.astype(whole | {"uncertain": bool})


def _follow(
    people: list[_Person], face: Face, probabilities: np.ndarray, smoothing: float, seconds: float,
    lost_after: float,
) -> _Person:  # fmt: skip
    """Find out whose face it is: whoever was seen lately and is nearest, if near enough."""

    def distance(person: _Person) -> float:
        one, other = person.face.box, face.box
        apart = math.hypot(
            one[0] + one[2] - other[0] - other[2], one[1] + one[3] - other[1] - other[3]
        )
        return apart / 2 / max(face.width, 1e-9)

    here = [p for p in people if p.seen < seconds <= p.seen + lost_after and distance(p) < 0.7]
    if not here:
        person = _Person(len(people) + 1, face, probabilities, seconds)
        people.append(person)
        return person
    person = min(here, key=distance)
    person.face, person.seen = face, seconds
    person.probabilities = smoothing * person.probabilities + (1 - smoothing) * probabilities
    return person


class _Video:
    """A video that is read and, if wished, a copy that is written; both closed at the end."""

    def __init__(self, source: str | Path | int, output: str | Path | None, every: int) -> None:
        self.cv2 = cv2 = opencv()
        self.every, self.written, self.size = every, 0, (0, 0)
        self.output, self.writer = None if output is None else local_path(output), None
        webcam = isinstance(source, int)
        source = source if webcam else local_path(source)
        if not webcam and not os.path.isfile(source):
            raise PredictionError(f"There is no video at {source}: check the path.")
        if self.output is not None:
            if self.output.suffix.lower() not in (".mp4", ".avi"):
                raise PredictionError(f"{output} is no video file name: end it with .mp4 or .avi.")
            name = f".{uuid.uuid4().hex[:8]}.partial{self.output.suffix}"  # short, as names may be
            self.partial = self.output.with_name(name)
            # Asked of the disk: two names may be one file.
            if not webcam and os.path.exists(self.output) and self.output.samefile(source):
                raise PredictionError(f"{output} is the video itself: give the copy another name.")
        self.capture = cv2.VideoCapture(source if webcam else str(source))
        if not self.capture.isOpened():
            raise PredictionError(f"OpenCV cannot read a video from {source}.")
        rate = self.capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else 25.0  # some webcams do not say

    def __enter__(self) -> _Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.capture.release()
        if self.writer is None:
            return
        self.writer.release()
        try:
            if error[0] is not None:
                return
            kept = self._kept()
            if kept < self.written:
                raise PredictionError(
                    f"{self.output} could not be written whole ({kept} of {self.written} frames): "
                    "free some space on its disk."
                )
            rename(self.partial, self.output)
        finally:
            with contextlib.suppress(OSError):  # not there once it has its name
                self.partial.unlink()

    def _kept(self) -> int:
        """How many of the written frames can be read again: OpenCV reports no full disk.

        That is little work beside what each of them took, and surer than the number in the file's
        head, which is written last or estimated.
        """
        copy = self.cv2.VideoCapture(str(self.partial))
        kept = 0
        while copy.grab():
            kept += 1
        copy.release()
        return kept

    def frames(self, count: int | None) -> Iterator[tuple[int, Image.Image]]:
        """Number and picture of the frames that are looked at; a damaged end is the end."""
        number = looked = 0
        while count is None or looked < count:
            good, frame = self.capture.read()
            if not good:
                break
            if number % self.every == 0:
                looked += 1
                yield number, Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))
            number += 1
        if not looked:
            raise PredictionError("The video has no frame that OpenCV can read.")

    def write(self, image: Image.Image, answers: Sequence[Prediction]) -> None:
        """Add a frame with its boxes to the output."""
        if self.output is None:
            return
        picture = np.ascontiguousarray(np.asarray(annotate(image, answers))[:, :, ::-1])
        if self.writer is None:
            try:
                self.output.parent.mkdir(parents=True, exist_ok=True)
                if os.path.exists(self.output):  # a folder, or open in a player
                    self.output.open("ab").close()
            except OSError as error:
                raise PredictionError(
                    f"{self.output} cannot be written ({error.strerror}): give another name."
                ) from error
            code = "mp4v" if self.output.suffix.lower() == ".mp4" else "MJPG"
            rate = self.rate / self.every
            if rate > 65:  # MPEG-4 counts time in 1/65535 seconds at the finest: no 119.963
                rate = round(rate, 1)
            self.size = picture.shape[1::-1]
            self.writer = self.cv2.VideoWriter(
                str(self.partial), self.cv2.VideoWriter.fourcc(*code), rate, self.size
            )
            if not self.writer.isOpened():
                raise PredictionError(f"OpenCV cannot write a video to {self.output}.")
        if picture.shape[1::-1] != self.size:  # a stream may change it; OpenCV would drop the rest
            picture = self.cv2.resize(picture, self.size)
        self.writer.write(picture)
        self.written += 1
