"""A sheet of paper that turns with the head: shapes in, a picture out.

All parts of a face are written down once, for a head that looks straight at us, in a coordinate
system whose unit is half a face: chin at `y = 1`, crown at `y = -1`. The sheet collects them, lays
their points on a rounded head, turns it (yaw, pitch, roll) in one pass over all points, and draws
at four times the final size so that the reduction smooths every edge.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLING = 4
_ON_FACE, _ON_RIM, _FLAT = 0, 1, 2
_FLIP = np.array((-1.0, 1.0))


def on_face(points: list | np.ndarray, lift: float = 0.0) -> list[tuple]:
    """A shape on the front of the head; `lift` stands off the surface."""
    return [(np.asarray(points, dtype=float), lift, _ON_FACE)]


def on_rim(points: list | np.ndarray, lift: float = 0.0) -> list[tuple]:
    """A shape on the silhouette, which keeps its width when the head turns."""
    return [(np.asarray(points, dtype=float), lift, _ON_RIM)]


def fixed(points: list | np.ndarray) -> list[tuple]:
    """A shape that does not turn with the head: neck and shoulders."""
    return [(np.asarray(points, dtype=float), 0.0, _FLAT)]


def on_side(points: list | np.ndarray, side: int) -> np.ndarray:
    """Points written for the right half of the picture, mirrored if `side` is 0."""
    points = np.asarray(points, dtype=float)
    return points if side else points * _FLIP


def mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
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


def smooth(points: list | np.ndarray, closed: bool = False, steps: int = 5) -> np.ndarray:
    """A curve through all points (Catmull-Rom), `steps` samples from each to the next."""
    points = np.asarray(points, dtype=float)
    return _spline_matrix(len(points), closed, steps) @ points


_TURN = np.linspace(0, 2 * math.pi, 24, endpoint=False)
CIRCLE = np.stack((np.cos(_TURN), np.sin(_TURN)), 1)


class Sheet:
    """Shapes in the order of drawing; `render` places and draws them all."""

    def __init__(self, size: int, pose: dict[str, float]) -> None:
        """`size` in pixels; `pose`: yaw, pitch, roll (radians), scale, dx, dy (shares of it)."""
        self.size = size
        self.pose = pose
        self.unit = pose["scale"] * size * OVERSAMPLING
        self.center = np.array((0.5 + pose["dx"], 0.46 + pose["dy"])) * size * OVERSAMPLING
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
        small = (points / OVERSAMPLING).ravel().tolist()
        colors = np.clip([job[2] for job in self.jobs], 0, 255).astype(int).tolist()

        edge = self.size * OVERSAMPLING
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
                film = film.filter(ImageFilter.GaussianBlur(strength * self.unit / OVERSAMPLING))
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
        pixels = np.asarray(image.reduce(OVERSAMPLING)).transpose(2, 0, 1).astype(np.float32) / 255
        for film, tint in films:
            share = np.asarray(film, dtype=np.float32) / 255
            pixels *= 1 - share * (1 - tint.astype(np.float32)[:, None, None])
        lit = lit.filter(ImageFilter.GaussianBlur(0.6))
        return pixels, np.asarray(lit, dtype=np.float32) / 255
