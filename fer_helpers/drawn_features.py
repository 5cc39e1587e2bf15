"""The features of a drawn face, where the action units act: relief, eyes, brows, nose, mouth.

`units` holds the intensity of every action unit on both sides, (27, 2), about 0 to 1; `u` is one
side of it. Side 0 is the viewer's left.
"""

from __future__ import annotations

import numpy as np

from fer_helpers.drawn_people import Person
from fer_helpers.drawn_sheet import CIRCLE, Sheet, mirrored, on_face, on_rim, on_side, smooth


def draw_shadows(sheet: Sheet, person: Person, units: np.ndarray) -> None:
    """The soft relief of the face, and its color: cheeks, lids, folds, beard."""
    mean = units.mean(1).tolist()
    shapes = []
    for side in (0, 1):
        u = units[:, side].tolist()
        x = person.eye_distance
        socket = CIRCLE * (0.21, 0.10) + (x - 0.02, -0.12 + 0.03 * u[4] - 0.02 * u[5])
        shapes.append((on_face(on_side(socket, side)), 0.30 + 0.12 * u[4]))
        inner = CIRCLE * (0.05, 0.13) + (0.115, -0.10)
        shapes.append((on_face(on_side(inner, side)), 0.30 + 0.2 * u[9]))
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
        shapes.append((on_face(on_side(wedge, side)), 0.55 * fold))
        bag = CIRCLE * (0.16, 0.035) + (x, 0.07 - 0.01 * u[6])
        shapes.append(
            (on_face(on_side(bag, side)), 0.12 + 0.25 * u[6] + 0.12 * u[7] + 0.15 * person.age)
        )
    below = person.mouth_height + 0.15 + 0.10 * mean[26] + 0.05 * mean[16]
    shapes.append((on_face(CIRCLE * (0.15, 0.04) + (0, below)), 0.35 + 0.3 * mean[17]))
    shapes.append(
        (on_face(CIRCLE * (person.nose_width, 0.04) + (0, person.nose_length + 0.06), 0.1), 0.4)
    )
    shapes.append((on_rim(CIRCLE[:13] * (0.5, 0.12) + (0, 0.93 + 0.11 * mean[26])), 0.25))
    sheet.glaze(shapes, np.array((0.72, 0.58, 0.54)), 0.035)

    cheeks = []
    for side in (0, 1):
        rise = 0.09 * units[6, side] + 0.04 * units[12, side]
        cheek = CIRCLE * (0.15, 0.11 + 0.02 * units[6, side]) + (0.43, 0.26 - rise)
        cheeks.append((on_face(on_side(cheek, side)), 0.34 + 0.2 * units[6, side]))
    tip = CIRCLE * (0.09, 0.08) + (0, person.nose_length - 0.02)
    cheeks.append((on_face(tip, 0.12), 0.25))
    sheet.glaze(cheeks, 0.62 + 0.38 * np.array((222, 84, 70)) / person.skin, 0.055)

    for x, y in person.freckles:
        for side in (0, 1):
            spot = on_face(on_side(CIRCLE[::4] * 0.014 + (0.26 + x, 0.16 + y), side))
            sheet.fill(spot, person.skin * (0.74, 0.58, 0.50), 0.7)


def draw_beard(sheet: Sheet, person: Person, units: np.ndarray) -> None:
    """Stubble, beard or moustache, for those who have one; it falls with the jaw (26)."""
    if not person.beard:
        return
    jaw = 0.11 * units[26].mean()
    if person.beard in ("stubble", "beard"):
        half = [(0.70, -0.02), (0.69, 0.30), (person.jaw + 0.02, 0.64), (0.26, 0.99 + jaw)]
        rim = smooth(mirrored([*half, (0, 1.05 + jaw)]))
        inner = smooth(mirrored([(-0.62, 0.08), (-0.50, 0.36), (-0.30, 0.40), (-0.12, 0.35)]))
        shape = on_rim(rim) + on_face(inner)
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
        shape = smooth(mirrored(half), closed=True)
        sheet.fill(on_face(shape, 0.05), person.hair * 0.92)


