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

import io
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

# %% [markdown]
# ## Opening a picture
# What people call a photo may be a 16-bit scan, a sticker with a transparent background, a CMYK
# print file, a burst of frames, or half a download. `open_image` gives back plain grey or RGB
# bytes, the right way up, or says in one sentence what is wrong with which file.
#
# Pillow reads the formats; what is decided here is what it leaves open:
#
# - transparency is laid on white, as a browser or a printer would show it;
# - 16-bit grey keeps its high byte (Pillow does that for 16-bit color, but clips grey), unless it
#   only holds 0..255: such a file was written with 8-bit values and would come out black;
# - of several frames or pictures in a file, the first counts;
# - a JPEG beyond 30 megapixels is decoded at 1/2, 1/4 or 1/8 of its sides, which costs little
#   memory; other formats cannot do that and are refused.

# %%
MAX_PIXELS = 30_000_000  # 16 bytes a pixel while a WebP is decoded: half a gigabyte
MAX_SIDE = 65_535
# A progressive JPEG keeps all its coefficients, up to 6 bytes a pixel, while it is decoded.
MAX_PROGRESSIVE_PIXELS = 60_000_000

# Values of the EXIF tag 0x0112 (EXIF 2.32, section 4.6.4) and what puts the picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED_BY = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"}
"""Where Pillow finds that tag: an upright picture keeps none of them, or it is turned again."""

HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


class ImageError(ValueError):
    """A picture that cannot be used; the message is one sentence that names it."""


class _Quiet:
    """No Python warnings while any thread is inside (`catch_warnings` alone mixes threads up)."""

    def __init__(self):
        self.lock = threading.Lock()
        self.inside = 0

    def __enter__(self):
        with self.lock:
            if self.inside == 0:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


_quiet = _Quiet()


def open_image(source: str | Path | bytes | IO[bytes]) -> Image.Image:
    """Read one picture: upright, 8 bits, without transparency.

    Args:
        source: Path, the bytes of a file, or an open binary file.

    Returns:
        PIL image of mode "L" (the file is grey) or "RGB". `info["reduced_by"]` is 2, 4 or 8 where a
        JPEG was too large to be decoded at full size, else absent.

    Raises:
        ImageError: Missing, empty, damaged, too large, or not a picture; it names the file.
    """
    with _quiet:
        if isinstance(source, bytes | bytearray | memoryview):
            name = "the picture given as bytes"
            return _read(io.BytesIO(bytes(source)), name)
        if isinstance(source, str | Path):
            path = Path(source)
            name = str(path)
            if len(name) > 300:  # not a path at all, most often
                name = f"{name[:100]}...{name[-50:]}"
            try:
                if path.exists() and not path.is_file():
                    raise ImageError(f"{name} is not a file: give the path of one picture")
                with path.open("rb") as stream:
                    return _read(stream, name)
            except ImageError:
                raise
            except FileNotFoundError:
                raise ImageError(f"{name} does not exist: check the path") from None
            except (OSError, ValueError) as error:
                raise ImageError(
                    f"{name} cannot be read ({_cause(error)}): check the path and who may read it"
                ) from error
        name = str(getattr(source, "name", "the picture given as an open file"))
        try:
            return _read(_from_here(source), name)
        except ImageError:
            raise
        except Exception as error:  # closed, opened as text or for writing, or somebody's own class
            raise ImageError(
                f"{name} cannot be read ({_cause(error)}): open it again, as a binary file"
            ) from error


def _from_here(source: IO[bytes]) -> IO[bytes]:
    """What is left of an open file, seekable; all of it where everything was read or written."""
    seekable = hasattr(source, "seekable") and source.seekable()
    if seekable and source.tell() == 0:
        return source
    content = source.read()
    if seekable and not content:
        source.seek(0)
        content = source.read()
    return io.BytesIO(content)


def _read(stream: IO[bytes], name: str) -> Image.Image:
    """Decode one picture from a seekable binary stream; `name` goes into the error message."""
    start = stream.tell()
    head = stream.read(64)
    stream.seek(start)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes): get the file again")
    # An AVIF may carry a common brand as its first; Pillow reads it without a plug-in.
    if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS and b"avif" not in head:
        try:
            import pillow_heif
        except ImportError:
            raise ImageError(
                f"{name} is a HEIC picture: pip install pillow-heif, or save it as JPEG"
            ) from None
        pillow_heif.register_heif_opener()
    try:
        if head.startswith(b"\xff\xd8\xff"):
            # Straight to the JPEG reader, because Image.open refuses a large picture before it can
            # be told to decode it smaller. Of an MPO (several JPEGs) this reads the first.
            image = JpegImagePlugin.JpegImageFile(stream)
            reduced_by = _shrink(image, name)
        else:
            image = Image.open(stream)
            reduced_by = 1
        if image.format == "EPS":
            raise ImageError(f"{name} is a PostScript drawing: save it as PNG or JPEG")
        width, height = image.size
        if width * height > MAX_PIXELS or max(image.size) > MAX_SIDE:
            raise ImageError(
                f"{name} is too large ({width} x {height}): save a copy of at most "
                f"{MAX_PIXELS // 1_000_000} megapixels"
            )
        image.load()
        image = plain_image(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} would unpack to a picture that is too large: save a copy of at most "
            f"{MAX_PIXELS // 1_000_000} megapixels"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not a picture in a format that Pillow reads: save it as PNG or JPEG"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory: save a smaller copy") from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        raise ImageError(
            f"{name} cannot be decoded ({_cause(error)}): get it again, or save it as PNG or JPEG"
        ) from error
    # An orientation left in the metadata would be applied once more by the next reader.
    image.info = {"reduced_by": reduced_by} if reduced_by > 1 else {}
    return image


