# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a picture to a model input
#
# Most wrong answers of an emotion model in use are not the model's: the picture reached it turned
# on its side, with red and blue swapped, resized by another library than in training, or not
# normalized. So there is one place where a picture becomes a model input. Training, evaluation, a
# photo from a phone and the exported model all pass through `Preprocess`; a file, a PIL image, an
# array, a tensor and a whole batch give the same numbers.

# %%
"""The one place where a picture becomes a model input."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fer_helpers.pictures import ImageError, cause, open_image, plain_image

# %% [markdown]
# ## From pixels to numbers
# `Preprocess` is a handful of settings that travel inside the checkpoint, and four small steps:
# grey if the model was trained on grey, resize, one or three channels, normalize.
#
# - Grey is computed as PIL computes mode "L", to the bit, so a color face turned grey here equals
#   one that was stored grey.
# - Resizing is bilinear with anti-aliasing, in float, and does not keep the aspect ratio, like the
#   original `Resize((224, 224))`. A picture that already has the right size is not touched: the
#   model sees exactly the stored pixels.
# - Grey faces are one channel up to the very end. The three channels that an ImageNet backbone
#   wants are made by the normalization itself, which costs nothing extra.

# %%
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)


@dataclass(frozen=True)
class Preprocess:
    """Turns a picture, or a batch of them, into what the model takes.

    Attributes:
        size: Side of the square model input, pixels.
        channels: Channels of the model input, 1 or 3.
        grey: Turn color pictures grey first. With `channels=1` that happens anyway.
        mean: Per channel, for pixels in 0..1; empty means ImageNet's (0.449 for one channel).
        std: Per channel, likewise; empty means ImageNet's (0.226 for one channel).
    """

    size: int = 224
    channels: int = 3
    grey: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        """Fill in the defaults and refuse settings that no model could take."""
        one = self.channels == 1
        for name, default in (
            ("mean", GREY_MEAN if one else IMAGENET_MEAN),
            ("std", GREY_STD if one else IMAGENET_STD),
        ):
            given = tuple(float(value) for value in getattr(self, name))
            object.__setattr__(self, name, given or default)
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}: give 1 or 3")
        if self.size < 1:
            raise ValueError(f"size is {self.size}: give the side of the model input in pixels")
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise ValueError(
                f"mean {self.mean} and std {self.std} do not fit {self.channels} channel(s): "
                "give one number per channel, std above 0"
            )

    def __call__(self, image: Any) -> torch.Tensor:
        """Model input of one picture or a batch.

        Args:
            image: One picture: path, bytes of a file, PIL image, uint8 array (H, W) or (H, W, C),
                uint8 tensor (H, W) or (C, H, W). Or a batch: uint8 array (N, H, W, C), uint8 tensor
                (N, C, H, W). C is 1 or 3, in RGB order.

        Returns:
            float32 (channels, size, size), or (N, channels, size, size) for a batch, normalized; on
            the tensor's device.

        Raises:
            ImageError: The file cannot be read, or the pixels have another type or shape.
        """
        pixels, single = _as_batch(image)
        with torch.no_grad():
            inputs = self.normalize(self.resize(self.to_grey(pixels)))
        return inputs[0] if single else inputs

    def to_grey(self, pixels: torch.Tensor) -> torch.Tensor:
        """Uint8 (N, C, H, W) -> (N, 1, H, W) where this model sees grey, else unchanged.

        ITU-R 601-2 luma in the integer arithmetic of PIL's mode "L" (Pillow's Convert.c).
        """
        if pixels.shape[1] == 1 or not (self.grey or self.channels == 1):
            return pixels
        count, _, height, width = pixels.shape
        grey = pixels.new_empty(count, 1, height, width)
        rows = max(1, 2**22 // width)  # a photo in strips, faces all at once
        for top in range(0, height, rows):
            red, green, blue = pixels[:, :, top : top + rows].to(torch.int32).unbind(1)
            luma = red.mul_(19595).add_(green.mul_(38470)).add_(blue.mul_(7471)).add_(0x8000)
            grey[:, 0, top : top + rows] = luma.bitwise_right_shift_(16).to(torch.uint8)
        return grey

    def resize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Uint8 (N, C, H, W) -> float32 (N, C, size, size), still in 0..255."""
        height, width = pixels.shape[-2:]
        if height == width == self.size:
            return pixels.float()
        # CUDA's kernel keeps a window of this many pixels in memory that is too small for more.
        if pixels.is_cuda and max(height, width) > 48 * self.size:
            return self.resize(pixels.cpu()).to(pixels.device)
        # One channel at a time for a big photo: as float, 30 megapixels in color are 360 MB.
        planes = pixels.split(1, dim=1) if height * width > 2**22 else (pixels,)
        resized = [
            F.interpolate(
                plane.float(), size=(self.size, self.size), mode="bilinear", antialias=True
            )
            for plane in planes
        ]
        return torch.cat(resized, dim=1) if len(resized) > 1 else resized[0]

    def normalize(self, pixels: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Float32 (N, 1 or 3, H, W) in 0..255 -> normalized (N, channels, H, W), `out` if given."""
        count, given, height, width = pixels.shape
        if out is None:
            out = pixels.new_empty(count, self.channels, height, width)
        # Plain numbers, channel by channel: a tensor of means would have to travel to a GPU.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            source = pixels[:, channel if given > 1 else 0]
            torch.mul(source, 1 / (255 * std), out=out[:, channel]).sub_(mean / std)
        return out

    def undo(self, inputs: torch.Tensor) -> np.ndarray:
        """Model inputs (N, channels, H, W) -> uint8 array (N, H, W, channels) to look at."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = inputs.detach().float().cpu().mul(std).add(mean).mul(255)
        return pixels.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).numpy()

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types; `from_dict` reads them back."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preprocess":
        """The settings that `to_dict` gave.

        Raises:
            ValueError: A setting that this version does not know.
        """
        unknown = set(settings) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"preprocessing settings {sorted(unknown)} are unknown: update the package"
            )
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()})


