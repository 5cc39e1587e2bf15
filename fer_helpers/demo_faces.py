# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Drawn faces: a data set that may be shown
#
# Photographs of faces come with terms: they may not be redistributed, and a notebook that prints
# them may not be published. So this project carries people who do not exist. They are drawn by a
# few hundred lines of geometry, they stand in exactly the folders of the two Kaggle data sets, and
# whoever clones the repository can run the whole workflow on them within minutes.
#
# What makes a drawn face angry or afraid is not our taste. The *Facial Action Coding System* of
# Ekman and Friesen describes what each muscle of the face does to its surface ("action units"), and
# *EMFACS* lists which action units appear together in which emotion. We write that table down, and
# let the action units move brows, lids and lips.

# %%
"""Drawn faces with expressions, in the folder layouts of the two Kaggle data sets."""

import contextlib
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# %% [markdown]
# ## Expressions are combinations of action units
#
# Sources: P. Ekman and W. V. Friesen, *Facial Action Coding System*, Consulting Psychologists Press
# 1978 (second edition with J. C. Hager, 2002), for what a unit does; W. V. Friesen and P. Ekman,
# *EMFACS-7*, 1983, for the combinations.
#
# | unit | what moves | unit | what moves |
# |---|---|---|---|
# | 1 | inner brow raiser | 14 | dimpler |
# | 2 | outer brow raiser | 15 | lip corner depressor |
# | 4 | brow lowerer | 16 | lower lip depressor |
# | 5 | upper lid raiser | 17 | chin raiser |
# | 6 | cheek raiser | 20 | lip stretcher |
# | 7 | lid tightener | 23 | lip tightener |
# | 9 | nose wrinkler | 24 | lip pressor |
# | 10 | upper lip raiser | 25 | lips part |
# | 12 | lip corner puller | 26 | jaw drop |

# %%
# Intensity 1 is the full movement. Contempt is the only one-sided prototype (R12 + R14); the
# seed chooses the side.
ACTION_UNITS: dict[str, dict[int, float]] = {
    "Anger": {4: 1.0, 5: 0.6, 7: 0.8, 23: 1.0},
    "Contempt": {12: 0.9, 14: 1.0},
    "Disgust": {9: 1.0, 10: 0.6, 15: 0.6, 16: 0.7},
    "Fear": {1: 1.0, 2: 0.6, 4: 0.7, 5: 1.0, 20: 1.0, 26: 0.4},
    "Happy": {6: 0.9, 12: 1.0},
    "Neutral": {},
    "Sad": {1: 1.0, 4: 0.6, 15: 1.0},
    "Surprise": {1: 0.9, 2: 1.0, 5: 0.8, 26: 1.0},
}
EXPRESSIONS = tuple(ACTION_UNITS)

# Units that EMFACS lists as common companions, with the probability that a face shows them.
_COMPANIONS = {
    "Anger": {24: 0.5, 25: 0.2, 17: 0.3},
    "Contempt": {},
    "Disgust": {4: 0.4, 17: 0.3, 25: 0.4},
    "Fear": {25: 0.8, 7: 0.2},
    "Happy": {25: 0.6, 26: 0.25},
    "Neutral": {},
    "Sad": {17: 0.5, 7: 0.2},
    "Surprise": {25: 0.7},
}

# Real annotators mix these up, so a share of the faces leans towards a neighbor.
_NEIGHBORS = {
    "Anger": ("Disgust", "Neutral", "Sad"),
    "Contempt": ("Neutral", "Happy", "Disgust"),
    "Disgust": ("Anger", "Sad", "Contempt"),
    "Fear": ("Surprise", "Sad", "Surprise"),
    "Happy": ("Contempt", "Neutral", "Surprise"),
    "Neutral": ("Sad", "Contempt", "Anger"),
    "Sad": ("Neutral", "Fear", "Disgust"),
    "Surprise": ("Fear", "Fear", "Happy"),
}
_ONE_SIDED = "Contempt"


def _units(expression: str, generator: np.random.Generator, intensity: float | None) -> np.ndarray:
    """Intensities (27, 2) of the action units of one face; column 0 is the viewer's left."""
    chance = generator.random
    side = int(chance() < 0.5)

    def prototype(name: str, strength: float) -> np.ndarray:
        units = np.zeros((27, 2))
        for unit, level in ACTION_UNITS[name].items():
            units[unit] = level * strength * (0.8 + 0.4 * chance())
        for unit, share in _COMPANIONS[name].items():
            if chance() < share:
                units[unit] = max(units[unit, 0], strength * (0.4 + 0.6 * chance()))
        if name == _ONE_SIDED:
            units[:, 1 - side] *= 0.1
        return units

    if intensity is not None:
        return prototype(expression, intensity)
    strength = 1.15 - 0.6 * chance() ** 2
    units = prototype(expression, strength)
    if chance() < 0.10:
        other = _NEIGHBORS[expression][int(3 * chance())]
        share = 0.2 + 0.35 * chance()
        units = (1 - share) * units + share * prototype(other, 0.5 + 0.5 * chance())
    # Nobody's resting face is the average face, nobody is symmetric, and some people are talking.
    for unit in (1, 2, 4, 7, 10, 12, 15, 17, 24):
        units[unit] += abs(generator.normal(0.0, 0.07))
    if chance() < 0.15:
        units[25] += 0.5 * chance()
        units[26] += 0.35 * chance()
    return np.clip(units * (1 + generator.normal(0.0, 0.08, size=(1, 2))), 0.0, 1.2)


# %% [markdown]
# ## Who it is
#
# Skin, hair, bones and glasses are drawn from one random stream, the expression from a second and
# pose and light from a third. The same seed therefore shows the same person, in the same pose, with
# any of the eight expressions; and a person says nothing about the expression.

# %%
_SKIN = np.array(
    [
        (248, 220, 198),
        (246, 211, 184),
        (236, 192, 156),
        (222, 170, 128),
        (198, 142, 100),
        (170, 117, 82),
        (140, 94, 66),
        (114, 76, 57),
    ],
    dtype=float,
)
_DARK_HAIR = ((36, 28, 30), (52, 36, 32), (74, 48, 36))
_FAIR_HAIR = ((112, 74, 46), (150, 78, 44), (184, 132, 76), (222, 184, 120), (176, 170, 166))
_BOLD_HAIR = ((196, 92, 110), (70, 118, 128), (108, 84, 138))
_CLOTHES = (
    (176, 84, 66),
    (214, 158, 78),
    (92, 118, 98),
    (72, 96, 124),
    (126, 82, 104),
    (226, 208, 180),
    (64, 66, 78),
    (160, 176, 172),
)
_WALLS = (
    (232, 208, 176),
    (196, 208, 184),
    (178, 204, 210),
    (230, 184, 160),
    (238, 214, 146),
    (222, 188, 190),
    (158, 172, 190),
    (186, 168, 192),
    (122, 140, 134),
    (112, 110, 128),
)
_EYES = ((74, 48, 34), (92, 62, 40), (58, 40, 34), (110, 112, 70), (84, 112, 132), (98, 128, 104))
_STYLES = (
    "crop",
    "part",
    "quiff",
    "fringe",
    "curls",
    "afro",
    "long",
    "bob",
    "bun",
    "bald",
    "scarf",
    "beanie",
)
_STYLE_SHARES = np.cumsum((0.14, 0.13, 0.10, 0.09, 0.10, 0.06, 0.12, 0.09, 0.07, 0.04, 0.03, 0.03))


@dataclass(frozen=True)
class _Person:
    skin: np.ndarray
    hair: np.ndarray
    clothes: np.ndarray
    cloth: np.ndarray
    iris: np.ndarray
    lips: np.ndarray
    style: str
    mirrored: bool
    beard: str
    glasses: bool
    freckles: np.ndarray
    earrings: bool
    age: float
    width: float
    jaw: float
    chin: float
    eye_width: float
    eye_height: float
    eye_distance: float
    eye_tilt: float
    brow_height: float
    brow_thickness: float
    brow_tilt: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_height: float
    lip_thickness: float