_ACROSS = np.linspace(-1, 1, 17)  # from the inner to the outer corner of an eye
_ARCH = 1 - _ACROSS**2


def draw_eye(sheet: Sheet, person: Person, u: list[float], side: int, gaze: np.ndarray) -> None:
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
        return on_face(on_side(points + center, side))

    sheet.fill(place(np.concatenate((top, bottom[::-1]))), np.array((250, 246, 240)))
    look = gaze * ((1, 1) if side else (-1, 1))
    for radius, color in (
        (0.098, person.iris),
        (0.078, person.iris * 1.25),
        (0.047, np.array((22, 16, 18))),
    ):
        disc = CIRCLE * radius + look
        disc[:, 0] = disc[:, 0].clip(-width, width)
        above = np.interp(disc[:, 0], top[:, 0], top[:, 1])
        below = np.interp(disc[:, 0], bottom[:, 0], bottom[:, 1])
        disc[:, 1] = disc[:, 1].clip(above, below)
        sheet.fill(place(disc), color)
    if upper > 0.05:
        spark = CIRCLE[::3] * 0.024 + look + (0.03 if side else -0.03, -0.03)
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
            sheet.line(place(smooth(foot, steps=3)), 0.02, person.skin * 0.66, 0.6 * u[6])


def draw_brow(sheet: Sheet, person: Person, u: list[float], side: int) -> None:
    """One brow: raised inside (1) or outside (2), lowered and drawn together (4)."""
    y, tilt = person.brow_height, person.brow_tilt
    lower = u[4] * (1 - 0.75 * min(1, u[1]))
    inner = (0.135 - 0.045 * u[4], y - tilt - 0.15 * u[1] + 0.18 * lower + 0.06 * u[9])
    middle = (0.33, y - 0.055 - 0.05 * u[1] - 0.15 * u[2] + 0.10 * lower + 0.035 * u[9])
    outer = (0.56, y + 0.035 + tilt + 0.03 * u[1] - 0.13 * u[2] + 0.01 * u[4])
    second = (0.5 * inner[0] + 0.5 * middle[0], 0.5 * inner[1] + 0.5 * middle[1] - 0.015)
    spine = smooth([inner, second, middle, outer])
    weight = np.interp(np.linspace(0, 1, len(spine)), (0, 0.12, 0.6, 1), (0.5, 1.0, 0.8, 0.12))
    weight = person.brow_thickness * weight * (1 + 0.15 * u[4])
    offset = np.stack((np.zeros_like(weight), weight), 1)
    shape = np.concatenate((spine - offset, (spine + 0.8 * offset)[::-1]))
    color = 0.8 * np.minimum(person.hair, person.skin * 0.66)
    sheet.fill(on_face(on_side(shape, side), 0.03), color, 0.95)


def draw_lines(sheet: Sheet, person: Person, units: np.ndarray) -> None:
    """Wrinkles: forehead (1, 2), between the brows (4), bridge of the nose (9), chin (17)."""
    ink = person.skin * (0.58, 0.44, 0.40)
    mean = units.mean(1).tolist()
    raised = 0.15 * person.age + 0.55 * mean[1] * mean[2] + 0.25 * mean[1]
    reach = 0.16 + 0.26 * min(1, mean[2])
    for y in (-0.60, -0.51):
        arch = [(-reach, y), (0, y - 0.03 - 0.03 * mean[1]), (reach, y)]
        sheet.line(on_face(smooth(arch)), 0.022, ink, min(0.75, raised))
    for side in (0, 1):
        furrow = [(0.052, -0.36), (0.040, -0.27), (0.050, -0.19)]
        sheet.line(
            on_face(on_side(furrow, side)), 0.026, ink, 0.75 * units[4, side] + 0.3 * units[9, side]
        )
        for y in (-0.12, -0.05, 0.02):
            wrinkle = [(0.015, y), (0.07, y + 0.012), (0.125, y - 0.035)]
            sheet.line(on_face(on_side(wrinkle, side), 0.05), 0.024, ink, 0.9 * units[9, side])
    for x, y in ((-0.07, 0.80), (0.06, 0.78), (0.0, 0.85), (-0.03, 0.76), (0.09, 0.84)):
        dent = on_face(CIRCLE[::4] * (0.018, 0.014) + (x, y + 0.05 * mean[26]))
        sheet.fill(dent, ink, max(0.0, 0.5 * mean[17] - 0.1))


