"""Faces: fetching with limits, finding a detector, finding faces, cutting them out."""

import contextlib
import hashlib
import http.server
import math
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from fer_helpers import detectors, faces, mounts
from fer_helpers.demo_faces import draw_face
from fer_helpers.detectors import Detector, DetectorError, Face, find_model, load_detector
from fer_helpers.faces import AFFECTNET_MARGIN, crop_face, find_faces
from fer_helpers.sources import FetchError, fetch
from tests.faces_on_disk import shared

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server():
    """A loopback server; `server.answers[path] = (status, headers, body or function)`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            server.names.append(self.headers["User-Agent"])
            status, headers, body = server.answers.get(self.path, (404, {}, b"nothing here"))
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(body), 1000):
                self.wfile.write(body[start : start + 1000])
                self.wfile.flush()
                if server.pause:
                    time.sleep(server.pause)

        def log_message(self, *args):
            pass

        def handle(self):
            with contextlib.suppress(ConnectionError):  # the client hung up, as it should
                super().handle()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.answers, server.requests, server.names, server.pause = {}, [], [], 0.0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No detector file anywhere, and nothing remembered of earlier attempts."""
    monkeypatch.setattr(detectors, "SHIPPED_MODEL", tmp_path / "not shipped")
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setattr(detectors, "default_cache_dir", lambda: tmp_path / "cache")
    detectors._fetch_model.cache_clear()
    yield tmp_path / "cache"
    detectors._fetch_model.cache_clear()


@pytest.fixture
def wanted(monkeypatch, server):
    """The server has the file that is asked for; returns its bytes."""
    content = bytes(range(256)) * 40
    monkeypatch.setattr(detectors, "MODEL_URL", f"{server.url}/model.onnx")
    monkeypatch.setattr(detectors, "MODEL_SHA256", hashlib.sha256(content).hexdigest())
    server.answers["/model.onnx"] = (200, {}, content)
    return content


# Fetching


def test_fetch_gives_the_body_and_follows_http_redirects(server):
    server.answers["/a"] = (302, {"Location": "/b"}, b"")
    server.answers["/b"] = (200, {}, b"hello")
    assert fetch(f"{server.url}/a", max_bytes=10) == b"hello"
    assert all(name.startswith("fer_helpers/") for name in server.names)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "photo.jpg", ""])
def test_fetch_refuses_other_schemes(url):
    with pytest.raises(FetchError, match="not an http"):
        fetch(url, max_bytes=10)


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_fetch_refuses_redirects_to_other_schemes(server, target):
    server.answers["/a"] = (302, {"Location": target}, b"")
    with pytest.raises(FetchError, match=r"could not be fetched \(InvalidSchema\)"):
        fetch(f"{server.url}/a", max_bytes=1000)


@pytest.mark.parametrize("announced", [{}, {"Content-Length": "50"}])
def test_fetch_stops_at_the_size_limit(server, announced):
    server.answers["/a"] = (200, announced, b"x" * 5000)
    if announced:  # the client reads what was announced and no more
        assert len(fetch(f"{server.url}/a", max_bytes=100)) == 50
    else:
        with pytest.raises(FetchError, match="larger than the limit of 100 bytes"):
            fetch(f"{server.url}/a", max_bytes=100)


def test_fetch_stops_a_server_that_drips(server):
    server.answers["/a"] = (200, {}, b"x" * 100_000)
    server.pause = 0.05  # 5 seconds in all, each piece well within a socket's patience
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"within 0\.3 seconds"):
        fetch(f"{server.url}/a", max_bytes=10**6, seconds=0.3)
    assert time.monotonic() - started < 3


def test_fetch_reports_errors_and_broken_off_bodies(server):
    with pytest.raises(FetchError, match="status 404"):
        fetch(f"{server.url}/missing", max_bytes=1000)
    server.answers["/short"] = (200, {"Content-Length": "5000"}, b"x" * 100)
    with pytest.raises(FetchError):
        fetch(f"{server.url}/short", max_bytes=10_000, seconds=5)


def test_fetch_reports_no_connection():
    with pytest.raises(FetchError, match="could not be fetched"):
        fetch("http://127.0.0.1:1/x", max_bytes=1000, seconds=5)


# The detector's file


def test_the_file_is_fetched_once_and_kept(server, wanted, nowhere):
    assert find_model() == wanted
    assert [file.name for file in nowhere.iterdir()] == [detectors.MODEL_NAME]
    detectors._fetch_model.cache_clear()
    assert find_model() == wanted
    assert server.requests == ["/model.onnx"]


