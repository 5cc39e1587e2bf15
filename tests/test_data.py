"""Reading datasets: which picture goes where, and what bad input says."""

import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_helpers import layouts, reading
from fer_helpers.any_layout import load_faces
from fer_helpers.data import (
    FER_CLASSES,
    DataError,
    FaceSet,
    load_affectnet,
    load_fer2013,
)
from fer_helpers.data_check import check_data
from fer_helpers.layouts import canonical_emotion
from fer_helpers.splits import SelectionSet, TrainSet, limit_faces, slice_positions
from tests.faces_on_disk import picture, save, shared, write_affectnet, write_fer
from tests.tiny import faces


def fer(root, **keywords):
    keywords = {"cache_dir": root / "cache", "selection_size": 14, "progress": False} | keywords
    return load_fer2013(root / "train", root / "test", **keywords)


def affectnet(root, **keywords):
    keywords = {"cache_dir": root / "cache", "selection_size": 10, "progress": False} | keywords
    return load_affectnet(root, **keywords)


# ---------------------------------------------------------------- names


def test_spellings_mean_the_same_class():
    for written, meant in {
        "angry": "Anger",
        "ANGRY": "Anger",
        "happiness": "Happy",
        "sadness": "Sad",
        "surprised": "Surprise",
        "fearful": "Fear",
        "disgusted": "Disgust",
        "contemptuous": "Contempt",
        "neutral": "Neutral",
        "0_angry": "Anger",
        "bored": "bored",
    }.items():
        assert canonical_emotion(written) == meant


# ---------------------------------------------------------------- reading


def test_pixels_names_and_labels_are_those_of_the_files(tmp_path):
    splits = fer(write_fer(tmp_path))
    train = splits.train
    assert isinstance(train, TrainSet) and train.pixels.dtype == np.uint8
    assert train.images().shape == (len(train), 12, 12, 1)
    assert train.class_names == FER_CLASSES
    for position in (0, 5, len(train) - 1):
        name = train.files[position]
        expected = np.asarray(Image.open(tmp_path / name))
        np.testing.assert_array_equal(train.images([position])[0, :, :, 0], expected)
        assert canonical_emotion(name.split("/")[1]) == train.class_names[train.labels[position]]
    assert train.dataset == "FER2013" and train.origin == "real"
    assert len(train.content_hash) == 64


def test_colors_stay_unless_grey_is_asked_for(tmp_path):
    write_affectnet(tmp_path)
    color, grey = affectnet(tmp_path).train, affectnet(tmp_path, grey=True).train
    assert color.images([0]).shape == (1, 10, 10, 3) and grey.images([0]).shape == (1, 10, 10, 1)
    expected = np.asarray(Image.open(tmp_path / color.files[0]).convert("L"))
    np.testing.assert_array_equal(grey.images([0])[0, :, :, 0], expected)


def test_take_shares_the_pixels(tmp_path):
    train = fer(write_fer(tmp_path)).train
    part = train.take(train.labels == 3)
    assert part.pixels is train.pixels and (part.labels == 3).all()
    assert part.counts()[3] == len(part) == train.counts()[3]
    assert all("/happy/" in name for name in part.files)


def test_a_face_set_can_be_made_by_hand():
    pixels = np.stack([picture(0), picture(1), picture(0)])[..., None]
    faces = FaceSet(
        pixels, np.arange(3), np.array([0, 1, 0]), ("a", "b"), np.array(["x", "y", "z"]),
        "train", "made up", "drawn", "",
    )  # fmt: skip
    assert faces.pixel_hashes[0] == faces.pixel_hashes[2] != faces.pixel_hashes[1]


# ---------------------------------------------------------------- splits


def test_both_halves_choose_on_public_and_score_private(tmp_path):
    splits = fer(write_fer(tmp_path))
    assert [t.split for t in splits.tests] == ["PrivateTest", "PublicTest", "Public + Private"]
    assert [t.stamp for t in splits.tests] == ["", *["contains the selection split"] * 2]
    assert [len(t) for t in splits.tests] == [14, 14, 28]
    assert isinstance(splits.selection, SelectionSet) and splits.selection.split == "PublicTest"
    assert all("PublicTest_" in name for name in splits.selection.files)
    assert all("PrivateTest_" in name for name in splits.tests[0].files)
    assert len(splits.train) == 70
    assert "PrivateTest" in splits.sentence and "PublicTest" in splits.sentence


