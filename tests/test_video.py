"""Video: the same answers frame by frame, persons followed, an annotated copy."""

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from test_prediction import NAMES, PREPROCESS, Tiny, detector  # noqa: F401 (fixture)

from fer_helpers.demo_faces import draw_face
from fer_helpers.prediction import PredictionError, load_classifier, predict_faces
from fer_helpers.video import predict_video

cv2 = pytest.importorskip("cv2", reason="video needs OpenCV")


@pytest.fixture
def model():
    return Tiny().eval()


@pytest.fixture
def video(tmp_path):
    """Twelve frames of 640 x 480 with two drawn faces, the first one changing its expression."""
    path = tmp_path / "Film é.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (640, 480))
    right = draw_face("Neutral", 4, size=200)
    for i in range(12):
        frame = Image.new("RGB", (640, 480), "gray")
        frame.paste(draw_face("Happy" if i < 6 else "Anger", 3, size=240), (20 + i, 40))
        frame.paste(right, (400, 100))
        writer.write(np.ascontiguousarray(np.asarray(frame)[:, :, ::-1]))
    writer.release()
    return path


BOXES = ((20, 40, 260, 280), (400, 100, 600, 300))


def test_every_face_of_every_frame_and_an_annotated_copy(video, model, detector, tmp_path):  # noqa: F811
    type(detector).boxes = BOXES
    out = tmp_path / "new" / "out é.avi"
    table = predict_video(video, model, PREPROCESS, NAMES, detector=detector, output=out)
    assert table.frame.tolist() == [i for i in range(12) for _ in range(2)]
    assert table.person.tolist() == [1, 2] * 12
    assert table.seconds.iloc[-1] == pytest.approx(1.1)
    assert table[list(NAMES)].sum(axis=1).to_numpy() == pytest.approx(1)
    first = cv2.VideoCapture(str(video)).read()[1][:, :, ::-1]
    alone = predict_faces(first, model, PREPROCESS, NAMES, detector=detector)
    assert table.confidence[:2].tolist() == pytest.approx([a.confidence for a in alone], abs=1e-3)
    copy = cv2.VideoCapture(str(out))
    frames = []
    while (read := copy.read())[0]:
        frames.append(read[1])
    assert len(frames) == 12
    assert frames[0].shape == (480, 640, 3)
    assert np.abs(frames[0].astype(int) - first[:, :, ::-1]).max() > 100  # boxes


