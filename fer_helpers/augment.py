# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What is done to a whole batch of faces at once
#
# The usual way opens one picture after the other and pushes it through a list of transforms in
# worker processes; at the speed of PIL, the model waits for its data. The faces here are already
# bytes in memory, so a batch is augmented as one: flip, rotation, scale, shift **and** the resize
# to the model's size are composed into one coordinate map per image and sampled once. That is
# faster, and every pixel is interpolated once instead of three times.
#
# Every random number comes from one generator that the caller owns: the same seed gives the same
# faces, on the CPU and on a GPU.

# %%
"""What is done to a whole batch of faces at once, on the device."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.special import betaincinv
from torchvision.transforms import InterpolationMode, v2

from fer_helpers.preprocess import Preprocess

# %% [markdown]
# ## One resampling per image
# An image is a plane, and a plane is complex numbers: with `z = x + iy` in -1..1, turning and
# scaling is a multiplication, shifting an addition, flipping `-conj(z)`. Resampling asks from where
# in the picture each output pixel comes, so `backward` undoes the steps, the last one first. The
# answer is linear in `x` and `y`, so the whole grid of coordinates is a row plus a column; on a CPU
# that is some twenty times faster than `torch.nn.functional.affine_grid`.


# %%
def backward(
    flip: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """From where each pixel comes when a picture is flipped, turned, scaled and shifted.

    Args:
        flip: bool (N,), left and right exchanged.
        angle: float32 (N,), degrees, counter-clockwise.
        scale: float32 (N,), above 1 enlarges.
        shift: float32 (N, 2), to the right and down, as a fraction of the side.

    Returns:
        complex64 (N, 3): what a step of 1 in x, a step of 1 in y and the origin become, in units of
        half a side, from the center.
    """
    # y points down, so a multiplication turns clockwise: this one undoes a turn the other way.
    turn = torch.polar(1 / scale, torch.deg2rad(angle))
    origin = -2 * torch.complex(shift[:, 0], shift[:, 1]) * turn
    steps = torch.stack([turn, turn * 1j, origin], dim=1)
    return torch.where(flip[:, None], -steps.conj(), steps)


def resample(
    pixels: torch.Tensor, steps: torch.Tensor, size: int, padding: str = "zeros"
) -> torch.Tensor:
    """Bilinear pictures at the places that `backward` gives.

    Equals torchvision's `resize` (without anti-aliasing), `horizontal_flip` and `affine` one after
    the other; to rounding, where nothing is resized.

    Args:
        pixels: float32 (N, C, H, W).
        steps: complex64 (N, 3).
        size: Side of the square output, pixels.
        padding: What stands outside the picture: "zeros" (black), "reflection" or "border".

    Returns:
        float32 (N, C, size, size).
    """
    # Centers of pixels where -1 and 1 are the outer edges of the picture (align_corners=False).
    centers = (torch.arange(size, device=pixels.device, dtype=torch.float32) * 2 + 1) / size - 1
    rows = steps[:, 0:1] * centers
    columns = steps[:, 1:2] * centers + steps[:, 2:3]
    grid = torch.view_as_real(rows[:, None, :] + columns[:, :, None])
    if padding != "zeros" or size <= min(pixels.shape[2:]):
        return sample(pixels, grid, padding)
    # Enlarging: grid_sample would fade to black over one input pixel, a dark frame several output
    # pixels wide. Fade over one output pixel instead, as if the picture had been resized first.
    warped = sample(pixels, grid, "border")
    inside = grid.abs_().mul_(-size / 2).add_((size + 1) / 2).clamp_(0, 1)
    return warped.mul_((inside[..., 0] * inside[..., 1])[:, None])


def sample(pixels: torch.Tensor, grid: torch.Tensor, padding: str) -> torch.Tensor:
    """`grid_sample` (N, C, H, W) at (N, h, w, 2), also where a device lacks the border mode."""
    if padding == "border" and pixels.device.type == "mps":  # before torch 2.13: pytorch#125098
        grid, padding = kept_inside(grid, *pixels.shape[2:]), "zeros"
    return F.grid_sample(pixels, grid, padding_mode=padding, align_corners=False)


def kept_inside(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Places (N, h, w, 2) moved to the nearest pixel's center where they lie beyond the last."""
    last = 1 - 1 / torch.tensor([width, height], device=grid.device)
    return torch.maximum(torch.minimum(grid, last), -last)