def _as_batch(image: Any) -> tuple[torch.Tensor, bool]:
    """Whatever `Preprocess` takes as uint8 (N, C, H, W), and whether it was a single picture."""
    if isinstance(image, str | Path | bytes):
        image = open_image(image)
    if isinstance(image, Image.Image):
        try:
            image = np.asarray(plain_image(image))
        except (OSError, ValueError) as error:
            raise ImageError(
                f"the PIL image of mode {image.mode} cannot be used ({cause(error)}): "
                "convert it to RGB first"
            ) from error
    if isinstance(image, np.ndarray):
        channels_last = True
        if image.dtype == np.uint8:
            # "W": of memory that must not be written to (a stored set, a PIL image) torch warns.
            image = torch.from_numpy(np.require(image, requirements=("C", "W")))
    else:
        channels_last = False
    if getattr(image, "dtype", None) != torch.uint8:
        found = f"{type(image).__name__} of {getattr(image, 'dtype', 'no type')}"
        raise ImageError(f"pixels must be uint8 in 0..255, found {found}: convert them first")
    shape = tuple(image.shape)
    single = image.ndim in (2, 3)
    if image.ndim == 2:
        image = image[None]
    elif channels_last and image.ndim in (3, 4):
        image = image.movedim(-1, -3)
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[1] not in (1, 3) or 0 in image.shape[2:]:
        expected = (
            "(H, W), (H, W, C) or (N, H, W, C)" if channels_last else "(C, H, W) or (N, C, H, W)"
        )
        raise ImageError(f"pixels of shape {shape} cannot be read: give {expected} with C 1 or 3")
    return image.contiguous(), single


# %% [markdown]
# ## Demo
# One drawn face, six ways to hand it over, one result.

# %% tags=["active-ipynb"]
# import io
#
# import matplotlib.pyplot as plt
# import numpy as np
# import torch
# from PIL import Image
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.preprocess import Preprocess
#
# face = draw_face("Happy", seed=3, size=75, color=True)
# png = io.BytesIO()
# face.save(png, "PNG")
# array = np.asarray(face)
# tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
#
# preprocess = Preprocess(size=48, grey=True)
# expected = preprocess(face)
# for name, image in {
#     "PIL image": face,
#     "bytes of a PNG": png.getvalue(),
#     "array": array,
#     "tensor": tensor,
#     "PIL image, already grey": face.convert("L"),
#     "in a batch of arrays": np.stack([array] * 5),
# }.items():
#     result = preprocess(image)
#     print(f"{name:25}{tuple(result.shape)!s:18}equal: {bool((result == expected).all())}")

# %% [markdown]
# What the model sees at the sizes in use: the picture, then the input turned back into pixels.

# %% tags=["active-ipynb"]
# views = {"the picture": array}
# for size, grey in ((224, False), (224, True), (96, True), (48, True)):
#     preprocess = Preprocess(size=size, grey=grey)
#     views[f"{size} px{', grey' if grey else ''}"] = preprocess.undo(preprocess(face)[None])[0]
# figure, axes = plt.subplots(1, len(views), figsize=(8, 1.9), layout="constrained")
# for axis, (name, view) in zip(axes, views.items(), strict=True):
#     axis.imshow(view)
#     axis.set_title(name, fontsize=9)
#     axis.set_axis_off()
