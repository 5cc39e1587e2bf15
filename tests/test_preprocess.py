"""However a picture is handed over: the same result; odd files: the right pixels or a sentence."""

import importlib.util
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, features
from torchvision.transforms import v2

from fer_helpers import pictures as module
from fer_helpers.decoding import read_picture
from fer_helpers.pictures import ImageError, open_image, plain_image
from fer_helpers.preprocess import Preprocess
from tests.faces_on_disk import shared
from tests.tiny import one_thread  # noqa: F401 (a fixture of every test here)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(height=40, width=30, channels=3, seed=0):
    """A smooth picture without symmetry, as uint8 (H, W[, C]): survives JPEG, shows any turn."""
    coarse = Image.fromarray(noise(3, 4, 3, seed=seed))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return smooth if channels == 3 else np.ascontiguousarray(smooth[..., 0])


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# ------------------------------------------------------------------------------- Preprocess
@pytest.mark.parametrize("size", [30, 48, 224])
@pytest.mark.parametrize("channels, grey", [(3, False), (3, True), (1, False)])
def test_every_way_to_hand_a_picture_over_gives_the_same_bits(tmp_path, size, channels, grey):
    preprocess = Preprocess(size=size, channels=channels, grey=grey)
    array = picture(30, 30)
    path = tmp_path / "face.png"
    path.write_bytes(encoded(array))
    expected = preprocess(array)
    assert expected.dtype == torch.float32 and expected.shape == (channels, size, size)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    batch = noise(7, 30, 30, 3)
    batch[4] = array
    for same in (
        preprocess(path),
        preprocess(str(path)),
        preprocess(path.read_bytes()),
        preprocess(Image.fromarray(array)),
        preprocess(open_image(path)),
        preprocess(tensor),
        preprocess(tensor[None])[0],
        preprocess(batch)[4],
        preprocess(torch.from_numpy(batch).permute(0, 3, 1, 2))[4],
        preprocess(array[:, ::-1][:, ::-1]),
    ):
        assert torch.equal(same, expected)
    if grey or channels == 1:
        assert torch.equal(preprocess(Image.fromarray(array).convert("L")), expected)


def test_grey_pictures_of_all_shapes():
    array = picture(48, 48, channels=1)
    one, three = Preprocess(size=48, channels=1), Preprocess(size=48)
    for image in (array, array[..., None], Image.fromarray(array), torch.from_numpy(array)):
        assert torch.equal(one(image), one(array)) and one(image).shape == (1, 48, 48)
        assert torch.equal(three(image), three(array)) and three(image).shape == (3, 48, 48)
    assert torch.equal(three(array), three(np.stack([array] * 3, axis=-1)))


