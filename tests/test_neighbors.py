"""Every layout people have, recognized and read by the meaning of its labels."""

import os
import re
import sys

import numpy as np
import pytest

from fer_helpers import fer_csv, layouts, neighbors
from fer_helpers.any_layout import load_faces
from fer_helpers.data import FER_CLASSES, DataError, load_affectnet
from tests.faces_on_disk import FER_FOLDERS, picture, save, write_affectnet, write_fer


def load(path, cache, **keywords):
    return load_faces(
        path, **{"cache_dir": cache, "selection_size": 7, "progress": False} | keywords
    )


def write_csv(path, rows=70, header="emotion,pixels,Usage", spoil=None):
    """Rows in the order of the real file; `spoil` maps a row to its text."""
    usages = ["Training"] * (rows - 28) + ["PublicTest"] * 14 + ["PrivateTest"] * 14
    lines = [header]
    for row, usage in enumerate(usages):
        pixels = " ".join(map(str, picture(row, (48, 48)).ravel()))
        cells = {"emotion": str(row % 7), "pixels": pixels, "Usage": usage}
        line = ",".join(cells[name.strip()] for name in header.split(","))
        lines.append((spoil or {}).get(row, line))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# ---------------------------------------------------------------- FER2013 as CSV


@pytest.mark.parametrize(
    ("name", "header"),
    [("fer2013.csv", "emotion,pixels,Usage"), ("icml_face_data.csv", "emotion, Usage, pixels")],
)
def test_csv_files_are_read_by_column_name(tmp_path, name, header):
    write_csv(tmp_path / "fer" / name, header=header)
    for path in (tmp_path / "fer", tmp_path / "fer" / name):
        splits = load(path, tmp_path / "cache")
        assert [len(t) for t in splits.tests] == [14, 14, 28]
        assert splits.selection.split == "PublicTest" and len(splits.train) == 42
    train = splits.train
    np.testing.assert_array_equal(train.images([5])[0, :, :, 0], picture(5, (48, 48)))
    assert train.class_names == FER_CLASSES
    # Number 6 is Neutral, not the last name of the alphabet.
    assert (
        train.class_names[train.labels[6]] == "Neutral" and train.files[6] == "Training/row_00006"
    )
    assert splits.notes[0].endswith("is read as a CSV file like FER2013's")
    assert splits.sentence.startswith("FER2013: ")


@pytest.mark.parametrize(
    ("name", "dataset"), [("mine", "mine"), ("fer2013_new", "FER2013"), ("FER-2013", "FER2013")]
)
def test_another_csv_in_that_form_has_its_own_name(tmp_path, name, dataset):
    splits = load(write_csv(tmp_path / f"{name}.csv"), tmp_path / "cache")
    assert {faces.dataset for faces in (splits.train, *splits.tests)} == {dataset}
    assert splits.sentence.startswith(f"{dataset}: ")
    assert any("is it complete?" in note for note in splits.notes) == (dataset == "FER2013")


def test_a_csv_with_an_eighth_emotion_is_not_fer2013(tmp_path):
    path = write_csv(tmp_path / "ckextended.csv", spoil={3: "7,1 2 3,Training"})
    with pytest.raises(DataError, match=r"row 3 has the emotion 7, .*another dataset: put"):
        load(path, tmp_path / "cache", max_bad_share=0.5)
    named = path.rename(tmp_path / "fer2013.csv")  # there it is one bad row
    splits = load(named, tmp_path / "cache", max_bad_share=0.5)
    assert len(splits.bad_files) == 1


