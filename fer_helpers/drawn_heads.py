"""What of a drawn face is no feature: head, ears, neck, shoulders and hair."""

from __future__ import annotations

import math

import numpy as np

from fer_helpers.drawn_people import Person
from fer_helpers.drawn_sheet import CIRCLE, Sheet, fixed, mirrored, on_face, on_rim, on_side, smooth


def _head_outline(person: Person, units: np.ndarray) -> np.ndarray:
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
    return smooth([(0, -1.02), *mirrored([*half, (0, chin)])], closed=True, steps=4)


_ARC = np.linspace(-math.pi, math.pi, 26)


def _cap(person: Person, volume: float, lift: float) -> np.ndarray:
    """The top contour of the hair, from the left temple over the crown to the right one."""
    angles = _ARC * (0.60 if person.style in ("long", "bob", "part", "fringe") else 0.52)
    x, y = np.sin(angles), np.cos(angles)
    y = -0.10 - y * (0.92 + volume) - lift * np.maximum(0, y) ** 2
    return np.stack((x * (person.width + volume), y), 1)


# The lower edge of the hair over the forehead, from the right temple to the left one.
_CROP = mirrored([(0.72, -0.22), (0.62, -0.50), (0.34, -0.66), (0, -0.64)])
_PART = [(0.74, -0.05), (0.66, -0.36), (0.40, -0.54), (0.05, -0.64), (-0.30, -0.80)]
_PART += [(-0.58, -0.52), (-0.72, -0.18)]
_HAIRLINES = {
    "crop": _CROP,
    "bun": _CROP,
    "curls": _CROP,
    "afro": _CROP,
    "part": _PART,
    "bob": _PART,
    "quiff": mirrored([(0.72, -0.20), (0.60, -0.50), (0.36, -0.72), (0, -0.70)]),
    "fringe": mirrored([(0.74, -0.02), (0.62, -0.34), (0.34, -0.45), (0, -0.47)]),
    "long": mirrored([(0.74, 0.12), (0.62, -0.36), (0.34, -0.66), (0, -0.84)]),
    "beanie": mirrored([(0.74, -0.30), (0.60, -0.46), (0.30, -0.54), (0, -0.56)]),
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


def _hair_behind(sheet: Sheet, person: Person) -> None:
    hair = person.hair
    if person.style == "long":
        half = [(0, -1.1), (0.80, -0.75), (0.94, 0.0), (1.0, 0.8), (0.86, 1.5), (0, 1.6)]
    elif person.style == "bob":
        half = [(0, -1.1), (0.80, -0.72), (0.94, 0.0), (0.98, 0.55), (0.80, 0.86), (0, 0.9)]
    elif person.style == "scarf":
        half = [(0, -1.16), (0.80, -0.80), (0.95, 0.0), (0.88, 0.9), (1.0, 1.6), (0, 1.7)]
        hair = person.cloth
    elif person.style == "bun":
        sheet.fill(on_rim(CIRCLE * (0.30, 0.28) + (0, -1.20)), hair, lit=True)
        sheet.line(on_rim(CIRCLE[13:23] * (0.2, 0.17) + (0, -1.20)), 0.06, hair * 1.2 + 14, 0.5)
        return
    elif person.style == "afro":
        for x, y in CIRCLE[8:] * (1.02, 0.90) + (0, -0.36):
            sheet.fill(on_rim(CIRCLE[::2] * 0.19 + (x, y)), hair, lit=True)
        sheet.fill(on_rim(CIRCLE * (1.10, 0.98) + (0, -0.36)), hair, lit=True)
        return
    else:
        return
    sheet.fill(on_rim(smooth(mirrored(half), closed=True)), hair * 0.78, lit=True)


def _scarf(sheet: Sheet, cloth: np.ndarray) -> None:
    half = [(0, -1.16), (0.86, -0.78), (0.93, 0.1), (0.66, 1.02), (0.3, 1.3)]
    outer = smooth(mirrored(half), closed=True)
    half = [(0, -0.66), (0.48, -0.50), (0.64, 0.0), (0.52, 0.56), (0.22, 1.03), (0, 1.09)]
    inner = smooth(mirrored(half), closed=True)
    # One closed path: around the outside, then back around the opening.
    ring = on_rim(outer) + on_rim(outer[:1]) + on_face(inner[:1], -0.1) + on_face(inner[::-1], -0.1)
    sheet.fill(ring, cloth, lit=True)
    sheet.line(on_face(inner[30:], -0.1), 0.04, cloth * 0.7, 0.6)
    for y in (-0.80, -0.95):
        fold = smooth([(-0.62, 0.12 + y), (0, y), (0.60, 0.2 + y)])
        sheet.line(on_rim(fold), 0.03, cloth * 0.8, 0.6)


def draw_hair_in_front(sheet: Sheet, person: Person) -> None:
    """Hair, scarf or beanie over the forehead; nothing for the bald."""
    style, hair = person.style, person.hair
    if style == "bald":
        return
    if style == "scarf":
        _scarf(sheet, person.cloth)
        return
    volume, lift = _VOLUMES.get(style, (0.06, 0.03))
    color = person.cloth if style == "beanie" else hair
    cap = _cap(person, volume, lift)
    line = smooth(_HAIRLINES[style], steps=4)
    if person.mirrored:
        line = line[::-1] * (-1, 1)
    if style == "curls":
        for x, y in _cap(person, 0.05, 0.06)[1:-1:2]:
            sheet.fill(on_rim(CIRCLE[::2] * 0.17 + (x, y)), hair, lit=True)
    sheet.fill(on_rim(cap) + on_face(line, 0.04), color, lit=True)
    if style == "beanie":
        band = on_face(line, 0.06) + on_face((line - (0, 0.17))[::-1], 0.06)
        sheet.fill(band, color * 0.82)
        for x in (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5):
            rib = [(x, -0.53 + 0.25 * x * x), (x * 0.97, -0.69 + 0.25 * x * x)]
            sheet.line(on_face(smooth(rib, steps=3), 0.06), 0.025, color * 0.65, 0.7)
        return
    light, dark = hair * 1.18 + 16, hair * 0.72
    if style in ("curls", "afro"):
        for x, y in line[2:-2:3]:
            sheet.fill(on_face(CIRCLE[::2] * 0.10 + (x, y), 0.04), hair)
        for x, y in line[3:-2:4]:
            curl = CIRCLE[12:22] * 0.07 + (0.92 * x, y - 0.13)
            sheet.line(on_face(curl, 0.04), 0.03, light, 0.45)
        return
    # Strands: from the hairline back over the crown, alternately in light and in shade.
    for step, start in enumerate(range(4, len(line) - 4, 2)):
        root = line[start]
        tip = cap[len(cap) - 1 - int(start / len(line) * len(cap))]
        path = root + np.array((0.04, 0.33, 0.66, 0.97))[:, None] * (tip - root)
        path[1:3] += (0.06 * np.sign(root[0]), -0.03)
        sheet.line(
            on_face(path[:2], 0.04) + on_rim(path[2:]), 0.05, dark if step % 2 else light, 0.4
        )


def draw_body(sheet: Sheet, person: Person, units: np.ndarray) -> None:
    """Everything that is not a feature: hair behind, shoulders, neck, ears, skin."""
    _hair_behind(sheet, person)
    skin, shadow = person.skin, person.skin * (0.80, 0.68, 0.64)
    neck = [(-0.36, 0.5), (0.36, 0.5), (0.38, 1.15), (0.62, 1.32), (-0.62, 1.32), (-0.38, 1.15)]
    sheet.fill(fixed(neck), shadow)
    half = [(-1.7, 2.2), (-1.35, 1.5), (-0.72, 1.26), (-0.42, 1.18)]
    sheet.fill(fixed(smooth(mirrored([*half, (0, 1.36)]))), person.clothes)
    collar = [(-0.44, 1.19), (0, 1.38), (0.44, 1.19)]
    sheet.line(fixed(smooth(collar)), 0.06, person.clothes * 0.8)
    if person.style != "scarf":
        for side in (0, 1):
            ear = [(0.70, -0.16), (0.84, -0.18), (0.87, 0.0), (0.80, 0.2), (0.70, 0.22)]
            ear = smooth(on_side(ear, side), closed=True)
            sheet.fill(on_rim(ear, -0.28), skin * (0.95, 0.88, 0.86), lit=True)
            sheet.line(
                on_rim(0.85 * ear[2:17] + 0.15 * ear.mean(0), -0.28), 0.03, shadow * 0.9, 0.8
            )
            if person.earrings:
                drop = CIRCLE[::2] * 0.055 + ear[17] + (0, 0.06)
                sheet.fill(on_rim(drop, -0.28), np.array((232, 190, 96)))
    sheet.fill(on_rim(_head_outline(person, units)), skin, lit=True)
