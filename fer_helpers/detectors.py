"""A face detector: YuNet's file found or fetched, loaded once, and shared by all who ask.

The detector is YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
Intelligence Research 20, 2023), run by OpenCV. Its file of 233 KB comes with the package, but not
everywhere (the notebook for Kaggle travels without it), so it is looked for in this order: the
path that was given, beside the package's own weights, the user's cache, a Kaggle input, and last
the OpenCV zoo's address. What we find or fetch ourselves must have the known SHA-256; a file that
somebody names on purpose may be another YuNet.

Without the file, OpenCV 4 still carries the frontal cascade of Viola and Jones (2001): it finds
upright frontal faces, no eyes, and mistakes more things for faces, so its use is said in a note.
OpenCV 5 has no cascades.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import math
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fer_helpers.cache import default_cache_dir
from fer_helpers.extras import lacking
from fer_helpers.files import replace_file
from fer_helpers.layouts import local_path
from fer_helpers.mounts import attached_files
from fer_helpers.sources import FetchError, fetch

MODEL_NAME = "face_detection_yunet_2023mar.onnx"
MODEL_URL = (
    f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{MODEL_NAME}"
)
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
MODEL_MAX_BYTES = 1_000_000
SHIPPED_MODEL = Path(__file__).parent / "weights" / MODEL_NAME
MIN_SIDE = 64  # pixels; two cells of YuNet's coarsest grid
NO_DETECTOR = "no detector here: give a crop or the model file"

# A net of OpenCV is one mutable object: its input size and threshold are set first, and its answer
# is asked for after. Two threads that share it (of a server, of a pool of workers) would otherwise
# get answers at each other's size.
_ONE_AT_A_TIME = threading.Lock()


class DetectorError(RuntimeError):
    """No usable face detector; the message says in one sentence what to do."""


@dataclass(frozen=True)
class Face:
    """One detected face, in pixels of the photo (x to the right, y down).

    Attributes:
        box: left, top, right, bottom; may reach beyond the photo where the face is cut off.
        score: how sure the detector is, 0 to 1; `nan` from the cascade, which gives none.
        landmarks: the eye at the viewer's left, the eye at the viewer's right, nose tip, and the
            mouth corners in the same order, each (x, y); None from the cascade.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...] | None = None

    @property
    def width(self) -> float:
        """Width of the box in pixels."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return self.box[3] - self.box[1]

    @property
    def whole_box(self) -> tuple[int, int, int, int]:
        """The box in whole pixels."""
        return tuple(round(value) for value in self.box)

    @property
    def roll(self) -> float:
        """Angle of the line through the eyes in degrees, positive clockwise; 0.0 if unknown.

        Seen from the side the eyes nearly coincide and their line says nothing about the head, so
        it is used only when they stand at least a fifth of the box apart (of its shorter side,
        which is its width unless the face lies).
        """
        if self.landmarks is None:
            return 0.0
        (left_x, left_y), (right_x, right_y) = self.landmarks[:2]
        if math.hypot(right_x - left_x, right_y - left_y) < 0.2 * min(self.width, self.height):
            return 0.0
        return math.degrees(math.atan2(right_y - left_y, right_x - left_x))


def find_model(path: str | Path | None = None) -> bytes:
    """Return the bytes of YuNet's ONNX file, fetching it once where it is not here.

    Args:
        path: the file, if somebody has it; None looks in the places that this module lists.

    Raises:
        DetectorError: the given file is missing, or nothing was found and fetching failed.
    """
    if path:
        try:
            return local_path(path).read_bytes()
        except OSError as error:
            raise DetectorError(
                f"The face detector {str(path)!r} cannot be read ({error.strerror}); "
                "correct the path or leave it out."
            ) from error
    kept = default_cache_dir() / MODEL_NAME
    # Chained, not unpacked: what is attached is walked through only when nothing else is here.
    for candidate in itertools.chain((SHIPPED_MODEL, kept), attached_files(re.escape(MODEL_NAME))):
        with contextlib.suppress(OSError):
            content = candidate.read_bytes()
            if hashlib.sha256(content).hexdigest() == MODEL_SHA256:
                return content
    content = _fetch_model(MODEL_URL)
    if isinstance(content, str):
        raise DetectorError(content)
    # A cache that cannot be written costs a download next time, nothing else.
    with contextlib.suppress(OSError):
        replace_file(kept, lambda path: path.write_bytes(content))
    return content


@functools.cache
def _fetch_model(url: str) -> bytes | str:
    """Download and check the file; on failure the sentence that says so (kept for this process)."""
    try:
        content = fetch(url, max_bytes=MODEL_MAX_BYTES)
    except FetchError as error:
        return f"The face detector could not be fetched: {error}"
    if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
        return f"What {url} sent is not {MODEL_NAME} (its SHA-256 differs), so it was not used."
    return content


@dataclass(frozen=True)
class Detector:
    """A loaded detector.

    Attributes:
        kind: "yunet" or "cascade".
        net: OpenCV's object.
        note: what a user should know about its answers; "" for nothing.
    """

    kind: str
    net: Any
    note: str = ""

    def detect(self, pixels: np.ndarray, min_score: float) -> list[Face]:
        """Faces in a uint8 RGB array (H, W, 3), in its own pixels and at its own scale."""
        if self.kind == "cascade":
            # Equalized grey and a first window of 24 pixels are what the cascade was trained with.
            import cv2

            grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
            with _ONE_AT_A_TIME:
                found = self.net.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=6)
            return [_cascade_face(*map(float, box)) for box in found]
        # In thinner strips OpenCV 4.14 sees faces that are not there, 1e20 pixels wide or nan. It
        # fills every picture up to a multiple of 32 with the same black itself.
        missing = [(0, max(MIN_SIDE - side, 0)) for side in pixels.shape[:2]]
        pixels = np.pad(pixels, [*missing, (0, 0)])
        height, width = pixels.shape[:2]
        pixels = np.ascontiguousarray(pixels[:, :, ::-1])  # YuNet was trained on BGR pictures
        with _ONE_AT_A_TIME:
            self.net.setInputSize((width, height))
            self.net.setScoreThreshold(min_score)
            _, found = self.net.detect(pixels)
        return [_yunet_face(row) for row in ([] if found is None else found.tolist())]


def opencv() -> ModuleType:
    """The module cv2, which takes a while to import and may be missing.

    Raises:
        DetectorError: it cannot be imported.
    """
    try:
        import cv2
    except ImportError as error:
        why = lacking(error, "cv2", "opencv-python-headless")
        raise DetectorError(f"{NO_DETECTOR} (OpenCV's {why}).") from error
    return cv2


def load_detector(path: str | Path | None = None) -> Detector:
    """Load YuNet, or where its file cannot be had OpenCV 4's frontal cascade.

    Args:
        path: YuNet's ONNX file; None looks for it (see `find_model`).

    Raises:
        DetectorError: OpenCV cannot be used, the given file is not usable, or there is neither file
            nor cascade.
    """
    cv2 = opencv()
    try:
        content = find_model(path)
    except DetectorError as error:
        if path:
            raise
        if not hasattr(cv2, "CascadeClassifier"):
            raise DetectorError(f"{NO_DETECTOR} ({error})") from error
        return _load_cascade()
    buffer = np.frombuffer(content, np.uint8)
    try:
        with _quiet(cv2):
            # From memory: OpenCV cannot open every path (accents on Windows), and these are the
            # bytes that were checked.
            net = cv2.FaceDetectorYN.create("onnx", buffer, np.empty(0, np.uint8), (320, 320))
            # Another kind of network loads just as well, and fails at its first picture.
            net.detect(np.zeros((320, 320, 3), np.uint8))
    except (cv2.error, AttributeError) as error:
        raise DetectorError(
            f"OpenCV {cv2.__version__} cannot load {str(path or MODEL_NAME)!r} as a YuNet face "
            f"detector; give {MODEL_NAME}."
        ) from error
    net.setNMSThreshold(0.3)
    return Detector("yunet", net)


def shared_detector(given: Detector | str | Path | None) -> Detector:
    """The detector that was given, or the one at that path, or the default; loaded once.

    Raises:
        DetectorError: it cannot be had.
    """
    if given is None or isinstance(given, str | os.PathLike):
        return _default_detector(None if given is None else str(given))
    return given


@functools.cache
def _default_detector(path: str | None) -> Detector:
    """The detector of this process; loading takes longer than a detection."""
    return load_detector(path)


def _load_cascade() -> Detector:
    """The frontal cascade that OpenCV 4 carries."""
    import cv2

    file = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
    net = cv2.CascadeClassifier(str(file))
    if net.empty():
        raise DetectorError(f"{NO_DETECTOR} (OpenCV's own cascade cannot be read either).")
    note = "found with OpenCV's frontal cascade, which misses turned and small faces"
    return Detector("cascade", net, note)


@contextlib.contextmanager
def _quiet(cv2: Any):
    """Keep OpenCV's remark about targets (harmless, from C++) out of the notebook."""
    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is None:
        yield
        return
    before = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def _yunet_face(row: list[float]) -> Face:
    """One row of YuNet's output: x, y, width, height, five points, score."""
    x, y, width, height = row[:4]
    points = tuple((row[i], row[i + 1]) for i in range(4, 14, 2))
    return Face((x, y, x + width, y + height), row[14], points)


def _cascade_face(x: float, y: float, width: float, height: float) -> Face:
    """A cascade's square, trimmed to YuNet's box (0.78 as wide, measured on 384 faces)."""
    return Face((x + 0.11 * width, y, x + 0.89 * width, y + height), math.nan)