def test_a_csv_in_another_order_keeps_its_leaks(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    head, *lines = path.read_text().splitlines()
    lines[42:56] = [line.replace("Training", "PublicTest") for line in lines[:14]]  # 14 leaks
    path.write_text("\n".join([head, *lines[56:], *lines[:56]]) + "\n")
    splits = load(path, tmp_path / "cache")
    pooled = splits.tests[2]
    assert pooled.split == "Public + Private" and pooled.leak_free.sum() == 14
    for name, free in zip(pooled.files, pooled.leak_free, strict=True):
        assert name.startswith("PrivateTest") == free


def test_a_csv_with_old_line_ends_is_read_like_any(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    whole = load(path, tmp_path / "cache").train
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    np.testing.assert_array_equal(load(path, tmp_path / "cache").train.images(), whole.images())


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_class_folders_may_be_links(tmp_path):
    write_fer(tmp_path / "real")
    for split in ("train", "test"):
        (tmp_path / "links" / split).mkdir(parents=True)
        for folder in (tmp_path / "real" / split).iterdir():
            (tmp_path / "links" / split / folder.name).symlink_to(folder)
    (tmp_path / "real/train/sad/loop").symlink_to(tmp_path / "links/train/sad")
    splits = load(tmp_path / "links", tmp_path / "cache")
    assert splits.train.dataset == "FER2013" and splits.tests[0].split == "PrivateTest"


def test_the_second_reading_of_a_csv_parses_nothing(tmp_path, monkeypatch):
    path = write_csv(tmp_path / "fer2013.csv")
    first = load(path, tmp_path / "cache")
    monkeypatch.setattr(fer_csv, "read_rows", None)
    second = load(path, tmp_path / "cache")
    assert first.train.content_hash == second.train.content_hash
    np.testing.assert_array_equal(first.train.images(), second.train.images())


def test_a_csv_is_read_without_a_cache_too(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    (tmp_path / "cache").write_text("a file, not a folder")
    splits = load(path, tmp_path / "cache")
    np.testing.assert_array_equal(splits.train.images([5])[0, :, :, 0], picture(5, (48, 48)))
    assert any("cannot be written" in note for note in splits.notes)


def test_bad_rows_are_listed(tmp_path):
    spoil = {
        3: "x,1 2 3,Training",
        4: "1,1 2 300,Training",
        5: "1,1 2 3,Training",
        6: f"1,{' '.join(['7'] * 2304)},Test",
        7: "1",
    }
    path = write_csv(tmp_path / "fer2013.csv", spoil=spoil)
    splits = load(path, tmp_path / "cache", max_bad_share=0.1)
    reasons = dict(splits.bad_files)
    assert len(splits.train) == 37 and len(reasons) == 5
    assert "emotion is 'x'" in reasons["fer2013.csv row 3"]
    assert "0..255" in reasons["fer2013.csv row 4"]
    assert "3 pixels, not 2,304" in reasons["fer2013.csv row 5"]
    assert "Usage is 'Test'" in reasons["fer2013.csv row 6"]
    assert "1 of 3 columns" in reasons["fer2013.csv row 7"]
    with pytest.raises(DataError, match="5 of 70 files"):
        load(path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("emotion,pixels\n1,2\n", "no Usage column"),
        ("a,b\n1,2\n", "has the columns a, b, not emotion"),
        ("", r"\(none\)"),
        ("emotion,pixels,Usage\n", "no rows"),
    ],
)
def test_other_csv_files_are_refused(tmp_path, text, words):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        load(tmp_path / "train.csv", tmp_path / "cache")


@pytest.mark.parametrize("spoil", [lambda t: b'"' + t * 3, lambda t: t.decode().encode("utf-16")])
def test_a_file_that_is_no_csv_is_refused(tmp_path, spoil):
    path = write_csv(tmp_path / "fer2013.csv")
    head, rows = path.read_bytes().split(b"\n", 1)
    path.write_bytes(head + b"\n" + spoil(rows))
    with pytest.raises(DataError, match="is no readable CSV file"):
        load(path, tmp_path / "cache")


def test_empty_lines_in_a_csv_are_no_rows(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv")
    path.write_text(path.read_text().replace("\n", "\n\n"))
    splits = load(path, tmp_path / "cache", max_bad_share=0.0)
    assert len(splits.train) == 42 and splits.train.files[-1] == "Training/row_00041"


def test_a_csv_without_test_rows_is_refused(tmp_path):
    path = tmp_path / "fer2013.csv"
    row = f"0,{' '.join(['7'] * 2304)},Training"
    path.write_text(f"emotion,pixels,Usage\n{row}\n{row}\n")
    with pytest.raises(DataError, match="rows for Training only"):
        load(path, tmp_path / "cache")


@pytest.mark.parametrize("rows, usage", [(range(42), "Training"), (range(42, 70), "PublicTest or")])
def test_a_csv_without_a_class_is_refused(tmp_path, rows, usage):
    spoil = {row: "1" for row in rows if row % 7 == 4}  # Sad
    path = write_csv(tmp_path / "mine.csv", spoil=spoil)
    with pytest.raises(DataError, match=rf"no row of {usage}.* with Sad can be read"):
        load(path, tmp_path / "cache", max_bad_share=0.5)


# ---------------------------------------------------------------- the two main ones


def test_the_main_layouts_are_recognized(tmp_path):
    write_fer(tmp_path / "fer")
    splits = load(tmp_path / "fer", tmp_path / "cache")
    assert splits.notes[0] == "fer is read as FER2013 as Kaggle folders"
    assert splits.tests[0].split == "PrivateTest" and splits.train.pixels.shape[-1] == 1
    root = write_affectnet(tmp_path / "Balanced-AffectNet/archive (3)")
    splits = load(root.parent, tmp_path / "cache")
    alone = load_affectnet(root, cache_dir=tmp_path / "cache", selection_size=7, progress=False)
    assert splits.sentence == alone.sentence and len(splits.train.class_names) == 8
    for a, b in ((splits.train, alone.train), (splits.tests[0], alone.tests[0])):
        assert a.dataset == b.dataset == "AffectNet" and a.content_hash == b.content_hash
        assert a.files.tolist() == b.files.tolist() and np.array_equal(a.images(), b.images())


def test_fer2013_in_three_folders_is_read_whole(tmp_path):
    root = write_fer(tmp_path / "three")
    for folder in list((root / "test").iterdir()):
        for file in folder.glob("PublicTest_*"):
            (root / "val" / folder.name).mkdir(parents=True, exist_ok=True)
            file.rename(root / "val" / folder.name / file.name)
    splits = load(root, tmp_path / "cache")
    assert splits.notes[0] == "three is read as one folder per class"
    assert splits.selection.split == "val" and len(splits.selection) == 14
    assert splits.tests[0].split == "test" and len(splits.tests[0]) == 14
    (root / "test").rename(tmp_path / "away")
    assert load(root, tmp_path / "cache").tests[0].split == "val"


def test_names_of_fer2013_with_an_eighth_class_are_read_as_folders(tmp_path):
    write_fer(tmp_path / "ferplus", folders=(*FER_FOLDERS, "contempt"))
    splits = load(tmp_path / "ferplus", tmp_path / "cache")
    assert splits.train.dataset == "ferplus" and "Contempt" in splits.train.class_names


def test_eight_emotions_are_named_by_the_folder_that_was_given(tmp_path):
    root = tmp_path / "affectnet-work" / "data" / "ferplus"  # what lies far above names nothing
    write_affectnet(root / "archive (3)")
    assert load(root, tmp_path / "cache").train.dataset == "ferplus"


# ---------------------------------------------------------------- RAF-DB

RAF = ("Surprise", "Fear", "Disgust", "Happy", "Sad", "Anger", "Neutral")


def write_raf(root, kaggle=True):
    lists = {"train": [], "test": []}
    for split, count in (("train", 35), ("test", 14)):
        for i in range(1, count + 1):
            number = i % 7 + 1
            folder = root / split / str(number) if kaggle else root / "Image" / "aligned"
            pixels = picture(i + 100 * (split == "test"), grey=False)
            save(folder / f"{split}_{i:05d}_aligned.png", pixels)
            if not kaggle:  # as the authors give it
                save(root / "Image" / "original" / f"{split}_{i:05d}.png", pixels)
                for kind, end in (("auto", "auto_attri"), ("boundingbox", "boundingbox"),
                                  ("manual", "manu_attri")):  # fmt: skip
                    text = root / "Annotation" / kind / f"{split}_{i:05d}_{end}.txt"
                    text.parent.mkdir(parents=True, exist_ok=True)
                    text.write_text("1 2")
            ending = "_aligned.png" if kaggle else ".png"
            lists[split].append((f"{split}_{i:05d}{ending}", number))
    if kaggle:
        for split, rows in lists.items():
            text = "image,label\n" + "\n".join(f"{name},{number}" for name, number in rows)
            (root / f"{split}_labels.csv").write_text(text)
    else:
        (root / "EmoLabel").mkdir()
        text = "\n".join(f"{name} {number}" for rows in lists.values() for name, number in rows)
        (root / "EmoLabel/list_patition_label.txt").write_text(text)
    return root


@pytest.mark.parametrize("kaggle", [True, False])
def test_raf_db_by_its_lists(tmp_path, kaggle):
    write_raf(tmp_path / "raf" / "DATASET", kaggle)
    splits = load(tmp_path / "raf", tmp_path / "cache")
    assert "RAF-DB" in splits.notes[0] and splits.train.dataset == "RAF-DB"
    assert [t.split for t in splits.tests] == ["test"] and len(splits.tests[0]) == 14
    assert len(splits.train) + len(splits.selection) == 35
    for faces in (splits.train, splits.tests[0]):
        for file, label in zip(faces.files, faces.labels, strict=True):
            number = int(file.split("_")[1]) % 7 + 1
            assert faces.class_names[label] == RAF[number - 1]


def test_raf_db_folders_without_lists_are_known_by_their_names(tmp_path):
    root = write_raf(tmp_path / "raf")
    for table in root.glob("*.csv"):
        table.unlink()
    splits = load(root, tmp_path / "cache")
    assert splits.train.dataset == "RAF-DB" and set(splits.train.class_names) == set(RAF)
    assert any("1 as Surprise" in note for note in splits.notes)


@pytest.mark.parametrize("labels", [tuple("0123456"), tuple("12345678"), FER_FOLDERS])
@pytest.mark.parametrize("table", [True, False])
def test_names_like_raf_db_do_not_give_its_order(tmp_path, labels, table):
    root, rows = tmp_path / "mine", ["image,label"]
    for i in range(56):
        name, label = f"train_{i:05d}.png", labels[i % len(labels)]
        save(root / "train" / ("all" if table else label) / name, picture(i))
        rows.append(f"{name},{label}")
    if table:
        (root / "train_labels.csv").write_text("\n".join(rows))
    if labels == FER_FOLDERS:
        splits = load(root, tmp_path / "cache", selection_size=0)
        assert table or splits.train.dataset == "mine"
        for i, file in enumerate(splits.train.files):
            number = int(file[-9:-4])
            assert splits.train.class_names[splits.train.labels[i]] == FER_CLASSES[number % 7]
    else:
        with pytest.raises(DataError, match=r"which emotion is each\? "):
            load(root, tmp_path / "cache")


def test_raf_db_with_pictures_missing_is_refused(tmp_path):
    root = write_raf(tmp_path / "raf")
    (root / "train/2/train_00001_aligned.png").unlink()
    with pytest.raises(DataError, match="49 labels, 48 pictures"):
        load(root, tmp_path / "cache")


def test_a_raf_db_list_that_breaks_off_is_refused(tmp_path):
    root = write_raf(tmp_path / "raf", kaggle=False)
    table = root / "EmoLabel/list_patition_label.txt"
    table.write_text(table.read_text()[:-2])  # the last row lost its label
    with pytest.raises(DataError, match=r"48 labels, 48 pictures .* 1 pictures without"):
        load(root, tmp_path / "cache")


# ---------------------------------------------------------------- CK+


def write_ck(root, people=30):
    folders = ("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")
    for person in range(people):
        for sequence in range(2):
            name = folders[(person + sequence * 3) % 7]
            for frame in range(3):
                seed = person * 10 + sequence * 3 + frame
                file = f"S{person:03d}_{sequence:03d}_{frame:08d}.png"
                save(root / name / file, picture(seed))
    return root


def test_ck_plus_is_divided_by_subject(tmp_path):
    write_ck(tmp_path / "ckplus" / "CK+48")
    splits = load(tmp_path / "ckplus", tmp_path / "cache", selection_size=30)
    assert splits.train.dataset == "CK+48" and "by subject" in splits.sentence
    assert any("intervals are too narrow" in note for note in splits.notes)
    people = [
        {file.rsplit("/", 1)[-1][:4] for file in faces.files}
        for faces in (splits.train, splits.selection, splits.tests[0])
    ]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    assert all(len(who) >= 2 for who in people)
    assert sum(map(len, (splits.train, splits.selection, splits.tests[0]))) == 180
    assert "Neutral" not in splits.train.class_names and splits.train.pixels.shape[-1] == 1


# ---------------------------------------------------------------- tables and numbers


def write_table(root, numbers=False):
    rows = ["pth,label,relFCs"]
    for i in range(28):
        folder, label = FER_FOLDERS[i % 7], FER_FOLDERS[(i + (i == 0)) % 7]
        save(root / folder / f"image{i:07d}.png", picture(i, grey=False))
        rows.append(f"{folder}/image{i:07d}.png,{i % 7 if numbers else label},0.5")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_a_label_table_overrules_the_folders(tmp_path):
    splits = load(write_table(tmp_path / "table"), tmp_path / "cache", selection_size=0)
    everything = [*splits.train.files, *splits.tests[0].files]
    labels = [*splits.train.labels, *splits.tests[0].labels]
    where = everything.index("train/angry/image0000000.png")
    assert splits.train.class_names[labels[where]] == "Disgust"
    assert any("overrules the folder of 1" in note for note in splits.notes)
    assert not any("without a label" in note for note in splits.notes)  # that would be the table


def test_the_content_hash_covers_labels_that_the_folders_do_not_say(tmp_path):
    root = write_table(tmp_path / "table")
    before = load(root, tmp_path / "cache").train.content_hash
    table = (root / "labels.csv").read_text()
    other = {",happy,": ",sad,", ",sad,": ",happy,"}
    swapped = re.sub("|".join(other), lambda found: other[found[0]], table)
    (root / "labels.csv").write_text(swapped)
    assert load(root, tmp_path / "cache").train.content_hash != before
    root = write_numbered(tmp_path / "numbers", count=2)
    first, second = (load(root, tmp_path / "cache", order=o) for o in ("happy sad", "sad happy"))
    assert first.train.content_hash != second.train.content_hash


@pytest.mark.parametrize("place", ["", "train/"])
def test_a_label_table_of_pictures_without_folders(tmp_path, place):
    rows = ["file,label"]
    for i in range(70):
        save(tmp_path / "flat" / place / f"{i}.png", picture(i))
        rows.append(f"{place}{i}.png,{FER_FOLDERS[i % 7]}")
    save(tmp_path / "flat" / place / "more" / "70.png", picture(70))
    rows.append(f"{place}more/70.png,happy")
    (tmp_path / "flat" / "labels.csv").write_text("\n".join(rows))
    splits = load(tmp_path / "flat", tmp_path / "cache", selection_size=0)
    assert len(splits.train) + sum(map(len, splits.tests)) == 71


def test_a_label_table_beside_split_folders(tmp_path):
    root = tmp_path / "archive (3)"
    rows = ["pth,label"]
    for split in ("Train", "Test"):
        for i in range(28):
            emotion = FER_FOLDERS[i % 7]
            folder = emotion if split == "Train" else emotion.title()
            save(root / split / folder / f"{split}{i}.png", picture(i + 50 * (split == "Test")))
            rows.append(f"{emotion}/{split}{i}.png,{emotion}")
    (root / "labels.csv").write_text("\n".join(rows))
    splits = load(tmp_path, tmp_path / "cache")
    assert len(splits.tests[0]) == 28 and splits.train.class_names == FER_CLASSES


def test_a_table_that_does_not_fit_is_refused(tmp_path):
    root = write_table(tmp_path / "table")
    save(root / "angry/unlisted.png", picture(77, grey=False))
    with pytest.raises(DataError, match="1 pictures without one"):
        load(root, tmp_path / "cache")


@pytest.mark.parametrize("name", ["labels.csv", "label.csv", "Labels.CSV"])
def test_the_path_of_a_table_is_its_dataset(tmp_path, name):
    root = write_table(tmp_path / "mine")
    (root / "labels.csv").rename(root / name)
    for path in (root / name, root):
        splits = load(path, tmp_path / "cache")
        assert splits.notes[0] == "mine is read as pictures with a table of labels"


def test_a_table_of_other_paths_is_refused(tmp_path):
    root = write_table(tmp_path / "table")
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text("pth" + text.replace("/", "/elsewhere/")[3:])
    with pytest.raises(DataError, match=r"names none of the pictures in .*must be relative to it"):
        load(root, tmp_path / "cache")


@pytest.mark.parametrize("column", ["Split", "usage", "set", "subset"])
def test_a_table_that_divides_is_refused_and_not_divided_anew(tmp_path, column):
    root = write_table(tmp_path / "table")
    head, *rows = (root / "labels.csv").read_text().splitlines()
    rows = [f"{row},{'test' if i % 3 else 'train'}" for i, row in enumerate(rows)]
    (root / "labels.csv").write_text("\n".join([f"{head},{column}", *rows]))
    with pytest.raises(DataError, match=rf"column {column.lower()} \(test, train\)"):
        load(root, tmp_path / "cache")
    (root / "labels.csv").write_text(
        "\n".join([f"{head},{column}", *rows]).replace(",test", ",train")
    )
    assert len(load(root, tmp_path / "cache").train)


def test_numbers_in_a_table_are_asked_about(tmp_path):
    root = write_table(tmp_path / "table", numbers=True)
    with pytest.raises(DataError, match=r"which emotion is each\? .*write them into the table"):
        load(root, tmp_path / "cache")


def test_a_table_that_contradicts_itself_or_is_empty_is_refused(tmp_path):
    root = write_table(tmp_path / "table")
    table = root / "labels.csv"
    whole = table.read_text()
    table.write_text(whole + "\nangry/image0000000.png,bored,0.5")
    with pytest.raises(DataError, match=r"0000\.png as disgust and as bored: keep one of the rows"):
        load(root, tmp_path / "cache")
    table.write_text("")
    with pytest.raises(DataError, match=r"has the columns \(none\)"):
        load(root, tmp_path / "cache")


@pytest.mark.parametrize("spelled", ["{}.0", "-{}", "{}"])
def test_numbers_in_any_spelling_are_asked_about(tmp_path, spelled):
    root = tmp_path / "table"
    rows = ["path,label"]
    for i in range(20):
        save(root / "images" / f"{i}.png", picture(i))
        rows.append(f"images/{i}.png,{spelled.format(i % 2) if i > 1 else 'sad'}")
    (root / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"the numbers .*sad.*which emotion is each"):
        load(root, tmp_path / "cache")
    (root / "labels.csv").write_text("\n".join(rows).replace("sad", spelled.format(0)))
    splits = load(root, tmp_path / "cache", order="fear, happy")
    assert splits.train.class_names == ("Fear", "Happy")
    assert not any("overrules" in note for note in splits.notes)  # `images` says nothing


def write_numbered(root, count=7):
    for s, split in enumerate(("train", "test")):
        for number in range(count):
            for i in range(6):
                save(root / split / str(number) / f"{i}.png", picture(1000 * s + 10 * number + i))
    return root


def test_numbered_folders_are_refused_without_an_order(tmp_path):
    root = write_numbered(tmp_path / "numbers")
    with pytest.raises(DataError, match=r"numbers 0, 1, .*which emotion is each\? .*rename"):
        load(root, tmp_path / "cache")
    with pytest.raises(DataError, match="has 2 names"):
        load(root, tmp_path / "cache", order="happy, sad")
    with pytest.raises(DataError, match="twice"):
        load(root, tmp_path / "cache", order="happy happiness a b c d e")


def test_a_stray_folder_beside_numbers_does_not_make_them_names(tmp_path):
    root = write_numbered(tmp_path / "numbers")
    for split in ("train", "test"):
        save(root / split / "extra" / "0.png", picture(5))
    with pytest.raises(DataError, match=r"numbers extra, 0, 1, .*which emotion is each"):
        load(root, tmp_path / "cache")


def test_numbered_folders_with_an_order(tmp_path):
    root = write_numbered(tmp_path / "numbers")
    order = "neutral happy sad surprise fear disgust anger"
    splits = load(root, tmp_path / "cache", order=order)
    for file, label in zip(splits.train.files, splits.train.labels, strict=True):
        meant = ["Neutral", "Happy", "Sad", "Surprise", "Fear", "Disgust", "Anger"]
        assert splits.train.class_names[label] == meant[int(file.split("/")[1])]
    assert any("0 as Neutral" in note for note in splits.notes)


@pytest.mark.parametrize("splits", [("test",), ("train", "test")])
def test_a_numbered_folder_that_is_empty_is_refused(tmp_path, splits):
    root = write_numbered(tmp_path / "numbers")
    for split in splits:
        for file in (root / split / "2").iterdir():
            file.unlink()
    with pytest.raises(DataError, match="2 is empty"):
        load(root, tmp_path / "cache", order="neutral happy sad surprise fear disgust anger")


# ---------------------------------------------------------------- any folder


def test_any_folder_of_folders(tmp_path):
    for k, name in enumerate(("bored", "amused", "happy")):
        for i in range(20):
            save(tmp_path / "mine" / name / f"{i}.png", picture(100 * k + i, grey=False))
    splits = load(tmp_path / "mine", tmp_path / "cache")
    assert splits.train.class_names == ("Happy", "amused", "bored")
    assert len(splits.tests[0]) == 12 and "no test folder" in splits.sentence
    assert splits.tests[0].leak_free.all()


def test_splits_with_different_classes_are_refused(tmp_path):
    for split, names in (("train", ("a", "b", "c")), ("test", ("a", "b"))):
        for k, name in enumerate(names):
            save(tmp_path / split / name / "1.png", picture(k))
    with pytest.raises(DataError, match=r"same classes \(c in only one"):
        load(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        (("Training", "PublicTest", "PrivateTest"), "PrivateTest, PublicTest beside Training"),
        (("train", "dev", "test"), "dev beside train"),
    ],
)
def test_splits_under_other_names_are_not_passed_over(tmp_path, splits, named):
    for split in splits:
        for k, name in enumerate(("a", "b", "c")):
            save(tmp_path / split / name / "1.png", picture(k))
    with pytest.raises(DataError, match=f"{named}.*rename each to val or test, or move it out"):
        load(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("splits", [("test",), ("test", "val")])
def test_a_set_without_train_is_not_read_as_its_test_folder(tmp_path, splits):
    for split in splits:
        for i in range(20):
            save(tmp_path / split / ("happy", "sad")[i % 2] / f"{i}.png", picture(i))
    with pytest.raises(DataError, match=r"holds test but no train folder: add it, or give .*test,"):
        load(tmp_path, tmp_path / "cache")
    assert load(tmp_path / "test", tmp_path / "cache").notes[0].startswith("test is read as one")


def test_a_dataset_in_the_working_folder_has_its_name(tmp_path, monkeypatch):
    for k, name in enumerate(("amused", "happy")):
        for i in range(20):
            save(tmp_path / "mine" / name / f"{i}.png", picture(100 * k + i))
    monkeypatch.chdir(tmp_path / "mine")
    splits = load(".", tmp_path / "cache")
    assert splits.train.dataset == "mine" and splits.notes[0].startswith("mine is read")


def test_a_dataset_of_kagglehub_is_called_by_its_slug(tmp_path):
    write_affectnet(tmp_path / "balanced-affectnet/versions/2")
    splits = load(tmp_path / "balanced-affectnet/versions/2", tmp_path / "cache")
    assert splits.train.dataset == "AffectNet"
    root = tmp_path / "owner/some-faces/versions/1"
    write_affectnet(root, folders=("happy", "sad"))
    splits = load(root, tmp_path / "cache")
    assert splits.train.dataset == "some-faces" and splits.notes[0].startswith("some-faces is read")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_names_that_are_no_text_can_be_written_down(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    write_fer(tmp_path / odd, folders=(*FER_FOLDERS[1:], f"1{odd}"))
    bad = {3: "x,1 2 3,Training"}
    for path in (tmp_path / odd, write_csv(tmp_path / f"{odd}.csv", spoil=bad)):
        splits = load(path, tmp_path / "cache", max_bad_share=0.1)
        assert splits.train.dataset == r"caf\udce9"
        for said in (splits.sentence, *splits.notes, *sum(splits.bad_files, ())):
            assert said.encode()
        assert not any(" as caf" in note for note in splits.notes)


def test_pictures_of_scattered_sizes_keep_their_usual_shape(tmp_path):
    for split, more in (("train", 0), ("test", 3)):
        for i in range(18):
            size = (40, 6) if i < 4 else (10 + i + more, 20 + i + more)
            save(tmp_path / "mine" / split / ("happy", "sad")[i % 2] / f"{i}.png", picture(i, size))
    splits = load(tmp_path / "mine", tmp_path / "cache")
    # The medians of train, and test like train.
    assert splits.train.pixels.shape[1:3] == splits.tests[0].pixels.shape[1:3] == (28, 22)
    again = load(tmp_path / "mine", tmp_path / "cache", size=24)
    assert again.tests[0].pixels.shape[1:3] == (24, 22)


@pytest.mark.parametrize("names", [("happy", "sad"), ("0", "1")])
def test_a_split_that_was_read_is_listed_alone(tmp_path, names, monkeypatch):
    for split in ("train", "test"):
        for i in range(20):
            save(tmp_path / "mine" / split / names[i % 2] / f"{i}.png", picture(i))
    walked, walk = [], layouts.walk_files

    def watch(folder, *passed):
        walked.append(folder)
        return walk(folder, *passed)

    for module in (layouts, neighbors):
        monkeypatch.setattr(module, "walk_files", watch)
    load(tmp_path / "mine", tmp_path / "cache", order="happy sad")
    counts = {walked.count(folder) for folder in walked}
    assert counts == {2}  # once to read it, once to see that it is the same


def test_yolo_and_unknown_folders_are_refused(tmp_path):
    save(tmp_path / "yolo/train/images/a.png", picture(0))
    (tmp_path / "yolo/train/labels").mkdir()
    with pytest.raises(DataError, match="YOLO format"):
        load(tmp_path / "yolo", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known layout"):
        load(tmp_path / "empty", tmp_path / "cache")
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "nowhere", tmp_path / "cache")