def draw_nose(sheet: Sheet, person: Person, units: np.ndarray, light: float) -> None:
    """Ridge, wings and nostrils; `light` is where the light comes from, -1 (left) to 1."""
    ink = person.skin * (0.60, 0.45, 0.42)
    width, base = person.nose_width, person.nose_length
    shady = 1 if light < 0 else 0
    bridge = [(0.075, -0.16), (0.050, 0.02), (0.075, base - 0.08)]
    sheet.line(on_face(on_side(smooth(bridge), shady), 0.06), 0.030, ink, 0.35)
    for side in (0, 1):
        u = units[:, side].tolist()
        rise = 0.045 * u[9] + 0.015 * u[10]
        w = width * (1 + 0.22 * u[9] + 0.08 * u[12])
        wing = [
            (w * 0.82, base - 0.09 - rise),
            (w * 1.08, base - 0.01 - rise),
            (w * 0.72, base + 0.035 - rise),
        ]
        sheet.line(on_face(on_side(smooth(wing), side), 0.06), 0.026, ink, 0.75)
        hole = CIRCLE[::2] * (0.036, 0.018 + 0.006 * u[9]) + (0.058, base + 0.022 - rise)
        sheet.fill(on_face(on_side(hole, side), 0.12), person.skin * (0.42, 0.28, 0.27), 0.85)
    shine = on_face(CIRCLE[::2] * (0.022, 0.05) + (0.02 * np.sign(light), base - 0.09), 0.16)
    sheet.fill(shine, np.minimum(person.skin * 1.12 + 10, 255), 0.55)


_LIPS = np.linspace(-1, 1, 29)  # from the left to the right corner of the mouth


def draw_mouth(sheet: Sheet, person: Person, units: np.ndarray) -> None:
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
        return on_face(points, 0.04)

    sheet.fill(place(np.concatenate((outer_top, outer_bottom[::-1]))), person.lips)
    sheet.fill(place(np.concatenate((outer_top, inner_top[::-1]))), person.lips * 0.88)
    gap = float((up + down).max())
    if gap > 0.02:
        sheet.fill(place(np.concatenate((inner_top, inner_bottom[::-1]))), np.array((84, 30, 36)))
        if gap > 0.14:
            tongue = CIRCLE * (0.5 * half.mean(), 0.30 * gap) + (0, y[14] + down[14] - 0.12 * gap)
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
            place(end + smooth(dimple) * outward), 0.03, person.skin * (0.55, 0.40, 0.38), depth
        )
        groove = [(0.02, 0.03), (0.05, 0.09), (0.035, 0.14)]
        sheet.line(place(end + smooth(groove) * outward), 0.024, person.skin * 0.62, 0.6 * u[15, s])


def draw_glasses(sheet: Sheet, person: Person) -> None:
    """Frames and a glint, for those who wear glasses."""
    if not person.glasses:
        return
    frame = person.clothes * 0.35
    for side in (0, 1):
        ring = on_side(CIRCLE * (0.235, 0.185) + (person.eye_distance + 0.01, -0.06), side)
        inner = (0.88 * ring + 0.12 * ring.mean(0))[::-1]
        path = np.concatenate((ring, ring[:1], inner[-1:], inner))
        sheet.fill(on_face(path, 0.1), frame, 0.9)
        glint = np.array([(0.22, -0.17), (0.29, -0.17), (0.2, 0.0), (0.15, -0.02)]) - (
            0.66 - 0.66 * side,
            0,
        )
        sheet.fill(on_face(glint, 0.1), np.array((255, 255, 255)), 0.16)
        temple = on_side([(0.56, -0.08), (0.72, -0.10)], side)
        sheet.line(on_face(smooth(temple, steps=3)), 0.04, frame, 0.9)
    bridge = [(-0.10, -0.07), (0, -0.10), (0.10, -0.07)]
    sheet.line(on_face(smooth(bridge), 0.14), 0.04, frame, 0.9)
