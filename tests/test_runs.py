"""The run folder: which one it is, what is written into it, and that nothing is ever lost."""

import errno
import json
import os
import stat

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure

from fer_helpers import mounts, runs
from fer_helpers.runs import RunError, open_run

PARAMETERS = {"seed": 1, "lr": 1e-5, "output_dir": "runs"}
FINGERPRINT = {"seed": 1, "lr": 1e-5, "data": "abc"}
CLASSES = ["Anger", "Happy", "Sad"]


def opened(folder, name="a", fingerprint=FINGERPRINT, resume="auto", origin="drawn"):
    return open_run(folder, name, PARAMETERS, fingerprint, resume, origin=origin)


@pytest.fixture
def run(tmp_path):
    return opened(tmp_path / "runs")


def read_only(monkeypatch, folder):
    """Make a folder unwritable for whoever runs the test, root included."""
    probe = runs._probe

    def refuse(path):
        if path == folder:
            raise OSError(errno.EROFS, "Read-only file system")
        probe(path)

    monkeypatch.setattr(runs, "_probe", refuse)


def full_disk(monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs.os, "fsync", refuse)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# Which folder


def test_a_new_run_writes_complete_parameters(tmp_path):
    run = opened(tmp_path / "deep" / "runs")
    assert run.folder == tmp_path / "deep" / "runs" / "a"
    assert (run.name, run.resumed, run.finished) == ("a", False, False)
    text = (run.folder / "params.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {"SEED": 1, "LR": 1e-5, "OUTPUT_DIR": "runs"}
    assert listing(run.folder) == ["params.yaml", "run.json"]


def test_without_a_name_the_clock_gives_one_and_two_never_meet(tmp_path):
    names = [opened(tmp_path, "", resume="never").name for _ in range(3)]
    assert len(set(names)) == 3
    assert all(name.startswith("fer-20") for name in names)


def test_auto_continues_the_named_folder(tmp_path):
    first = opened(tmp_path)
    first.path("history.csv").write_text("kept")
    again = opened(tmp_path)
    assert again.folder == first.folder
    assert again.resumed
    assert again.path("history.csv").read_text() == "kept"


def test_auto_refuses_another_fingerprint_and_says_what_differs(tmp_path):
    first = opened(tmp_path)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    with pytest.raises(RunError) as error:
        opened(tmp_path, fingerprint={"seed": 2, "lr": 1e-5, "backbone": "resnet18"})
    said = str(error.value)
    assert "seed: 1 there, 2 now" in said
    assert 'backbone: not set there, "resnet18" now' in said
    assert 'data: "abc" there, not set now' in said
    assert "lr" not in said.replace("already", "")
    assert "RUN_NAME" in said
    assert "never" in said
    assert before == {path.name: path.read_bytes() for path in first.folder.iterdir()}


def test_drawn_and_real_are_never_one_run(tmp_path):
    opened(tmp_path)
    with pytest.raises(RunError, match="origin"):
        opened(tmp_path, origin="real")


def test_auto_without_a_name_takes_the_newest_unfinished_of_its_kind(tmp_path):
    opened(tmp_path, "oldest")
    middle = opened(tmp_path, "middle")
    opened(tmp_path, "other", fingerprint={"seed": 9})
    opened(tmp_path, "done").finish()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert opened(tmp_path, "").folder == middle.folder
    middle.finish()
    assert opened(tmp_path, "").name == "oldest"
    opened(tmp_path, "").finish()
    assert opened(tmp_path, "").name.startswith("fer-")


def test_never_moves_aside_and_deletes_nothing(tmp_path):
    for text in ("first", "second", "third"):
        opened(tmp_path, resume="never").path("mark").write_text(text)
    assert listing(tmp_path) == ["a", "a-1", "a-2"]
    marks = [(tmp_path / name / "mark").read_text() for name in ("a-1", "a-2", "a")]
    assert marks == ["first", "second", "third"]


def test_a_folder_that_holds_only_the_notebook_being_executed_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "executed.ipynb").write_text("{}")
    assert not opened(tmp_path).resumed
    assert "executed.ipynb" in listing(tmp_path / "a")


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.doc").write_text("years")
    with pytest.raises(RunError, match="not a run folder"):
        opened(tmp_path)
    opened(tmp_path, resume="never")
    assert (tmp_path / "a-1" / "thesis.doc").read_text() == "years"