def test_grey_is_pils_to_the_bit():
    array = noise(300, 250, 3)
    array[:2, :4] = [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]] * 2
    expected = np.asarray(Image.fromarray(array).convert("L"))
    grey = Preprocess(grey=True).to_grey(torch.from_numpy(array).permute(2, 0, 1)[None])
    assert np.array_equal(grey[0, 0].numpy(), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_the_right_size_are_not_touched(channels):
    preprocess = Preprocess(size=48, channels=channels)
    batch = noise(5, 48, 48, channels)
    inputs = preprocess(batch)
    original = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    for image, result in zip(batch, inputs, strict=True):
        torch.testing.assert_close(result, original(image), rtol=0, atol=2e-6)
    assert np.array_equal(preprocess.undo(inputs), batch)
    assert np.array_equal(preprocess.undo(inputs[0]), batch[0])


@pytest.mark.parametrize("before, after", [(48, 224), (75, 48), (300, 48), (48, 40)])
def test_resizing_agrees_with_pil(before, after):
    array = noise(before, before, 3)
    expected = np.asarray(Image.fromarray(array).resize((after, after), Image.Resampling.BILINEAR))
    result = Preprocess(size=after, mean=(0, 0, 0), std=(1, 1, 1))(array) * 255
    difference = (result - torch.from_numpy(expected.copy()).permute(2, 0, 1)).abs()
    # PIL rounds to whole numbers, after the rows and again after the columns.
    assert difference.max() <= 1.01 and difference.mean() < 0.35


def test_resizing_does_not_keep_the_aspect():
    result = Preprocess(size=20, mean=(0, 0, 0), std=(1, 1, 1))(picture(40, 60))
    assert result.shape == (3, 20, 20)


def test_a_big_photo_goes_plane_by_plane_to_the_same_result():
    array = picture(2200, 2000)
    preprocess = Preprocess(size=48)
    planes = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float().contiguous()
    whole = F.interpolate(planes, size=(48, 48), mode="bilinear", antialias=True)
    assert torch.equal(preprocess(array), preprocess.normalize(whole)[0])


def test_stored_faces_may_be_read_only(tmp_path):
    np.save(tmp_path / "faces.npy", noise(4, 48, 48, 1))
    stored = np.load(tmp_path / "faces.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Preprocess(size=48)(stored).shape == (4, 3, 48, 48)
        assert Preprocess(size=48)(stored[0]).shape == (3, 48, 48)


@pytest.mark.parametrize(
    "image, found",
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (torch.zeros(3, 4, 4), "float32"),
        (np.zeros((4, 4), np.uint16), "uint16"),
        (None, "NoneType"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((3, 9, 9), np.uint8), r"\(3, 9, 9\)"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"\(9, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
        (np.zeros((1, 2, 9, 9, 3), np.uint8), "shape"),
        (np.zeros(9, np.uint8), "shape"),
    ],
)
def test_pixels_that_are_not_a_picture(image, found):
    with pytest.raises(ImageError, match=found):
        Preprocess()(image)


def test_a_batch_may_be_empty():
    assert Preprocess(size=48)(np.zeros((0, 48, 48, 1), np.uint8)).shape == (0, 3, 48, 48)


def test_settings_travel_as_json():
    for preprocess in (
        Preprocess(),
        Preprocess(size=48, channels=1),
        Preprocess(size=64, grey=True, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    ):
        copy = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
        assert copy == preprocess and hash(copy) == hash(preprocess)
    assert Preprocess().mean == (0.485, 0.456, 0.406)
    assert Preprocess(channels=1).std == (0.226,)


@pytest.mark.parametrize(
    "settings",
    [{"channels": 2}, {"size": 0}, {"mean": (0.5,)}, {"std": (1, 0, 1)}, {"std": (1, 1)}],
)
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="give"):
        Preprocess(**settings)
    with pytest.raises(ValueError, match="sharpness"):
        Preprocess.from_dict({"sharpness": 1})


# ------------------------------------------------------------------------------- open_image
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    upright = picture()
    # How a camera stores a picture that the tag's operation turns upright: the operation undone.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turn = module.UPRIGHT.get(inverse)
    stored = Image.fromarray(upright).transpose(turn) if turn is not None else upright
    data = encoded(stored, kind, exif=exif(orientation), quality=95)
    image = open_image(data)
    assert image.size == (30, 40)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 4
    again = plain_image(image)
    assert np.array_equal(np.asarray(again), np.asarray(image)), "turned twice"
    # A PIL image that somebody opened is treated like the file.
    preprocess = Preprocess(size=20)
    with Image.open(io.BytesIO(data)) as opened:
        assert torch.equal(preprocess(opened), preprocess(data))
        once = plain_image(opened)
        if kind == "JPEG":  # Pillow turns a TIFF itself
            assert opened.getexif()[0x0112] == orientation  # what was given keeps its mark
    assert np.array_equal(np.asarray(plain_image(once)), np.asarray(image)), "turned twice"


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_exif_orientation_out_of_range_is_ignored(orientation):
    array = picture()
    image = open_image(encoded(array, exif=exif(orientation)))
    assert np.array_equal(np.asarray(image), array)


def test_broken_exif_is_ignored():
    image = open_image(
        encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff nonsense")
    )
    assert image.size == (30, 40)


def test_cmyk_with_and_without_adobes_inversion():
    color = np.empty((16, 16, 3), np.uint8)
    color[:] = (200, 80, 30)
    adobe = encoded(Image.fromarray(color).convert("CMYK"), "JPEG", quality=95)
    start = adobe.index(b"\xff\xee")
    length = struct.unpack(">H", adobe[start + 2 : start + 4])[0]
    # Without the marker the stored values count as they are, so they are stored the other way up.
    inverted = Image.eval(Image.fromarray(color).convert("CMYK"), lambda value: 255 - value)
    plain = encoded(inverted, "JPEG", quality=95)
    plain = plain[:start] + plain[start + 2 + length :]
    assert b"Adobe" in adobe and b"Adobe" not in plain
    for data in (adobe, plain, encoded(Image.fromarray(color).convert("CMYK"), "TIFF")):
        image = open_image(data)
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - color).max() <= 6


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_cmyk_without_adobes_marker_keeps_its_colors(orientation):
    color = np.empty((16, 24, 3), np.uint8)
    color[:] = (200, 80, 30)
    inverted = Image.eval(Image.fromarray(color).convert("CMYK"), lambda value: 255 - value)
    data = encoded(inverted, "JPEG", quality=95, exif=exif(orientation))
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    data = data[:start] + data[start + 2 + length :]
    assert np.abs(np.asarray(open_image(data)).astype(int) - (200, 80, 30)).max() <= 6


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = grey.astype(np.uint16) * 257
    portable = b"P5 16 16 65535\n" + deep.astype(">u2").tobytes()
    for data in (
        encoded(Image.fromarray(deep)),
        encoded(Image.fromarray(deep), "TIFF"),
        encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        encoded(Image.fromarray(grey.astype(np.uint16))),  # 8-bit values in a 16-bit file
        encoded(Image.fromarray(grey.astype(np.uint16) * 16)),  # 12-bit ones
        portable,
    ):
        image = open_image(data)
        assert image.mode == "L" and np.array_equal(np.asarray(image), grey)


def test_float_and_32_bit_pictures():
    grey = np.arange(256, dtype=np.float32).reshape(16, 16)
    for values in (grey, grey / 255, grey * 1000 - 5000, (grey * 70_000).astype(np.int32)):
        image = open_image(encoded(Image.fromarray(values), "TIFF"))
        assert np.array_equal(np.asarray(image), grey.astype(np.uint8))
    eight = Image.fromarray(grey.astype(np.uint8))
    assert np.array_equal(np.asarray(plain_image(eight.convert("I"))), np.asarray(eight))
    grey[3, 3] = np.nan
    with pytest.raises(ImageError, match="not numbers"):
        open_image(encoded(Image.fromarray(grey), "TIFF"))
    with pytest.raises(ImageError, match="mode F"):
        Preprocess()(Image.fromarray(grey))


def tiff(pixels, photometric, more=()):
    """An uncompressed grey TIFF of unsigned numbers, as Pillow does not write them."""
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: height, 279: pixels.nbytes, **dict(more)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + pixels.nbytes) + pixels.tobytes() + directory