@pytest.mark.parametrize("half", ["public", "private"])
def test_one_half_is_the_test_set_and_choices_come_from_train(tmp_path, half):
    splits = fer(write_fer(tmp_path, **{half: 0}))
    name = "PrivateTest" if half == "public" else "PublicTest"
    assert [(t.split, t.stamp) for t in splits.tests] == [(name, "")]
    assert splits.selection.split == "selection" and len(splits.selection) == 14
    assert not set(splits.selection.files) & set(splits.train.files)
    assert len(splits.selection) + len(splits.train) == 70


def test_names_without_prefix_lose_the_official_split(tmp_path):
    write_fer(tmp_path, private=0)
    for path in (tmp_path / "test").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("PublicTest_", "im")))
    splits = fer(tmp_path)
    assert splits.tests[0].split == "test"
    assert any("official split is lost" in note for note in splits.notes)


def test_training_images_in_the_test_folder_are_refused(tmp_path):
    write_fer(tmp_path)
    save(tmp_path / "test/sad/Training_5.png", picture(5))
    with pytest.raises(DataError, match=r"test/sad/Training_5\.png"):
        fer(tmp_path)


def test_some_names_without_prefix_are_refused(tmp_path):
    write_fer(tmp_path)
    save(tmp_path / "test/sad/me.png", picture(5))
    with pytest.raises(DataError, match="1 images have no official prefix"):
        fer(tmp_path)


def test_affectnet_chooses_on_val_only_if_there_is_a_test(tmp_path):
    splits = affectnet(write_affectnet(tmp_path / "a", ("train", "val", "test")))
    assert splits.selection.split == "val" and [t.split for t in splits.tests] == ["test"]
    assert len(splits.train) == 64
    splits = affectnet(write_affectnet(tmp_path / "b"))
    assert splits.selection.split == "selection" and [t.split for t in splits.tests] == ["val"]
    assert len(splits.train) == 54


def test_the_content_hash_covers_what_is_chosen_on(tmp_path):
    root = write_affectnet(tmp_path / "a", ("train", "val", "test"))
    before = affectnet(root)
    save(next((root / "val").rglob("*.png")), picture(999)[:10, :10])
    after = affectnet(root)
    assert (before.train.pixel_hashes == after.train.pixel_hashes).all()
    assert before.train.content_hash != after.train.content_hash == after.selection.content_hash


def test_no_selection_size_trains_on_everything(tmp_path):
    splits = fer(write_fer(tmp_path / "one", public=0), selection_size=0)
    assert splits.selection is None and len(splits.train) == 70
    splits = fer(write_fer(tmp_path / "both"), selection_size=0)
    assert splits.selection.split == "PublicTest"


def test_the_slice_is_stratified_and_the_same_everywhere(tmp_path):
    first = fer(write_fer(tmp_path / "a", public=0))
    second = fer(write_fer(tmp_path / "b c é", public=0), cache_dir=tmp_path / "other")
    assert first.selection.counts().tolist() == [2] * 7
    assert first.selection.files.tolist() == second.selection.files.tolist()
    assert first.train.content_hash == second.train.content_hash


def test_twins_stay_on_one_side_of_the_slice(tmp_path):
    write_fer(tmp_path, public=0)
    for i in range(0, 10, 2):  # every other angry image gets a twin
        twin = tmp_path / f"train/angry/Training_{i}.png"
        shutil.copy(twin, twin.with_name(f"Training_9{i}.png"))
    for size in (7, 10, 15):
        splits = fer(tmp_path, selection_size=size)
        assert not set(splits.train.pixel_hashes) & set(splits.selection.pixel_hashes)


def test_a_slice_is_never_more_than_a_fifth_of_train(tmp_path):
    splits = fer(write_fer(tmp_path, public=0), selection_size=3000)
    assert len(splits.selection) == 14
    assert any("a fifth of train" in note for note in splits.notes)