def test_an_interrupted_copy_leaves_the_finished_one(video, model, detector, tmp_path, monkeypatch):  # noqa: F811
    type(detector).boxes = BOXES
    out = tmp_path / "out" / "copy.avi"
    given = (video, model, PREPROCESS, NAMES)
    predict_video(*given, detector=detector, output=out, max_frames=2)
    before = out.read_bytes()
    looked = []

    def interrupted(image, answers):
        looked.append(image)
        if len(looked) == 5:
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr("fer_helpers.video.annotate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_video(*given, detector=detector, output=out)
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == ["copy.avi"]


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_full_disk_leaves_the_finished_copy(video, model, detector, tmp_path, suffix):  # noqa: F811
    resource = pytest.importorskip("resource", reason="limits a file's size, as a full disk does")
    type(detector).boxes = BOXES
    out = tmp_path / "out" / f"copy{suffix}"
    given = (video, model, PREPROCESS, NAMES)
    predict_video(*given, detector=detector, output=out)
    before = out.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(PredictionError, match="written whole"):
            predict_video(*given, detector=detector, output=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == before
    assert os.listdir(out.parent) == [out.name]


def test_a_stream_that_changes_its_size_is_copied(video, model, detector, tmp_path, monkeypatch):  # noqa: F811
    sizes = []

    def turned(image, answers):
        sizes.append(image.size)
        return image if len(sizes) < 4 else image.rotate(90, expand=True)

    monkeypatch.setattr("fer_helpers.video.annotate", turned)
    out = tmp_path / "copy.avi"
    predict_video(video, model, PREPROCESS, NAMES, detector=detector, output=out)
    copy = cv2.VideoCapture(str(out))
    frames = [read[1].shape for read in iter(copy.read, (False, None))]
    assert len(sizes) == 12 and frames == [(480, 640, 3)] * 12


@pytest.mark.parametrize("rate", [119.963, 59.9401, 240.0])
def test_a_copy_in_mp4_of_any_frame_rate(model, detector, tmp_path, rate):  # noqa: F811
    path, out = tmp_path / "slow.avi", tmp_path / "copy.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (160, 120))
    for _ in range(3):
        writer.write(np.full((120, 160, 3), 128, np.uint8))
    writer.release()
    predict_video(path, model, PREPROCESS, NAMES, detector=detector, output=out)
    assert cv2.VideoCapture(str(out)).get(cv2.CAP_PROP_FPS) == pytest.approx(rate, abs=0.05)


def test_smoothing_changes_slowly(video, model, detector):  # noqa: F811
    type(detector).boxes = BOXES[:1]

    def steps(smoothing):
        table = predict_video(
            video, model, PREPROCESS, NAMES, detector=detector, smoothing=smoothing
        )
        return np.abs(np.diff(table[list(NAMES)].to_numpy(), axis=0)).max()

    assert steps(0.8) < 0.5 * steps(0.0)


def test_every_and_max_frames_and_no_face(video, model, detector):  # noqa: F811
    type(detector).boxes = ()
    table = predict_video(video, model, PREPROCESS, NAMES, detector=detector, every=3, max_frames=3)
    assert table.frame.tolist() == [0, 3, 6]
    assert table.label.isna().all()
    assert table.uncertain.all()


def test_every_row_has_the_notes_of_detector_and_model(video, model, detector):  # noqa: F811
    said = type(detector)("cascade", None, "found with a cascade")
    classifier = replace(load_classifier(model, PREPROCESS, NAMES), note="drawn faces")
    type(detector).boxes = BOXES
    table = predict_video(video, classifier, detector=said, max_frames=1)
    assert table.note.tolist() == ["found with a cascade; drawn faces"] * 2
    type(detector).boxes = ()
    table = predict_video(video, classifier, detector=said, max_frames=1)
    assert table.note.tolist() == ["found with a cascade; no face found"]


def test_people_are_followed_over_long_gaps(video, model, detector):  # noqa: F811
    type(detector).boxes = BOXES
    table = predict_video(video, model, PREPROCESS, NAMES, detector=detector, every=11)
    assert table.person.tolist() == [1, 2] * 2


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        ("gone.avi", {}, "no video at"),
        (0, {}, "max_frames"),
        ("VIDEO", {"smoothing": 1.0}, "smoothing is 1"),
        ("VIDEO", {"every": 0}, "count frames"),
        ("VIDEO", {"output": "out.gif"}, r"\.mp4"),
        ("BROKEN", {}, "cannot read a video"),
        ("VIDEO", {"output": "VIDEO"}, "the video itself"),
        ("VIDEO", {"output": ""}, "no video file name"),
        ("VIDEO", {"output": "FOLDER"}, "cannot be written"),
        ("x" * 5000, {}, "no video at"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    video,
    model,
    detector,  # noqa: F811
    tmp_path,
    source,
    options,
    match,
):
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video")
    (tmp_path / "folder.avi").mkdir()
    source = {"VIDEO": video, "BROKEN": broken}.get(source, source)
    before = video.read_bytes()
    paths = {"VIDEO": video, "FOLDER": tmp_path / "folder.avi"}
    options = {name: paths.get(value, value) for name, value in options.items()}
    with pytest.raises(PredictionError, match=match):
        predict_video(source, model, PREPROCESS, NAMES, detector=detector, **options)
    assert video.read_bytes() == before


def test_another_name_of_the_video_is_no_place_for_the_copy(video, model, detector):  # noqa: F811
    other = video.with_name("same.avi")
    try:
        os.link(video, other)
    except OSError:
        pytest.skip("this disk has no hard links")
    before = video.read_bytes()
    with pytest.raises(PredictionError, match="the video itself"):
        predict_video(video, model, PREPROCESS, NAMES, detector=detector, output=other)
    assert video.read_bytes() == before
