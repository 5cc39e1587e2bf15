"""What a run writes: stamped, the same bytes twice, and whole at every moment."""

import json

import numpy as np
import pytest
import scipy
import torch
from matplotlib.figure import Figure
from test_runs import listing

from fer_helpers import records, versions
from fer_helpers.runs import RunError, open_run
from tests.tiny import full_disk

CLASSES = ["Anger", "Happy", "Sad"]


def opened(folder, name="a", origin="drawn"):
    return open_run(folder, name, {"seed": 1}, {"seed": 1}, origin=origin)


@pytest.fixture
def run(tmp_path):
    return opened(tmp_path / "runs")


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
    return records.stamp(split, n, 1, 1, "PublicTest (4)", "abc", origin, dataset="FER2013", **more)


def metrics(**more):
    result = records.scored(stamped(), numbers(), leak_free=numbers(3, 0.4), headline=True)
    return {"results": [result], "temperature": np.float32(1.25), **more}


def test_a_stamp_says_how_many_threads_computed():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert stamped()["threads"] == 1
    finally:
        torch.set_num_threads(before)
    assert stamped()["threads"] == before


def test_metrics_are_the_same_bytes_twice(tmp_path):
    written = []
    for folder in ("x", "y"):
        run = opened(tmp_path / folder)
        written.append(records.write_metrics(run, metrics()).read_bytes())
        written.append(records.write_metrics(run, dict(reversed(metrics().items()))).read_bytes())
    assert len(set(written)) == 1
    back = json.loads(written[0])
    assert back["results"][0]["numbers"]["macro_f1"] == 1 / 3
    assert back["temperature"] == 1.25
    assert back["origin"] == "drawn"
    assert back["results"][0]["stamp"]["origin"] == "drawn"
    assert back["results"][0]["class_names"] == CLASSES


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([1.0, np.nan])])
def test_metrics_refuse_what_is_no_number_and_keep_the_old_file(run, bad):
    before = records.write_metrics(run, metrics()).read_bytes()
    with pytest.raises(RunError, match=r"metrics\.temperature"):
        records.write_metrics(run, metrics(temperature=bad))
    with pytest.raises(RunError, match="set"):
        records.write_metrics(run, metrics(temperature={1}))
    assert (run.folder / "metrics.json").read_bytes() == before


def test_metrics_refuse_real_faces_in_a_drawn_run(run):
    with pytest.raises(RunError, match="never meet"):
        records.write_metrics(run, metrics(other={"stamp": stamped(origin="real")}))


def test_a_stamp_must_fit_its_numbers():
    with pytest.raises(RunError, match="5 pictures"):
        records.scored(stamped(n=5), numbers())


def test_a_stamp_names_versions_and_code(monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "abc123")
    stamp = stamped(precision="bf16")
    assert stamp["code"] == "abc123"
    assert set(stamp["versions"]) == {"python", *versions.PACKAGES}
    assert "unknown" not in stamp["versions"].values()
    assert stamp["versions"]["scipy"] == scipy.__version__
    assert stamp["precision"] == "bf16"


def test_a_changed_notebook_is_other_code(tmp_path, monkeypatch):
    for name in ("fer_helpers", "notebooks", "benchmarks"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "fer_helpers" / "versions.py"))
    hashes = set()
    code = ("fer_helpers/versions.py", "notebooks/a.py", "benchmarks/a.py")
    for file in (*code, "benchmarks/a.txt"):
        (tmp_path / file).write_text("1")
        hashes.add(versions._code_hash())
    assert len(hashes) == 3


def test_a_full_disk_keeps_the_previous_file(run, monkeypatch):
    before = records.write_metrics(run, metrics()).read_bytes()
    names = listing(run.folder)
    full_disk(monkeypatch)
    with pytest.raises(RunError, match="disk is full"):
        records.write_metrics(run, metrics(more=1))
    assert (run.folder / "metrics.json").read_bytes() == before
    assert listing(run.folder) == names


def test_timing_is_added_to(run):
    records.write_timing(run, {"affectnet": 1.5})
    path = records.write_timing(run, {"fer2013": 2.5})
    assert json.loads(path.read_text()) == {"affectnet": 1.5, "fer2013": 2.5}


def test_history_replaces_its_phase_and_is_the_same_after_a_resume(run):
    one, two = {"epoch": 1, "train_loss": 1 / 3}, {"epoch": 2, "train_loss": 0.25}
    records.write_history(run, "affectnet", [one])
    records.write_history(run, "fer2013", [one, two])
    resumed = records.write_history(run, "affectnet", [one, two]).read_text()
    assert resumed == (
        "phase,origin,epoch,train_loss\n"
        f"affectnet,drawn,1,{1 / 3}\naffectnet,drawn,2,0.25\n"
        f"fer2013,drawn,1,{1 / 3}\nfer2013,drawn,2,0.25\n"
    )


def test_predictions_are_written_by_split(run):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32)
    common = {"files": ["a,1.png", "b.png"], "labels": np.array([0, 1]), "dataset": "FER2013"}
    common |= {"probabilities": probabilities, "class_names": CLASSES}
    common["leak_free"] = np.array([True, False])
    records.write_predictions(run, **common, split="PublicTest")
    records.write_predictions(run, **common, split="PrivateTest")
    path = records.write_predictions(run, **common, split="PublicTest")
    head = "dataset,split,file,truth,prediction,leak_free,origin,p_Anger,p_Happy,p_Sad\n"
    assert path.read_text() == (
        head
        + 'FER2013,PrivateTest,"a,1.png",Anger,Anger,True,drawn,0.7,0.2,0.1\n'
        + "FER2013,PrivateTest,b.png,Happy,Sad,False,drawn,0.1,0.2,0.7\n"
        + 'FER2013,PublicTest,"a,1.png",Anger,Anger,True,drawn,0.7,0.2,0.1\n'
        + "FER2013,PublicTest,b.png,Happy,Sad,False,drawn,0.1,0.2,0.7\n"
    )
    with pytest.raises(RunError, match="softmax"):
        records.write_predictions(run, **(common | {"probabilities": probabilities * 5}), split="x")
    with pytest.raises(RunError, match="one split"):
        records.write_predictions(run, **(common | {"files": ["a"]}), split="x")


def test_the_answer_is_the_one_before_rounding(run):
    near = np.array([[0.5 - 1e-10, 0.5 + 1e-10, 0.0]])  # equal as float32
    path = records.write_predictions(
        run, files=["a.png"], labels=np.array([1]), probabilities=near, class_names=CLASSES,
        dataset="FER2013", split="test", leak_free=np.array([True]),
    )  # fmt: skip
    assert path.read_text().splitlines()[1].startswith("FER2013,test,a.png,Happy,Happy,")


def test_figures_are_the_same_bytes_and_say_drawn(tmp_path):
    written = []
    for folder in ("x", "y"):
        figure = Figure()
        figure.subplots().plot([1, 2])
        png = records.save_figure(opened(tmp_path / folder), figure, "a curve")
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
    page = records.attach_notebook(source, run.folder)
    assert page == run.folder / "a & b.html"
    assert (run.folder / "a & b.ipynb").read_bytes() == source.read_bytes()
    text = page.read_text(encoding="utf-8")
    assert "<title>a &amp; b</title>" in text
    assert "&lt;b&gt;&amp; class&lt;/b&gt;" in text
    with pytest.raises(RunError, match="dmeo is no folder"):
        records.attach_notebook(source, run.folder.with_name("dmeo"))
    source.write_text("{")
    with pytest.raises(RunError, match="no notebook"):
        records.attach_notebook(source, run.folder)
