# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a photo to face crops
#
# The network has only ever seen tight, upright face crops. Handed a whole photo it answers all the
# same, and the answer means nothing: that is what most "everything is one class" reports come down
# to. This module looks for the faces, turns each one until the eyes are level, and cuts a square
# with the margin that the training crops have.
#
# The detector is YuNet (Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine
# Intelligence Research 20, 2023), run by OpenCV. It needs `opencv-python-headless` (the extra
# `[faces]`) and one file of 233 KB, which comes with the package. Ready crops need neither.
# `detectors.py` finds that file and loads it.

# %%
"""Find the faces in a photo and cut them out the way the training crops were cut."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fer_helpers.detectors import Detector, Face, shared_detector

# Measured with YuNet on 1,200 training images each: its box is 1.02 times as high as a FER2013 crop
# and 0.80 times as high as a crop of our AffectNet-derived set (medians), centered within 2 % of
# the side in both.
FER_MARGIN = 0.0
AFFECTNET_MARGIN = 0.12

QUARTER_TURNS = (
    None,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
)

# %% [markdown]
# ## Finding the faces of a photo
# YuNet knows faces of about 10 to 300 pixels. A photo is therefore looked at with its long side at
# 640 pixels, once more at 1,280 if it is larger (small faces of a group; at more if it is a long
# strip), and at 256 if nothing was found or a face fills much of the frame (the box of a larger one
# loses its chin). Of each face the look with the best score counts.


# %%
def find_faces(
    image: Image.Image | np.ndarray,
    *,
    detector: Detector | str | Path | None = None,
    thorough: bool = True,
) -> list[Face]:
    """Find the faces of one photo, largest first.

    Args:
        image: PIL picture, or uint8 array (H, W) or (H, W, 3) in RGB order.
        detector: from `detectors.load_detector`, or the path of YuNet's file; None looks for it.
        thorough: also look for faces that are small in a large photo, and again at each face to
            read how it is turned; False is several times as fast, for video.

    Raises:
        DetectorError: no detector was given, or only its path, and it cannot be had.
    """
    detector = shared_detector(detector)
    picture = _as_picture(image)
    long_side = max(picture.size)
    sides = [min(max(long_side, 256), 640)]
    # Of a panorama or a long screenshot as many pixels are looked at as of a photo of 1280 x 512:
    # at 1280 pixels nothing would be left of its faces.
    aspect = long_side / min(picture.size)
    second = min(long_side, round(1280 * max(1.0, aspect / 2.5) ** 0.5))
    # Every further look of the cascade would add false alarms.
    if thorough and second > sides[0] and detector.kind == "yunet":
        sides.append(second)
    faces = [face for side in sides for face in _detect_at(picture, side, detector)]
    largest = max((face.height for face in faces), default=long_side)
    if sides[0] > 256 and largest > 0.45 * long_side:
        faces += _detect_at(picture, 256, detector)
    faces = _distinct(faces)
    if thorough:  # of one that lies two parts may have been taken for a face each
        faces = _distinct([_seen_closely(picture, face, detector) for face in faces])
    return faces


def _seen_closely(picture: Image.Image, face: Face, detector: Detector) -> Face:
    """The same face with its points read from a closer look, in which it may prove to lie.

    YuNet also finds faces that lie on their side or stand on their head, but their points claim
    that they are upright. Its score gives them away: at most 0.90, and 0.93 to 0.96 on upright
    faces unless they are small. One that falls short is looked at in all four directions, and lies
    if it looks clearly better so, and like an upright face then: all 53 that were found in turned
    photos did (0.92 to 0.96), covered or resting ones the wrong way up did not (at most 0.89).

    On upright faces of 130 pixels and less the points lean towards upright: of a tilt of 20 degrees
    the eyes show 7, at 200 pixels 11, at 280 pixels 15 (means over four photos, both directions).
    """
    if face.landmarks is None:
        return face
    if detector.kind == "yunet" and face.score < 0.92:
        looks = [_closer_look(picture, face, detector, 0.9, turn) for turn in range(4)]
        found = [look for look in looks if look is not None]
        best = max(found, key=lambda look: look.score - 0.03 * (look is not looks[0]), default=None)
        if best is not looks[0] and best.score > 0.9:
            return best
    if face.height * 640 / max(picture.size) > 250:
        return face
    closer = _closer_look(picture, face, detector, 0.6)
    return face if closer is None else replace(face, landmarks=closer.landmarks)


def _closer_look(
    picture: Image.Image, face: Face, detector: Detector, reach: float, turn: int = 0
) -> Face | None:
    """The face as it is found in the region around it; None where it is not found there.

    Args:
        picture: the photo.
        face: what was found in it.
        detector: what finds it again.
        reach: half the side of the region, as a share of the box's longer side.
        turn: quarter turns, against the clock, before the region is looked at.
    """
    reach *= max(face.height, face.width)
    center = ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
    left, top = (math.floor(value - reach) for value in center)
    region = _inside(picture, left, top, math.ceil(2 * reach))
    part = picture.crop(region)
    near = _moved(face, *region[:2], 1)
    if turn:
        seen = _detect_at(part.transpose(QUARTER_TURNS[turn]), 320, detector, 0.5)
        seen = [_turned_back(other, turn, part.size) for other in seen]
    else:
        seen = _detect_at(part, 320, detector, 0.5)
    same = [other for other in seen if _overlap(other, near) > 0.6]
    best = max(same, key=lambda other: other.score, default=None)
    return best and _moved(best, -region[0], -region[1], 1)


def _turned_back(face: Face, turn: int, size: tuple[int, int]) -> Face:
    """A face of a picture that was turned, in the picture of that size before its quarter turns."""
    width, height = size

    def back(x: float, y: float) -> tuple[float, float]:
        return ((x, y), (width - y, x), (width - x, height - y), (y, height - x))[turn]

    (x0, y0), (x1, y1) = back(*face.box[:2]), back(*face.box[2:])
    box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return Face(box, face.score, face.landmarks and tuple(back(*p) for p in face.landmarks))


def _detect_at(
    picture: Image.Image, long_side: int, detector: Detector, min_score: float = 0.7
) -> list[Face]:
    """Faces of the photo, looked at with its long side scaled to `long_side` pixels."""
    scale = long_side / max(picture.size)
    size = tuple(max(1, round(length * scale)) for length in picture.size)
    if size != picture.size:
        # Averaging whole blocks first bounds time and memory for very large photos.
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    found = detector.detect(np.asarray(picture.convert("RGB")), min_score)
    return [_moved(face, 0, 0, 1 / scale) for face in found]


def _as_picture(image: Image.Image | np.ndarray) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _moved(face: Face, left: float, top: float, scale: float) -> Face:
    """The same face after the photo was cut at (left, top) and then scaled."""
    x0, y0, x1, y1 = face.box
    box = ((x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale)
    points = face.landmarks and tuple(
        ((x - left) * scale, (y - top) * scale) for x, y in face.landmarks
    )
    return Face(box, face.score, points)


def _distinct(faces: list[Face]) -> list[Face]:
    """One of each face that several passes found, largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score if face.score > 0 else 0.0):
        if all(_overlap(face, other) < 0.5 for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda face: face.width * face.height, reverse=True)