def test_tiffs_whose_tags_pillow_leaves_to_its_readers():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = grey.astype("<u2") * 257
    for data in (tiff(deep, 1), tiff(65535 - deep, 0), tiff(grey.astype("<u4") * 16843009, 1)):
        assert np.array_equal(np.asarray(open_image(data)), grey)


def test_transparent_is_white():
    array = picture(16, 16)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:8] = 255
    color = Image.fromarray(array)
    grey = color.convert("L")
    for image in (color, grey):
        with_alpha = image.copy()
        with_alpha.putalpha(Image.fromarray(alpha))
        result = open_image(encoded(with_alpha))
        assert result.mode == image.mode
        assert np.array_equal(np.asarray(result)[:8], np.asarray(image)[:8])
        assert (np.asarray(result)[8:] == 255).all()
    half = color.copy()
    half.putalpha(128)
    expected = array * (128 / 255) + 255 * (127 / 255)
    assert np.abs(np.asarray(open_image(encoded(half))) - expected).max() <= 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
def test_a_large_transparent_picture_takes_little_more_memory():
    code = (
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from fer_helpers.pictures import plain_image\n"
        "def peak():\n"
        "    said = Path('/proc/self/status').read_text().split('VmHWM:')[1]\n"
        "    return 1024 * int(said.split()[0])\n"
        "image = Image.new('RGBA', (4000, 4000), 'red')\n"
        "before = peak()\n"
        "plain_image(image)\n"
        "print((peak() - before) / 16e6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(done.stdout) < 8, done.stderr  # bytes a pixel


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB", "I;16"])
def test_one_transparent_color(mode):
    values = np.zeros((8, 8), np.uint8)
    values[:4] = 200
    clear = 0
    if mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(values)
        image = image.quantize(4)
        clear = image.getpixel((0, 7))
    else:
        image = Image.fromarray(values).convert(mode, dither=Image.Dither.NONE)
        clear = (0, 0, 0) if mode == "RGB" else 0
    result = open_image(encoded(image, transparency=clear))
    pixels = np.asarray(result.convert("L"))
    assert result.mode in ("L", "RGB")
    assert (pixels[4:] == 255).all()
    assert (pixels[:4] >= 199).all()


def png_of(*chunks):
    """A PNG file of what Pillow does not write: pairs of a name and what it holds."""
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in (*chunks, (b"IEND", b"")):
        check = zlib.crc32(name + data)
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)
    return file