def test_the_file_of_the_package_needs_no_network(nowhere, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(detectors, "default_cache_dir", lambda: nowhere)
    monkeypatch.setattr(detectors, "MODEL_URL", "http://127.0.0.1:1/x")
    content = find_model()
    assert hashlib.sha256(content).hexdigest() == detectors.MODEL_SHA256
    assert not nowhere.exists()


def test_a_damaged_cache_is_fetched_again(server, wanted, nowhere):
    nowhere.mkdir()
    (nowhere / detectors.MODEL_NAME).write_bytes(wanted[:100])
    assert find_model() == wanted
    assert (nowhere / detectors.MODEL_NAME).read_bytes() == wanted


def test_the_wrong_file_is_refused_and_not_kept(server, wanted, nowhere):
    server.answers["/model.onnx"] = (200, {}, b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DetectorError, match="SHA-256"):
        find_model()
    assert not nowhere.exists()


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b"sorry"),
        (200, {"Content-Length": "10240"}, b"x" * 500),
        (200, {}, b"x" * 1_100_000),
    ],
    ids=["server error", "truncated", "too large"],
)
def test_a_failed_download_is_one_sentence_and_asked_for_once(server, wanted, nowhere, answer):
    server.answers["/model.onnx"] = answer
    for _ in range(2):
        with pytest.raises(DetectorError, match="could not be fetched"):
            find_model()
    assert server.requests == ["/model.onnx"]
    assert not nowhere.exists()


def test_a_cache_that_cannot_be_written_does_not_matter(wanted, nowhere):
    nowhere.write_text("a file stands where the folder should be")
    assert find_model() == wanted


def test_a_named_file_wins_and_must_exist(server, wanted, nowhere, tmp_path):
    mine = tmp_path / "mein YuNet é.onnx"
    mine.write_bytes(b"another")
    assert find_model(mine) == b"another"
    with pytest.raises(DetectorError, match=r"gone\.onnx.*correct the path"):
        find_model(tmp_path / "gone.onnx")
    assert server.requests == []


def test_a_kaggle_input_is_used_without_network(server, wanted, nowhere):
    for dataset, content in (("another-version", b"another"), ("yunet", wanted)):
        file = mounts.KAGGLE_INPUT / dataset / detectors.MODEL_NAME
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    assert find_model() == wanted
    assert server.requests == []


def test_what_is_attached_is_walked_through_only_when_needed(nowhere, monkeypatch):
    def walk(name):
        raise AssertionError("the shipped file is here")
        yield

    monkeypatch.undo()
    monkeypatch.setattr(detectors, "attached_files", walk)
    assert hashlib.sha256(find_model()).hexdigest() == detectors.MODEL_SHA256


# Loading a detector


def test_without_opencv_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DetectorError, match=r"no detector here.*pip install opencv"):
        load_detector()


