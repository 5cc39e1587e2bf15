"""Prediction: every kind of picture, one answer, honest about what it does not know."""

import datetime
import errno
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
import torch
from PIL import Image
from test_faces import nowhere, server  # noqa: F401 (fixtures)
from torch import nn
from torchvision.transforms import v2

from fer_helpers import batches, classifier, detectors, faces, front_end, prediction, sources
from fer_helpers.answers import Prediction, annotate, plot_answer
from fer_helpers.checkpoints import LoadedModel, load_model, save_model
from fer_helpers.demo_faces import draw_face
from fer_helpers.detectors import Detector, DetectorError, Face
from fer_helpers.export import export_onnx
from fer_helpers.models import build_model
from fer_helpers.pictures import ImageError
from fer_helpers.prediction import (
    PredictionError,
    load_classifier,
    predict_faces,
    predict_images,
    predict_single_image,
)
from fer_helpers.preprocess import Preprocess
from fer_helpers.sources import download_example, list_images, read_image
from tests.faces_on_disk import shared

NAMES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
NO_ADDRESS = "://".join(("http", "[::1/x.jpg"))  # no host for the check of hosts to find
PREPROCESS = Preprocess(size=24, channels=1)
SCRIPT = Path(__file__).parents[1] / "notebooks" / "Facial Emotion Recognition.py"


class Tiny(nn.Module):
    """Answers that depend on every pixel, and on whether it is in training mode."""

    def __init__(self, classes=7, channels=1):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.linear = nn.Linear(channels * 24 * 24, classes)
        nn.init.normal_(self.linear.weight, std=0.1, generator=generator)
        nn.init.normal_(self.linear.bias, generator=generator)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.linear(self.dropout(x.flatten(1)))


@pytest.fixture
def model():
    return Tiny().eval()


@pytest.fixture
def detector(monkeypatch):
    """A detector that finds what it is told to, in pixels of a photo 640 wide."""

    class Told(Detector):
        boxes = ()

        def detect(self, pixels, min_score):
            scale = pixels.shape[1] / 640
            return [Face(tuple(v * scale for v in box), 0.9) for box in Told.boxes]

    return Told("yunet", None)


@pytest.fixture
def face():
    return draw_face("Happy", 7, size=48)


def saved(picture, format, **options):
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def ask(picture, model, **options):
    return predict_single_image(picture, model, PREPROCESS, NAMES, show=False, **options)


def same(a, b, tolerance=1e-6):
    return np.allclose(
        list(a.probabilities.values()), list(b.probabilities.values()), atol=tolerance
    )


# One answer


def test_the_original_call_works_and_unpacks(face, model, tmp_path, capsys):
    fer_transforms = {"val": PREPROCESS}
    FER_CLASSES = list(NAMES)
    face.save(tmp_path / "face.png")
    answer = predict_single_image(
        str(tmp_path / "face.png"), model, transform=fer_transforms["val"], class_names=FER_CLASSES
    )
    label, confidence = answer
    assert label == answer.label in NAMES
    assert confidence == answer.confidence == pytest.approx(100 * answer.probabilities[label])
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert list(answer.probabilities) == FER_CLASSES
    assert max(answer.probabilities, key=answer.probabilities.get) == label
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert f"{confidence:.1f} %" in printed


def test_top2_and_text():
    answer = Prediction("Happy", 60.0, {"Sad": 0.3, "Happy": 0.6, "Fear": 0.1}, uncertain=True)
    assert answer.top2 == (("Happy", 60.0), ("Sad", 30.0))
    assert str(answer) == "Happy 60.0 % (then Sad 30.0 %), uncertain"
    assert Prediction(None, 0.0).top2 == ()


def test_every_kind_of_picture_gives_the_same_answer(face, model, tmp_path, server):  # noqa: F811
    png = saved(face, "PNG")
    path = tmp_path / "Gesicht mit Leerzeichen é.png"
    path.write_bytes(png)
    server.answers["/face"] = (200, {}, png)
    pixels = np.asarray(face)
    reference = ask(path, model)
    kinds = {
        "text path": str(path),
        "url": f"{server.url}/face",
        "bytes": png,
        "file": io.BytesIO(png),
        "PIL": face,
        "PIL, opened lazily": Image.open(path),
        "RGBA": face.convert("RGBA"),
        "array": pixels,
        "16 bit": pixels.astype(np.uint16) * 257,
        "12 bit": pixels.astype(np.uint16) * 16,
        "16 bit of 8": pixels.astype(np.uint16),
        "float": pixels / 255,
        "float32": (pixels / 255).astype(np.float32),
        "int64": pixels.astype(np.int64),
        "not contiguous": np.asfortranarray(pixels),
        "tensor": torch.from_numpy(pixels.copy()).movedim(-1, 0),
        "float tensor": torch.from_numpy(pixels / 255).movedim(-1, 0),
        "batch of one": torch.from_numpy(pixels.copy()).movedim(-1, 0)[None],
    }
    for kind, picture in kinds.items():
        assert same(ask(picture, model), reference), kind
    grey = face.convert("L")
    for picture in (np.array(grey), np.array(grey)[..., None], torch.from_numpy(np.array(grey))):
        answer = ask(picture, model)
        assert same(answer, reference)
        picture[:] = 0  # the caller's memory
        assert np.array_equal(answer.face, grey)