def _overlap(a: Face, b: Face) -> float:
    """Common area as a share of the smaller box."""
    width = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    height = min(a.box[3], b.box[3]) - max(a.box[1], b.box[1])
    return max(width, 0) * max(height, 0) / max(min(a.width * a.height, b.width * b.height), 1e-9)


# %% [markdown]
# ## Cutting a face out
# The square stands on the box's center, as high as the box plus the margin, and is turned so that
# the eyes are level. Where it reaches beyond the photo the edge pixels are repeated: a black bar
# would be something the network has never seen.


# %%
def crop_face(
    image: Image.Image | np.ndarray,
    face: Face,
    margin: float = FER_MARGIN,
    *,
    size: int | None = None,
) -> Image.Image:
    """Cut one face out, upright and square.

    Args:
        image: the photo the face was found in: PIL picture, or uint8 array (H, W) or (H, W, 3).
        face: from `find_faces`.
        margin: what is added on each side, as a share of the box's longer side.
        size: side of the result in pixels; None keeps the photo's own scale (at most 512 pixels).

    Returns:
        A square picture of mode L for a grey photo, else RGB.
    """
    picture = _as_picture(image)
    side = max(face.width, face.height) * (1 + 2 * margin)
    size = size or min(max(round(side), 1), 512)
    center = ((face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2)
    angle = math.radians(face.roll)

    # The upright window that holds the turned square, one pixel wider for the interpolation.
    reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + 1
    left, top = (math.floor(value - reach) for value in center)
    length = math.ceil(2 * reach) + 1
    factor = int(side // (2 * size))
    if factor > 1:
        # A face of thousands of pixels: averaged over whole blocks first, which costs no memory.
        region = _inside(picture, left, top, length)
        face = _moved(face, *region[:2], 1 / factor)
        return crop_face(picture.reduce(factor, box=region), face, margin, size=size)
    window = _window(picture, left, top, length)
    scale = size / side
    if scale < 1:
        # Anti-aliased shrinking first; the turn below samples single pixels.
        shrunk = max(1, round(length * scale))
        window = window.resize((shrunk, shrunk), Image.Resampling.BILINEAR)
    ratio = window.width / length
    x, y = (center[0] - left) * ratio, (center[1] - top) * ratio

    # For every output pixel, where it comes from (PIL counts pixel centers at .5 itself).
    step = side / size * ratio
    cosine, sine = math.cos(angle) * step, math.sin(angle) * step
    half = size / 2
    matrix = (cosine, -sine, x - half * (cosine - sine), sine, cosine, y - half * (sine + cosine))
    return window.transform(
        (size, size), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC
    )


def _inside(picture: Image.Image, left: int, top: int, length: int) -> tuple[int, int, int, int]:
    """The part of a square that lies in the photo: at least one row and column of it."""
    x0, y0 = min(max(left, 0), picture.width - 1), min(max(top, 0), picture.height - 1)
    x1 = min(max(left + length, x0 + 1), picture.width)
    y1 = min(max(top + length, y0 + 1), picture.height)
    return x0, y0, x1, y1


def _window(picture: Image.Image, left: int, top: int, length: int) -> Image.Image:
    """A square of the photo; beyond the edge its last pixels are repeated."""
    inside = picture.crop(_inside(picture, left, top, length))
    before_x = min(max(-left, 0), length - inside.width)
    before_y = min(max(-top, 0), length - inside.height)
    after_x, after_y = length - inside.width - before_x, length - inside.height - before_y
    if inside.size == (length, length):
        return inside
    pad = [(before_y, after_y), (before_x, after_x)]
    pixels = np.asarray(inside)
    return Image.fromarray(np.pad(pixels, pad + [(0, 0)] * (pixels.ndim - 2), mode="edge"))


# %% [markdown]
# ## Demo
# A group picture of people who do not exist. The first face is cut out by hand: its box and points
# are written down, so this works without a detector. The crop stands upright, and with the margin
# of the AffectNet crops it shows more of the surroundings.

# %% tags=["active-ipynb"]
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.detectors import DetectorError
# from fer_helpers.plots import plot_samples
#
# people = [("Happy", 20, 250, -15), ("Surprise", 21, 220, 0), ("Sad", 22, 180, 10)]
# photo = Image.new("RGB", (760, 300), (214, 219, 224))
# for i, (expression, seed, side, tilt) in enumerate(people):
#     person = draw_face(expression, seed, size=side)
#     person = person.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=(214, 219, 224))
#     photo.paste(person, (15 + 255 * i, 20))
# photo

# %% tags=["active-ipynb"]
# points = ((99.0, 110.0), (164.0, 128.0), (118.0, 157.0), (93.0, 174.0), (144.0, 187.0))
# by_hand = Face((60, 50, 205, 235), 1.0, points)
# print(f"the eyes are tilted by {by_hand.roll:.0f} degrees")
# margins = (FER_MARGIN, AFFECTNET_MARGIN)
# crops = [crop_face(photo, by_hand, margin, size=96) for margin in margins]
# stacks = [np.asarray(crop)[None] for crop in crops]
# names = ["FER2013 margin", "AffectNet margin"]
# plot_samples(stacks, names, title="One face, two margins", note="drawn faces")

# %% [markdown]
# The same by detector, if there is one here.

# %% tags=["active-ipynb"]
# try:
#     found = find_faces(photo)
# except DetectorError as error:
#     found = []
#     print(error)
# print(len(found), "faces found, tilted by", [round(face.roll) for face in found], "degrees")

# %% tags=["active-ipynb"]
# if found:
#     stack = np.stack([np.asarray(crop_face(photo, face, size=96)) for face in found])
#     display(plot_samples([stack], ["found"], title="Largest first", note="drawn faces"))
