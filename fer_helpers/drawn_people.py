"""Who a drawn face shows, and what it expresses: action units and people, from random streams.

Sources: P. Ekman and W. V. Friesen, *Facial Action Coding System*, Consulting Psychologists Press
1978 (second edition with J. C. Hager, 2002), for what an action unit does; W. V. Friesen and
P. Ekman, *EMFACS-7*, 1983, for the combinations. The table of units is in `demo_faces`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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


def random_units(
    expression: str, generator: np.random.Generator, intensity: float | None
) -> np.ndarray:
    """Intensities (27, 2) of the action units of one face; column 0 is the viewer's left.

    Args:
        expression: one of `EXPRESSIONS`.
        generator: of all that is random.
        intensity: 1 is about full strength; None draws it, and with it asymmetries and blends.
    """
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


# ---------------------------------------------------------------- people

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
WALLS = (
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
class Person:
    """What stays the same whatever a person expresses.

    Colors are RGB, 0 to 255; lengths are in half faces (see `drawn_sheet`); `age` is 0 to 1;
    `freckles` is (n, 2), offsets of n spots.
    """

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


def random_person(generator: np.random.Generator) -> Person:
    """Somebody; the same generator state gives the same person."""
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
    return Person(
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
