"""The drawn faces: what they show, and the folders that they are written to."""

import hashlib
import json
import multiprocessing
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fer_helpers import demo_faces
from fer_helpers.demo_faces import ACTION_UNITS, EXPRESSIONS, draw_face, write_demo_faces
from fer_helpers.layouts import FER_FOLDERS

PER_CLASS = 6


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_demo_faces(tmp_path_factory.mktemp("drawn") / "faces", seed=3, per_class=PER_CLASS)


def pictures(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def readable(path):
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def groups_of_twins(folder):
    """Sets of (split, class) lists of files that hold the same bytes."""
    groups = {}
    for path in pictures(folder):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        groups.setdefault(digest, []).append(
            (path.name.split("_")[0], path.parent.parent.name, path.parent.name)
        )
    return [members for members in groups.values() if len(members) > 1]


def test_table_follows_emfacs():
    assert list(EXPRESSIONS) == sorted(EXPRESSIONS)
    units = {name: sorted(table) for name, table in ACTION_UNITS.items()}
    assert units == {
        "Anger": [4, 5, 7, 23],
        "Contempt": [12, 14],
        "Disgust": [9, 10, 15, 16],
        "Fear": [1, 2, 4, 5, 20, 26],
        "Happy": [6, 12],
        "Neutral": [],
        "Sad": [1, 4, 15],
        "Surprise": [1, 2, 5, 26],
    }


def test_same_seed_same_pixels_other_seed_other_person():
    first = np.asarray(draw_face("Happy", 5))
    assert np.array_equal(first, np.asarray(draw_face("Happy", (5,))))
    assert not np.array_equal(first, np.asarray(draw_face("Happy", 6)))


@pytest.mark.parametrize("size", [32, 48, 75, 150])
def test_size_and_mode(size):
    color, grey = draw_face("Sad", 1, size=size), draw_face("Sad", 1, size=size, color=False)
    assert (color.mode, color.size) == ("RGB", (size, size))
    assert (grey.mode, grey.size) == ("L", (size, size))
    assert np.asarray(grey).std() > 10


def test_unknown_expression_is_one_clear_error():
    with pytest.raises(
        ValueError, match=r"^There is no expression 'smug' .* Anger, Contempt, .*Surprise\.$"
    ):
        draw_face("smug", 0)


REGIONS = {"brows": (14, 32), "eyes": (30, 44), "mouth": (46, 72)}
MOVES = {
    "Anger": "brows",
    "Contempt": "mouth",
    "Disgust": "mouth",
    "Fear": "mouth",
    "Happy": "mouth",
    "Sad": "brows",
    "Surprise": "mouth",
}


@pytest.mark.parametrize("expression", MOVES)
def test_action_units_move_their_region(expression):
    top, bottom = REGIONS[MOVES[expression]]
    changes = []
    for seed in range(6):
        pair = [
            np.asarray(draw_face(name, seed, intensity=1.0), float)
            for name in (expression, "Neutral")
        ]
        change = np.abs(pair[0] - pair[1]).mean(axis=(1, 2))
        changes.append((change[top:bottom].mean(), change[:8].mean()))
    moved, still = np.mean(changes, axis=0)
    assert moved > 0.5
    assert moved > 3 * still


def test_full_strength_expressions_differ_pairwise():
    faces = [np.asarray(draw_face(name, 11, intensity=1.0), float) for name in EXPRESSIONS]
    for i, one in enumerate(faces):
        for other in faces[:i]:
            assert np.abs(one - other).mean() > 0.3


def test_layout_names_sizes_modes(written):
    assert sorted(path.name for path in (written / "affectnet").iterdir()) == ["train", "val"]
    assert sorted(path.name for path in (written / "fer2013").iterdir()) == ["test", "train"]
    for split in (written / "affectnet").iterdir():
        assert sorted(path.name for path in split.iterdir()) == list(EXPRESSIONS)
    for split in (written / "fer2013").iterdir():
        assert sorted(path.name for path in split.iterdir()) == list(FER_FOLDERS)
    for path in pictures(written / "affectnet"):
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (75, 75))
    for path in pictures(written / "fer2013"):
        prefix = "Training" if path.parent.parent.name == "train" else "(PublicTest|PrivateTest)"
        assert re.fullmatch(prefix + r"_\d+\.jpg", path.name)
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "L", (48, 48))


