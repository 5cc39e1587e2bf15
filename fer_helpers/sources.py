"""Read pictures from wherever they are: a path, a URL, bytes, a file, PIL, an array, a tensor."""

from __future__ import annotations

import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from fer_helpers import __version__
from fer_helpers.files import rename
from fer_helpers.layouts import IMAGE_SUFFIXES, is_hidden, local_path, walk_once
from fer_helpers.pictures import ImageError, open_image, plain_image, shift_of

URL_MAX_BYTES = 20_000_000
URL_SECONDS = 20.0
# Some servers, Wikimedia's among them, refuse the name that requests gives itself.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"fer_helpers/{__version__}"}
MAX_OPEN_PIXELS = 60_000_000  # of arrays and PIL images: 16 bytes a pixel on the way


class FetchError(RuntimeError):
    """A download that was refused, failed, or was not what it should be."""


def fetch(url: str, *, max_bytes: int, seconds: float = URL_SECONDS) -> bytes:
    """Download `url` (http or https only, redirects included).

    Args:
        url: the address.
        max_bytes: the largest body that is accepted, in bytes.
        seconds: wall-clock limit for everything: name lookup, connection, redirects, body.

    Raises:
        FetchError: refused scheme, no connection, an HTTP error, too large, or too slow.
    """
    try:
        scheme = urlsplit(url).scheme.lower()
    except ValueError as error:
        raise FetchError(f"{url} is not an address ({error}).") from error
    if scheme not in ("http", "https"):
        raise FetchError(f"{url!r} is not an http(s) address, so it is not fetched.")
    result: list[bytes | Exception] = []
    stop = threading.Event()
    # A thread, because no socket timeout bounds a server that sends one byte now and then.
    worker = threading.Thread(
        target=_download, args=(url, max_bytes, seconds, stop, result), daemon=True
    )
    worker.start()
    worker.join(seconds)
    if not result:
        stop.set()
        raise FetchError(f"{url} did not answer completely within {seconds:g} seconds.")
    if isinstance(result[0], FetchError):
        raise result[0]
    if isinstance(result[0], Exception):
        kind = type(result[0]).__name__
        raise FetchError(f"{url} could not be fetched ({kind}).") from result[0]
    return result[0]


def _download(
    url: str, max_bytes: int, seconds: float, stop: threading.Event, result: list
) -> None:
    """Put the body of `url`, or the exception that ended it, into `result`."""
    import requests  # slow to import, and few calls need it

    try:
        with (
            requests.Session() as session,
            # requests follows redirects with its own adapters, and it has them for http and https
            # only.
            session.get(url, stream=True, timeout=seconds, headers=HEADERS) as response,
        ):
            if response.status_code != 200:
                raise FetchError(f"{url} answered with HTTP status {response.status_code}.")
            announced = response.headers.get("Content-Length", "")
            body = bytearray()
            for chunk in response.iter_content(64 * 1024):
                body += chunk
                if stop.is_set():
                    return
                if len(body) > max_bytes:
                    raise FetchError(f"{url} is larger than the limit of {max_bytes:,} bytes.")
            encoded = response.headers.get("Content-Encoding", "identity") != "identity"
            if announced.isdigit() and not encoded and len(body) != int(announced):
                raise FetchError(f"{url} broke off after {len(body):,} of {announced} bytes.")
            result.append(bytes(body))
    except Exception as error:  # handed to the waiting thread, which raises it
        result.append(error)


def read_image(source: Any) -> Image.Image:
    """Read one picture from wherever it is.

    Args:
        source: a path; an http(s) URL (at most 20 MB, within 20 seconds); the bytes of a file; an
            open binary file; a PIL image; an array (H, W) or (H, W, C) in RGB order; a tensor (C,
            H, W) or (H, W). Pixels are 8 or 16 bits, or float in 0..1.

    Returns:
        An upright picture of mode "L" or "RGB".

    Raises:
        ImageError: it cannot be read; one sentence that names it.
    """
    if isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        try:
            stream = io.BytesIO(fetch(source, max_bytes=URL_MAX_BYTES))
        except FetchError as error:
            raise ImageError(str(error)) from error
        stream.name = source  # named in the error if these bytes are no picture
        return open_image(stream)
    if isinstance(source, Image.Image):
        _check_size(source.width, source.height)
        try:
            return plain_image(source)
        except ImageError:
            raise
        except Exception as error:  # a lazily opened damaged file raises nearly everything
            raise ImageError(f"The PIL image given cannot be read: {error}.") from error
    if isinstance(source, torch.Tensor):
        shape = tuple(source.shape)
        single = source[0] if source.ndim == 4 and len(source) == 1 else source
        if single.ndim != 2 and not (single.ndim == 3 and len(single) in (1, 3, 4)):
            raise ImageError(
                f"A tensor of shape {shape} is no picture: give (3, height, width) in RGB order, "
                "or (height, width)."
            )
        try:
            array = single.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ImageError(
                f"A tensor of {source.dtype} and layout {source.layout} on {source.device} cannot "
                "be read: give an ordinary one."
            ) from error
        return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, str | os.PathLike):
        return open_image(local_path(source))
    if isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read"):
        return open_image(source)
    raise ImageError(
        f"A {type(source).__name__} is no picture: give a path, URL, bytes, open file, PIL image, "
        "array or tensor."
    )