def test_an_opencv_that_does_not_load_is_not_called_missing(monkeypatch, tmp_path):
    text = "libGL.so.1: cannot open shared object file"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({text!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(DetectorError, match=rf"cv2 does not load \({text}\)"):
        load_detector()


def fake_opencv(**parts):
    cv2 = types.ModuleType("cv2")
    cv2.__version__ = "5.0.0"
    cv2.error = type("error", (Exception,), {})
    vars(cv2).update(parts)
    return cv2


def test_opencv_5_without_the_file_is_the_plain_result(monkeypatch, nowhere):
    monkeypatch.setattr(detectors, "MODEL_URL", "http://127.0.0.1:1/x")
    monkeypatch.setitem(sys.modules, "cv2", fake_opencv())
    with pytest.raises(DetectorError, match="no detector here: give a crop or the model file"):
        load_detector()


def test_opencv_4_without_the_file_uses_its_cascade_and_says_so(monkeypatch, nowhere):
    class Cascade:
        def __init__(self, path):
            assert path.endswith("haarcascade_frontalface_default.xml")

        def empty(self):
            return False

        def detectMultiScale(self, grey, **options):
            assert grey.ndim == 2
            return np.array([[100, 50, 100, 100]])

    cv2 = fake_opencv(
        CascadeClassifier=Cascade,
        data=types.SimpleNamespace(haarcascades="there"),
        COLOR_RGB2GRAY=7,
        cvtColor=lambda pixels, code: pixels[..., 0],
        equalizeHist=lambda grey: grey,
    )
    monkeypatch.setattr(detectors, "MODEL_URL", "http://127.0.0.1:1/x")
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    detector = load_detector()
    assert detector.kind == "cascade"
    assert "cascade" in detector.note
    (face,) = find_faces(Image.new("RGB", (1280, 960)), detector=detector)
    assert face.box == pytest.approx((222, 100, 378, 300))  # at 640 pixels, then doubled
    assert math.isnan(face.score)
    assert face.landmarks is None
    assert face.roll == 0


def test_a_file_that_is_no_yunet_is_one_sentence(tmp_path):
    pytest.importorskip("cv2", reason="needs OpenCV")
    file = tmp_path / "not a model.onnx"
    file.write_bytes(b"not a model")
    with pytest.raises(DetectorError, match=r"not a model\.onnx"):
        load_detector(file)


def test_a_network_that_is_no_yunet_is_one_sentence(tmp_path):
    pytest.importorskip("cv2", reason="needs OpenCV")
    onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
    shape = [1, 3, 320, 320]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("input", "output")
    ]
    node = onnx.helper.make_node("Relu", ["input"], ["output"])
    graph = onnx.helper.make_graph([node], "other", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 11)
    file = tmp_path / "other net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=7), file)
    with pytest.raises(DetectorError, match=r"other net\.onnx") as error:
        load_detector(file)
    assert "\n" not in str(error.value)


def test_threads_that_share_a_net_do_not_meet_in_it():
    class Net:
        """Remembers whether it was asked at the size of the picture."""

        def __init__(self):
            self.answered = []

        def setInputSize(self, size):
            self.size = size
            time.sleep(0.001)  # another thread may come now

        def setScoreThreshold(self, score):
            pass

        def detect(self, pixels):
            self.answered.append(self.size == pixels.shape[1::-1])
            return 0, None

    net = Net()
    detector = Detector("yunet", net)

    def look(side):
        for _ in range(20):
            detector.detect(np.zeros((side, side, 3), np.uint8), 0.7)

    threads = [threading.Thread(target=look, args=(side,)) for side in (64, 128)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(net.answered) == 40 and all(net.answered)


# Cutting out


def photo_with_face(angle=0.0, size=(400, 300), center=(200, 150)):
    """Grey ground, a red left eye and a blue right one, turned by `angle` degrees."""
    picture = Image.new("RGB", size, (120, 120, 120))
    draw = ImageDraw.Draw(picture)
    turn = math.radians(angle)

    def place(x, y):
        return (
            center[0] + x * math.cos(turn) - y * math.sin(turn),
            center[1] + x * math.sin(turn) + y * math.cos(turn),
        )

    points = [place(*p) for p in ((-20, -15), (20, -15), (0, 5), (-15, 25), (15, 25))]
    for (x, y), color in zip(points, ("red", "blue", "white", "white", "white"), strict=True):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    x, y = center
    return picture, Face((x - 40, y - 50, x + 40, y + 50), 0.9, tuple(points))


def dot(picture, channel):
    """Center of the dot in which `channel` stands out, as shares of the picture's side."""
    pixels = np.asarray(picture).astype(float)
    others = [other for other in range(3) if other != channel]
    weight = np.clip(pixels[..., channel] - pixels[..., others].max(axis=-1) - 60, 0, None)
    rows, columns = np.indices(weight.shape)
    return (
        ((columns + 0.5) * weight).sum() / weight.sum() / weight.shape[1],
        ((rows + 0.5) * weight).sum() / weight.sum() / weight.shape[0],
    )


@pytest.mark.parametrize("angle", [0, 12, -30, 75])
@pytest.mark.parametrize("size", [None, 48, 260])
def test_the_eyes_come_out_level_and_in_place(angle, size):
    picture, face = photo_with_face(angle)
    assert face.roll == pytest.approx(angle, abs=0.5)
    crop = crop_face(picture, face, size=size)
    assert crop.size == ((size or 100,) * 2)
    left, right = dot(crop, 0), dot(crop, 2)
    assert left == pytest.approx((0.3, 0.35), abs=0.012)
    assert right == pytest.approx((0.7, 0.35), abs=0.012)


def test_an_upright_crop_at_its_own_scale_is_the_photo_itself():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    crop = crop_face(pixels, Face((30, 20, 70, 60), 0.9))
    np.testing.assert_array_equal(np.asarray(crop), pixels[20:60, 30:70])


def test_the_margin_is_a_share_of_the_longer_side():
    picture, face = photo_with_face()
    assert crop_face(picture, face, 0.0).size == (100, 100)
    assert crop_face(picture, face, AFFECTNET_MARGIN).size == (124, 124)
    wide = crop_face(picture, face, 0.5)
    assert wide.size == (200, 200)
    assert dot(wide, 0) == pytest.approx((0.4, 0.425), abs=0.01)


@pytest.mark.parametrize("center", [(0, 0), (400, 300), (5, 295), (-300, 700)])
def test_beyond_the_edge_the_last_pixels_go_on(center):
    picture, face = photo_with_face(10, center=center)
    crop = np.asarray(crop_face(picture, face, 0.4))
    assert crop.shape == (180, 180, 3)
    assert crop.max(axis=-1).min() > 60  # no black bars


def test_grey_stays_grey_and_other_modes_become_rgb():
    picture, face = photo_with_face()
    assert crop_face(picture.convert("L"), face).mode == "L"
    assert crop_face(picture.convert("RGBA"), face).mode == "RGB"
    assert crop_face(np.asarray(picture.convert("L")), face).mode == "L"


def test_a_huge_face_is_averaged_not_sampled():
    # A checkerboard of single pixels is grey when it is averaged, black or white when sampled.
    checks = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (800, 800))
    crop = crop_face(checks, Face((-100, 200, 1500, 1500), 0.9), size=48)
    assert np.abs(np.asarray(crop).astype(int) - 127).max() <= 12
    assert crop_face(checks, Face((0, 0, 1600, 1600), 0.9)).size == (512, 512)


def test_a_huge_face_stands_where_a_small_one_does():
    picture, face = photo_with_face(20)
    large = picture.resize((4000, 3000), Image.Resampling.BICUBIC)
    crop = crop_face(large, faces._moved(face, 0, 0, 10), size=48)
    assert dot(crop, 0) == pytest.approx((0.3, 0.35), abs=0.015)
    assert dot(crop, 2) == pytest.approx((0.7, 0.35), abs=0.015)


def test_a_profile_is_not_turned():
    points = ((50.0, 40.0), (53.0, 46.0), (60.0, 60.0), (55.0, 80.0), (55.0, 82.0))
    assert Face((20, 10, 90, 110), 0.8, points).roll == 0


def test_each_face_is_kept_once_and_the_largest_comes_first():
    small = Face((0, 0, 10, 10), 0.95)
    large, again = Face((50, 50, 90, 100), 0.8), Face((52, 51, 91, 99), 0.9)
    assert faces._distinct([small, large, again]) == [again, small]


# With the real detector


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("cv2", reason="needs OpenCV")
    return load_detector()


def photo(name):
    return ImageOps.exif_transpose(Image.open(shared(f"photos/{name}")))


def group():
    """Three drawn people on one picture."""
    sheet = Image.new("RGB", (900, 600), (200, 205, 210))
    for i, side in enumerate((260, 200, 140)):
        face = draw_face("Happy", 20 + i, size=side)
        sheet.paste(face, (30 + 290 * i, 60))
    return sheet


def test_drawn_people_are_found_and_cut_out_upright(detector):
    sheet = group()
    found = find_faces(sheet, detector=detector)
    assert len(found) == 3
    assert [face.width for face in found] == sorted((f.width for f in found), reverse=True)
    assert all(face.score > 0.7 and len(face.landmarks) == 5 for face in found)
    # Found again in their own crops, with the box and the eyes where they belong.
    for face in found:
        crop = crop_face(sheet, face, 0.5, size=300)
        (again,) = find_faces(crop, detector=detector)
        assert abs(again.roll) < 8
        assert again.height == pytest.approx(150, rel=0.1)
        assert (again.box[1] + again.box[3]) / 2 == pytest.approx(150, abs=12)


@pytest.mark.parametrize("side", [1500, 640, 200, 113])
def test_a_face_is_found_at_any_size(detector, side):
    picture = draw_face("Surprise", 3, size=300).resize((side, side), Image.Resampling.BICUBIC)
    (face,) = find_faces(picture, detector=detector)
    (reference,) = find_faces(draw_face("Surprise", 3, size=300), detector=detector)
    assert np.array(face.box) == pytest.approx(
        np.array(reference.box) * side / 300, abs=0.06 * side
    )


@pytest.mark.parametrize("angle", [-20, 20])
def test_the_tilt_of_a_head_is_read(detector, angle):
    picture = photo("astronaut.png")
    (upright,) = find_faces(picture, detector=detector)
    (tilted,) = find_faces(picture.rotate(-angle), detector=detector)
    assert tilted.roll - upright.roll == pytest.approx(angle, abs=8)


TURNS = [
    (-90, Image.Transpose.ROTATE_90),
    (180, Image.Transpose.ROTATE_180),
    (90, Image.Transpose.ROTATE_270),
]


def assert_cut_out_the_same(picture, turned, roll, detector):
    """The largest face of a picture and of the turned picture: turned by `roll`, cropped alike."""
    before = find_faces(picture, detector=detector)[0]
    (after,) = find_faces(turned, detector=detector)
    assert (after.roll - before.roll - roll + 180) % 360 - 180 == pytest.approx(0, abs=15)
    crops = [
        np.asarray(crop_face(p, face, size=24).convert("L")).ravel()
        for p, face in ((picture, before), (turned, after))
    ]
    assert np.corrcoef(*crops)[0, 1] > 0.8


@pytest.mark.parametrize(("roll", "turn"), TURNS)
def test_a_drawn_face_that_lies_is_cut_out_upright(detector, roll, turn):
    picture = Image.new("RGB", (640, 480), (200, 205, 210))
    picture.paste(draw_face("Surprise", 3, size=200), (300, 120))
    assert_cut_out_the_same(picture, picture.transpose(turn), roll, detector)


@pytest.mark.parametrize(("roll", "turn"), TURNS)
@pytest.mark.parametrize("name", ["astronaut.png", "portrait.jpg", "stock-emotions-a-5.jpg"])
def test_a_photo_without_exif_that_lies_is_cut_out_upright(detector, name, roll, turn):
    picture = photo(name).convert("RGB")
    assert_cut_out_the_same(picture, picture.transpose(turn), roll, detector)


def test_upright_faces_of_a_group_are_not_turned(detector):
    assert all(abs(f.roll) < 30 for f in find_faces(photo("solvay1927.jpg"), detector=detector))


def test_a_doubtful_face_is_turned_for_a_good_look_only(monkeypatch):
    picture, face = photo_with_face()
    face = Face(face.box, 0.85, face.landmarks)

    def roll(upright, over, kind="yunet"):
        def look(picture, face, detector, reach, turn=0):
            points = tuple((100 - x, 100 - y) for x, y in face.landmarks)
            score = over if turn == 2 else upright
            return Face(face.box, score, points if turn else face.landmarks)

        monkeypatch.setattr(faces, "_closer_look", look)
        return abs(faces._seen_closely(picture, face, Detector(kind, None)).roll)

    assert roll(0.80, 0.95) == pytest.approx(180)
    assert roll(0.80, 0.88) == roll(0.93, 0.95) == roll(0.80, 0.95, "cascade") == 0


def test_a_face_in_a_long_screenshot_is_found(detector):
    picture = Image.new("RGB", (1080, 12_000), (250, 250, 250))
    picture.paste(draw_face("Surprise", 3, size=300), (400, 7000))
    (face,) = find_faces(picture, detector=detector)
    center = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    assert center == pytest.approx((550, 7150), abs=30)


def test_arrays_grey_and_odd_shapes_work(detector):
    picture = draw_face("Neutral", 5, size=300)
    assert len(find_faces(np.asarray(picture), detector=detector)) == 1
    assert len(find_faces(picture.convert("L"), detector=detector)) == 1
    assert len(find_faces(np.asarray(picture.convert("L")), detector=detector)) == 1
    for size in ((1, 1), (5000, 1), (1, 3000), (7, 113), (3000, 8)):
        assert find_faces(Image.new("RGB", size, "gray"), detector=detector) == []


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("astronaut.png", 1, 1),
        ("obama2.jpg", 1, 1),
        ("obama_partial_face.jpg", 1, 1),
        ("portrait.jpg", 1, 1),
        ("portrait-gray.jpg", 1, 1),
        ("obama_and_biden.jpg", 2, 3),
        ("solvay1927.jpg", 25, 29),
        ("coffee.png", 0, 0),
        ("no_face.jpg", 0, 0),
        ("portrait-cmyk-exif6.jpg", 1, 1),
        *((f"stock-emotions-a-{i}.jpg", 1, 1) for i in range(1, 9)),
    ],
)
def test_photos(detector, name, least, most):
    assert least <= len(find_faces(photo(name), detector=detector)) <= most


def test_import_needs_neither_opencv_nor_network():
    code = (
        "import sys, fer_helpers.prediction, fer_helpers.video\n"
        "print(sorted({'cv2', 'requests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