def test_a_path_is_continued_where_it_stands(tmp_path):
    first = opened(tmp_path / "elsewhere")
    again = opened(tmp_path / "runs", "", resume=str(first.folder))
    assert again.folder == first.folder
    with pytest.raises(RunError, match="seed"):
        opened(tmp_path / "runs", "", {"seed": 2}, resume=first.folder)
    with pytest.raises(RunError, match="'auto' or 'never'"):
        opened(tmp_path, resume="Auto")


def test_a_read_only_folder_is_copied_first_and_the_copy_found_again(tmp_path, monkeypatch):
    first = opened(tmp_path / "input")
    first.path("checkpoints/last").write_text("weights")
    for path in (first.path("checkpoints/last"), first.path("checkpoints"), first.folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    read_only(monkeypatch, first.folder)
    try:
        again = opened(tmp_path / "runs", "", resume=first.folder)
        assert again.folder == tmp_path / "runs" / "a"
        assert again.path("checkpoints/last").read_text() == "weights"
        assert all(p.stat().st_mode & stat.S_IWUSR for p in again.folder.rglob("*"))
        assert "copied to" in again.sentence
        assert opened(tmp_path / "runs", "", resume=first.folder).folder == again.folder
        assert listing(tmp_path / "runs") == ["a"]
    finally:
        for path in (first.folder, first.folder / "checkpoints"):
            path.chmod(0o755)


def test_a_copy_never_lands_on_another_run(tmp_path, monkeypatch):
    first = opened(tmp_path / "input")
    other = opened(tmp_path / "runs", fingerprint={"seed": 5})
    read_only(monkeypatch, first.folder)
    again = opened(tmp_path / "runs", "", resume=first.folder)
    assert again.name == "a-1"
    assert json.loads(other.path("run.json").read_text())["fingerprint"]["seed"] == 5


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """An empty folder in the place where Kaggle mounts what is attached."""
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path / "input")
    return tmp_path / "input"


@pytest.mark.parametrize("mount", ["faces", "notebooks/somebody/faces"])
@pytest.mark.parametrize("name", ["a", ""])
def test_an_attached_unfinished_run_is_copied_and_continued(tmp_path, inputs, mount, name):
    first = opened(inputs / mount / "runs")
    first.path("affectnet/last.pt").write_text("weights")
    before = {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()}
    again = opened(tmp_path / "runs", name)
    assert again.folder == tmp_path / "runs" / "a"
    assert again.resumed
    assert again.path("affectnet/last.pt").read_text() == "weights"
    assert again.sentence == f"Continues {first.folder}, copied to {again.folder}."
    assert {p: p.read_bytes() for p in inputs.rglob("*") if p.is_file()} == before
    # What was done here since counts, not what is attached.
    again.path("affectnet/last.pt").write_text("more")
    assert opened(tmp_path / "runs", name).path("affectnet/last.pt").read_text() == "more"
    assert listing(tmp_path / "runs") == ["a"]


def test_of_the_attached_runs_the_newest_that_fits_is_continued(tmp_path, inputs):
    opened(inputs / "z-oldest")
    second = opened(inputs / "b-newer").folder
    opened(inputs / "done", "finished").finish()
    opened(inputs / "other", "seed", fingerprint={"seed": 9})
    (inputs / "broken").mkdir()
    (inputs / "broken" / "run.json").write_text("{")
    again = opened(tmp_path / "runs")
    assert str(second) in again.sentence
    # A third session with both outputs attached goes on with the one that came further.
    again.folder.rename(inputs / "a-third")
    assert str(inputs / "a-third") in opened(tmp_path / "runs").sentence


def test_an_attached_run_that_does_not_fit_is_named_and_left_alone(tmp_path, inputs):
    other = opened(inputs / "faces", fingerprint={"seed": 9})
    run = opened(tmp_path / "runs", fingerprint={"seed": 1})
    assert not run.resumed
    assert str(other.folder) in run.sentence
    assert "seed: 9 there, 1 now" in run.sentence


def test_without_auto_nothing_attached_is_continued(tmp_path, inputs):
    opened(inputs / "faces")
    assert not opened(tmp_path / "runs", resume="never").resumed
    assert not opened(tmp_path / "runs", "", resume="never").resumed