def test_leak_free_marks_pixel_twins_of_train(tmp_path):
    write_fer(tmp_path)
    source = Image.open(tmp_path / "train/angry/Training_3.png")
    source.save(tmp_path / "test/sad/PrivateTest_7777.bmp")  # other bytes, same pixels
    private, _, pool = fer(tmp_path).tests
    leaks = ["test/sad/PrivateTest_7777.bmp"]
    assert private.files[~private.leak_free].tolist() == leaks
    assert pool.files[~pool.leak_free].tolist() == leaks


def test_max_images_is_stratified_per_split(tmp_path):
    write_fer(tmp_path)
    splits = fer(tmp_path, max_images=21)
    assert splits.train.counts().tolist() == [3] * 7
    assert [len(t) for t in splits.tests] == [14, 14, 28]
    assert "PrivateTest (14 images)" in splits.sentence
    fewer = fer(tmp_path, max_images=7)
    assert fewer.train.counts().tolist() == [1] * 7
    assert set(fewer.train.files) < set(splits.train.files)
    assert len(fewer.tests[2]) == 14
    assert "PrivateTest (7 images)" in fewer.scored and "PublicTest (7 images)" in fewer.sentence
    half = fer(write_fer(tmp_path / "half", public=0), max_images=7)
    assert "PrivateTest (7 images)" in half.scored and "of 7 training images" in half.sentence
    other = affectnet(write_affectnet(tmp_path / "other"), max_images=9)
    assert "val (9 images)" in other.scored and len(other.tests[0]) == 9
    shutil.rmtree(tmp_path / "other/val")
    whole = load_faces(tmp_path / "other", cache_dir=tmp_path / "cache", max_images=9)
    assert "test set (9 images)" in whole.scored and len(whole.tests[0]) == 9
    with pytest.raises(DataError, match="fewer than the 7 classes"):
        fer(tmp_path, max_images=3)


def test_every_class_keeps_a_face_and_the_rest_is_in_proportion():
    limited = limit_faces(faces(labels=[0] * 90 + [1] * 9 + [2]), 10)
    assert limited.counts().tolist() == [7, 2, 1]


def test_slices_for_different_purposes_are_cut_at_different_places():
    cut = {purpose: slice_positions(faces(), 6, purpose) for purpose in ("selection", "test")}
    assert len(cut["selection"]) == len(cut["test"]) == 6
    assert not np.array_equal(cut["selection"], cut["test"])


# ---------------------------------------------------------------- folders


def test_renamed_folders_are_mapped_and_noted(tmp_path):
    names = ["Angry", "disgusted", "Fearful", "happiness", "neutral", "SAD", "surprised"]
    splits = fer(write_fer(tmp_path, folders=names))
    assert splits.train.class_names == FER_CLASSES and splits.train.counts().tolist() == [10] * 7
    note = next(note for note in splits.notes if note.startswith("train: read"))
    assert "happiness as Happy" in note and "neutral" not in note


def test_usual_folder_names_need_no_note(tmp_path):
    assert not any("read the class folders" in note for note in fer(write_fer(tmp_path)).notes)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: shutil.rmtree(root / "train/sad"), r"train in .* lacks Sad"),
        (
            lambda root: save(root / "test/bored/a.png", picture(0)),
            r"unknown class folders \(bored",
        ),
        (lambda root: save(root / "test/contempt/a.png", picture(0)), r"unknown .*\(contempt"),
        (lambda root: save(root / "train/Sadness/a.png", picture(0)), "2 folders for Sad"),
        (lambda root: empty(root / "train/fear"), r"class folder .*fear is empty"),
        (lambda root: empty(root / "train"), r"FER_TRAIN_DIR: .* holds no class folders"),
    ],
    ids=["missing", "extra", "extra emotion", "twice", "empty class", "empty folder"],
)
def test_wrong_class_folders_are_errors(tmp_path, harm, words):
    harm(write_fer(tmp_path))
    with pytest.raises(DataError, match=words):
        fer(tmp_path)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".DS_Store").write_bytes(b"x")


