# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figures with faces in them
# Samples, augmentations, mistakes and answers: pictures beside what is said about them.

# %%
"""Draw galleries of faces and the answer to a single one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fer_helpers.plot_style import (
    ORANGE,
    PALE,
    WIDTH,
    NotebookFigure,
    check_rows,
    clean,
    in_style,
    new_figure,
    write_note,
)

# %% [markdown]
# ## Galleries
# All faces of a gallery are pasted onto one canvas, drawn pixel for pixel: a single picture draws
# much faster than fifty pairs of axes, and nothing can overlap. 32 shades per channel are plenty
# for a preview and halve the size of a notebook that carries the figure.


# %%
def to_rgb(images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return faces, uint8 (H, W) or (H, W, C) with C 1 or 3, as a list of uint8 (H, W, 3)."""
    faces = []
    for image in images:
        image = np.asarray(image)
        if image.ndim == 2:
            image = image[..., None]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
            raise ValueError(
                f"a face is {image.dtype} of shape {image.shape}, but uint8 (H, W, 1 or 3) is "
                "needed: undo the normalization first."
            )
        faces.append(np.broadcast_to(image, (*image.shape[:2], 3)))
    return faces


# %%
def draw_gallery(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    row_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    cell: int = 110,
    gap: int = 6,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw rows of faces (uint8, rows may differ in length) with a name per row and captions below.

    `cell` is the greatest width of a face in pixels (it shrinks when the figure would become wider
    than a notebook), `gap` the space between two. Small faces are enlarged by whole factors, so
    their pixels stay visible.
    """
    faces = [to_rgb(row) for row in rows]
    if not any(faces):
        raise ValueError("there is no face to draw, so pass at least one.")
    if row_labels:
        check_rows("row_labels", row_labels, rows)
    columns = max(len(row) for row in faces)
    labels = [clean(label, 20) for label in row_labels]
    left = 14 + 8 * max((len(label) for label in labels), default=0)
    side = min(cell, (round(100 * WIDTH) - left - 10) // columns - gap)
    sides = {max(face.shape[:2]) for row in faces for face in row}
    doubled = len(sides) == 1 and max(sides) <= side
    if doubled:
        side = side // max(sides) * max(sides)
    pitch = side + gap
    texts = [[_wrap(caption, round(pitch / 6.2)) for caption in row] for row in captions]
    tops, height = [], 0
    for i in range(len(faces)):
        lines = max((text.count("\n") + 1 for text in texts[i] if text), default=0) if texts else 0
        tops.append(height)
        height += side + 6 + (14 * lines + 4 if lines else 0)
    canvas = np.full((height - 6, columns * pitch - gap, 3), 255, dtype=np.uint8)
    top, bottom = (30 if title else 6), (22 if note else 6)
    height = top + canvas.shape[0] + bottom
    width = max(left + canvas.shape[1] + 10, 10 * len(title) + 20, 7 * len(note) + 20)
    figure = plt.figure(
        figsize=(width / 100, height / 100), layout="none", FigureClass=NotebookFigure
    )
    if title:
        figure.text(
            8 / width, 1 - 6 / height, clean(title, 100), va="top", fontsize=12, fontweight="bold"
        )
    write_note(figure, note)
    ax = figure.add_axes(
        (left / width, bottom / height, canvas.shape[1] / width, canvas.shape[0] / height)
    )
    for i, row in enumerate(faces):
        for j, face in enumerate(row):
            y, x = tops[i], j * pitch
            canvas[y : y + side, x : x + side] = _resized(face, side, doubled) // 8 * 8 + 4
            if texts and texts[i]:
                ax.text(
                    x + side / 2, y + side + 3, texts[i][j],
                    ha="center", va="top", fontsize=8, linespacing=1.2,
                )  # fmt: skip
        if labels:
            ax.text(-7, tops[i] + side / 2, labels[i], ha="right", va="center")
    ax.imshow(canvas, interpolation="nearest", aspect="auto")
    ax.set_axis_off()
    return figure


def _wrap(caption: str, limit: int) -> str:
    lines = caption.split("\n")
    return "\n".join(part for line in lines for part in textwrap.wrap(line, max(limit, 4)))


def _resized(face: np.ndarray, side: int, doubled: bool) -> np.ndarray:
    if face.shape[:2] == (side, side):
        return face
    how = Image.Resampling.NEAREST if doubled else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(np.ascontiguousarray(face)).resize((side, side), how))


# %%
@in_style
def plot_samples(
    images: Sequence[np.ndarray],
    row_labels: Sequence[str],
    *,
    captions: Sequence[Sequence[str]] = (),
    title: str = "Sample faces",
    note: str = "",
) -> Figure:
    """Draw one labeled row of faces per class; images[i] is uint8 (n, H, W, C), n may differ."""
    return draw_gallery(images, row_labels=row_labels, captions=captions, title=title, note=note)


# %%
@in_style
def plot_augmentation(
    augmented: np.ndarray,
    originals: np.ndarray,
    *,
    title: str = "What augmentation does",
    note: str = "",
) -> Figure:
    """Draw augmented faces above the same faces as stored; both uint8 (n, H, W, C)."""
    check_rows("augmented", augmented, originals)
    return draw_gallery(
        [augmented, originals],
        row_labels=["augmented", "as stored"],
        cell=150,
        title=title,
        note=note,
    )


# %% [markdown]
# ## Single faces


# %%
@in_style
def plot_mistakes(
    images: np.ndarray,
    truths: Sequence[str],
    predictions: Sequence[str],
    confidences: Sequence[float],
    *,
    title: str = "Misclassified faces",
    note: str = "",
) -> Figure:
    """Draw faces, uint8 (n, H, W, C), with true name, predicted name and its probability (0..1)."""
    for what, values in (("truths", truths), ("predictions", predictions)):
        check_rows(what, values, images)
    check_rows("confidences", confidences, images)
    captions = [
        f"true {clean(t, 12)}\nsays {clean(p, 12)}\n{100 * c:.0f} %"
        for t, p, c in zip(truths, predictions, confidences, strict=True)
    ]
    return _caption_rows(images, captions, title, note)


# %%
@in_style
def plot_prediction(
    image: np.ndarray,
    probabilities: Sequence[float],
    class_names: Sequence[str],
    *,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw a face, uint8 (H, W[, C]), beside the probability (0..1) of every class.

    Without `title`, the title is the answer itself.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    check_rows("probabilities", probabilities, class_names)
    face = to_rgb([image])[0]
    best = int(probabilities.argmax())
    answer = f"{clean(class_names[best], 24)} {100 * probabilities[best]:.1f} %"
    figure, axes = new_figure(3.1, title or answer, note, width=7.5, columns=2)
    left, ax = axes[0]
    left.imshow(face)
    left.set_axis_off()
    colors = [ORANGE if k == best else PALE for k in range(len(probabilities))]
    bars = ax.barh(range(len(probabilities)), probabilities, 0.72, color=colors)
    ax.bar_label(bars, [f"{100 * p:.1f} %" for p in probabilities], fontsize=8.5, padding=3)
    ax.set_yticks(range(len(class_names)), [clean(name) for name in class_names])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(False)
    ax.set_xlim(0, max(1.16 * float(probabilities[best]), 0.05))
    ax.spines["bottom"].set_visible(False)
    ax.set_xticks([])
    return figure


# %%
@in_style
def plot_attention(
    images: np.ndarray,
    maps: Mapping[str, np.ndarray],
    captions: Sequence[str] = (),
    *,
    title: str = "Where the network looks (bright: more)",
    note: str = "",
) -> Figure:
    """Draw faces, uint8 (n, H, W, C), above the same faces under maps: one row per kind of map.

    `maps` are {name: (n, h, w)} of any resolution. Dark is the lowest value of a row, bright its
    highest; both stand beside the name.
    """
    faces, rows, labels = to_rgb(images), [images], ["face"]
    for name, values in maps.items():
        values = np.asarray(values, dtype=np.float32)
        check_rows(f"maps[{name!r}]", values, faces)
        low, high = float(values.min()), float(values.max())
        rows.append([_overlay(*pair, low, high) for pair in zip(faces, values, strict=True)])
        labels.append(f"{name} {low:.2f}–{high:.2f}")
    return draw_gallery(
        rows,
        row_labels=labels,
        captions=[*([[]] * len(maps)), captions] if captions else (),
        title=title,
        note=note,
    )


def _overlay(face: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (values - low) / max(high - low, 1e-9)
    # Small maps (7x7 of a 224 pixel input) are enlarged smoothly, as the receptive fields are.
    smooth = Image.fromarray(scaled).resize(face.shape[1::-1], Image.Resampling.BICUBIC)
    color = 255 * plt.get_cmap("cividis")(np.clip(np.asarray(smooth), 0, 1))[..., :3]
    grey = face.mean(axis=2, keepdims=True)
    return np.clip(0.45 * grey + 0.55 * color, 0, 255).astype(np.uint8)


# %%
@in_style
def plot_suspects(
    images: np.ndarray,
    suspects: Sequence[Mapping],
    *,
    title: str = "Labels that people dispute",
    note: str = "",
) -> Figure:
    """Draw faces, uint8 (n, H, W, C), with label, FER+ votes and model as `label_suspects` says."""
    check_rows("suspects", suspects, images)
    captions = [
        f"label {clean(s['label'], 12)} {100 * s['votes_for_label']:.0f} %\n"
        f"votes {clean(s['votes_say'], 12)} {100 * s['votes_for_winner']:.0f} %\n"
        f"model {clean(s['predicted'], 12)} {100 * s['confidence']:.0f} %"
        for s in suspects
    ]
    return _caption_rows(images, captions, title, note, gap=44)


def _caption_rows(
    images: np.ndarray, captions: Sequence[str], title: str, note: str, gap: int = 6
) -> Figure:
    columns = 6
    starts = range(0, len(captions), columns)
    return draw_gallery(
        [images[s : s + columns] for s in starts],
        captions=[captions[s : s + columns] for s in starts],
        cell=120,
        gap=gap,
        title=title,
        note=note,
    )


# %% [markdown]
# ## Demo
# Drawn faces, as they are stored and as a model input might show them.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.plot_faces import plot_attention, plot_mistakes, plot_prediction
#
# names = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# faces = np.stack([np.asarray(draw_face(name, seed=seed)) for seed, name in enumerate(names)])
# plot_mistakes(
#     faces[:6], names[:6], names[1:], np.linspace(0.9, 0.4, 6),
#     title="Six invented mistakes", note="drawn faces",
# )  # fmt: skip

# %% tags=["active-ipynb"]
# plot_prediction(faces[3], [0.02, 0.01, 0.03, 0.81, 0.08, 0.01, 0.04], names, note="drawn face")

# %% [markdown]
# An invented attention map: a network that looks at the mouth.

# %% tags=["active-ipynb"]
# y, x = np.mgrid[:7, :7]
# mouth = np.exp(-((x - 3) ** 2 + (y - 5) ** 2) / 3)
# plot_attention(
#     faces, {"attention": np.stack([mouth] * 7)}, names, note="drawn faces, invented attention"
# )