def _check_size(width: int, height: int) -> None:
    """Refuse what would take more than a gigabyte on its way to the model."""
    if width * height > MAX_OPEN_PIXELS:
        raise ImageError(
            f"A picture of {width} x {height} pixels is too large: give a copy of at most "
            f"{MAX_OPEN_PIXELS // 1_000_000} megapixels, or the path of its JPEG file."
        )


def _from_array(pixels: np.ndarray) -> Image.Image:
    """A picture from pixels (H, W) or (H, W, C)."""
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4))
    if not fits or not pixels.size or pixels.dtype.kind not in "biuf":
        raise ImageError(
            f"An array of {pixels.dtype} and shape {pixels.shape} is no picture: give numbers, "
            "(height, width) or (height, width, 3) in RGB order."
        )
    _check_size(pixels.shape[1], pixels.shape[0])
    deep = pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2
    if pixels.ndim == 2 and pixels.dtype == np.int32:  # as Pillow gives some 16-bit grey
        deep |= pixels.min() >= 0 and 255 < pixels.max() <= 65_535
    if deep:
        pixels = pixels >> shift_of(pixels.max())  # as `open_image` reads such files
    elif pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        floating = pixels.dtype.kind == "f"
        spare = 1e-3 if floating else 0  # what rounding in somebody's resizing adds
        unit = floating and low >= -spare and high <= 1 + spare
        # Up to 2 it is one that overshot: as 0..255 it would be black.
        if not unit and not (low >= -spare and high <= 255 + spare and (high > 2 or not floating)):
            raise ImageError(
                f"Pixels of type {pixels.dtype} between {low:g} and {high:g} are no picture: give "
                "uint8, uint16, or float in 0..1, not normalized."
            )
        pixels = np.multiply(pixels, 255 if unit else 1, dtype=np.float32, casting="unsafe")
        pixels = np.rint(pixels, out=pixels).clip(0, 255, out=pixels).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    # Pillow shows grey pixels where they are, and the caller may write other ones there.
    return plain_image(image.copy() if image.mode == "L" else image)


def list_images(
    folder: str | Path,
    skip: str | Path | None = None,
    onerror: Callable[[OSError], object] | None = None,
) -> list[Path]:
    """The picture files below a folder (by their suffix), sorted, without hidden ones.

    Folders that are links are followed, each folder once; the subfolder `skip` is left out.
    `onerror` is told why a folder may not be read.
    """
    walk = walk_once(folder, () if skip is None else (skip,), onerror)
    found = (Path(place, name) for place, files in walk for name in files)
    return sorted(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(p))


def download_example(gdown_id: str, folder: str | Path) -> Path:
    """Fetch one shared file from Google Drive with `gdown`, as the original notebook does.

    Args:
        gdown_id: the id in the file's sharing link.
        folder: where it goes: `<id>/<name on Drive>`. A photo that is there is not fetched again.

    Raises:
        ImageError: the id is not one, or Drive does not give the file.
    """
    if not re.fullmatch(r"[\w-]{10,}", gdown_id):
        raise ImageError(
            f"{gdown_id!r} is not the id of a Google Drive file: take the part after /d/ or id= "
            "in its link."
        )
    import gdown

    folder = Path(folder) / gdown_id
    if folder.is_dir():
        for file in sorted(folder.iterdir()):
            if not is_hidden(file.name):
                return file
    scratch = folder.with_name(f".{gdown_id}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        found = gdown.download(id=gdown_id, output=f"{scratch}{os.sep}", quiet=True)
    except Exception as error:  # gdown's own and requests' exceptions, different in each version
        raise ImageError(
            f"Google Drive did not give the file {gdown_id} ({type(error).__name__}): check the "
            "connection, and that everyone who has the link may see the file."
        ) from error
    if found is None:
        raise ImageError(f"Google Drive did not give the file {gdown_id}: check its link.")
    shutil.rmtree(folder, ignore_errors=True)
    rename(scratch, folder)
    return folder / Path(found).name


def named_sources(sources: Any, skip: Path | None = None) -> Iterator[tuple[str, Any]]:
    """Every picture with a name for the table; folders are opened up, all but `skip`."""
    single = isinstance(
        sources,
        str
        | bytes
        | bytearray
        | memoryview
        | os.PathLike
        | Image.Image
        | np.ndarray
        | torch.Tensor,
    )
    if single or hasattr(sources, "read") or not isinstance(sources, Iterable):
        sources = [sources]
    for number, source in enumerate(sources, start=1):
        if not isinstance(source, str | os.PathLike):
            yield str(getattr(source, "name", "") or f"picture {number}"), source
        elif source != "" and os.path.isdir(local_path(source)):
            closed: list[OSError] = []
            files = list_images(local_path(source), skip, closed.append)
            yield from ((str(file), file) for file in files)
            for error in closed:
                said = f"{error.filename} cannot be listed ({error.strerror}): make it readable"
                yield str(error.filename), ImageError(said)
            if not files and not closed:
                yield str(source), ImageError(f"{source} holds no pictures.")
        else:
            yield str(source), source
