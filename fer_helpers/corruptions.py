# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Corruptions: what a harder photo does to the answer
#
# Benchmark faces are cut, centered and lit; faces in life are blurred, dark, tilted and half
# hidden. Six corruptions at five severities show how fast a model loses its footing. Lengths are
# shares of the picture's side, so that a severity of blur, occlusion or rotation means the same at
# 48 and at 224 pixels. Noise and JPEG do not: they work on single pixels and on blocks of eight.

# %%
"""Spoil faces in six ways at five severities, and score a model on them."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

# Severity 1 to 5. The idea is ImageNet-C's (Hendrycks and Dietterich 2019,
# https://arxiv.org/abs/1903.12261); the levels are set by eye for small faces.
LEVELS: dict[str, tuple[float, ...]] = {
    "blur": (0.01, 0.02, 0.03, 0.045, 0.06),  # standard deviation, share of the side
    "noise": (8, 16, 26, 40, 60),  # standard deviation, grey levels of 255
    "jpeg": (50, 30, 18, 10, 5),  # Pillow quality
    "rotation": (10, 20, 30, 45, 60),  # degrees, to a random side
    "occlusion": (0.05, 0.10, 0.20, 0.30, 0.40),  # hidden share of the area, at a random place
    "darkness": (0.7, 0.5, 0.35, 0.22, 0.12),  # what is left of the brightness
}
CORRUPTIONS = tuple(LEVELS)
SEVERITIES = (1, 2, 3, 4, 5)

# %% [markdown]
# ## One corruption of a batch


# %%
def corrupt(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Return uint8 (N, H, W, C) spoiled copies of uint8 faces (N, H, W, C with C 1 or 3).

    `name` is one of `CORRUPTIONS`, `severity` is 1 (slight) to 5 (severe). The same arguments give
    the same pixels everywhere Pillow's JPEG encoder is the same. Raises ValueError for bad input.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}, but uint8 (N, H, W, 1 or 3) is "
            "needed."
        )
    if name not in LEVELS or severity not in SEVERITIES:
        raise ValueError(
            f"there is no corruption {name!r} of severity {severity!r}: choose from "
            f"{', '.join(CORRUPTIONS)} and 1 to 5."
        )
    level = LEVELS[name][severity - 1]
    generator = np.random.default_rng([0, CORRUPTIONS.index(name), severity])
    if name == "jpeg":
        return np.stack([_jpeg(image, int(level)) for image in images]) if len(images) else images
    return {
        "blur": _blur,
        "noise": _noise,
        "rotation": _rotate,
        "occlusion": _hide,
        "darkness": _darken,
    }[name](images, level, generator)


def _blur(images: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    sigma = level * images.shape[1]
    return _to_uint8(
        ndimage.gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0), mode="nearest")
    )


def _noise(images: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    return _to_uint8(images + level * generator.standard_normal(images.shape, dtype=np.float32))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
        file, "JPEG", quality=quality
    )
    return np.asarray(Image.open(file)).reshape(image.shape)


def _rotate(images: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    left = generator.random(len(images)) < 0.5
    turned = np.empty_like(images)
    for side, degrees in ((left, level), (~left, -level)):
        if side.any():
            turned[side] = _to_uint8(
                ndimage.rotate(
                    images[side].astype(np.float32), degrees, axes=(2, 1), reshape=False, order=1,
                    mode="nearest",
                )
            )  # fmt: skip
    return turned


def _hide(images: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    images = images.copy()
    height, width = images.shape[1:3]
    tall, wide = round(height * level**0.5), round(width * level**0.5)
    tops = generator.integers(0, height - tall + 1, len(images))
    starts = generator.integers(0, width - wide + 1, len(images))
    for image, top, start in zip(images, tops, starts, strict=True):
        image[top : top + tall, start : start + wide] = 128
    return images


def _darken(images: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    return _to_uint8(images * np.float32(level))


def _to_uint8(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# %% [markdown]
# ## Scoring a model on all of them
# One fixed sample serves every run, so two models are asked about the same spoiled faces.


# %%
def fixed_sample(size: int) -> np.ndarray:
    """Return up to 1,000 positions out of 0..size-1, sorted int64, the same for every run."""
    return np.sort(np.random.default_rng(0).permutation(size)[:1000])


# %%
def robustness(
    predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray
) -> dict[str, list[float]]:
    """Return {corruption: accuracy (0..1) at severity 0 (untouched) to 5}.

    `predict` maps uint8 (N, H, W, C) to scores (N, K); `images` and `labels` (N,) should be the
    `fixed_sample` of a test set.
    """
    labels = np.asarray(labels)
    if len(images) != len(labels) or len(labels) == 0:
        raise ValueError(f"there are {len(images)} images for {len(labels)} labels: pass both.")

    def accuracy(pixels: np.ndarray) -> float:
        return float((np.asarray(predict(pixels)).argmax(axis=1) == labels).mean())

    clean = accuracy(images)
    return {
        name: [clean, *(accuracy(corrupt(images, name, s)) for s in SEVERITIES)]
        for name in CORRUPTIONS
    }


# %% [markdown]
# ## Demo
# A drawn face, spoiled step by step.

# %% tags=["active-ipynb"]
# import numpy as np
#
# from fer_helpers.corruptions import CORRUPTIONS, SEVERITIES, corrupt
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.plots import plot_samples
#
# face = np.asarray(draw_face("Happy", seed=3))[None]
# rows = [np.concatenate([corrupt(face, name, s) for s in SEVERITIES]) for name in CORRUPTIONS]
# plot_samples(rows, CORRUPTIONS, title="Severity 1 to 5", note="drawn face")
