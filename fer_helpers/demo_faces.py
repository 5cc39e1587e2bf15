# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Drawn faces: a dataset that may be shown
#
# Photographs of faces come with terms: they may not be redistributed, and a notebook that prints
# them may not be published. So this project carries people who do not exist. They are drawn by a
# thousand lines of geometry, they stand in exactly the folders of the two Kaggle datasets, and
# whoever clones the repository can run the whole workflow on them within minutes.
#
# What makes a drawn face angry or afraid is not our taste. The *Facial Action Coding System* of
# Ekman and Friesen describes what each muscle of the face does to its surface ("action units"), and
# *EMFACS* lists which action units appear together in which emotion. We write that table down, and
# let the action units move brows, lids and lips.

# %%
"""Drawn faces with expressions, in the folder layouts of the two Kaggle datasets."""

import contextlib
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fer_helpers.drawn_features import (
    draw_beard,
    draw_brow,
    draw_eye,
    draw_glasses,
    draw_lines,
    draw_mouth,
    draw_nose,
    draw_shadows,
)
from fer_helpers.drawn_heads import draw_body, draw_hair_in_front
from fer_helpers.drawn_people import (
    ACTION_UNITS,
    EXPRESSIONS,
    WALLS,
    random_person,
    random_units,
)
from fer_helpers.drawn_sheet import OVERSAMPLING, Sheet
from fer_helpers.layouts import FER_CLASSES, FER_FOLDERS

__all__ = ["ACTION_UNITS", "EXPRESSIONS", "draw_face", "write_demo_faces"]

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
#
# How strongly each emotion shows which, and who shows it, stands in `drawn_people`; how a head is
# built of shapes, in `drawn_sheet`, `drawn_heads` and `drawn_features`.

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
    sheet: Sheet,
    background: Image.Image,
    light: np.ndarray,
    metered: float,
    generator: np.random.Generator,
) -> Image.Image:
    """Render, light as if the head were round, expose for `metered` (0 to 255), add grain, blur."""
    chance = generator.random
    pixels, head = sheet.render(background)
    at = (np.arange(sheet.size, dtype=np.float32) + 0.5) * OVERSAMPLING
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
    person = random_person(who)
    units = random_units(expression, mood, intensity)

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
    wall = np.array(WALLS[int(len(WALLS) * camera.random())], dtype=float) * (
        0.8 + 0.25 * camera.random()
    )
    gaze = camera.normal(0, 1, size=2) * (0.03, 0.012)
    around = camera.normal(-0.2, 0.9)
    light = np.array(
        (math.sin(around) * 0.8, -0.35, math.cos(around) * 0.6 + 0.3, 0.15 + 0.35 * camera.random())
    )

    sheet = Sheet(size, pose)
    draw_body(sheet, person, units)
    draw_shadows(sheet, person, units)
    draw_beard(sheet, person, units)
    draw_lines(sheet, person, units)
    for side in (0, 1):
        draw_eye(sheet, person, units[:, side].tolist(), side, gaze)
    draw_nose(sheet, person, units, light[0])
    draw_mouth(sheet, person, units)
    for side in (0, 1):
        draw_brow(sheet, person, units[:, side].tolist(), side)
    draw_hair_in_front(sheet, person)
    draw_glasses(sheet, person)
    # The camera meters the skin, half-way: nobody drowns in the dark, and nobody is bleached.
    metered = float(person.skin.mean())
    image = _photograph(sheet, _background(size, wall, camera), light, metered, camera)
    return image if color else image.convert("L")


# %% [markdown]
# ## Two datasets in the folders of the originals
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
_OWN_FILE = re.compile(
    r"drawn_faces\.json|affectnet/\w+/\w+/drawn_\d+\.png|"
    r"fer2013/\w+/\w+/(Training|PublicTest|PrivateTest)_\d+\.jpg"
)
_FOLDER_OF = dict(zip(FER_CLASSES, FER_FOLDERS, strict=True))
_FER_SHARES = dict(zip(FER_CLASSES, (0.14, 0.05, 0.14, 0.24, 0.17, 0.16, 0.10), strict=True))
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
        for name in FER_CLASSES:
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
            path = folder / "fer2013" / half / _FOLDER_OF[name] / f"{split}_{number}.jpg"
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


def _foreign(folder: Path) -> Iterator[str]:
    """Files in `folder` that `write_demo_faces` did not write; what systems leave is left out."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        left = path.name.lower() in (".ds_store", "thumbs.db", "desktop.ini")
        left = left or path.name.startswith("._")
        if path.is_file() and not left and not _OWN_FILE.fullmatch(name):
            yield name


def write_demo_faces(
    folder: str | Path, *, seed: int = 0, per_class: int = 125, flaws: bool = True
) -> Path:
    """Write both drawn datasets, or return at once if they are there already.

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
        OSError: If the folder around it cannot be written.
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
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a new or empty folder for drawn faces.")
    foreign = next(_foreign(folder), None)
    if foreign is not None:  # what is outdated is thrown away as a whole
        raise FileExistsError(
            f"{folder} holds files that are not drawn faces, such as {foreign}: name a new or "
            "empty folder for them."
        )
    try:  # build next to the target, on the same disk, so that moving in is one rename
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-")
    except OSError as error:
        raise OSError(
            f"{folder.parent} cannot be written ({error.strerror}), so there is no place for drawn "
            "faces: set CACHE_DIR to a folder that you can write."
        ) from error
    with beside as scratch:
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
                if attempt == 9:
                    raise
                if not folder.exists():  # a virus scanner may hold new files for a moment
                    time.sleep(0.05)
                    continue
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
#     axis.set_title(f"{expression}\n{units}", fontsize=9)
#     axis.axis("off")
# figure.suptitle("Drawn faces: action units by expression", fontsize=10)
# plt.show()

# %% [markdown]
# And what a dataset of them looks like: other people, poses and lights, and expressions of every
# strength. Some are hard to tell, and they are meant to be.

# %% tags=["active-ipynb"]
# figure, axes = plt.subplots(8, 8, figsize=(6, 5.8), layout="constrained")
# for row, expression in zip(axes, EXPRESSIONS, strict=True):
#     for seed, axis in enumerate(row):
#         axis.imshow(draw_face(expression, seed=(seed, EXPRESSIONS.index(expression))))
#         axis.set(xticks=[], yticks=[], frame_on=False)
#     row[0].set_ylabel(expression, rotation=0, ha="right", va="center", fontsize=9)
# figure.suptitle("Drawn faces as the datasets hold them", fontsize=10)
# plt.show()

# %% [markdown]
# Written to disk, they stand in the folders of the two Kaggle datasets.

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