def test_other_code_is_said_and_not_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "1111")
    opened(tmp_path)
    monkeypatch.setenv("FER_COMMIT", "2222")
    assert "1111" in opened(tmp_path).sentence
    assert "2222" in opened(tmp_path).sentence


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
@pytest.mark.skipif(os.name == "nt", reason="Windows folders ignore the mode")
def test_an_unwritable_output_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunError, match="OUTPUT_DIR"):
            opened(tmp_path / "runs")
    finally:
        tmp_path.chmod(0o755)


def test_an_output_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="OUTPUT_DIR"):
        opened(tmp_path / "runs")


def test_a_full_disk_is_said_before_training_and_leaves_nothing(tmp_path, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(RunError, match="disk is full"):
        opened(tmp_path / "runs")
    assert listing(tmp_path / "runs") == []


@pytest.mark.parametrize("name", ["../a", "a/b", "..", "."])
def test_a_run_name_is_one_folder(tmp_path, name):
    with pytest.raises(RunError, match="RUN_NAME"):
        opened(tmp_path, name)


# What is written


def numbers(n=4, accuracy=0.5):
    one = {"precision": 0.1, "recall": 1 / 3, "f1": 0.2, "support": 2}
    return {
        "n": n,
        "accuracy": accuracy,
        "accuracy_interval": [0.25, 0.75],
        "macro_f1": 1 / 3,
        "macro_f1_interval": [0.1, 0.5],
        "per_class": {name: dict(one) for name in CLASSES},
        "confusion": [[1, 1, 0], [0, 1, 0], [0, 1, 0]],
        "never_predicted": ["Sad"],
    }


def stamped(split="PrivateTest", n=4, origin="drawn", **more):
    return runs.stamp(split, n, 1, 1, "PublicTest (4)", "abc", origin, dataset="FER2013", **more)


def metrics(**more):
    result = runs.scored(stamped(), numbers(), leak_free=numbers(3, 0.4), headline=True)
    return {"results": [result], "temperature": np.float32(1.25), **more}


def test_metrics_are_the_same_bytes_twice(tmp_path):
    written = []
    for folder in ("x", "y"):
        run = opened(tmp_path / folder)
        written.append(runs.write_metrics(run, metrics()).read_bytes())
        written.append(runs.write_metrics(run, dict(reversed(metrics().items()))).read_bytes())
    assert len(set(written)) == 1
    back = json.loads(written[0])
    assert back["results"][0]["numbers"]["macro_f1"] == 1 / 3
    assert back["temperature"] == 1.25
    assert back["origin"] == "drawn"
    assert back["results"][0]["stamp"]["origin"] == "drawn"
    assert back["results"][0]["class_names"] == CLASSES


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([1.0, np.nan])])
def test_metrics_refuse_what_is_no_number_and_keep_the_old_file(run, bad):
    before = runs.write_metrics(run, metrics()).read_bytes()
    with pytest.raises(RunError, match=r"metrics\.temperature"):
        runs.write_metrics(run, metrics(temperature=bad))
    with pytest.raises(RunError, match="set"):
        runs.write_metrics(run, metrics(temperature={1}))
    assert run.path("metrics.json").read_bytes() == before


def test_metrics_refuse_real_faces_in_a_drawn_run(run):
    with pytest.raises(RunError, match="never meet"):
        runs.write_metrics(run, metrics(other={"stamp": stamped(origin="real")}))


def test_a_stamp_must_fit_its_numbers():
    with pytest.raises(RunError, match="5 pictures"):
        runs.scored(stamped(n=5), numbers())


def test_a_stamp_names_versions_and_code(monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "abc123")
    stamp = stamped(precision="bf16")
    assert stamp["code"] == "abc123"
    assert set(stamp["versions"]) == {"python", *runs.PACKAGES}
    assert "unknown" not in stamp["versions"].values()
    assert stamp["precision"] == "bf16"


def test_a_full_disk_keeps_the_previous_file(run, monkeypatch):
    before = runs.write_metrics(run, metrics()).read_bytes()
    names = listing(run.folder)
    full_disk(monkeypatch)
    with pytest.raises(RunError, match="disk is full"):
        runs.write_metrics(run, metrics(more=1))
    assert run.path("metrics.json").read_bytes() == before
    assert listing(run.folder) == names