def _person(generator: np.random.Generator) -> _Person:
    chance = generator.random

    def about(center: float, spread: float) -> float:
        return center + spread * float(np.clip(generator.normal(), -2.0, 2.0))

    def one_of(colors: tuple) -> np.ndarray:
        return np.array(colors[int(len(colors) * chance())], dtype=float)

    tone = 7 * chance()
    lower = min(int(tone), 6)
    skin = _SKIN[lower] + (tone - lower) * (_SKIN[lower + 1] - _SKIN[lower])
    kind = chance()
    if kind < 0.05:
        hair = one_of(_BOLD_HAIR)
    elif kind < 0.55 and tone < 3.5:
        hair = one_of(_FAIR_HAIR)
    else:
        hair = one_of(_DARK_HAIR)
    style = _STYLES[int(np.searchsorted(_STYLE_SHARES, chance() * _STYLE_SHARES[-1]))]
    bearded = style in ("crop", "part", "quiff", "bald", "curls", "beanie") and chance() < 0.22
    age = chance() ** 1.5
    count = int(8 + 14 * chance()) if tone < 3 and chance() < 0.2 else 0
    return _Person(
        skin=skin,
        hair=hair * (0.9 + 0.2 * chance()),
        clothes=one_of(_CLOTHES),
        cloth=one_of(_CLOTHES),
        iris=one_of(_EYES if tone < 3.5 else _EYES[:3]),
        lips=0.62 * skin + 0.38 * np.array((186, 62, 70))
        if chance() < 0.7
        else skin * (0.86, 0.7, 0.68),
        style=style,
        mirrored=chance() < 0.5,
        beard=("stubble", "beard", "moustache")[int(3 * chance())] if bearded else "",
        glasses=chance() < 0.10,
        freckles=generator.normal(size=(count, 2)) * (0.09, 0.05),
        earrings=style in ("long", "bun", "bob", "afro") and chance() < 0.4,
        age=age,
        width=about(0.76, 0.035),
        jaw=about(0.59, 0.045),
        chin=about(1.0, 0.03),
        eye_width=about(0.195, 0.012),
        eye_height=about(0.095, 0.010),
        eye_distance=about(0.335, 0.018),
        eye_tilt=about(0.012, 0.014),
        brow_height=about(-0.32, 0.02),
        brow_thickness=about(0.060, 0.011),
        brow_tilt=about(0.0, 0.018),
        nose_width=about(0.13, 0.018),
        nose_length=about(0.27, 0.03),
        mouth_width=about(0.275, 0.02),
        mouth_height=about(0.55, 0.025),
        lip_thickness=about(1.0, 0.22),
    )


# %% [markdown]
# ## A sheet of paper that turns with the head
#
# All parts of a face are written down once, for a head that looks straight at us, in a coordinate
# system whose unit is half a face: chin at `y = 1`, crown at `y = -1`. The sheet collects them,
# lays their points on a rounded head, turns it (yaw, pitch, roll) in one pass over all points, and
# draws at four times the final size so that the reduction smooths every edge.

# %%
_OVERSAMPLING = 4
_ON_FACE, _ON_RIM, _FLAT = 0, 1, 2
_FLIP = np.array((-1.0, 1.0))


def _face(points: list | np.ndarray, lift: float = 0.0) -> list[tuple]:
    """A shape on the front of the head; `lift` stands off the surface."""
    return [(np.asarray(points, dtype=float), lift, _ON_FACE)]


def _rim(points: list | np.ndarray, lift: float = 0.0) -> list[tuple]:
    """A shape on the silhouette, which keeps its width when the head turns."""
    return [(np.asarray(points, dtype=float), lift, _ON_RIM)]


def _flat(points: list | np.ndarray) -> list[tuple]:
    """A shape that does not turn with the head: neck and shoulders."""
    return [(np.asarray(points, dtype=float), 0.0, _FLAT)]