# %% [markdown]
# ## Light and holes
# Brightness and contrast follow torchvision's `ColorJitter` (always brightness first; there the
# order is drawn too), random erasing its `RandomErasing`: after normalization, with the value 0,
# which is the mean of the data. The boxes are masks, so that a batch on a GPU needs no answer from
# it.


# %%
def jitter(pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    """Change brightness, then contrast, in place.

    Args:
        pixels: float32 (N, C, H, W) in 0..255, C 1 or 3.
        brightness: float32 (N,), factor on the pixels.
        contrast: float32 (N,), factor on the distance from the mean of the grey picture.

    Returns:
        The same tensor.
    """
    pixels.mul_(brightness.view(-1, 1, 1, 1)).clamp_(0, 255)
    mean = pixels.mean((2, 3))
    if mean.shape[1] == 3:
        mean = 0.2989 * mean[:, 0:1] + 0.587 * mean[:, 1:2] + 0.114 * mean[:, 2:3]
    contrast = contrast.view(-1, 1, 1, 1)
    return pixels.mul_(contrast).add_(mean[:, :, None, None] * (1 - contrast)).clamp_(0, 255)


def boxes(area: torch.Tensor, ratio: torch.Tensor, place: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes to erase in square pictures (Zhong et al. 2020, "Random Erasing Data Augmentation").

    Args:
        area: float32 (N,), share of the picture; 0 gives an empty box.
        ratio: float32 (N,), height of the box over its width.
        place: float32 (N, 2) in 0..1, from the first place that fits to the last, down and right.
        size: Side of the pictures, pixels.

    Returns:
        float32 (N, 4): first row, row after the last, first column, column after the last; whole
        numbers. A box longer than the picture is cut to its side (torchvision draws again).
    """
    sides = (area[:, None] * torch.stack([ratio, 1 / ratio], dim=1)).sqrt() * size
    sides = sides.round().clamp(max=size)
    first = (place * (size - sides + 1)).floor()
    return torch.stack([first, first + sides], dim=2).flatten(1)


def erase(inputs: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Set one box (N, 4) per image to 0, in place; returns the same float32 (N, C, size, size)."""
    places = torch.arange(inputs.shape[-1], device=inputs.device)
    rows = (places >= boxes[:, 0:1]) & (places < boxes[:, 1:2])
    columns = (places >= boxes[:, 2:3]) & (places < boxes[:, 3:4])
    # On a CPU, products of floats are several times faster than `&` and `masked_fill_`.
    box = rows.float()[:, None, :, None] * columns.float()[:, None, None, :]
    return inputs.mul_(1 - box)


def trivial(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """TrivialAugmentWide (Müller and Hutter 2021), torchvision's, on uint8 (N, C, H, W).

    One image after the other, so much slower than the rest of this module.
    """
    policy = v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
        torch.default_generator.manual_seed(seed)
        return torch.stack([policy(image) for image in images])


# %% [markdown]
# ## The recipe
# `Augment` holds the strengths and draws the values. It draws the same table of numbers whatever is
# switched on, so switching one thing off leaves the others as they were (all but the policy, which
# draws first). With everything off, the result is exactly what `Preprocess` gives.

# %%
DRAWS = 12  # random numbers per image, whatever is switched on
CACHED_PIXELS = 6 * 224 * 224  # output pixels per step on a CPU


@dataclass(frozen=True)
class Augment:
    """Random changes for training images; all off by default.

    Attributes:
        flip: Probability of exchanging left and right.
        rotation: Largest angle either way, degrees.
        shift: Largest shift either way, across and down, as a fraction of the side.
        scale: Largest change of size either way, as a fraction: 0.1 gives 0.9 to 1.1.
        brightness: Factor from 1 - brightness to 1 + brightness.
        contrast: Factor from 1 - contrast to 1 + contrast.
        erase: Probability of erasing a box.
        erase_min: Smallest area of the box, as a fraction of the picture.
        erase_max: Largest area of the box.
        padding: What comes in from outside: "zeros" (black), "reflection" or "border".
        policy: "none", or "trivial" for TrivialAugmentWide before all the rest (slow).
    """

    flip: float = 0.0
    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    erase: float = 0.0
    erase_min: float = 0.02
    erase_max: float = 0.12
    padding: str = "zeros"
    policy: str = "none"

    def __post_init__(self):
        """Refuse strengths that cannot be meant."""
        for name in ("flip", "shift", "scale", "brightness", "contrast", "erase", "erase_min"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}: give a fraction from 0 to 1")
        if self.scale == 1:
            raise ValueError("scale is 1, which would shrink a face to a point: give less")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation is {self.rotation}: give degrees from 0 to 180")
        if not self.erase_min <= self.erase_max <= 1:
            raise ValueError(f"erase_max is {self.erase_max}: give a fraction from erase_min to 1")
        if self.padding not in ("zeros", "reflection", "border"):
            raise ValueError(f'padding is "{self.padding}": give zeros, reflection or border')
        if self.policy not in ("none", "trivial"):
            raise ValueError(f'policy is "{self.policy}": give none or trivial')

    def __call__(
        self, images: torch.Tensor, preprocess: Preprocess, generator: torch.Generator
    ) -> torch.Tensor:
        """Model inputs of a batch of training faces.

        Args:
            images: uint8 (N, C, H, W), C 1 or 3; not changed.
            preprocess: What the model takes: size, channels, grey, mean, std.
            generator: Where all random numbers come from. A CPU generator gives the same faces on
                every device and never waits for a GPU.

        Returns:
            float32 (N, preprocess.channels, size, size), normalized, on `images.device`.
        """
        with torch.no_grad():
            if self.policy == "trivial":
                images = trivial(images, generator)
            table = torch.rand(len(images), DRAWS, generator=generator, device=generator.device)
            table = table.to(images.device, non_blocking=images.device.type == "cuda")
            size = preprocess.size
            either_way = table * 2 - 1
            flip = table[:, 0] < self.flip
            steps = backward(
                flip,
                angle=self.rotation * either_way[:, 1],
                scale=1 + self.scale * either_way[:, 2],
                shift=self.shift * either_way[:, 3:5],
            )
            brightness = 1 + self.brightness * either_way[:, 5]
            contrast = 1 + self.contrast * either_way[:, 6]
            share = self.erase_min + (self.erase_max - self.erase_min) * table[:, 8]
            area = torch.where(table[:, 7] < self.erase, share, 0.0)
            ratio = torch.exp(either_way[:, 9] * math.log(3.3))
            holes = boxes(area, ratio, table[:, 10:12], size)

            inputs = images.new_empty(
                (len(images), preprocess.channels, size, size), dtype=torch.float32
            )
            # On a CPU few enough faces at a time to stay in its cache from first to last operation.
            on_cpu = images.device.type == "cpu"
            count = max(1, CACHED_PIXELS // size**2) if on_cpu else len(images)
            for first in range(0, len(images), count):
                part = slice(first, first + count)
                pixels = preprocess.to_grey(images[part])
                if self.rotation or self.shift or self.scale:
                    if 2 * size < min(pixels.shape[2:]):
                        # Four neighbors in a much larger picture would skip what lies in between.
                        pixels = preprocess.resize(pixels)
                    pixels = resample(pixels.float(), steps[part], size, self.padding)
                else:
                    pixels = preprocess.resize(pixels)
                    if self.flip:
                        pixels = torch.where(flip[part, None, None, None], pixels.flip(3), pixels)
                if self.brightness or self.contrast:
                    pixels = jitter(pixels, brightness[part], contrast[part])
                preprocess.normalize(pixels, out=inputs[part])
                if self.erase:
                    erase(inputs[part], holes[part])
            return inputs


# %% [markdown]
# ## Mixing faces
# Mixup lays two faces over each other, cutmix pastes a box of one into the other; the label becomes
# shares of two classes. torchvision has both (`v2.MixUp`, `v2.CutMix`), but they draw from torch's
# global generator alone; these few lines draw from the caller's, as all the rest does.


# %%
def mix(
    images: torch.Tensor,
    targets: torch.Tensor,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of every image with its neighbor.

    One share for the whole batch, from Beta(alpha, alpha), as in both papers. Where both are
    switched on, a coin decides.

    Args:
        images: float32 (N, C, H, W), in an order that is already random.
        targets: float32 (N, K), what is to be learned about each: one-hot classes, shares of votes.
        mixup: alpha of mixup, 0 switches it off.
        cutmix: alpha of cutmix, 0 switches it off.
        probability: Share of the batches that are mixed at all.
        generator: Where the random numbers come from; a CPU generator never waits for a GPU.

    Returns:
        Images (N, C, H, W) and targets (N, K), new ones where mixed.
    """
    draws = torch.rand(5, generator=generator, device=generator.device).tolist()
    chosen, coin, quantile, across, down = draws
    paste = cutmix > 0 and (mixup == 0 or coin < 0.5)
    alpha = cutmix if paste else mixup
    if alpha == 0 or chosen >= probability:
        return images, targets
    share = float(betaincinv(alpha, alpha, quantile))  # what is left of the first face
    others = images.roll(1, 0)
    if paste:
        height, width = images.shape[2:]
        half = (1 - share) ** 0.5 / 2
        top, bottom = _span(down, half, height)
        left, right = _span(across, half, width)
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = torch.lerp(others, images, share)
    return mixed, torch.lerp(targets.roll(1, 0), targets, share)


def _span(center: float, half: float, side: int) -> tuple[int, int]:
    """First and last-plus-one pixel of a box around `center`, cut off at the edges."""
    return (
        max(0, round((center - half) * side)),
        min(side, round((center + half) * side)),
    )


# %% [markdown]
# ## Demo
# The original's recipe for FER2013 on drawn faces. Each column is one face, the first row as it is.

# %% tags=["active-ipynb"]
# import matplotlib.pyplot as plt
# import numpy as np
# import torch
#
# from fer_helpers.augment import Augment, mix
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.preprocess import Preprocess
#
# emotions = ["Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
# drawn = [draw_face(name, seed=k, size=48, color=False) for k, name in enumerate(emotions)]
# faces = torch.from_numpy(np.stack([np.asarray(face) for face in drawn]))[:, None]
# preprocess = Preprocess(size=96, channels=1)
#
# recipe = Augment(flip=0.5, rotation=12, shift=0.08, brightness=0.25, contrast=0.25, erase=0.15)
# generator = torch.Generator().manual_seed(3)
# rows = [preprocess(faces)] + [recipe(faces, preprocess, generator) for _ in range(3)]
#
# figure, axes = plt.subplots(len(rows), len(emotions), figsize=(7, 4.2), layout="constrained")
# for line, row in zip(axes, rows, strict=True):
#     for axis, face in zip(line, preprocess.undo(row), strict=True):
#         axis.imshow(face[..., 0], cmap="gray", vmin=0, vmax=255)
#         axis.set_axis_off()
# for axis, emotion in zip(axes[0], emotions, strict=True):
#     axis.set_title(emotion, fontsize=9)

# %% [markdown]
# What comes in from outside the picture is a choice: black (as torchvision does it, and the
# original), the picture mirrored, or its edge drawn out. Black corners tell a model by how much a
# face was turned, which no test face will ever tell it.

# %% tags=["active-ipynb"]
# figure, axes = plt.subplots(1, 4, figsize=(7, 2.1), layout="constrained")
# shown = {"as it is": Augment()}
# for padding in ("zeros", "reflection", "border"):
#     shown[padding] = Augment(rotation=45, padding=padding)
# for axis, (name, augment) in zip(axes, shown.items(), strict=True):
#     face = augment(faces[3:4], preprocess, torch.Generator().manual_seed(1))
#     axis.imshow(preprocess.undo(face)[0, ..., 0], cmap="gray", vmin=0, vmax=255)
#     axis.set_title(name, fontsize=9)
#     axis.set_axis_off()

# %% [markdown]
# Mixup and cutmix of each face with its neighbor, and what the label becomes.

# %% tags=["active-ipynb"]
# labels = torch.eye(len(emotions))
# inputs = preprocess(faces)
# figure, axes = plt.subplots(2, len(emotions), figsize=(7, 2.6), layout="constrained")
# for line, paste in zip(axes, (0.0, 1.0), strict=True):
#     generator = torch.Generator().manual_seed(2)
#     alphas = {"mixup": 1 - paste, "cutmix": paste, "probability": 1.0}
#     mixed, targets = mix(inputs, labels, generator=generator, **alphas)
#     for axis, face, target in zip(line, preprocess.undo(mixed), targets, strict=True):
#         axis.imshow(face[..., 0], cmap="gray", vmin=0, vmax=255)
#         shares = zip(target.tolist(), emotions, strict=True)
#         words = [f"{share:.0%} {emotion}" for share, emotion in shares if share]
#         axis.set_title("\n".join(words), fontsize=7)
#         axis.set_axis_off()
