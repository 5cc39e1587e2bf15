"""The model that comes with the clone."""

from pathlib import Path

import pytest
from PIL import Image

from fer_helpers import detectors
from fer_helpers.checkpoints import SHIPPED, load_model
from fer_helpers.demo_faces import draw_face
from fer_helpers.inference import predict_logits
from fer_helpers.prediction import load_classifier, predict_single_image
from fer_helpers.splits import slice_positions

ROOT = Path(__file__).parents[1]
REAL = ROOT / "data" / "fer2013"
NAMES = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")


@pytest.fixture(scope="module")
def file():
    (only,) = SHIPPED.glob("*.safetensors")
    return only


@pytest.fixture(scope="module")
def loaded(file):
    return load_model(file)


def test_there_is_one_small_file_with_its_card(file):
    assert file.stat().st_size <= 12_000_000
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert file.name in card
    for words in ("terms", "could not verify", "research", "MIT", "not for deciding about people"):
        assert words in card


def test_it_carries_all_that_an_answer_needs(file, loaded):
    assert loaded.class_names == NAMES
    assert loaded.model.architecture["backbone"] == "resnet34"
    assert loaded.model.architecture["attention"] == "spatial"
    assert loaded.temperature != 1
    assert loaded.extra["origin"] == "real"
    assert len(load_classifier(file, balanced=True).shift) == 7


def test_a_clone_finds_the_face_of_a_photo_offline(tmp_path, monkeypatch):
    pytest.importorskip("cv2", reason="finding faces needs OpenCV")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detectors, "MODEL_URL", "http://127.0.0.1:1/x")
    photo = Image.new("RGB", (640, 480), (214, 219, 224))
    photo.paste(draw_face("Happy", 3, size=240), (200, 100))
    photo.save("photo.jpg")
    answer = predict_single_image("photo.jpg", show=False)
    assert answer.label in NAMES and answer.face_box is not None
    left, top, right, bottom = answer.face_box
    assert 180 < left < right < 460 and 80 < top < bottom < 360


def test_a_clone_answers_offline_without_any_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_face("Happy", 3, size=48, color=False).save("face.png")
    answer = predict_single_image("face.png", show=False)
    assert answer.label in NAMES
    assert answer.note == "assumed already cropped"  # and not "model trained on drawn faces"
    assert sum(answer.probabilities.values()) == pytest.approx(1)


@pytest.mark.skipif(not REAL.exists(), reason="needs FER2013 in data/fer2013 (make data-dev)")
def test_it_knows_faces_that_it_was_not_trained_on(loaded):
    from fer_helpers.data import load_fer2013

    slice_ = load_fer2013(REAL / "train", REAL / "test", selection_size=3000, size=48).selection
    held_out = slice_positions(slice_, 1000, purpose="calibration")  # the others were learned
    some = slice_.take(held_out[::3])
    logits = predict_logits(loaded.model, some, loaded.preprocess)
    # experiments.md (run 21) has 74.1 % on all 1,000; a third has fewer or more by chance.
    assert (logits.argmax(1) == some.labels).mean() > 0.66