def test_timing_is_added_to(run):
    runs.write_timing(run, {"affectnet": 1.5})
    path = runs.write_timing(run, {"fer2013": 2.5})
    assert json.loads(path.read_text()) == {"affectnet": 1.5, "fer2013": 2.5}


def test_history_replaces_its_phase_and_is_the_same_after_a_resume(run):
    one, two = {"epoch": 1, "train_loss": 1 / 3}, {"epoch": 2, "train_loss": 0.25}
    runs.write_history(run, "affectnet", [one])
    runs.write_history(run, "fer2013", [one, two])
    resumed = runs.write_history(run, "affectnet", [one, two]).read_text()
    assert resumed == (
        "phase,origin,epoch,train_loss\n"
        f"affectnet,drawn,1,{1 / 3}\naffectnet,drawn,2,0.25\n"
        f"fer2013,drawn,1,{1 / 3}\nfer2013,drawn,2,0.25\n"
    )


def test_predictions_are_written_by_split(run):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32)
    common = {"files": ["a,1.png", "b.png"], "labels": np.array([0, 1]), "dataset": "FER2013"}
    common |= {"probabilities": probabilities, "class_names": CLASSES}
    runs.write_predictions(run, **common, split="PublicTest")
    runs.write_predictions(run, **common, split="PrivateTest", leak_free=np.array([True, False]))
    path = runs.write_predictions(run, **common, split="PublicTest")
    head = "dataset,split,file,truth,prediction,leak_free,origin,p_Anger,p_Happy,p_Sad\n"
    assert path.read_text() == (
        head
        + 'FER2013,PrivateTest,"a,1.png",Anger,Anger,True,drawn,0.7,0.2,0.1\n'
        + "FER2013,PrivateTest,b.png,Happy,Sad,False,drawn,0.1,0.2,0.7\n"
        + 'FER2013,PublicTest,"a,1.png",Anger,Anger,,drawn,0.7,0.2,0.1\n'
        + "FER2013,PublicTest,b.png,Happy,Sad,,drawn,0.1,0.2,0.7\n"
    )
    with pytest.raises(RunError, match="softmax"):
        runs.write_predictions(run, **(common | {"probabilities": probabilities * 5}), split="x")
    with pytest.raises(RunError, match="one split"):
        runs.write_predictions(run, **(common | {"files": ["a"]}), split="x")


def test_the_answer_is_the_one_before_rounding(run):
    near = np.array([[0.5 - 1e-10, 0.5 + 1e-10, 0.0]])  # equal as float32
    path = runs.write_predictions(
        run, files=["a.png"], labels=np.array([1]), probabilities=near, class_names=CLASSES,
        dataset="FER2013", split="test",
    )  # fmt: skip
    assert path.read_text().splitlines()[1].startswith("FER2013,test,a.png,Happy,Happy,")


def test_figures_are_the_same_bytes_and_say_drawn(tmp_path):
    written = []
    for folder in ("x", "y"):
        figure = Figure()
        figure.subplots().plot([1, 2])
        png = runs.save_figure(opened(tmp_path / folder), figure, "a curve")
        written.append((png.read_bytes(), png.with_suffix(".svg").read_bytes()))
        assert png.name == "a_curve.png"
        assert any("drawn" in text.get_text() for text in figure.texts)
    assert written[0] == written[1]


def test_the_notebook_is_copied_and_rendered_with_its_name_escaped(run, tmp_path):
    import nbformat

    cell = nbformat.v4.new_code_cell("1 < 2", id="one")
    cell.outputs = [nbformat.v4.new_output("stream", text="<b>& class</b>")]
    source = tmp_path / "a & b.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), source)
    page = runs.attach_notebook(source, run.folder)
    assert page == run.folder / "a & b.html"
    assert (run.folder / "a & b.ipynb").read_bytes() == source.read_bytes()
    text = page.read_text(encoding="utf-8")
    assert "<title>a &amp; b</title>" in text
    assert "&lt;b&gt;&amp; class&lt;/b&gt;" in text
    source.write_text("{")
    with pytest.raises(RunError, match="no notebook"):
        runs.attach_notebook(source, run.folder)