def _cause(error: Exception) -> str:
    """The system's or decoder's words, as the end of a sentence."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def _shrink(image: JpegImagePlugin.JpegImageFile, name: str) -> int:
    """Have a JPEG that is too large decoded at a reduced size; returns by how much."""
    width, height = image.size
    if image.info.get("progressive") and width * height > MAX_PROGRESSIVE_PIXELS:
        raise ImageError(
            f"{name} is too large a progressive JPEG ({width} x {height}): save a copy of at most "
            f"{MAX_PROGRESSIVE_PIXELS // 1_000_000} megapixels"
        )
    for factor in (1, 2, 4, 8):
        if width * height <= MAX_PIXELS * factor**2:
            break
    if factor > 1:
        image.draft(None, (width // factor, height // factor))
    return factor


def plain_image(image: Image.Image) -> Image.Image:
    """Bring a PIL image of any mode to upright "L" or "RGB"; the image itself is not changed.

    Raises:
        ValueError: Colors that Pillow cannot turn into RGB, or pixels that are not numbers.
    """
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    # Known of the opened file only: what is turned below forgets its format.
    unmarked = image.format == "JPEG" and "adobe" not in image.info
    upright = UPRIGHT.get(_orientation(image))
    if upright is not None:
        image = image.transpose(upright)
        image.info = {k: v for k, v in image.info.items() if k not in TURNED_BY}
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        image = _eight_bits(image)
    elif mode == "CMYK" and unmarked:
        # Pillow inverts every CMYK JPEG, because Adobe stores them inverted; the others do not.
        image = Image.eval(image, lambda value: 255 - value).convert("RGB")
    elif image.has_transparency_data or mode in ("La", "RGBa"):
        grey = mode in ("1", "L", "LA", "La")
        image = image.convert("LA" if grey else "RGBA")
        paper = Image.new("L" if grey else "RGB", image.size, "white")
        paper.paste(image.convert(paper.mode), mask=image.getchannel("A"))
        image = paper
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or float grey as 8-bit grey, scaled, never clipped."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # Pillow leaves some of what a TIFF says to its readers
    if image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,):
        values = values.view(np.uint32)
    if not np.isfinite(values).all():
        raise ValueError("it holds pixels that are not numbers")
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif low >= 0 and high <= 255:
        pass
    elif image.mode.startswith("I") and low >= 0 and high <= 65_535:
        values = values >> 8
    else:  # no convention to go by: darkest to black, brightest to white
        low, high = float(low), float(high)
        values = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    grey = values.round().astype(np.uint8)
    if tags.get(262) == 0:  # stored as a negative, which Pillow turns for 8 bits only
        grey = 255 - grey
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[np.asarray(image) == clear] = 255
    return Image.fromarray(grey)


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
                f"the PIL image of mode {image.mode} cannot be used ({_cause(error)}): "
                "convert it to RGB first"
            ) from error
    if isinstance(image, np.ndarray):
        channels_last = True
        if image.dtype == np.uint8:
            with _quiet:  # torch warns of memory that must not be written to; nobody does here
                image = torch.from_numpy(np.ascontiguousarray(image))
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
# from fer_helpers.preprocess import ImageError, Preprocess, open_image
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

# %% [markdown]
# Odd pictures: four files that show the face above, and one that holds only its first half.

# %% tags=["active-ipynb"]
# def encoded(image, kind, **options):
#     stream = io.BytesIO()
#     image.save(stream, kind, **options)
#     return stream.getvalue()
#
#
# turned = Image.Exif()
# turned[0x0112] = 6  # held sideways: turn by 90 degrees to see it upright
# disc = Image.radial_gradient("L").resize(face.size).point(lambda value: 255 * (value < 150))
# clear = face.copy()
# clear.putalpha(disc)
# deep = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257)
# odd = {
#     "EXIF, sideways": encoded(face.rotate(90), "JPEG", exif=turned, quality=95),
#     "CMYK": encoded(face.convert("CMYK"), "JPEG", quality=95),
#     "16 bits": encoded(deep, "PNG"),
#     "transparent": encoded(clear, "PNG"),
# }
# figure, axes = plt.subplots(1, len(odd), figsize=(6.4, 1.9), layout="constrained")
# for axis, (name, data) in zip(axes, odd.items(), strict=True):
#     axis.imshow(open_image(data).convert("RGB"))
#     axis.set_title(name, fontsize=9)
#     axis.set_axis_off()
#
# try:
#     open_image(png.getvalue()[: len(png.getvalue()) // 2])
# except ImageError as error:
#     print(error)