def test_one_class_is_refused(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "happy" / "a.png", picture(0))
    with pytest.raises(DataError, match="lacks Anger, Contempt"):
        affectnet(tmp_path)
    for place in (tmp_path, tmp_path / "train"):
        with pytest.raises(DataError, match=r"train has only one class folder \(happy\)"):
            load_faces(place)


def test_a_missing_folder_names_the_parameter_and_the_nearest_there_is(tmp_path):
    (tmp_path / "faces" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=re.escape(f"is {tmp_path / 'faces' / 'train'}")) as error:
        load_fer2013(tmp_path / "faces" / "trian", tmp_path / "faces" / "test")
    assert "FER_TRAIN_DIR" in str(error.value)
    with pytest.raises(DataError, match="AFFECTNET_DIR is empty"):
        load_affectnet("")
    with pytest.raises(DataError, match="same folder"):
        write_fer(tmp_path)
        load_fer2013(tmp_path / "train", tmp_path / "train")


def test_a_zip_file_is_not_a_folder(tmp_path):
    (tmp_path / "fer2013.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="unzip it and give the folder"):
        load_affectnet(tmp_path / "fer2013.zip")
    (tmp_path / "face.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="jpg: give the folder"):
        load_affectnet(tmp_path / "face.jpg")


def test_a_folder_without_splits_says_what_it_holds(tmp_path):
    save(tmp_path / "pictures/a.png", picture(0))
    with pytest.raises(DataError, match="holds pictures"):
        affectnet(tmp_path)


@pytest.mark.parametrize(
    "mount",
    ["balanced-affectnet", "datasets/owner/balanced-affectnet", "balanced-affectnet/nested",
     "datasets/owner/balanced-affectnet/nested"],
)  # fmt: skip
def test_every_form_of_a_kaggle_mount_is_found(tmp_path, mount):
    inputs = tmp_path / "kaggle" / "input"
    write_affectnet(inputs / mount, per_class=5)
    splits = affectnet(inputs / "balanced-affectnet")
    assert len(splits.tests[0]) == 40


@pytest.mark.parametrize("mount", ["fer2013", "datasets/msambare/fer2013", "fer2013/archive"])
def test_fer_folders_are_found_in_every_mount(tmp_path, mount):
    inputs = tmp_path / "kaggle" / "input"
    write_fer(inputs / mount)
    splits = load_fer2013(
        inputs / "fer2013/train", inputs / "fer2013/test", cache_dir=tmp_path, progress=False
    )
    assert len(splits.train) == 70


def test_the_folder_above_train_and_test_is_not_taken_for_either(tmp_path):
    root = write_fer(tmp_path / "fer2013")
    for path in list(root.rglob("*.png")):  # without prefixes no name tells train from test
        path.rename(path.with_name(path.name.replace("_", "")))
    splits = load_fer2013(root, root, cache_dir=tmp_path, selection_size=14, progress=False)
    assert len(splits.train) + len(splits.selection) == 70 and len(splits.tests[0]) == 28
    assert all(name.startswith("train/") for name in splits.train.files)


def test_nothing_attached_lists_the_paths_tried(tmp_path):
    inputs = tmp_path / "kaggle" / "input"
    inputs.mkdir(parents=True)
    with pytest.raises(DataError, match="attach the dataset 'msambare/fer2013'") as error:
        load_fer2013(inputs / "fer2013/train", inputs / "fer2013/test")
    assert str(inputs / "fer2013" / "train") in str(error.value)


# ---------------------------------------------------------------- files


def test_a_half_unzipped_fer2013_is_noticed(tmp_path):
    splits = fer(write_fer(tmp_path))
    assert "Training has 70 images, the official split 28,709: is it complete?" in splits.notes
    assert "PublicTest has 14 images, the official split 3,589: is it complete?" in splits.notes


def spoil(root):
    (root / "train/sad/Training_0.png").write_bytes(b"")
    (root / "train/sad/notes.txt").write_text("no picture")
    whole = (root / "train/happy/Training_300.png").read_bytes()
    (root / "train/happy/Training_cut.png").write_bytes(whole[:60])


def test_bad_files_are_skipped_below_the_share_and_listed(tmp_path):
    write_fer(tmp_path)
    spoil(tmp_path)
    splits = fer(tmp_path, max_bad_share=0.05)
    assert len(splits.train) == 70
    bad = dict(splits.bad_files)
    assert bad["train/sad/Training_0.png"] == "empty file" and len(bad) == 3
    note = next(note for note in splits.notes if "skipped" in note)
    assert "3 of 73" in note and "notes.txt" in note and "Training_cut.png" in note
    findings = check_data(splits, near=None).findings.set_index("check")
    assert "`splits.bad_files` all" in findings.loc["unreadable files", "advice"]


def test_bad_files_above_the_share_are_an_error(tmp_path):
    write_fer(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=r"3 of 73 files .*empty file.*MAX_BAD_SHARE 1\.00%"):
        fer(tmp_path)


def test_nothing_readable_is_an_error_whatever_the_share(tmp_path):
    write_fer(tmp_path)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="none of the 70 files"):
        fer(tmp_path, max_bad_share=1)


def test_a_class_without_a_readable_file_is_an_error(tmp_path):
    write_fer(tmp_path)
    for path in (tmp_path / "train/sad").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no file of the class Sad"):
        fer(tmp_path, max_bad_share=1)


def test_hidden_files_are_ignored_and_counted(tmp_path):
    write_fer(tmp_path)
    (tmp_path / "train/.DS_Store").write_bytes(b"x")
    (tmp_path / "train/sad/Thumbs.db").write_bytes(b"x")
    (tmp_path / "train/sad/._Training_1.png").write_bytes(b"x")
    (tmp_path / "train/__MACOSX").mkdir()
    (tmp_path / "train/System Volume Information").mkdir()
    save(tmp_path / "train/sad/@eaDir/Training_1.png/SYNOPHOTO_THUMB_M.png", picture(1))
    (tmp_path / "train/labels.csv").write_text("x")
    splits = fer(tmp_path)
    assert len(splits.train) == 70
    assert "train: 6 hidden or system files ignored" in splits.notes
    assert "train: 1 files beside the class folders ignored" in splits.notes


@pytest.fixture
def denied(monkeypatch):
    """Names of folders that may not be listed."""
    names, scan = set(), os.scandir

    def deny(path):
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(layouts.os, "scandir", deny)
    return names


def test_a_folder_that_may_not_be_read_is_named(tmp_path, denied):
    save(write_fer(tmp_path) / "train/sad/inner/Training_1.png", picture(7))
    denied.add("inner")
    with pytest.raises(DataError, match=r"inner cannot be listed \(Permission denied\): make it"):
        fer(tmp_path)


def test_a_folder_beside_the_dataset_that_may_not_be_read_is_passed_over(tmp_path, denied):
    write_affectnet(tmp_path / "zaff")
    (tmp_path / "closed").mkdir()
    denied.add("closed")
    assert len(affectnet(tmp_path).train) == 54
    denied.add("train")
    with pytest.raises(DataError, match="cannot be listed"):
        affectnet(tmp_path / "zaff")
    denied.add("zaff")
    with pytest.raises(DataError, match=r"AFFECTNET_DIR: .*zaff cannot be listed \(Permission"):
        affectnet(tmp_path / "zaff")


def test_class_folders_at_the_root_of_a_disk_are_read(tmp_path, denied):
    for i in range(20):
        save(tmp_path / ("happy", "sad")[i % 2] / f"{i}.png", picture(i))
    (tmp_path / "lost+found").mkdir()
    denied.add("lost+found")
    keywords = {"cache_dir": tmp_path / ".cache", "progress": False}
    assert load_faces(tmp_path, **keywords).train.class_names == ("Happy", "Sad")
    denied.add("sad")
    with pytest.raises(DataError, match=r"sad cannot be listed \(Permission denied\): make it"):
        load_faces(tmp_path, **keywords)


def test_names_with_spaces_and_accents(tmp_path):
    write_fer(tmp_path)
    save(tmp_path / "train/sad/Training_ma racuj\u00e1.png", picture(7))
    save(tmp_path / "train/sad/Training_cafe\u0301.png", picture(8))
    files = fer(tmp_path).train.files
    assert "train/sad/Training_ma racuj\u00e1.png" in files
    assert "train/sad/Training_caf\u00e9.png" in files  # composed, as every system would sort it


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_names_that_are_no_text_can_be_written_down(tmp_path):
    write_fer(tmp_path)
    os.rename(
        tmp_path / "train/sad/Training_500.png",
        os.fsencode(tmp_path) + b"/train/sad/Training_caf\xe9.png",
    )
    train = fer(tmp_path).train
    (name,) = (name for name in train.files if "caf" in name)
    assert name.encode() == rb"train/sad/Training_caf\udce9.png"
    np.testing.assert_array_equal(
        train.images(train.files == name)[0, :, :, 0], picture(500)
    )  # and it was opened under its own name


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_link_loops_are_not_followed(tmp_path):
    write_fer(tmp_path)
    (tmp_path / "train/sad/loop").symlink_to(tmp_path / "train/sad", target_is_directory=True)
    (tmp_path / "train/happy/inner").mkdir()
    (tmp_path / "train/happy/inner/up").symlink_to(tmp_path / "train/happy")
    splits = fer(tmp_path)
    assert len(splits.train) == 70
    assert "train: 2 folder links that lead back not followed" in splits.notes
    (tmp_path / "train/sad/self").symlink_to("self")
    splits = fer(tmp_path, max_bad_share=0.1)
    assert len(splits.train) == 70
    assert [name for name, _ in splits.bad_files] == ["train/sad/self"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize(
    ("links", "loops"),
    [
        ({"train/Sad/up": ".."}, 1),
        ({"train/Sad/up": "../.."}, 1),
        ({"train/Sad/x": "../Happy", "train/Happy/y": "../Sad"}, 2),
        ({"train/again": "."}, 1),
    ],
)
def test_links_out_of_a_class_put_no_picture_under_another(tmp_path, links, loops):
    write_affectnet(tmp_path)
    for link, target in links.items():
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    for splits in (affectnet(tmp_path), load_faces(tmp_path, cache_dir=tmp_path / "cache")):
        assert (splits.train.counts() + splits.selection.counts()).tolist() == [8] * 8
        assert f"train: {loops} folder links that lead back not followed" in splits.notes


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_class_that_is_a_link_to_another_is_refused(tmp_path):
    write_affectnet(tmp_path)
    shutil.rmtree(tmp_path / "train/Sad")
    (tmp_path / "train/Sad").symlink_to("Happy", target_is_directory=True)
    with pytest.raises(DataError, match="is the folder of another class by a link"):
        affectnet(tmp_path)


def test_a_drawn_dataset_says_so(tmp_path):
    write_fer(tmp_path / "fer2013")
    (tmp_path / reading.DRAWN_MARKER).write_text("")
    splits = fer(tmp_path / "fer2013")
    assert splits.train.origin == splits.tests[0].origin == "drawn"


# ---------------------------------------------------------------- the real data


@pytest.fixture(scope="module")
def real_fer(tmp_path_factory):
    """The development half of FER2013, unpacked once."""
    archive = shared("fer2013-dev.zip")
    folder = tmp_path_factory.mktemp("fer2013")
    shutil.unpack_archive(archive, folder)
    return folder


@pytest.mark.slow
def test_the_real_fer2013_has_the_measured_numbers(real_fer):
    splits = fer(real_fer, selection_size=3000)
    test = splits.tests[0]
    assert test.split == "PublicTest" and len(test) == 3589
    assert test.counts().tolist() == [467, 56, 496, 895, 607, 653, 415]
    assert (~test.leak_free).sum() == 280
    together = splits.train.counts() + splits.selection.counts()
    assert together.tolist() == [3995, 436, 4097, 7215, 4965, 4830, 3171]
    assert len(splits.selection) == 3000
    assert not set(splits.train.pixel_hashes) & set(splits.selection.pixel_hashes)
    assert not splits.bad_files and not splits.notes
    assert splits.train.pixels.shape[1:] == (48, 48, 1)