def png(bits, color, rows, clear):
    """Two pixels in each row, with one clear color."""
    head = struct.pack(">IIBBBBB", 2, len(rows), bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(rows))
    return png_of((b"IHDR", head), (b"tRNS", clear), (b"IDAT", pixels))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Left the clear color, right another; each row begins with its filter, 0.
        (png(2, 0, [b"\0\x60"], b"\0\x01"), (255, 170)),
        (png(4, 0, [b"\0\x32"], b"\0\x03"), (255, 34)),
        (png(8, 0, [b"\0\x03\x02"], b"\0\x03"), (255, 2)),
        (png(16, 2, [b"\0" + b"\x12\x34" * 3 + b"\x34\x34" * 3], b"\x12\x34" * 3), (255, 52)),
    ],
)
def test_the_clear_color_of_a_png_has_its_own_bits(tmp_path, data, expected):
    (tmp_path / "a.png").write_bytes(data)
    read = read_picture(str(tmp_path / "a.png"), True, None)
    assert tuple(read.pixels.ravel()) == expected
    with Image.open(io.BytesIO(data)) as given:
        for image in (open_image(data), plain_image(given), plain_image(given)):
            assert tuple(np.asarray(image.convert("L")).ravel()) == expected


def test_a_heic_is_turned_by_its_library(monkeypatch):
    image = Image.fromarray(picture())
    image.info["exif"] = exif(6).tobytes()
    assert module.orientation(image) == 6
    image.format = "HEIF"
    assert module.orientation(image) == 1


def test_palette_one_bit_and_other_modes():
    array = picture(16, 16)
    color = Image.fromarray(array)
    assert (
        np.abs(np.asarray(open_image(encoded(color.quantize(256)))).astype(int) - array).mean() < 6
    )
    black = color.convert("1")
    result = open_image(encoded(black))
    assert result.mode == "L" and np.array_equal(
        np.asarray(result), np.asarray(black) * np.uint8(255)
    )
    for mode in ("YCbCr", "HSV", "RGBX", "LAB", "RGBa", "La", "LA", "PA"):
        way = {"La": "LA", "PA": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
        image = color.convert(way).convert(mode)
        assert plain_image(image).mode in ("L", "RGB")
    assert open_image(encoded(color.convert("YCbCr"), "JPEG")).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first(kind):
    frames = [Image.fromarray(picture(seed=k)) for k in range(3)]
    options = {"quality": 95} if kind != "PNG" else {}
    image = open_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - picture()).mean() < 8


def test_names_do_not_matter(tmp_path):
    array = picture()
    for name, kind in (("été à la plage.jpg", "PNG"), ("фото 1.png", "JPEG"), ("noext", "BMP")):
        path = tmp_path / name
        path.write_bytes(encoded(array, kind))
        assert open_image(path).size == (30, 40)
        assert open_image(str(path)).size == (30, 40)
        with path.open("rb") as stream:
            assert open_image(stream).size == (30, 40)


def test_a_stream_that_cannot_seek():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *where):
            raise OSError("not seekable")

    assert open_image(Pipe(encoded(picture()))).size == (30, 40)