def _both(points: list | np.ndarray, side: int) -> np.ndarray:
    """Points written for the right half of the picture, mirrored if `side` is 0."""
    points = np.asarray(points, dtype=float)
    return points if side else points * _FLIP


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A path that goes on with the mirror image of itself; a point on the axis stays single."""
    return [*half, *[(-x, y) for x, y in half[::-1] if x]]


@lru_cache(maxsize=64)
def _spline_matrix(count: int, closed: bool, steps: int) -> np.ndarray:
    """Weights (samples, count) of a Catmull-Rom spline: `matrix @ points` is the smooth curve."""
    spans = count if closed else count - 1
    matrix = np.zeros((spans * steps + (not closed), count))
    for row in range(len(matrix)):
        span = min(row // steps, spans - 1)
        t = row / steps - span
        weights = (
            0.5 * (-t + 2 * t**2 - t**3),
            0.5 * (2 - 5 * t**2 + 3 * t**3),
            0.5 * (t + 4 * t**2 - 3 * t**3),
            0.5 * (-(t**2) + t**3),
        )
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
            index = span + offset
            index = index % count if closed else min(max(index, 0), count - 1)
            matrix[row, index] += weight
    return matrix


def _smooth(points: list | np.ndarray, closed: bool = False, steps: int = 5) -> np.ndarray:
    points = np.asarray(points, dtype=float)
    return _spline_matrix(len(points), closed, steps) @ points


_TURN = np.linspace(0, 2 * math.pi, 24, endpoint=False)
_CIRCLE = np.stack((np.cos(_TURN), np.sin(_TURN)), 1)


class _Sheet:
    """Shapes in the order of drawing; `render` places and draws them all."""

    def __init__(self, size: int, pose: dict[str, float]) -> None:
        self.size = size
        self.pose = pose
        self.unit = pose["scale"] * size * _OVERSAMPLING
        self.center = np.array((0.5 + pose["dx"], 0.46 + pose["dy"])) * size * _OVERSAMPLING
        self.pieces: list[tuple] = []
        self.jobs: list[tuple] = []  # (kind, number of points, color, strength, width or lit)

    def _add(self, shape: list) -> int:
        self.pieces += shape
        return sum([len(points) for points, _, _ in shape])

    def fill(self, shape: list, color: np.ndarray, alpha: float = 1.0, lit: bool = False) -> None:
        """A polygon; `lit` shapes are modelled by the light."""
        if alpha > 0.02:
            self.jobs.append(("fill", self._add(shape), color, alpha, lit))

    def line(self, shape: list, width: float, color: np.ndarray, alpha: float = 1.0) -> None:
        """A brush stroke, `width` face units wide in the middle, thin at both ends."""
        if alpha > 0.02:
            self.jobs.append(("line", self._add(shape), color, alpha, width))

    def glaze(self, shapes: list[tuple], tint: np.ndarray, radius: float) -> None:
        """A transparent film, blurred by `radius` face units, multiplying what is below by `tint`.

        `shapes` holds (shape, strength between 0 and 1).
        """
        for shape, strength in shapes:
            self.jobs.append(("patch", self._add(shape), tint, strength, 0))
        self.jobs.append(("glaze", 0, tint, radius, 0))

    def _place(self) -> np.ndarray:
        """Canvas positions (n, 2) of the points of all pieces."""
        counts = [len(points) for points, _, _ in self.pieces]
        x, y = np.concatenate([points for points, _, _ in self.pieces]).T
        lift = np.repeat([lift for _, lift, _ in self.pieces], counts)
        kind = np.repeat([kind for _, _, kind in self.pieces], counts)
        yaw, pitch, roll = self.pose["yaw"], self.pose["pitch"], self.pose["roll"]
        # A head is about as deep as it is wide: its silhouette shifts (most at the chin) instead
        # of narrowing.
        front = 0.85 * np.sqrt(np.maximum(0.02, 1 - (x / 0.95) ** 2 - (y / 1.35) ** 2))
        depth = lift + np.where(kind == _ON_FACE, front, 0.22 + 0.36 * np.clip(y, 0.0, 1.1))
        turned = kind == _ON_FACE
        right = x * np.where(turned, math.cos(yaw), 1) + depth * math.sin(yaw)
        toward = depth * np.where(turned, math.cos(yaw), 1) - x * np.where(turned, math.sin(yaw), 0)
        down = y * math.cos(pitch) + toward * math.sin(pitch)
        across = right * math.cos(roll) - down * math.sin(roll)
        down = right * math.sin(roll) + down * math.cos(roll)
        flat = kind == _FLAT
        points = np.stack((np.where(flat, x, across), np.where(flat, y, down)), 1)
        return points * self.unit + self.center

    def render(self, background: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        """The drawing (3, size, size) and the mask of what is lit (size, size), both in 0 to 1."""
        points = self._place()
        sizes = np.array([job[1] for job in self.jobs])
        ends = np.cumsum(sizes)
        starts = ends - sizes
        # Strokes become polygons: every point steps aside to the left and to the right of the path.
        first, last = np.repeat(starts, sizes), np.repeat(ends - 1, sizes)
        index = np.arange(len(points))
        along = points[np.minimum(index + 1, last)] - points[np.maximum(index - 1, first)]
        along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-6)[:, None]
        bulge = 0.25 + 0.75 * np.sin(math.pi * (index - first) / np.maximum(last - first, 1))
        widths = np.repeat([job[4] if job[0] == "line" else 0.0 for job in self.jobs], sizes)
        aside = along[:, ::-1] * (-1, 1) * (0.5 * self.unit * widths * bulge)[:, None]
        left = (points + aside).ravel().tolist()
        right = (points - aside)[::-1].ravel().tolist()
        small = (points / _OVERSAMPLING).ravel().tolist()
        colors = np.clip([job[2] for job in self.jobs], 0, 255).astype(int).tolist()

        edge = self.size * _OVERSAMPLING
        image = background.resize((edge, edge), Image.Resampling.NEAREST)
        opaque, blending = ImageDraw.Draw(image), ImageDraw.Draw(image, "RGBA")
        lit, film = Image.new("L", background.size), Image.new("L", background.size)
        films = []
        total = len(points)
        for job, start, end, rgb in zip(
            self.jobs, starts.tolist(), ends.tolist(), colors, strict=True
        ):
            kind, _, color, strength, extra = job
            level = int(255 * min(max(strength, 0.0), 1.0))
            if kind == "glaze":
                film = film.filter(ImageFilter.GaussianBlur(strength * self.unit / _OVERSAMPLING))
                films.append((film, color))
                film = Image.new("L", background.size)
            elif kind == "patch":
                ImageDraw.Draw(film).polygon(small[2 * start : 2 * end], fill=level)
            else:
                path = left[2 * start : 2 * end]
                if kind == "line":
                    path = path + right[2 * (total - end) : 2 * (total - start)]
                elif extra:
                    ImageDraw.Draw(lit).polygon(small[2 * start : 2 * end], fill=255)
                if level == 255:
                    opaque.polygon(path, fill=tuple(rgb))
                else:
                    blending.polygon(path, fill=(*rgb, level))
        pixels = np.asarray(image.reduce(_OVERSAMPLING)).transpose(2, 0, 1).astype(np.float32) / 255
        for film, tint in films:
            share = np.asarray(film, dtype=np.float32) / 255
            pixels *= 1 - share * (1 - tint.astype(np.float32)[:, None, None])
        lit = lit.filter(ImageFilter.GaussianBlur(0.6))
        return pixels, np.asarray(lit, dtype=np.float32) / 255


# %% [markdown]
# ## Head, neck and hair


# %%
def _head_outline(person: _Person, units: np.ndarray) -> np.ndarray:
    chin = person.chin + 0.13 * units[26].mean() - 0.02 * units[17].mean()
    w, jaw = person.width, person.jaw
    half = [
        (0.42 * w / 0.76, -0.93),
        (0.92 * w, -0.58),
        (w, -0.12),
        (0.95 * w, 0.26),
        (jaw, 0.62 * chin),
        (0.50 * jaw, 0.94 * chin),
    ]
    return _smooth([(0, -1.02), *_mirrored([*half, (0, chin)])], closed=True, steps=4)


_ARC = np.linspace(-math.pi, math.pi, 26)


def _cap(person: _Person, volume: float, lift: float) -> np.ndarray:
    """The top contour of the hair, from the left temple over the crown to the right one."""
    angles = _ARC * (0.60 if person.style in ("long", "bob", "part", "fringe") else 0.52)
    x, y = np.sin(angles), np.cos(angles)
    y = -0.10 - y * (0.92 + volume) - lift * np.maximum(0, y) ** 2
    return np.stack((x * (person.width + volume), y), 1)


# The lower edge of the hair over the forehead, from the right temple to the left one.
_CROP = _mirrored([(0.72, -0.22), (0.62, -0.50), (0.34, -0.66), (0, -0.64)])
_PART = [(0.74, -0.05), (0.66, -0.36), (0.40, -0.54), (0.05, -0.64), (-0.30, -0.80)]
_PART += [(-0.58, -0.52), (-0.72, -0.18)]
_HAIRLINES = {
    "crop": _CROP,
    "bun": _CROP,
    "curls": _CROP,
    "afro": _CROP,
    "part": _PART,
    "bob": _PART,
    "quiff": _mirrored([(0.72, -0.20), (0.60, -0.50), (0.36, -0.72), (0, -0.70)]),
    "fringe": _mirrored([(0.74, -0.02), (0.62, -0.34), (0.34, -0.45), (0, -0.47)]),
    "long": _mirrored([(0.74, 0.12), (0.62, -0.36), (0.34, -0.66), (0, -0.84)]),
    "beanie": _mirrored([(0.74, -0.30), (0.60, -0.46), (0.30, -0.54), (0, -0.56)]),
}
# How far the hair stands off the head at the sides, and on top of that at the crown.
_VOLUMES = {
    "quiff": (0.07, 0.18),
    "beanie": (0.07, 0.14),
    "curls": (0.10, 0.03),
    "afro": (0.16, 0.03),
    "long": (0.10, 0.03),
    "bob": (0.12, 0.03),
}


def _hair_behind(sheet: _Sheet, person: _Person) -> None:
    hair = person.hair
    if person.style == "long":
        half = [(0, -1.1), (0.80, -0.75), (0.94, 0.0), (1.0, 0.8), (0.86, 1.5), (0, 1.6)]
    elif person.style == "bob":
        half = [(0, -1.1), (0.80, -0.72), (0.94, 0.0), (0.98, 0.55), (0.80, 0.86), (0, 0.9)]
    elif person.style == "scarf":
        half = [(0, -1.16), (0.80, -0.80), (0.95, 0.0), (0.88, 0.9), (1.0, 1.6), (0, 1.7)]
        hair = person.cloth
    elif person.style == "bun":
        sheet.fill(_rim(_CIRCLE * (0.30, 0.28) + (0, -1.20)), hair, lit=True)
        sheet.line(_rim(_CIRCLE[13:23] * (0.2, 0.17) + (0, -1.20)), 0.06, hair * 1.2 + 14, 0.5)
        return
    elif person.style == "afro":
        for x, y in _CIRCLE[8:] * (1.02, 0.90) + (0, -0.36):
            sheet.fill(_rim(_CIRCLE[::2] * 0.19 + (x, y)), hair, lit=True)
        sheet.fill(_rim(_CIRCLE * (1.10, 0.98) + (0, -0.36)), hair, lit=True)
        return
    else:
        return
    sheet.fill(_rim(_smooth(_mirrored(half), closed=True)), hair * 0.78, lit=True)


def _scarf(sheet: _Sheet, cloth: np.ndarray) -> None:
    half = [(0, -1.16), (0.86, -0.78), (0.93, 0.1), (0.66, 1.02), (0.3, 1.3)]
    outer = _smooth(_mirrored(half), closed=True)
    half = [(0, -0.66), (0.48, -0.50), (0.64, 0.0), (0.52, 0.56), (0.22, 1.03), (0, 1.09)]
    inner = _smooth(_mirrored(half), closed=True)
    # One closed path: around the outside, then back around the opening.
    ring = _rim(outer) + _rim(outer[:1]) + _face(inner[:1], -0.1) + _face(inner[::-1], -0.1)
    sheet.fill(ring, cloth, lit=True)
    sheet.line(_face(inner[30:], -0.1), 0.04, cloth * 0.7, 0.6)
    for y in (-0.80, -0.95):
        fold = _smooth([(-0.62, 0.12 + y), (0, y), (0.60, 0.2 + y)])
        sheet.line(_rim(fold), 0.03, cloth * 0.8, 0.6)


def _hair_in_front(sheet: _Sheet, person: _Person) -> None:
    style, hair = person.style, person.hair
    if style == "bald":
        return
    if style == "scarf":
        _scarf(sheet, person.cloth)
        return
    volume, lift = _VOLUMES.get(style, (0.06, 0.03))
    color = person.cloth if style == "beanie" else hair
    cap = _cap(person, volume, lift)
    line = _smooth(_HAIRLINES[style], steps=4)
    if person.mirrored:
        line = line[::-1] * (-1, 1)
    if style == "curls":
        for x, y in _cap(person, 0.05, 0.06)[1:-1:2]:
            sheet.fill(_rim(_CIRCLE[::2] * 0.17 + (x, y)), hair, lit=True)
    sheet.fill(_rim(cap) + _face(line, 0.04), color, lit=True)
    if style == "beanie":
        band = _face(line, 0.06) + _face((line - (0, 0.17))[::-1], 0.06)
        sheet.fill(band, color * 0.82)
        for x in (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5):
            rib = [(x, -0.53 + 0.25 * x * x), (x * 0.97, -0.69 + 0.25 * x * x)]
            sheet.line(_face(_smooth(rib, steps=3), 0.06), 0.025, color * 0.65, 0.7)
        return
    light, dark = hair * 1.18 + 16, hair * 0.72
    if style in ("curls", "afro"):
        for x, y in line[2:-2:3]:
            sheet.fill(_face(_CIRCLE[::2] * 0.10 + (x, y), 0.04), hair)
        for x, y in line[3:-2:4]:
            curl = _CIRCLE[12:22] * 0.07 + (0.92 * x, y - 0.13)
            sheet.line(_face(curl, 0.04), 0.03, light, 0.45)
        return
    # Strands: from the hairline back over the crown, alternately in light and in shade.
    for step, start in enumerate(range(4, len(line) - 4, 2)):
        root = line[start]
        tip = cap[len(cap) - 1 - int(start / len(line) * len(cap))]
        path = root + np.array((0.04, 0.33, 0.66, 0.97))[:, None] * (tip - root)
        path[1:3] += (0.06 * np.sign(root[0]), -0.03)
        sheet.line(_face(path[:2], 0.04) + _rim(path[2:]), 0.05, dark if step % 2 else light, 0.4)


def _body(sheet: _Sheet, person: _Person, units: np.ndarray) -> None:
    """Everything that is not a feature: hair behind, shoulders, neck, ears, skin."""
    _hair_behind(sheet, person)
    skin, shadow = person.skin, person.skin * (0.80, 0.68, 0.64)
    neck = [(-0.36, 0.5), (0.36, 0.5), (0.38, 1.15), (0.62, 1.32), (-0.62, 1.32), (-0.38, 1.15)]
    sheet.fill(_flat(neck), shadow)
    half = [(-1.7, 2.2), (-1.35, 1.5), (-0.72, 1.26), (-0.42, 1.18)]
    sheet.fill(_flat(_smooth(_mirrored([*half, (0, 1.36)]))), person.clothes)
    collar = [(-0.44, 1.19), (0, 1.38), (0.44, 1.19)]
    sheet.line(_flat(_smooth(collar)), 0.06, person.clothes * 0.8)
    if person.style != "scarf":
        for side in (0, 1):
            ear = [(0.70, -0.16), (0.84, -0.18), (0.87, 0.0), (0.80, 0.2), (0.70, 0.22)]
            ear = _smooth(_both(ear, side), closed=True)
            sheet.fill(_rim(ear, -0.28), skin * (0.95, 0.88, 0.86), lit=True)
            sheet.line(_rim(0.85 * ear[2:17] + 0.15 * ear.mean(0), -0.28), 0.03, shadow * 0.9, 0.8)
            if person.earrings:
                drop = _CIRCLE[::2] * 0.055 + ear[17] + (0, 0.06)
                sheet.fill(_rim(drop, -0.28), np.array((232, 190, 96)))
    sheet.fill(_rim(_head_outline(person, units)), skin, lit=True)


# %% [markdown]
# ## Features: where the action units act


# %%
def _shadows(sheet: _Sheet, person: _Person, units: np.ndarray) -> None:
    """The soft relief of the face, and its color: cheeks, lids, folds, beard."""
    mean = units.mean(1).tolist()
    shapes = []
    for side in (0, 1):
        u = units[:, side].tolist()
        x = person.eye_distance
        socket = _CIRCLE * (0.21, 0.10) + (x - 0.02, -0.12 + 0.03 * u[4] - 0.02 * u[5])
        shapes.append((_face(_both(socket, side)), 0.30 + 0.12 * u[4]))
        inner = _CIRCLE * (0.05, 0.13) + (0.115, -0.10)
        shapes.append((_face(_both(inner, side)), 0.30 + 0.2 * u[9]))
        # The fold from nose to mouth corner: deep in a smile, in disgust and with age.
        fold = min(1.0, 0.10 + 0.35 * person.age + 0.45 * u[12] + 0.5 * u[10] + 0.5 * u[9])
        out = 0.10 * u[12] + 0.03 * u[20]
        wedge = [
            (0.15, 0.24),
            (0.28 + out, 0.36),
            (0.35 + out, 0.56),
            (0.29 + out, 0.50),
            (0.20, 0.36),
        ]
        shapes.append((_face(_both(wedge, side)), 0.55 * fold))
        bag = _CIRCLE * (0.16, 0.035) + (x, 0.07 - 0.01 * u[6])
        shapes.append(
            (_face(_both(bag, side)), 0.12 + 0.25 * u[6] + 0.12 * u[7] + 0.15 * person.age)
        )
    below = person.mouth_height + 0.15 + 0.10 * mean[26] + 0.05 * mean[16]
    shapes.append((_face(_CIRCLE * (0.15, 0.04) + (0, below)), 0.35 + 0.3 * mean[17]))
    shapes.append(
        (_face(_CIRCLE * (person.nose_width, 0.04) + (0, person.nose_length + 0.06), 0.1), 0.4)
    )
    shapes.append((_rim(_CIRCLE[:13] * (0.5, 0.12) + (0, 0.93 + 0.11 * mean[26])), 0.25))
    sheet.glaze(shapes, np.array((0.72, 0.58, 0.54)), 0.035)

    cheeks = []
    for side in (0, 1):
        rise = 0.09 * units[6, side] + 0.04 * units[12, side]
        cheek = _CIRCLE * (0.15, 0.11 + 0.02 * units[6, side]) + (0.43, 0.26 - rise)
        cheeks.append((_face(_both(cheek, side)), 0.34 + 0.2 * units[6, side]))
    tip = _CIRCLE * (0.09, 0.08) + (0, person.nose_length - 0.02)
    cheeks.append((_face(tip, 0.12), 0.25))
    sheet.glaze(cheeks, 0.62 + 0.38 * np.array((222, 84, 70)) / person.skin, 0.055)

    for x, y in person.freckles:
        for side in (0, 1):
            spot = _face(_both(_CIRCLE[::4] * 0.014 + (0.26 + x, 0.16 + y), side))
            sheet.fill(spot, person.skin * (0.74, 0.58, 0.50), 0.7)


def _beard(sheet: _Sheet, person: _Person, units: np.ndarray) -> None:
    if not person.beard:
        return
    jaw = 0.11 * units[26].mean()
    if person.beard in ("stubble", "beard"):
        half = [(0.70, -0.02), (0.69, 0.30), (person.jaw + 0.02, 0.64), (0.26, 0.99 + jaw)]
        rim = _smooth(_mirrored([*half, (0, 1.05 + jaw)]))
        inner = _smooth(_mirrored([(-0.62, 0.08), (-0.50, 0.36), (-0.30, 0.40), (-0.12, 0.35)]))
        shape = _rim(rim) + _face(inner)
        if person.beard == "beard":
            sheet.fill(shape, person.hair, 0.88)
        else:
            sheet.glaze([(shape, 0.36)], person.hair / person.skin, 0.04)
    if person.beard in ("moustache", "beard"):
        out = 0.06 * units[12].mean()
        y = person.mouth_height - 0.12 - 0.03 * units[10].mean()
        half = [
            (0.08, y - 0.04),
            (0.22, y),
            (0.31 + out, y + 0.11 - out),
            (0.17, y + 0.07),
            (0.04, y + 0.05),
        ]
        shape = _smooth(_mirrored(half), closed=True)
        sheet.fill(_face(shape, 0.05), person.hair * 0.92)


_ACROSS = np.linspace(-1, 1, 17)  # from the inner to the outer corner of an eye
_ARCH = 1 - _ACROSS**2


def _eye(sheet: _Sheet, person: _Person, u: list[float], side: int, gaze: np.ndarray) -> None:
    """One eye. Lids are functions of x; iris and pupil are circles clipped between them."""
    width, height = person.eye_width, person.eye_height
    upper = height * (1 + 0.70 * u[5] - 0.42 * u[7] - 0.14 * u[6] - 0.16 * u[9] - 0.1 * u[4])
    # Brows that are drawn up and together, as in grief, weigh on the lids unless these are raised.
    upper -= 0.22 * height * u[1] * u[4] * max(0.0, 1 - u[5])
    lower = height * (0.70 + 0.10 * u[5] - 0.50 * u[7] - 0.85 * u[6] - 0.35 * u[9])
    upper, lower = max(upper, 0.012), max(lower, -0.025)
    x0, tilt = person.eye_distance, person.eye_tilt - 0.022 * u[1] * (1 - u[2])
    center = np.array((x0, -0.075))

    lean = 1 - 0.25 * min(1.0, u[1]) * _ACROSS
    top = np.stack((width * _ACROSS, -upper * _ARCH * lean - tilt * _ACROSS), 1)
    bottom = np.stack((width * _ACROSS, lower * _ARCH * (1 + 0.15 * _ACROSS) - tilt * _ACROSS), 1)

    def place(points: np.ndarray) -> list:
        return _face(_both(points + center, side))

    sheet.fill(place(np.concatenate((top, bottom[::-1]))), np.array((250, 246, 240)))
    look = gaze * ((1, 1) if side else (-1, 1))
    for radius, color in (
        (0.098, person.iris),
        (0.078, person.iris * 1.25),
        (0.047, np.array((22, 16, 18))),
    ):
        disc = _CIRCLE * radius + look
        disc[:, 0] = disc[:, 0].clip(-width, width)
        above = np.interp(disc[:, 0], top[:, 0], top[:, 1])
        below = np.interp(disc[:, 0], bottom[:, 0], bottom[:, 1])
        disc[:, 1] = disc[:, 1].clip(above, below)
        sheet.fill(place(disc), color)
    if upper > 0.05:
        spark = _CIRCLE[::3] * 0.024 + look + (0.03 if side else -0.03, -0.03)
        sheet.fill(place(spark), np.array((255, 255, 255)), 0.95)
    # A little shade of the upper lid on the eyeball, then lashes, crease and lower lid.
    sheet.line(place(top + np.array((0, 0.014))), 0.04, person.skin * 0.5, 0.35)
    lash = np.minimum(person.hair, person.skin * 0.45) * 0.7
    sheet.line(place(np.concatenate((top, [top[-1] + (0.02, -0.012)]))), 0.046, lash)
    crease = top * (1.04, 1.0) - (0, 0.050 - 0.022 * min(1, u[5]))
    sheet.line(place(crease[2:-1]), 0.022, person.skin * (0.62, 0.48, 0.44), 0.75)
    sheet.line(place(bottom[3:]), 0.018, person.skin * (0.58, 0.44, 0.42), 0.55)
    pouch = bottom[3:-2] * (0.95, 1.0) + (0, 0.045)
    sheet.line(place(pouch), 0.02, person.skin * (0.62, 0.48, 0.44), 0.15 + 0.5 * u[6] + 0.4 * u[7])
    if u[6] > 0.25:
        for angle in (-0.5, 0.0, 0.5):
            foot = [(width + 0.03, angle * 0.06), (width + 0.11, angle * 0.13 - 0.01)]
            sheet.line(place(_smooth(foot, steps=3)), 0.02, person.skin * 0.66, 0.6 * u[6])


def _brow(sheet: _Sheet, person: _Person, u: list[float], side: int) -> None:
    y, tilt = person.brow_height, person.brow_tilt
    lower = u[4] * (1 - 0.75 * min(1, u[1]))
    inner = (0.135 - 0.045 * u[4], y - tilt - 0.15 * u[1] + 0.18 * lower + 0.06 * u[9])
    middle = (0.33, y - 0.055 - 0.05 * u[1] - 0.15 * u[2] + 0.10 * lower + 0.035 * u[9])
    outer = (0.56, y + 0.035 + tilt + 0.03 * u[1] - 0.13 * u[2] + 0.01 * u[4])
    second = (0.5 * inner[0] + 0.5 * middle[0], 0.5 * inner[1] + 0.5 * middle[1] - 0.015)
    spine = _smooth([inner, second, middle, outer])
    weight = np.interp(np.linspace(0, 1, len(spine)), (0, 0.12, 0.6, 1), (0.5, 1.0, 0.8, 0.12))
    weight = person.brow_thickness * weight * (1 + 0.15 * u[4])
    offset = np.stack((np.zeros_like(weight), weight), 1)
    shape = np.concatenate((spine - offset, (spine + 0.8 * offset)[::-1]))
    color = 0.8 * np.minimum(person.hair, person.skin * 0.66)
    sheet.fill(_face(_both(shape, side), 0.03), color, 0.95)


def _lines(sheet: _Sheet, person: _Person, units: np.ndarray) -> None:
    """Wrinkles: forehead (1, 2), between the brows (4), bridge of the nose (9), chin (17)."""
    ink = person.skin * (0.58, 0.44, 0.40)
    mean = units.mean(1).tolist()
    raised = 0.15 * person.age + 0.55 * mean[1] * mean[2] + 0.25 * mean[1]
    reach = 0.16 + 0.26 * min(1, mean[2])
    for y in (-0.60, -0.51):
        arch = [(-reach, y), (0, y - 0.03 - 0.03 * mean[1]), (reach, y)]
        sheet.line(_face(_smooth(arch)), 0.022, ink, min(0.75, raised))
    for side in (0, 1):
        furrow = [(0.052, -0.36), (0.040, -0.27), (0.050, -0.19)]
        sheet.line(
            _face(_both(furrow, side)), 0.026, ink, 0.75 * units[4, side] + 0.3 * units[9, side]
        )
        for y in (-0.12, -0.05, 0.02):
            wrinkle = [(0.015, y), (0.07, y + 0.012), (0.125, y - 0.035)]
            sheet.line(_face(_both(wrinkle, side), 0.05), 0.024, ink, 0.9 * units[9, side])
    for x, y in ((-0.07, 0.80), (0.06, 0.78), (0.0, 0.85), (-0.03, 0.76), (0.09, 0.84)):
        dent = _face(_CIRCLE[::4] * (0.018, 0.014) + (x, y + 0.05 * mean[26]))
        sheet.fill(dent, ink, max(0.0, 0.5 * mean[17] - 0.1))


def _nose(sheet: _Sheet, person: _Person, units: np.ndarray, light: float) -> None:
    ink = person.skin * (0.60, 0.45, 0.42)
    width, base = person.nose_width, person.nose_length
    shady = 1 if light < 0 else 0
    bridge = [(0.075, -0.16), (0.050, 0.02), (0.075, base - 0.08)]
    sheet.line(_face(_both(_smooth(bridge), shady), 0.06), 0.030, ink, 0.35)
    for side in (0, 1):
        u = units[:, side].tolist()
        rise = 0.045 * u[9] + 0.015 * u[10]
        w = width * (1 + 0.22 * u[9] + 0.08 * u[12])
        wing = [
            (w * 0.82, base - 0.09 - rise),
            (w * 1.08, base - 0.01 - rise),
            (w * 0.72, base + 0.035 - rise),
        ]
        sheet.line(_face(_both(_smooth(wing), side), 0.06), 0.026, ink, 0.75)
        hole = _CIRCLE[::2] * (0.036, 0.018 + 0.006 * u[9]) + (0.058, base + 0.022 - rise)
        sheet.fill(_face(_both(hole, side), 0.12), person.skin * (0.42, 0.28, 0.27), 0.85)
    shine = _face(_CIRCLE[::2] * (0.022, 0.05) + (0.02 * np.sign(light), base - 0.09), 0.16)
    sheet.fill(shine, np.minimum(person.skin * 1.12 + 10, 255), 0.55)


_LIPS = np.linspace(-1, 1, 29)  # from the left to the right corner of the mouth


def _mouth(sheet: _Sheet, person: _Person, units: np.ndarray) -> None:
    """Lips are curves between the corners; the units move corners, middle and opening."""
    u, mean = units, units.mean(1).tolist()
    smile, stretch = min(1.0, mean[12]), min(1.0, mean[20])
    parted = min(1.0, mean[25] + 0.8 * mean[26] + 0.5 * mean[16])
    round_ = mean[26] * max(0.0, 1 - smile - stretch)
    wider = 0.34 * u[12] + 0.36 * u[20] + 0.05 * u[14] + 0.06 * u[15]
    narrower = 0.26 * u[23] + 0.12 * u[24] + 0.05 * u[17] + 0.28 * round_
    half = person.mouth_width * (1 + wider - narrower)
    y0 = person.mouth_height + 0.015 * mean[20] - 0.015 * mean[9]
    corner = y0 - 0.16 * u[12] - 0.035 * u[14] + 0.145 * u[15] + 0.03 * u[20] + 0.03 * u[26]
    middle = y0 + 0.035 * smile - 0.045 * mean[17] - 0.02 * mean[15] - 0.02 * mean[10]
    t = _LIPS
    side = (t > 0).astype(int)
    bow = np.sqrt(np.maximum(1 - t**2, 0))
    flat = 1 - t**4
    x = t * half[side]
    y = middle + (corner[side] - middle) * np.abs(t) ** 1.8
    lift = 0.05 * mean[10] + 0.03 * mean[9]
    up = parted * (0.018 + 0.03 * mean[26] + 0.01 * smile) * bow + lift * parted * flat
    down = (0.06 * mean[25] + 0.27 * mean[26] + 0.06 * mean[16]) * (bow if round_ > 0.3 else flat)
    down = down + 0.035 * smile * parted * flat
    inner_top = np.stack((x, y - up), 1)
    inner_bottom = np.stack((x, y + down), 1)
    thin = np.clip(1 - 0.55 * mean[23] - 0.55 * mean[24] - 0.20 * smile - 0.15 * stretch, 0.25, 1)
    full = person.lip_thickness * thin
    cupid = flat * (1 - 0.28 * np.exp(-((t / 0.16) ** 2))) * (1 - 0.35 * np.abs(t))
    outer_top = inner_top - np.stack(
        (0 * t, 0.072 * full * cupid + 0.6 * lift * (1 - parted) * flat), 1
    )
    outer_bottom = inner_bottom + np.stack(
        (0 * t, (0.098 * full + 0.022 * mean[16] + 0.02 * mean[17]) * (1 - np.abs(t) ** 2.5)), 1
    )

    def place(points: np.ndarray) -> list:
        return _face(points, 0.04)

    sheet.fill(place(np.concatenate((outer_top, outer_bottom[::-1]))), person.lips)
    sheet.fill(place(np.concatenate((outer_top, inner_top[::-1]))), person.lips * 0.88)
    gap = float((up + down).max())
    if gap > 0.02:
        sheet.fill(place(np.concatenate((inner_top, inner_bottom[::-1]))), np.array((84, 30, 36)))
        if gap > 0.14:
            tongue = _CIRCLE * (0.5 * half.mean(), 0.30 * gap) + (0, y[14] + down[14] - 0.12 * gap)
            tongue[:, 1] = np.minimum(tongue[:, 1], y[14] + down[14])
            sheet.fill(place(tongue), np.array((196, 92, 92)))
        bare = min(0.085, 0.62 * gap) * min(1.0, 0.35 + smile + mean[10] + 0.5 * stretch)
        teeth = np.minimum(inner_top + np.array((0, bare)), inner_bottom)
        keep = slice(3, -3)
        sheet.fill(
            place(np.concatenate((inner_top[keep], teeth[keep][::-1]))), np.array((248, 242, 230))
        )
        if mean[16] + 0.6 * stretch > 0.3:
            low = np.maximum(inner_bottom - (0, 0.35 * gap * (mean[16] + 0.6 * stretch)), inner_top)
            keep = slice(6, -6)
            sheet.fill(
                place(np.concatenate((low[keep], inner_bottom[keep][::-1]))),
                np.array((236, 228, 214)),
            )
    seam = person.lips * (0.42, 0.30, 0.32)
    sheet.line(place(inner_top), 0.045, seam)
    sheet.line(
        place(outer_bottom[8:-8] - (0, 0.035 * full)),
        0.02,
        np.minimum(person.lips * 1.25, 255),
        0.5,
    )
    for s in (0, 1):
        end = np.array(((2 * s - 1) * half[s], corner[s]))
        outward = (2 * s - 1, 1)
        tick = [(-0.01, -0.005), (0.025, -0.02 * u[12, s] + 0.03 * u[15, s])]
        sheet.line(place(end + np.array(tick) * outward), 0.035, seam, 0.8)
        dimple = [(0.035, -0.075), (0.065, -0.01), (0.04, 0.06)]
        depth = 0.95 * u[14, s] + 0.25 * u[12, s]
        sheet.line(
            place(end + _smooth(dimple) * outward), 0.03, person.skin * (0.55, 0.40, 0.38), depth
        )
        groove = [(0.02, 0.03), (0.05, 0.09), (0.035, 0.14)]
        sheet.line(
            place(end + _smooth(groove) * outward), 0.024, person.skin * 0.62, 0.6 * u[15, s]
        )


def _glasses(sheet: _Sheet, person: _Person) -> None:
    if not person.glasses:
        return
    frame = person.clothes * 0.35
    for side in (0, 1):
        ring = _both(_CIRCLE * (0.235, 0.185) + (person.eye_distance + 0.01, -0.06), side)
        inner = (0.88 * ring + 0.12 * ring.mean(0))[::-1]
        path = np.concatenate((ring, ring[:1], inner[-1:], inner))
        sheet.fill(_face(path, 0.1), frame, 0.9)
        glint = np.array([(0.22, -0.17), (0.29, -0.17), (0.2, 0.0), (0.15, -0.02)]) - (
            0.66 - 0.66 * side,
            0,
        )
        sheet.fill(_face(glint, 0.1), np.array((255, 255, 255)), 0.16)
        temple = _both([(0.56, -0.08), (0.72, -0.10)], side)
        sheet.line(_face(_smooth(temple, steps=3)), 0.04, frame, 0.9)
    bridge = [(-0.10, -0.07), (0, -0.10), (0.10, -0.07)]
    sheet.line(_face(_smooth(bridge), 0.14), 0.04, frame, 0.9)


# %% [markdown]
# ## The photograph: background, pose, light, lens


# %%
def _background(size: int, wall: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """A wall out of focus: a few large spots of a similar color."""
    image = Image.new("RGB", (16, 16), tuple(wall.astype(int).tolist()))
    draw = ImageDraw.Draw(image, "RGBA")
    tint = wall * (0.85 + 0.35 * generator.random()) + generator.normal(0, 9, 3)
    tint = np.clip(tint, 0, 255).astype(int).tolist()
    for x, y, radius in generator.random((5, 3)).tolist():
        radius = 1 + 3 * radius
        box = (16 * x - radius, 16 * y - radius, 16 * x + radius, 16 * y + radius)
        draw.ellipse(box, fill=(*tint, 90))
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _photograph(
    sheet: _Sheet,
    background: Image.Image,
    light: np.ndarray,
    metered: float,
    generator: np.random.Generator,
) -> Image.Image:
    """Render, light as if the head were round, expose for `metered` (0 to 255), add grain, blur."""
    chance = generator.random
    pixels, head = sheet.render(background)
    at = (np.arange(sheet.size, dtype=np.float32) + 0.5) * _OVERSAMPLING
    across = ((at - sheet.center[0]) / (1.05 * sheet.unit))[None, :]
    down = ((at - sheet.center[1]) / (1.3 * sheet.unit))[:, None]
    toward = np.sqrt(np.maximum(0.05, 1 - across**2 - down**2))
    x, y, z, strength = light.tolist()
    shade = head * (across * x + down * y + toward * z - 0.85 * z) + (1 - head) * 0.35 * across * x
    warmth = 0.02 + generator.normal(0.0, 0.025)
    exposure = (150 / metered) ** 0.4 * (0.92 + 0.16 * chance())
    color = exposure * np.array((1 + warmth, 1.0, 1 - warmth))
    pixels *= (1 + strength * shade).astype(np.float32) * color.astype(np.float32)[:, None, None]
    pixels = 0.5 + (0.9 + 0.2 * chance()) * (pixels - 0.5) + 0.03 * generator.normal()
    # Bright skin rolls off as on film instead of burning out.
    bright = pixels > 0.82
    pixels[bright] = 0.82 + 0.18 * np.tanh((pixels[bright] - 0.82) / 0.18)
    grain = 0.003 + 0.012 * chance() ** 2
    noise = generator.standard_normal((sheet.size, sheet.size), dtype=np.float32)
    pixels = np.clip(pixels + np.float32(grain) * noise, 0, 1) * 255 + 0.5
    image = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8).transpose(1, 2, 0)))
    blur = sheet.size / 75 * (1.2 * chance() - 0.7)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.15 else image


def draw_face(
    expression: str,
    seed: int | Sequence[int],
    size: int = 75,
    color: bool = True,
    intensity: float | None = None,
) -> Image.Image:
    """Draw one face.

    Person, expression strength and picture each have a random stream of their own, so one seed
    shows the same person, pose and light in every expression.

    Args:
        expression: One of `EXPRESSIONS`.
        seed: Non-negative number, or several of them (as for `numpy.random.SeedSequence`).
        size: Edge of the square picture in pixels.
        color: RGB (mode "RGB") or grey (mode "L").
        intensity: 1 draws the action units of `ACTION_UNITS` at about full strength; None draws
            from the seed a strength, resting asymmetries, and sometimes a blend with a similar
            expression.

    Raises:
        ValueError: If the expression is unknown.
    """
    if expression not in ACTION_UNITS:
        raise ValueError(
            f"There is no expression {expression!r} among the drawn faces: use one of "
            f"{', '.join(EXPRESSIONS)}."
        )
    key = np.atleast_1d(seed).tolist()
    who, mood, camera = (np.random.default_rng((*key, stream)) for stream in range(3))
    person = _person(who)
    units = _units(expression, mood, intensity)

    def angle(spread: float, limit: float) -> float:
        return math.radians(float(np.clip(camera.normal(0, spread), -limit, limit)))

    pose = {
        "yaw": angle(8, 18),
        "pitch": angle(4, 9),
        "roll": angle(3.5, 9),
        "scale": 0.51 + 0.03 * camera.random(),
        "dx": float(camera.normal(0, 0.010)),
        "dy": float(camera.normal(0, 0.010)),
    }
    wall = np.array(_WALLS[int(len(_WALLS) * camera.random())], dtype=float) * (
        0.8 + 0.25 * camera.random()
    )
    gaze = camera.normal(0, 1, size=2) * (0.03, 0.012)
    around = camera.normal(-0.2, 0.9)
    light = np.array(
        (math.sin(around) * 0.8, -0.35, math.cos(around) * 0.6 + 0.3, 0.15 + 0.35 * camera.random())
    )

    sheet = _Sheet(size, pose)
    _body(sheet, person, units)
    _shadows(sheet, person, units)
    _beard(sheet, person, units)
    _lines(sheet, person, units)
    for side in (0, 1):
        _eye(sheet, person, units[:, side].tolist(), side, gaze)
    _nose(sheet, person, units, light[0])
    _mouth(sheet, person, units)
    for side in (0, 1):
        _brow(sheet, person, units[:, side].tolist(), side)
    _hair_in_front(sheet, person)
    _glasses(sheet, person)
    # The camera meters the skin, half-way: nobody drowns in the dark, and nobody is bleached.
    metered = float(person.skin.mean())
    image = _photograph(sheet, _background(size, wall, camera), light, metered, camera)
    return image if color else image.convert("L")


# %% [markdown]
# ## Two data sets in the folders of the originals
#
# Balanced AffectNet is RGB 75x75 with title-case folders, FER2013 grey 48x48 JPEG with lower-case
# folders, with its official split hidden in the file names, and with few disgusted faces. Real
# collections also contain what nobody ordered: the same picture twice, once in training and once in
# the test, twice with different labels, or cut off in the middle. We put a few of each in on
# purpose, so that the checks have something to find.

# %%
# Raise it with every change of a pixel, so that older folders are drawn again.
_VERSION = 4
_MARKER = "drawn_faces.json"
_FER_FOLDERS = {
    "Anger": "angry",
    "Disgust": "disgust",
    "Fear": "fear",
    "Happy": "happy",
    "Neutral": "neutral",
    "Sad": "sad",
    "Surprise": "surprise",
}
_FER_SHARES = dict(zip(_FER_FOLDERS, (0.14, 0.05, 0.14, 0.24, 0.17, 0.16, 0.10), strict=True))
_FER_SPLITS = {
    "Training": 7.2,
    "PublicTest": 1.68,
    "PrivateTest": 1.68,
}  # sizes in units of `per_class`
_SPLITS = ("train", "val", *_FER_SPLITS)
# (split, expression, position) that shows the same pixels as another one. Three pairs disagree
# about the expression.
_TWINS = {
    ("train", "Happy", 1): ("train", "Happy", 0),
    ("val", "Sad", 0): ("train", "Sad", 0),
    ("val", "Fear", 0): ("train", "Surprise", 0),
    ("Training", "Happy", 1): ("Training", "Happy", 0),
    ("Training", "Neutral", 1): ("Training", "Neutral", 0),
    ("Training", "Sad", 0): ("Training", "Neutral", 2),
    ("PublicTest", "Happy", 0): ("Training", "Happy", 2),
    ("PublicTest", "Sad", 0): ("Training", "Sad", 2),
    ("PrivateTest", "Happy", 0): ("Training", "Happy", 3),
    ("PrivateTest", "Surprise", 0): ("Training", "Surprise", 0),
    ("PrivateTest", "Fear", 0): ("Training", "Surprise", 1),
}


def _plan(per_class: int) -> list[tuple[str, str, int]]:
    """(split, expression, position) of every face."""
    counts = {("train", name): per_class for name in EXPRESSIONS}
    counts |= {("val", name): max(2, round(0.24 * per_class)) for name in EXPRESSIONS}
    for split, share in _FER_SPLITS.items():
        least = 4 if split == "Training" else 2
        for name in _FER_FOLDERS:
            counts[split, name] = max(least, round(share * per_class * _FER_SHARES[name]))
    return [(split, name, i) for (split, name), count in counts.items() for i in range(count)]


def _write(folder: Path, seed: int, per_class: int, flaws: bool) -> int:
    """Draw all faces into `folder` and return the number of files."""
    plan = _plan(per_class)
    numbers = np.random.default_rng((seed, len(plan))).permutation(len(plan)).tolist()
    for (split, name, position), number in zip(plan, numbers, strict=True):
        source, expression, index = (split, name, position)
        if flaws:
            source, expression, index = _TWINS.get((split, name, position), (split, name, position))
        key = (seed, _SPLITS.index(source), EXPRESSIONS.index(expression), index)
        if split in _FER_SPLITS:
            half = "train" if split == "Training" else "test"
            path = folder / "fer2013" / half / _FER_FOLDERS[name] / f"{split}_{number}.jpg"
            face, options = draw_face(expression, key, size=48, color=False), {"quality": 92}
        else:
            path = folder / "affectnet" / split / name / f"drawn_{number:05d}.png"
            face, options = draw_face(expression, key), {"compress_level": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        face.save(path, **options)
    if flaws:
        buffer = io.BytesIO()
        draw_face("Neutral", (seed, len(_SPLITS)), size=48, color=False).save(
            buffer, "JPEG", quality=92
        )
        broken = folder / "fer2013" / "train" / "neutral" / f"Training_{len(plan)}.jpg"
        broken.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return len(plan) + flaws


def _is_complete(folder: Path, wanted: dict) -> bool:
    try:
        found = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = found.pop("files", None) if isinstance(found, dict) else None
    return found == wanted and files == sum(
        path.suffix in (".png", ".jpg") for path in folder.rglob("*")
    )


def write_demo_faces(
    folder: str | Path, *, seed: int = 0, per_class: int = 125, flaws: bool = True
) -> Path:
    """Write both drawn data sets, or return at once if they are there already.

    Layout: `affectnet/{train,val}/<Anger ... Surprise>/*.png` (RGB, 75x75, balanced),
    `fer2013/train/<angry ... surprise>/Training_<number>.jpg` and
    `fer2013/test/<class>/{PublicTest,PrivateTest}_<number>.jpg` (grey, 48x48, imbalanced like
    FER2013). The folder appears complete or not at all, also when two processes write it at the
    same time.

    Args:
        folder: Where `affectnet` and `fer2013` are to stand: new, empty, or from this function.
        seed: Non-negative seed of all faces.
        per_class: Training faces per AffectNet class, at least 4. All other sizes follow: 0.24
            times as many per class in `val`; 7.2 times as many in FER2013's Training and 1.68
            times as many in each of its test halves, all classes together. The default makes
            1,000 + 240 and about 900 + 210 + 210 faces.
        flaws: Include the twins, the conflicting labels and the truncated file (one file more
            in Training).

    Returns:
        `folder` as a path.

    Raises:
        FileExistsError: If `folder` holds files that this function did not write.
        ValueError: If `per_class` is below 4.
    """
    folder = Path(folder)
    if per_class < 4:
        raise ValueError(
            f"per_class is {per_class}: ask write_demo_faces for at least 4 faces per class."
        )
    wanted = {"version": _VERSION, "seed": seed, "per_class": per_class, "flaws": flaws}
    if _is_complete(folder, wanted):
        return folder
    if folder.exists() and not (folder / _MARKER).exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds files that are not drawn faces: name a new or empty folder for them."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Build next to the target, on the same disk, so that moving in is one rename.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        built = Path(scratch) / "built"
        files = _write(built, seed, per_class, flaws)
        text = json.dumps(wanted | {"files": files}, indent=1) + "\n"
        (built / _MARKER).write_text(text, encoding="utf-8")
        for attempt in range(10):
            try:
                os.rename(built, folder)
                break
            except OSError:
                # Another process was faster, or an outdated folder is in the way.
                if _is_complete(folder, wanted):
                    break
                if attempt == 9 or not folder.exists():
                    raise
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, Path(scratch) / f"outdated-{attempt}")
    return folder


# %% [markdown]
# ## Demo
#
# One person, all eight expressions at full strength. Only the action units differ between the
# pictures; contempt is the one that shows on one side only.

# %% tags=["active-ipynb"]
# import matplotlib.pyplot as plt
#
# from fer_helpers.demo_faces import ACTION_UNITS, EXPRESSIONS, draw_face
#
# figure, axes = plt.subplots(2, 4, figsize=(6.8, 4), layout="constrained")
# for axis, expression in zip(axes.flat, EXPRESSIONS, strict=True):
#     axis.imshow(draw_face(expression, seed=7, size=125, intensity=1.0))
#     units = " + ".join(str(unit) for unit in ACTION_UNITS[expression]) or "none"
#     axis.set_title(f"{expression}: {units}", fontsize=9)
#     axis.axis("off")
# figure.suptitle("Drawn faces: action units by expression", fontsize=10)
# plt.show()

# %% [markdown]
# And what a data set of them looks like: other people, poses and lights, and expressions of every
# strength. Some are hard to tell, and they are meant to be.

# %% tags=["active-ipynb"]
# figure, axes = plt.subplots(8, 8, figsize=(6, 5.8), layout="constrained")
# for row, expression in zip(axes, EXPRESSIONS, strict=True):
#     for seed, axis in enumerate(row):
#         axis.imshow(draw_face(expression, seed=(seed, EXPRESSIONS.index(expression))))
#         axis.set(xticks=[], yticks=[], frame_on=False)
#     row[0].set_ylabel(expression, rotation=0, ha="right", va="center", fontsize=9)
# figure.suptitle("Drawn faces as the data sets hold them", fontsize=10)
# plt.show()

# %% [markdown]
# Written to disk, they stand in the folders of the two Kaggle data sets.

# %% tags=["active-ipynb"]
# import tempfile
# from pathlib import Path
#
# from fer_helpers.demo_faces import write_demo_faces
#
# with tempfile.TemporaryDirectory() as scratch:
#     root = write_demo_faces(Path(scratch) / "faces", per_class=8)
#     for split in sorted(path for path in root.glob("*/*") if path.is_dir()):
#         counts = {path.name: len(list(path.iterdir())) for path in sorted(split.iterdir())}
#         print(split.relative_to(root).as_posix(), counts)