def test_file_array_and_batch_give_the_same_probabilities(face, model, tmp_path):
    jpeg = tmp_path / "face.jpg"
    face.save(jpeg, quality=85)
    decoded = np.asarray(Image.open(jpeg))
    one = ask(jpeg, model)
    assert same(one, ask(decoded, model))
    table = predict_images(
        [jpeg, decoded, saved(Image.open(jpeg), "PNG")], model, PREPROCESS, NAMES
    )
    for values in table[list(NAMES)].to_numpy():
        assert values == pytest.approx(list(one.probabilities.values()), abs=1e-6)


def test_a_torchvision_transform_works_and_gets_rgb(face):
    model = Tiny(channels=3).eval()
    transform = v2.Compose(
        [v2.Resize((24, 24)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    )
    colored = predict_single_image(face, model, transform, NAMES, show=False)
    grey = predict_single_image(face.convert("L"), model, transform, NAMES, show=False)
    assert colored.label in NAMES
    assert grey.label in NAMES
    with pytest.raises(PredictionError, match="views"):
        predict_single_image(face, model, transform, NAMES, show=False, views=2)


def test_dropout_is_off_and_the_training_mode_comes_back(face):
    model = Tiny().train()
    for transform in (PREPROCESS, lambda picture: PREPROCESS(picture)):
        first = predict_single_image(face, model, transform, NAMES, show=False)
        assert same(first, predict_single_image(face, model, transform, NAMES, show=False))
        assert model.training


def test_temperature_makes_answers_softer(face, model):
    sharp, soft = ask(face, model), ask(face, model, temperature=3.0)
    assert soft.label == sharp.label
    assert soft.confidence < sharp.confidence
    powers = {name: p ** (1 / 3) for name, p in sharp.probabilities.items()}
    expected = [p / sum(powers.values()) for p in powers.values()]
    assert list(soft.probabilities.values()) == pytest.approx(expected)


def test_uncertain_is_below_the_threshold(face, model):
    share = ask(face, model).confidence / 100
    assert not ask(face, model, min_confidence=share - 0.01).uncertain
    assert ask(face, model, min_confidence=share + 0.01).uncertain
    assert not ask(face, model).uncertain


@pytest.mark.parametrize("share, uncertain", [(0.49, True), (0.51, False)])
def test_half_is_the_threshold_where_a_model_names_none(face, share, uncertain):
    class Sure(nn.Module):
        """Gives one class `share` of the probability, and the others the rest."""

        def forward(self, x):
            shares = torch.tensor([share] + [(1 - share) / 6] * 6)
            return shares.log().expand(len(x), 7)

    answer = ask(face, Sure())
    assert answer.confidence == pytest.approx(100 * share)
    assert answer.uncertain is uncertain
    built = classifier.Classifier(Sure(), PREPROCESS, NAMES)
    assert predict_single_image(face, built, show=False).uncertain is uncertain


def test_views_change_the_answer_a_little(face, model):
    one, ten = ask(face, model), ask(face, model, views=10)
    assert not same(one, ten)
    assert sum(ten.probabilities.values()) == pytest.approx(1)
    assert same(ten, ask(face, model, views=10))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crop": "face"}, "crop is 'face'"),
        ({"min_confidence": 60}, "60 percent is 0.6"),
        ({"views": 11}, "views is 11"),
        ({"views": 2.5}, r"views is 2\.5"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_bad_options_are_one_sentence(face, model, options, match):
    with pytest.raises(PredictionError, match=match):
        ask(face, model, **options)


def test_a_bare_model_must_bring_what_belongs_to_it(face, model):
    with pytest.raises(PredictionError, match="transform"):
        predict_single_image(face, model, class_names=NAMES)
    with pytest.raises(PredictionError, match="class_names"):
        predict_single_image(face, model, PREPROCESS)
    with pytest.raises(PredictionError, match="7 classes and class_names has 8"):
        predict_single_image(face, model, PREPROCESS, [*NAMES, "Contempt"])


def test_the_attributes_of_a_module_are_its_own(face, model):
    model.class_names, model.preprocess = ("a", "b"), nn.Identity()
    model.model = model.extra = model.shift = nn.Linear(1, 1)
    classifier = load_classifier(model, PREPROCESS, NAMES)
    assert classifier.model is model
    assert classifier.class_names == NAMES
    assert ask(face, model).label in NAMES


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("Happy Sad", "is a str"),
        (dict.fromkeys(NAMES, 0), "is a dict"),
        (set(NAMES), "is a set"),
        (7, "is a int"),
        ([*NAMES[:6], 6], "holds 6"),
        ([*NAMES[:6], "Sad"], "'Sad' twice"),
    ],
)
def test_class_names_are_a_list_of_different_names(face, model, names, match):
    with pytest.raises(PredictionError, match=match):
        predict_single_image(face, model, PREPROCESS, names)


@pytest.mark.parametrize("name", ["note", "file", "face", "left"])
def test_a_class_cannot_be_called_like_a_column(face, model, name):
    names = [*NAMES[:6], name]
    assert predict_single_image(face, model, PREPROCESS, names, show=False).label in names
    with pytest.raises(PredictionError, match=f"class is called '{name}'"):
        predict_images([face], model, PREPROCESS, names, progress=False)


def test_damaged_weights_give_no_answer(face, model):
    with torch.no_grad():
        model.linear.bias[2] = float("nan")
    with pytest.raises(PredictionError, match="not finite"):
        ask(face, model)


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    net = build_model(7, backbone="resnet18", stem="small1", width=16, head_hidden=0)
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    extra = {"origin": "drawn", "min_confidence": 0.9}
    save_model(
        path, net.eval(), NAMES, Preprocess(size=32, grey=True), temperature=2.0, extra=extra
    )
    return path


def test_a_checkpoint_brings_everything(face, checkpoint):
    answer = predict_single_image(face, checkpoint, show=False)
    assert tuple(answer.probabilities) == NAMES
    assert answer.uncertain  # its own threshold
    sharp = predict_single_image(face, checkpoint, show=False, temperature=1.0, min_confidence=0.0)
    assert sharp.confidence > answer.confidence
    assert not sharp.uncertain
    renamed = predict_single_image(face, checkpoint, class_names=np.array([*"abcdefg"]), show=False)
    assert list(renamed.probabilities.values()) == list(answer.probabilities.values())
    classifier = load_classifier(checkpoint)
    assert predict_single_image(face, classifier, show=False).probabilities == answer.probabilities


@pytest.mark.parametrize(
    "extra",
    [
        {"temperatures": [1.0]},
        {"temperatures": {"10": "hot"}},
        {"min_confidence": None},
        {"balanced_shift": [[0.0]] * 7},
    ],
)
def test_what_a_file_says_of_itself_may_be_anything(face, checkpoint, tmp_path, extra):
    loaded, path = load_model(checkpoint), tmp_path / "odd.safetensors"
    save_model(path, loaded.model, NAMES, loaded.preprocess, extra=extra)
    with pytest.raises(PredictionError, match=r"odd\.safetensors says .* is not understood"):
        load_classifier(path, balanced=True)


def test_several_views_have_a_temperature_of_their_own(face, checkpoint, tmp_path):
    loaded = load_model(checkpoint)
    path = tmp_path / "views.safetensors"
    extra = {"temperatures": {"1": 9.0, "4": 3.0}}  # of one view, the file's own counts
    save_model(path, loaded.model, NAMES, loaded.preprocess, temperature=2.0, extra=extra)
    for views, divisor in ((1, 2.0), (4, 3.0), (3, 2.0)):
        one = predict_single_image(face, path, show=False, views=views)
        given = {"show": False, "views": views, "temperature": divisor}
        assert one.probabilities == predict_single_image(face, path, **given).probabilities
    given = {"show": False, "views": 4}
    assert (
        predict_single_image(face, load_classifier(path), **given).probabilities
        == predict_single_image(face, path, **given).probabilities
    )


def test_no_model_is_the_newest_runs(face, checkpoint, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "model.safetensors").write_bytes(checkpoint.read_bytes())
    monkeypatch.setattr("fer_helpers.checkpoints.SHIPPED", tmp_path / "none")  # it is a drawn one
    monkeypatch.chdir(tmp_path)
    answer = predict_single_image(face, show=False)
    assert answer.probabilities == predict_single_image(face, checkpoint, show=False).probabilities


def test_the_margin_follows_the_training_faces(model):
    fer = LoadedModel(model, NAMES, PREPROCESS)
    affectnet = LoadedModel(model, (*NAMES, "Contempt"), PREPROCESS)
    renamed = [*NAMES, "Verachtung"]
    assert load_classifier(fer).margin == faces.FER_MARGIN
    assert load_classifier(fer, class_names=[*NAMES, "Contempt"]).margin == faces.FER_MARGIN
    for given in (affectnet, load_classifier(affectnet)):
        assert load_classifier(given, class_names=renamed).margin == faces.AFFECTNET_MARGIN
    bare = load_classifier(model, PREPROCESS, [*NAMES, "contempt"])
    built = classifier.Classifier(model, PREPROCESS, (*NAMES, "Contempt"))
    assert bare.margin == built.margin == faces.AFFECTNET_MARGIN


def test_a_network_that_views_its_input_as_a_row_answers(face):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 48 * 48, 7)

        def forward(self, x):
            return self.head(x.view(len(x), -1))  # as tutorials do; it wants plain memory

    resize = v2.Compose([v2.ToImage(), v2.Resize((48, 48)), v2.ToDtype(torch.float32, True)])
    answer = predict_single_image(face, Plain(), resize, NAMES, crop="none", show=False)
    assert answer.label in NAMES