def test_a_file_at_its_end_is_read_from_its_start():
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "PNG")  # and no seek(0), as with Image.open
    assert open_image(stream).size == (30, 40)
    behind = io.BytesIO(b"head" + stream.getvalue())
    behind.seek(4)
    for _ in range(2):  # whoever asks again finds the same picture
        assert open_image(behind).size == (30, 40)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_an_open_file_can_be_read_again(tmp_path, kind):
    path = tmp_path / "face"
    path.write_bytes(encoded(picture(), kind))
    with path.open("rb") as stream:
        for _ in range(3):
            assert open_image(stream).size == (30, 40)


def test_open_files_that_give_no_bytes(tmp_path):
    class Broken:
        def read(self, size=-1):
            raise RuntimeError("no\nluck")

    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture()))
    closed = path.open("rb")
    closed.close()
    with path.open(encoding="utf-8") as text, (tmp_path / "new").open("wb") as written:
        for source in (Broken(), closed, text, written):
            with pytest.raises(ImageError, match="cannot be read") as error:
                open_image(source)
            one_sentence(error)
    assert open_image(memoryview(encoded(picture()) * 2)[::1]).size == (30, 40)
    with pytest.raises(ImageError, match="not a picture"):
        open_image(memoryview(encoded(picture()))[::2])


def one_sentence(error):
    text = str(error.value if hasattr(error, "value") else error)
    assert "\n" not in text and 20 < len(text) < 400, text
    return text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"])
@pytest.mark.parametrize("keep", [0.15, 0.5, 0.9])
def test_half_a_download(tmp_path, kind, keep):
    data = encoded(noise(64, 64, 3), kind)
    path = tmp_path / "half.jpg"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ImageError, match=r"half\.jpg") as error:
        open_image(path)
    one_sentence(error)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"\x89PNG\r\n\x1a\n", b"<html>no</html>", b"\0" * 500]
)
def test_not_a_picture(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(ImageError, match=r"photo\.jpg|given as bytes") as error:
            open_image(source)
        one_sentence(error)


def test_not_a_file(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png does not exist"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is not a file"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("a\0b.png")
    with pytest.raises(ImageError, match=r"AAA\.\.\.AAA") as error:
        open_image("data:image/png;base64," + "A" * 5000)
    one_sentence(error)


def png_header(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)))


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 9_500), (6_000, 5_100), (70_000, 10)])
def test_decompression_bombs_are_not_unpacked(size):
    with pytest.raises(ImageError, match="too large") as error:
        open_image(png_header(*size))
    assert "megapixels" in one_sentence(error)