def test_default_counts():
    counts = Counter(split for split, _, _ in demo_faces._plan(125))
    assert counts["train"] == 1000
    assert counts["val"] == 240
    for split, about in (("Training", 900), ("PublicTest", 210), ("PrivateTest", 210)):
        assert abs(counts[split] - about) <= 5
    by_class = Counter(name for split, name, _ in demo_faces._plan(125) if split == "Training")
    assert min(by_class, key=by_class.get) == "Disgust"
    assert max(by_class, key=by_class.get) == "Happy"
    assert by_class["Disgust"] < by_class["Happy"] / 3


def test_written_counts_follow_the_plan(written):
    plan = demo_faces._plan(PER_CLASS)
    assert len(pictures(written)) == len(plan) + 1
    assert len(pictures(written / "affectnet" / "train")) == 8 * PER_CLASS


def test_exactly_one_broken_file_and_it_is_in_train(written):
    broken = [path for path in pictures(written) if not readable(path)]
    assert [path.parent.parent.name for path in broken] == ["train"]
    assert broken[0].name.startswith("Training_")


def test_twins_within_train_across_splits_and_with_other_labels(written):
    groups = groups_of_twins(written / "fer2013")
    assert len(groups) == 8
    kinds = Counter()
    for group in groups:
        splits = "-".join(sorted({split for split, _, _ in group}))
        conflict = len({name for _, _, name in group}) > 1
        kinds[splits, conflict] += 1
    assert kinds == {
        ("Training", False): 2,
        ("Training", True): 1,
        ("PublicTest-Training", False): 2,
        ("PrivateTest-Training", False): 2,
        ("PrivateTest-Training", True): 1,
    }
    assert len(groups_of_twins(written / "affectnet")) == 3


def test_without_flaws(tmp_path):
    folder = write_demo_faces(tmp_path / "clean", per_class=4, flaws=False)
    assert groups_of_twins(folder) == []
    assert all(readable(path) for path in pictures(folder))


def test_second_call_returns_at_once(written, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in pictures(written)}
    monkeypatch.setattr(demo_faces, "_write", lambda *_: pytest.fail("drawn again"))
    assert write_demo_faces(written, seed=3, per_class=PER_CLASS) == written
    assert before == {path: path.stat().st_mtime_ns for path in pictures(written)}


def fake_write(folder, seed, per_class, flaws):
    for number in range(3):
        path = folder / "affectnet" / "train" / "Happy" / f"drawn_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([seed, number]))
    return 3


def test_damaged_or_outdated_folder_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_faces, "_write", fake_write)
    folder = write_demo_faces(tmp_path / "faces", seed=1)
    picture = folder / "affectnet" / "train" / "Happy" / "drawn_0.png"
    picture.unlink()
    write_demo_faces(folder, seed=1)
    assert picture.read_bytes() == bytes([1, 0])
    write_demo_faces(folder, seed=2)
    assert picture.read_bytes() == bytes([2, 0])
    assert json.loads((folder / "drawn_faces.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(folder, *_):
        fake_write(folder, 1, 4, True)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_faces, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo_faces(tmp_path / "faces")
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_put_among_drawn_faces_is_never_thrown_away(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_faces, "_write", fake_write)
    folder = write_demo_faces(tmp_path / "faces", seed=1)
    (folder / ".DS_Store").write_bytes(b"")
    write_demo_faces(folder, seed=2)
    (folder / "affectnet" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"such as affectnet/notes.txt: name a new"):
        write_demo_faces(folder, seed=3)
    assert (folder / "affectnet" / "notes.txt").read_text() == "mine"


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"not drawn faces, such as holiday\.jpg: name a"):
        write_demo_faces(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"
    with pytest.raises(FileExistsError, match=r"is a file: name a new or empty folder"):
        write_demo_faces(tmp_path / "holiday.jpg")
    assert (tmp_path / "holiday.jpg").read_bytes() == b"mine"
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".env").write_text("mine")
    with pytest.raises(FileExistsError, match=r"such as \.env"):
        write_demo_faces(tmp_path / "hidden")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"cache cannot be written \(.*set CACHE_DIR to a folder"):
        write_demo_faces(tmp_path / "cache" / "drawn-faces")


def test_too_few_faces_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^per_class is 3: ask write_demo_faces for at least 4"):
        write_demo_faces(tmp_path / "faces", per_class=3)


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(
            target=write_demo_faces, args=(tmp_path / "faces",), kwargs={"per_class": 4}
        )
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]
    assert len(pictures(tmp_path)) == len(demo_faces._plan(4)) + 1