@pytest.mark.slow
def test_torch_and_onnx_agree(face, checkpoint, tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    loaded = load_classifier(checkpoint)
    path = tmp_path / "model.onnx"
    export_onnx(
        path, loaded.model, NAMES, loaded.preprocess, temperature=2.0, extra={"min_confidence": 0.9}
    )
    face.save(tmp_path / "a.jpg")
    sources = [tmp_path / "a.jpg", np.asarray(face), face.resize((60, 75))]
    ours = predict_images(sources, checkpoint, progress=False)
    theirs = predict_images(sources, path, progress=False)
    np.testing.assert_allclose(ours[list(NAMES)], theirs[list(NAMES)], atol=1e-4)
    assert theirs.uncertain.all()
    with pytest.raises(PredictionError, match="views"):
        predict_single_image(face, path, show=False, views=2)


# Photos


def test_small_pictures_are_crops_and_say_so(model, detector):
    type(detector).boxes = ((100, 100, 200, 220),)
    small = ask(draw_face("Happy", 7, size=112).crop((0, 0, 112, 90)), model, detector=detector)
    assert small.note == "assumed already cropped"
    assert small.face_box is None
    large = ask(Image.new("RGB", (113, 113), "gray"), model, detector=detector)
    assert large.face_box is not None
    assert "cropped" not in large.note
    whole = ask(Image.new("RGB", (640, 480), "gray"), model, detector=detector, crop="none")
    assert (whole.face_box, whole.note) == (None, "")
    found = ask(Image.new("RGB", (100, 100), "gray"), model, detector=detector, crop="detect")
    assert found.face_box is not None


@pytest.mark.parametrize("size", [(48, 48), (1, 1), (112, 30)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_small_picture_that_shows_nothing_gets_no_answer(model, size, mode):
    pixels = np.full((size[1], size[0], 3), (90, 120, 150), np.uint8)
    pixels[0, -1] += 8  # which JPEG may have added
    blank = Image.fromarray(pixels).convert(mode)
    answer = ask(blank, model)
    assert (answer.label, answer.confidence) == (None, 0.0)
    assert (answer.note, answer.probabilities, answer.uncertain) == ("shows nothing", {}, True)
    (row,) = predict_images(blank, model, PREPROCESS, NAMES, progress=False).itertuples()
    assert pd.isna(row.face) and row.note == "shows nothing" and not row.error
    assert ask(blank, model, crop="none").label in NAMES  # somebody says that it is a face


def test_no_face_is_no_answer(model, detector, capsys):
    type(detector).boxes = ()
    photo = Image.new("RGB", (640, 480), "gray")
    label, confidence = answer = predict_single_image(
        photo, model, PREPROCESS, NAMES, detector=detector
    )
    assert (label, confidence) == (None, 0.0)
    assert answer.note == "no face found"
    assert answer.uncertain
    assert answer.probabilities == {}
    assert capsys.readouterr().out == "no face found\n"


def test_of_several_faces_the_largest_answers_and_points_to_the_others(model, detector):
    type(detector).boxes = ((10, 10, 60, 70), (200, 100, 400, 350), (500, 300, 560, 380))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    answer = ask(photo, model, detector=detector)
    assert answer.face_box == (200, 100, 400, 350)
    assert "3 faces" in answer.note
    assert "predict_images" in answer.note
    everybody = predict_faces(photo, model, PREPROCESS, NAMES, detector=detector)
    assert [a.face_box for a in everybody] == [
        (200, 100, 400, 350),
        (500, 300, 560, 380),
        (10, 10, 60, 70),
    ]
    assert same(everybody[0], answer)


def test_without_a_detector_a_photo_gets_the_plain_result(model, face, monkeypatch):
    detectors._default_detector.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    answer = ask(Image.new("RGB", (640, 480)), model)
    assert answer.label is None
    assert answer.note.startswith("no detector here: give a crop or the model file")
    assert "pip install opencv-python-headless" in answer.note
    assert ask(face, model).label in NAMES  # a crop needs none


def test_a_named_detector_that_is_missing_is_an_error(model, tmp_path):
    pytest.importorskip("cv2", reason="needs OpenCV")
    with pytest.raises(DetectorError, match=r"gone\.onnx"):
        ask(Image.new("RGB", (640, 480)), model, detector=tmp_path / "gone.onnx")


# Pictures that cannot be used


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        ("gone.jpg", r"gone\.jpg"),
        (b"no picture", "not a picture"),
        (b"", "empty"),
        ("file:///etc/hostname", "not an http"),
        ("ftp://127.0.0.1/x.jpg", "not an http"),
        (None, "NoneType"),
        (42, "int"),
        (np.zeros((4, 5, 7), np.uint8), r"\(4, 5, 7\)"),
        (np.zeros((3, 48, 48), np.uint8), r"\(height, width, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\)"),
        (np.zeros(10, np.uint8), r"\(10,\)"),
        (np.full((9, 9), np.nan), "nan"),
        (np.full((9, 9), -1.5), "not normalized"),
        (torch.full((3, 9, 9), 300), "300"),
        (np.full((9, 9), 65_536), "65536"),
        (np.full((9, 9), 300, np.int64), "300"),  # 8 bits that overshot
        (torch.zeros(2, 3, 9, 9), r"\(2, "),
        (np.array([["a"]]), "no picture"),
        (np.full((9, 9), 1.05), "1.05"),
        (torch.zeros(48, 40, 3), r"\(48, 40, 3\)"),
        (torch.zeros(3, 9, 9).to_sparse(), "sparse"),
        (torch.zeros(3, 9, 9, device="meta"), "meta"),
        (Image.new("RGB", (0, 0)), "no pixels"),
        (Image.new("1", (10_000, 6_001)), "too large"),
        (np.zeros((10_000, 6_001), np.uint8), "too large"),
        ("~no such user/photo.jpg", r"~no such user[/\\]photo\.jpg does not exist"),
        (NO_ADDRESS, "Invalid IPv6"),
        pytest.param("a" * 5000, r"aaa\.\.\.aaa", id="long"),
    ],
)
def test_what_is_no_picture_is_one_sentence(model, picture, match):
    with pytest.raises(ImageError, match=match) as caught:
        ask(picture, model)
    assert "\n" not in str(caught.value)


def test_pixels_of_every_range_and_byte_order(face):
    grey = np.asarray(face.convert("L"))
    near = (grey / 255).astype(np.float32)
    near[0, 0], near[0, 1] = 1.0000002, -1e-7  # what resizing in float leaves
    read = np.asarray(read_image(near))
    assert read[0, :2].tolist() == [255, 0]
    assert np.array_equal(read[1:], grey[1:])
    assert np.array_equal(np.asarray(read_image(grey.astype(">u2") * 257)), grey)
    deep = Image.fromarray(grey.astype(np.int32) * 257)  # what Pillow makes of a 16-bit PGM
    assert np.array_equal(np.asarray(read_image(np.asarray(deep))), grey)
    assert np.array_equal(np.asarray(read_image(grey > 128)), (grey > 128) * np.uint8(255))
    assert np.array_equal(np.asarray(read_image(torch.tensor(grey > 128))), (grey > 128) * 255)


def test_a_tilde_is_part_of_a_name_where_it_is_nobodys_home(face, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    face.save("~face.png")
    assert read_image("~face.png").size == read_image(Path("~face.png")).size == (48, 48)
    (row,) = predict_images("~face.png", model, PREPROCESS, NAMES, progress=False).itertuples()
    assert row.label in NAMES


def test_a_truncated_pil_image_is_one_sentence(face, model):
    whole = saved(face, "PNG")
    with pytest.raises(ImageError):
        ask(Image.open(io.BytesIO(whole[: len(whole) // 2])), model)


def test_urls_have_limits(server, model, monkeypatch):  # noqa: F811
    server.answers["/local"] = (302, {"Location": "file:///etc/hostname"}, b"")
    server.answers["/big"] = (200, {}, b"x" * 5000)
    server.answers["/text"] = (200, {}, b"<html>")
    monkeypatch.setattr(sources, "URL_MAX_BYTES", 4000)
    for path, match in (
        ("/local", "fetched"),
        ("/big", "larger"),
        ("/text", "/text"),
        ("/no", "404"),
    ):
        with pytest.raises(ImageError, match=match):
            ask(server.url + path, model)


# Many pictures


@pytest.fixture
def folder(tmp_path):
    """Faces of different sizes and modes in subfolders, with things that are no pictures."""
    root = tmp_path / "Fotos é"
    (root / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    draw_face("Sad", 1, size=48).save(root / "2.png")
    draw_face("Sad", 2, size=48, color=False).save(root / "1.JPG")
    draw_face("Sad", 3, size=75).save(root / "b" / "3 ü.webp")
    draw_face("Sad", 3, size=75).save(root / ".hidden" / "no.png")
    (root / "broken.jpg").write_bytes(saved(draw_face("Sad", 4), "JPEG")[:300])
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_is_one_row_per_picture(folder, model):
    table = predict_images(folder, model, PREPROCESS, NAMES, progress=False)
    names = [Path(file).name for file in table.file]
    assert names == ["1.JPG", "2.png", "3 ü.webp", "broken.jpg"]
    fixed = ["file", "face", "left", "top", "right", "bottom", "label", "confidence"]
    assert list(table) == [*fixed, *NAMES, "uncertain", "note", "error"]
    good, bad = table[~table.error], table[table.error]
    for row in good.itertuples():
        alone = ask(row.file, model)
        assert row.label == alone.label
        assert row.confidence == pytest.approx(alone.confidence, abs=1e-4)
        assert row.face == 1
        assert row.note == "assumed already cropped"
    assert good.left.isna().all()
    (broken,) = bad.itertuples()
    assert "broken.jpg" in broken.note
    assert pd.isna(broken.label)
    assert broken.confidence == 0
    assert broken.uncertain


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_does_not_change_answers(folder, model, batch_size):
    table = predict_images(folder, model, PREPROCESS, NAMES, batch_size=batch_size, progress=False)
    whole = predict_images(folder, model, PREPROCESS, NAMES, progress=False)
    pd.testing.assert_frame_equal(table, whole, atol=1e-5)


@pytest.mark.parametrize("transform", [PREPROCESS, lambda picture: PREPROCESS(picture)])
def test_faces_of_all_sizes_go_through_the_one_function(face, model, monkeypatch, transform):
    sizes, calls = (30, 48, 75, 48), []
    crops = [face.resize((size, size)) for size in sizes]
    alone = [predict_single_image(crop, model, transform, NAMES, show=False) for crop in crops]

    def counted(*given, real=classifier.predict_logits, **options):
        calls.append(options["batch_size"])
        return real(*given, **options)

    monkeypatch.setattr(classifier, "predict_logits", counted)
    asked = load_classifier(model, transform, NAMES)
    found = asked.probabilities(crops, batch_size=3)
    assert calls == [3]
    for row, one in zip(found, alone, strict=True):
        assert row == pytest.approx(list(one.probabilities.values()), abs=1e-6)
    if transform is PREPROCESS:
        several = asked.probabilities(crops, views=2)
        assert several[3] == pytest.approx(asked.probabilities(crops[3:], views=2)[0], abs=1e-6)


def test_files_that_give_no_face_do_not_pile_up(model, monkeypatch):
    waited = []

    def counted(pictures, *rest, real=batches.answer_all):
        waited.append(len(pictures))
        return real(pictures, *rest)

    monkeypatch.setattr(batches, "answer_all", counted)
    table = predict_images([b"x"] * 600, model, PREPROCESS, NAMES, progress=False)
    assert waited == [256, 256, 88] and len(table) == 600


@pytest.mark.parametrize("seen", [False, True])
def test_a_bar_where_somebody_watches_and_not_in_a_log(face, model, monkeypatch, capsys, seen):
    monkeypatch.setattr(front_end, "front_end", lambda: seen)  # an open notebook is no terminal
    predict_images([face], model, PREPROCESS, NAMES, progress=False)
    assert not capsys.readouterr().err
    predict_images([face], model, PREPROCESS, NAMES)
    assert ("0/1" in capsys.readouterr().err) is seen
    if not seen:
        monkeypatch.setattr(sys, "stderr", None)  # as without a console on Windows
        assert len(predict_images([face], model, PREPROCESS, NAMES)) == 1


def test_everything_mixed_in_the_order_given(folder, model, face, detector):
    type(detector).boxes = ((100, 100, 200, 220), (300, 50, 340, 100))
    photo = Image.new("RGB", (640, 480), "gray")
    given = [photo, folder, "gone.png", face, saved(face, "PNG"), np.asarray(face)]
    table = predict_images(given, model, PREPROCESS, NAMES, detector=detector, progress=False)
    names = [Path(file).name for file in table.file]
    assert names[:2] == ["picture 1"] * 2
    assert names[2:7] == ["1.JPG", "2.png", "3 ü.webp", "broken.jpg", "gone.png"]
    assert names[7:] == ["picture 4", "picture 5", "picture 6"]
    assert table.face[:2].tolist() == [1, 2]
    assert table.left[:2].tolist() == [100, 300]
    assert table.error.sum() == 2


def test_nothing_and_empty_folders(model, tmp_path):
    table = predict_images([], model, PREPROCESS, NAMES)
    assert len(table) == 0
    assert "Happy" in table
    (row,) = predict_images(tmp_path, model, PREPROCESS, NAMES).itertuples()
    assert row.error
    assert "holds no pictures" in row.note


def test_a_folder_that_may_not_be_read_is_a_row(folder, model, monkeypatch):
    def guarded(place, real=os.scandir):
        if Path(place) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read everything
    closed = set()
    for place, names in (
        (folder / "b", ["1.JPG", "2.png", "broken.jpg", "b"]),
        (folder, [folder.name]),
    ):
        closed.add(place)
        table = predict_images(folder, model, PREPROCESS, NAMES, progress=False)
        assert [Path(file).name for file in table.file] == names
        assert table.error.iloc[-1]
        assert "cannot be listed (Permission denied)" in table.note.iloc[-1]


def test_annotated_copies_never_overwrite_each_other(model, face, detector, tmp_path):
    type(detector).boxes = ((100, 100, 200, 220), (500, 400, 700, 600))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        face.save(tmp_path / name / "Ä 1.png")
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.png")
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "out" / "ann"
    given = [tmp_path / "a", tmp_path / "b", tmp_path / "photo.png", "gone.png"]
    predict_images(
        given, model, PREPROCESS, NAMES, detector=detector, annotate_to=out, progress=False
    )
    assert sorted(p.name for p in out.iterdir()) == ["photo.jpg", "Ä 1 (2).jpg", "Ä 1.jpg"]
    assert {p for p in tmp_path.rglob("*") if tmp_path / "out" not in (p, *p.parents)} == before
    kept = (out / "photo.jpg").read_bytes()
    predict_images(
        tmp_path / "photo.png", model, PREPROCESS, NAMES, annotate_to=out, progress=False
    )
    assert (out / "photo.jpg").read_bytes() == kept  # nor those of an earlier call
    assert (out / "photo (2).jpg").exists()


def test_a_full_disk_costs_the_copies_and_no_answer(model, face, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batches, "replace_file", full)
    table = predict_images(
        [face, face], model, PREPROCESS, NAMES, annotate_to=tmp_path / "out", progress=False
    )
    assert table.label.notna().all() and not table.error.any()
    assert all("copy not written (No space left on device)" in note for note in table.note)


def test_a_detector_that_cannot_be_used_is_said_before_anything_is_read(
    model, face, tmp_path, monkeypatch
):
    pytest.importorskip("cv2", reason="the [faces] extra is not installed")
    monkeypatch.setattr(batches, "read_image", lambda _: pytest.fail("read"))
    with pytest.raises(DetectorError, match=r"gone\.onnx"):
        predict_images([face], model, PREPROCESS, NAMES, detector=tmp_path / "gone.onnx")


def test_odd_inputs_stop_nothing(face, model, tmp_path):
    given = [
        "a" * 5000,
        "",
        NO_ADDRESS,
        "~no such user/x",
        Image.new("RGB", (0, 0)),
        None,
        face,
    ]
    table = predict_images(given, model, PREPROCESS, NAMES, crop="none", progress=False)
    assert table.error.tolist() == [True] * 6 + [False]
    png = saved(face, "PNG")
    for one in (bytearray(png), memoryview(png)):
        assert predict_images(one, model, PREPROCESS, NAMES, progress=False).label.notna().all()


def test_annotated_copies_never_replace_the_pictures(face, model, tmp_path):
    photo = tmp_path / "me.jpg"
    face.save(photo)
    before = photo.read_bytes()
    for given in (photo, [photo], tmp_path):
        with pytest.raises(PredictionError, match="a folder of their own"):
            predict_images(
                given, model, PREPROCESS, NAMES, annotate_to=tmp_path / "x" / "..", progress=False
            )
    assert photo.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["me.jpg"]


def test_annotated_copies_below_the_pictures_are_passed_over(face, model, tmp_path):
    face.save(tmp_path / "me.jpg")
    for copies in (1, 2):
        given = tmp_path, model, PREPROCESS, NAMES
        table = predict_images(*given, annotate_to=tmp_path / "out", progress=False)
        assert [Path(name).name for name in table.file] == ["me.jpg"]
        assert len(list((tmp_path / "out").iterdir())) == copies


def test_a_name_too_long_for_a_file_stops_no_annotating(face, model, tmp_path):
    long = "https:" + "/" * 2 + "[::1/" + 300 * "x" + ".jpg"
    given = [long, face], model, PREPROCESS, NAMES
    table = predict_images(*given, annotate_to=tmp_path / "out", progress=False)
    assert table.error.tolist() == [True, False]


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (65_535, 20)])
def test_a_strip_is_annotated_without_growing(model, tmp_path, size):
    strip = Image.new("L", size, "gray")
    drawn = annotate(strip, [Prediction(None, 0.0)])
    assert max(drawn.size) <= max(2000, *size)
    table = predict_images(
        strip, model, PREPROCESS, NAMES, crop="none", annotate_to=tmp_path, progress=False
    )
    assert table.label.notna().all()
    with Image.open(tmp_path / "picture 1.jpg") as copy:
        assert max(copy.size) == min(max(size), 65_500)


def test_an_annotated_copy_of_a_long_name(face, model, tmp_path):
    out = tmp_path / "out"
    # 252 bytes, the suffix would be too much; and a dot where the name is cut.
    for name in ("\u4e2d" * 84, "a" * 20 + "." + "b" * 49 + ".png"):
        face.save(tmp_path / name, "PNG")
        predict_images(tmp_path / name, model, PREPROCESS, NAMES, annotate_to=out, progress=False)
    assert sorted(path.stem for path in out.iterdir()) == ["b" * 49, "\u4e2d" * 50]


def test_linked_folders_are_searched_once(face, tmp_path):
    face_file = tmp_path / "elsewhere" / "1.png"
    face_file.parent.mkdir()
    face.save(face_file)
    (tmp_path / "photos").mkdir()
    try:
        (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    except OSError:
        pytest.skip("no links without a privilege on Windows")
    assert list_images(tmp_path / "photos") == [tmp_path / "photos" / "linked" / "1.png"]


def test_annotate_draws_on_a_copy():
    photo = Image.new("RGB", (640, 480), "black")
    answers = [
        Prediction("Happy", 90.0, {"Happy": 0.9}, face_box=(100, 100, 200, 220)),
        Prediction("Sad", 30.0, {"Sad": 0.3}, uncertain=True, face_box=(-20, -30, 60, 80)),
    ]
    drawn = annotate(photo, answers)
    assert drawn.size == (640, 480)
    assert np.asarray(photo).max() == 0
    pixels = np.asarray(drawn).astype(int)
    assert pixels[160, 100].tolist() == [10, 125, 50]  # the box's left edge, certain
    assert pixels[40, 60].tolist() == [138, 138, 138]  # the other one's right edge
    assert np.asarray(annotate(photo, [Prediction(None, 0.0)])).max() == 255  # said in words
    assert annotate(Image.new("L", (48, 48)), answers[:1]).size == (240, 240)
    assert annotate(Image.new("L", (1, 1)), [Prediction(None, 0.0)]).size == (200, 200)


def test_the_figure_shows_face_and_bars(face, model):
    figure = plot_answer(ask(face, model, min_confidence=0.99))
    image, bars = figure.axes[:2]
    assert image.images[0].get_array().shape[:2] == (48, 48)
    assert len(bars.patches) == 7
    assert "uncertain" in figure._suptitle.get_text()


# Google Drive, upload


def test_gdown_example_with_the_real_client(server, face, model, tmp_path, monkeypatch):  # noqa: F811
    headers = {
        "Content-Type": "image/png",
        "Content-Disposition": 'attachment; filename="Foto 1.png"',
    }
    server.answers["/uc?id=1a2b3c4d5e6f7g8h9"] = (200, headers, saved(face, "PNG"))
    real = requests.Session.get

    def redirected(self, url, **options):
        return real(self, url.replace("https://drive.google.com", server.url), **options)

    monkeypatch.setattr(requests.Session, "get", redirected)
    path = download_example("1a2b3c4d5e6f7g8h9", tmp_path / "new")
    assert path == tmp_path / "new" / "1a2b3c4d5e6f7g8h9" / "Foto 1.png"
    server.answers.clear()  # what is there is not fetched again
    assert download_example("1a2b3c4d5e6f7g8h9", tmp_path / "new") == path
    assert same(ask(path, model), ask(face, model))
    server.answers["/uc?id=0000000000private"] = (
        200,
        {"Content-Type": "text/html"},
        b'<html><p class="uc-error-subcaption">Too many users</p></html>',
    )
    with pytest.raises(ImageError, match="0000000000private"):
        download_example("0000000000private", tmp_path)


@pytest.mark.parametrize("wrong", ["", "a/../../b00000000", "https://drive.google.com/file/d/1"])
def test_what_is_no_drive_id_is_not_asked_for(wrong, tmp_path):
    with pytest.raises(ImageError, match="Google Drive"):
        download_example(wrong, tmp_path)


def test_no_upload_button_without_a_front_end(model):
    assert prediction.upload_widget(model) is None


def test_the_upload_button_answers_for_each_file(face, model, monkeypatch, capsys):
    pytest.importorskip("ipywidgets", reason="needs the extra [widgets]")
    monkeypatch.setattr(prediction, "front_end", lambda: True)
    button, _ = prediction.upload_widget(load_classifier(model, PREPROCESS, NAMES)).children
    now = datetime.datetime.now(datetime.UTC)
    button.value = tuple(
        {
            "name": name,
            "type": "image/png",
            "size": len(data),
            "content": memoryview(data),
            "last_modified": now,
        }
        for name, data in (("a.png", saved(face, "PNG")), ("b.png", b"x"))
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "b.png: the picture given as bytes is not a picture" in printed
    assert "a.png" not in printed


def test_the_notebook_shows_every_face_and_offers_an_upload(face, tmp_path):
    text = SCRIPT.read_text("utf-8")
    section = text.split("# ## Single-image prediction\n")[1].split("# ## Save\n")[0]
    cells = section.split("# %%\n")[1:]
    face.save(tmp_path / "a face.png")
    net = build_model(7, stem="small2", width=16, channels=1)
    save_model(tmp_path / "model.safetensors", net, NAMES, PREPROCESS)
    shown, button = [], object()

    class Test:
        """One face, as the notebook's test set."""

        labels = (0,)

        def __len__(self):
            return 1

        def images(self, positions):
            return np.asarray(face)[None]

    names = {
        **vars(prediction),
        "annotate": annotate,
        "chance": np.random.default_rng(0),
        "test": Test(),
        "names": NAMES,
        "run": SimpleNamespace(folder=tmp_path),
        "photos": {"a face.png": face},
        "display": shown.append,
        "upload_widget": lambda *given, **options: button,
    }
    for cell in cells:
        exec(cell.split("# %% [markdown]")[0], names)
    picture, last = shown
    assert picture.size == (240, 240)
    assert last is button


def test_the_notebook_keeps_a_photo_and_one_of_the_same_name_from_drive(face, tmp_path):
    text = SCRIPT.read_text("utf-8")
    cell = text[text.index("\nphotos = ") :]  # to the next cell
    face.save(tmp_path / "me.png")
    names = {
        "Path": Path,
        "PHOTO": str(tmp_path / "me.png"),
        "GDOWN_ID": "1a2b3c4d5e6f7g8h9",
        "download_example": lambda *_: tmp_path / "me.png",
        "read_image": read_image,
        "run": SimpleNamespace(folder=tmp_path),
    }
    exec(cell.split("\n# %%")[0], names)
    assert list(names["photos"]) == ["me.png", "Drive: me.png"]


# The shared odd files


@pytest.mark.slow
def test_odd_files_give_an_answer_or_one_sentence(model):
    pytest.importorskip("cv2", reason="needs OpenCV")
    root = shared("odd-images")
    table = predict_images(sorted(root.iterdir()), model, PREPROCESS, NAMES, progress=False)
    assert set(table.file.map(Path).map(lambda path: path.name)) == set(os.listdir(root))
    broken = {Path(row.file).name for row in table.itertuples() if row.error}
    heic = {"exif_samples_heic_IMG_5195.HEIC"}  # readable where pillow-heif is installed
    assert broken - heic == {
        "pillow_broken.png",
        "pillow_decompression_bomb.gif",
        "pillow_truncated_jpeg.jpg",
        "sharp_corrupt-header.jpg",
        "sharp_truncated.jpg",
        "sharp_truncated.png",
        "thumbor_BlueSquare_truncated.jpg",
        "thumbor_image_invalid.jpg",
    }
    assert all("\n" not in note for note in table.note)