def test_a_large_jpeg_is_decoded_smaller(monkeypatch):
    array = picture(160, 120)
    data = encoded(array, "JPEG", quality=95, exif=exif(6))
    for limit, factor in ((160 * 120, 1), (160 * 120 - 1, 2), (1200, 4), (300, 8)):
        monkeypatch.setattr(module, "MAX_PIXELS", limit)
        image = open_image(data)
        assert image.size == (160 // factor, 120 // factor)
        assert image.info.get("reduced_by", 1) == factor
        small = np.asarray(Image.fromarray(array).reduce(factor)).astype(int)
        assert np.abs(np.rot90(np.asarray(image)) - small).mean() < 5
    monkeypatch.setattr(module, "MAX_PIXELS", 299)
    with pytest.raises(ImageError, match=r"too large \(15 x 20\)"):
        open_image(data)
    monkeypatch.setattr(module, "MAX_PIXELS", 300)
    with pytest.raises(ImageError, match="too large"):
        open_image(encoded(array))


def test_a_large_progressive_jpeg_is_refused(monkeypatch):
    data = encoded(picture(160, 120), "JPEG", progressive=True)
    assert open_image(data).size == (120, 160)
    monkeypatch.setattr(module, "MAX_PROGRESSIVE_PIXELS", 1000)
    with pytest.raises(ImageError, match="progressive"):
        open_image(data)


@pytest.mark.parametrize("parts", [((1,), (2,), (3,)), ((1, 2), (3,))])
def test_a_large_jpeg_of_several_scans_is_refused(monkeypatch, parts):
    grey = encoded(picture(160, 120, channels=1), "JPEG")
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    kinds = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    data = grey[:frame] + b"\xff\xc0\0\x11" + grey[frame + 4 : frame + 9] + b"\3" + kinds
    data += grey[frame + 13 : scan]
    for part in parts:
        which = b"".join(bytes((number, 0)) for number in part)
        data += bytes((0xFF, 0xDA, 0, 6 + len(which), len(part))) + which + grey[scan + 7 : -2]
    data += b"\xff\xd9"
    if len(parts) == 3:  # each is what the grey one has, as a scan of two parts would not be
        assert open_image(data).size == (120, 160)
    monkeypatch.setattr(module, "MAX_PROGRESSIVE_PIXELS", 1000)
    assert open_image(encoded(picture(160, 120), "JPEG")).size == (120, 160)
    with pytest.raises(ImageError, match="several scans"):
        open_image(data)


def test_a_small_tiff_of_a_large_tile_is_not_unpacked():
    data = tiff(picture(channels=1), 1, {322: 30_000, 323: 30_000})
    with pytest.raises(ImageError, match=r"too large \(30000 x 30000\)"):
        open_image(data)


@pytest.mark.parametrize("kind", ["ICO", "TGA", "EPS"])
def test_what_is_unpacked_or_run_before_its_size_is_known_is_no_picture(kind):
    with pytest.raises(ImageError, match="not a picture"):
        open_image(encoded(picture(64, 64), kind))


@pytest.mark.parametrize("missing", ["AVIF", "JPEG2000"])
def test_a_pillow_without_some_format_reads_the_others(monkeypatch, missing):
    Image.init()
    monkeypatch.delitem(Image.OPEN, missing, raising=False)
    assert open_image(encoded(picture(), "BMP")).size == (30, 40)
    with pytest.raises(ImageError, match="not a picture"):
        open_image(b"neither")


def test_heic_without_the_plug_in(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(ImageError, match="is missing: pip install pillow-heif"):
        open_image(heic)
    monkeypatch.delitem(sys.modules, "pillow_heif")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pillow_heif.py").write_text("raise ImportError('libheif.so.1: no such file')")
    with pytest.raises(ImageError, match=r"does not load \(libheif\.so\.1: no such file\)"):
        open_image(heic)


def test_an_avif_with_a_common_brand_needs_no_plug_in(monkeypatch):
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = encoded(picture(), "AVIF")
    assert open_image(data[:8] + b"mif1" + data[12:]).size == (30, 40)


def test_threads_leave_the_warning_filters_alone():
    before = list(warnings.filters)
    files = [encoded(picture(seed=k), kind) for k in range(10) for kind in ("PNG", "JPEG", "GIF")]
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(open_image, files * 4))) == len(files) * 4
    assert warnings.filters == before


# ------------------------------------------------------------------------------- real files
REFUSED = {
    "exif_samples_heic_IMG_5195.HEIC": "HEIC",
    "pillow_broken.png": "not a picture",
    "pillow_decompression_bomb.gif": "too large",
    "pillow_truncated_jpeg.jpg": "truncated",
    "sharp_corrupt-header.jpg": "cannot be decoded",
    "sharp_truncated.jpg": "truncated",
    "sharp_truncated.png": "truncated",
    "thumbor_BlueSquare_truncated.jpg": "truncated",
    "thumbor_image_invalid.jpg": "not a picture",
}


def test_odd_files():
    for path in sorted([*shared("odd-images").iterdir(), *shared("photos").iterdir()]):
        if path.name in REFUSED:
            if path.suffix == ".HEIC" and importlib.util.find_spec("pillow_heif"):
                continue
            with pytest.raises(ImageError, match=REFUSED[path.name]) as error:
                open_image(path)
            assert path.name in one_sentence(error)
        else:
            image = open_image(path)
            assert image.mode in ("L", "RGB") and min(image.size) >= 48, path.name


def test_all_eight_orientations_of_a_photo_are_the_same_photo():
    turned = [open_image(shared(f"odd-images/Portrait_{k}.jpg")) for k in range(9)]
    small = np.stack([np.asarray(image.resize((60, 90))).astype(int) for image in turned])
    assert {image.size for image in turned} == {(1200, 1800)}
    # They differ by a digit in the middle.
    assert np.abs(small - small[1]).mean(axis=(1, 2, 3)).max() < 3
