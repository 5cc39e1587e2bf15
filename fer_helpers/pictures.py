# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Opening a picture
# What people call a photo may be a 16-bit scan, a sticker with a transparent background, a CMYK
# print file, a burst of frames, or half a download. `open_image` gives back plain grey or RGB
# bytes, the right way up, or says in one sentence what is wrong with which file.
#
# Pillow reads the formats; what is decided here is what it leaves open:
#
# - transparency is laid on white, as a browser or a printer would show it;
# - 16-bit grey keeps its high byte (Pillow does that for 16-bit color, but clips grey), unless it
#   only holds 0..255 or 0..4,095: such a file was written with 8- or 12-bit values and would come
#   out black;
# - of several frames or pictures in a file, the first counts;
# - a JPEG beyond 30 megapixels is decoded at 1/2, 1/4 or 1/8 of its sides, which costs little
#   memory; other formats cannot do that and are refused.

# %%
"""Read one picture whatever it is: plain grey or RGB bytes, the right way up."""

import io
import threading
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageChops, JpegImagePlugin, UnidentifiedImageError

from fer_helpers.extras import lacking

MAX_PIXELS = 30_000_000  # of a WebP 17 bytes a pixel are held on the way: half a gigabyte
MAX_SIDE = 65_535
# A JPEG of several scans, as all progressive ones are, keeps all its coefficients, up to 6 bytes a
# pixel, while it is decoded.
MAX_PROGRESSIVE_PIXELS = 60_000_000
# Besides JPEG. Some others that Pillow knows are unpacked before their size can be asked (ICO), are
# read pixel by pixel in Python (FITS), or start a program (EPS).
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000")

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


quiet = _Quiet()


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
    with quiet:
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
                    f"{name} cannot be read ({cause(error)}): check the path and who may read it"
                ) from error
        name = str(getattr(source, "name", "the picture given as an open file"))
        try:
            seekable = hasattr(source, "seekable") and source.seekable()
            start = source.tell() if seekable else 0
            try:
                return _read(_from_here(source, seekable), name)
            finally:
                if seekable:  # whoever asks again finds the same picture
                    source.seek(start)
        except ImageError:
            raise
        except Exception as error:  # closed, opened as text or for writing, or somebody's own class
            raise ImageError(
                f"{name} cannot be read ({cause(error)}): open it again, as a binary file"
            ) from error


def _from_here(source: IO[bytes], seekable: bool) -> IO[bytes]:
    """What is left of an open file, seekable; all of it where everything was read or written."""
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
        except ImportError as error:
            why = lacking(error, "pillow_heif", "pillow-heif")
            raise ImageError(f"{name} is a HEIC picture, and {why}, or save it as JPEG") from error
        pillow_heif.register_heif_opener()
    try:
        if head.startswith(b"\xff\xd8\xff"):
            # Straight to the JPEG reader, because Image.open refuses a large picture before it can
            # be told to decode it smaller. Of an MPO (several JPEGs) this reads the first.
            image = JpegImagePlugin.JpegImageFile(stream)
            reduced_by = _shrink(image, name)
        else:
            image = Image.open(stream, formats=known_formats())
            reduced_by = 1
        tags = getattr(image, "tag_v2", {})
        tile = tags.get(322, 0), tags.get(323, 0)  # of a TIFF, unpacked whole even beyond the edge
        for width, height in (image.size, tile):
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise ImageError(
                    f"{name} is too large ({width} x {height}): save a copy of at most "
                    f"{MAX_PIXELS // 1_000_000} megapixels"
                )
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
            f"{name} is not a picture in a format that is read here: save it as PNG or JPEG"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory: save a smaller copy") from None
    except Exception as error:  # decoders of damaged files raise nearly everything
        raise ImageError(
            f"{name} cannot be decoded ({cause(error)}): get it again, or save it as PNG or JPEG"
        ) from error
    # An orientation left in the metadata would be applied once more by the next reader.
    image.info = {"reduced_by": reduced_by} if reduced_by > 1 else {}
    return image


def known_formats() -> list[str]:
    """Those of `FORMATS` that this Pillow reads: not every one reads AVIF, none HEIF by itself."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


def cause(error: Exception) -> str:
    """The system's or decoder's words, as the end of a sentence."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def _shrink(image: JpegImagePlugin.JpegImageFile, name: str) -> int:
    """Have a JPEG that is too large decoded at a reduced size; returns by how much."""
    width, height = image.size
    kept = image.info.get("progressive") or _first_scan_is_a_part(image)
    if kept and width * height > MAX_PROGRESSIVE_PIXELS:
        raise ImageError(
            f"{name} is too large for a JPEG of several scans (a progressive one, say; {width} x "
            f"{height}): save a copy of at most {MAX_PROGRESSIVE_PIXELS // 1_000_000} megapixels"
        )
    for factor in (1, 2, 4, 8):
        if width * height <= MAX_PIXELS * factor**2:
            break
    if factor > 1:
        image.draft(None, (width // factor, height // factor))
    return factor


def _first_scan_is_a_part(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether a JPEG has some of its components in a later scan; Pillow does not tell.

    Pillow reads up to the end of the first scan's header, whose length follows from the number of
    its components.
    """
    image.fp.seek(-14, io.SEEK_CUR)  # three of four components; decoding seeks for itself
    header = image.fp.read(14)
    return any(
        header[-8 - 2 * count :].startswith(bytes((0xFF, 0xDA, 0, 6 + 2 * count, count)))
        for count in range(1, image.layers)
    )


def plain_image(image: Image.Image) -> Image.Image:
    """Bring a PIL image of any mode to upright "L" or "RGB"; the image itself is not changed.

    Raises:
        ValueError: Colors that Pillow cannot turn into RGB, or pixels that are not numbers.
    """
    stored = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    # Pillow forgets it while loading, and the same image may be asked for again.
    stored = image.__dict__.setdefault("_stored", stored)
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    # Known of the opened file only: what is turned below forgets its format.
    unmarked = image.format == "JPEG" and "adobe" not in image.info
    upright = UPRIGHT.get(orientation(image))
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
        scaled = stored in ("L;2", "L;4", "RGB;16B") and "transparency" in image.info
        if scaled:  # Pillow scales the pixels, not the clear color
            image, clear = image.copy(), image.info["transparency"]
            high = tuple(value >> 8 for value in clear) if mode == "RGB" else None
            image.info["transparency"] = high or clear * (85 if stored == "L;2" else 17)
        if mode not in ("LA", "RGBA"):
            image = image.convert("LA" if grey else "RGBA")
        clear = ImageChops.invert(image.getchannel("A"))
        image = image.convert("L" if grey else "RGB")
        image.paste("white", mask=clear)  # the paper shows through; a sheet of it takes memory
    elif mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that can be read."""
    if image.format == "HEIF":  # libheif has turned it already
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def shift_of(high: int) -> int:
    """By how many bits 16-bit grey is too long, by its highest value: cameras give 12 or 16."""
    return 0 if high <= 255 else 4 if high <= 4095 else 8


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
        values = values >> shift_of(high)
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
# ## Demo
# Four files that show one drawn face, and one that holds only its first half.

# %% tags=["active-ipynb"]
# import matplotlib.pyplot as plt
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.pictures import ImageError, open_image
#
#
# def encoded(image, kind, **options):
#     stream = io.BytesIO()
#     image.save(stream, kind, **options)
#     return stream.getvalue()
#
#
# face = draw_face("Happy", seed=3, size=75, color=True)
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
#     open_image(encoded(face, "PNG")[:4000])
# except ImageError as error:
#     print(error)
