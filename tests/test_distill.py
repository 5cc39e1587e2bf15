import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fer_helpers.checkpoints import load_model, save_model
from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.evaluation import softmax
from fer_helpers.ferplus import VOTES
from fer_helpers.inference import predict_logits
from fer_helpers.layouts import FER_CLASSES, canonical_emotion
from fer_helpers.models import build_model
from fer_helpers.preprocess import Preprocess
from fer_helpers.splits import Splits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def distill(monkeypatch):
    return load("distill", monkeypatch)


@pytest.fixture
def average(monkeypatch):
    return load("average", monkeypatch)


def load(name, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    place = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def network(path, seed, temperature=1.0, **changes):
    torch.manual_seed(seed)
    kind = {"stem": "small2", "width": 16, "channels": 1, "attention": "spatial"} | changes
    preprocess = Preprocess(size=48, channels=1, grey=True)
    save_model(path, build_model(7, **kind), FER_CLASSES, preprocess, temperature=temperature)
    return path


@pytest.fixture
def teacher(tmp_path):
    return network(tmp_path / "teacher.safetensors", seed=0, temperature=2.0)


def drawn(tmp_path, monkeypatch):
    """A folder of drawn faces, a parameter file for it, and its splits; a third is the slice."""
    data = write_demo_faces(tmp_path / "drawn", per_class=12)
    splits = load_fer2013(data / "fer2013" / "train", data / "fer2013" / "test", max_bad_share=0.1,
                          cache_dir=tmp_path)  # fmt: skip
    monkeypatch.setattr(sys.modules["ablation"], "SLICE", tmp_path / "slice.txt")
    (tmp_path / "slice.txt").write_text("\n".join(splits.train.files[::3]))
    recipe = tmp_path / "small.yaml"
    text = (BENCHMARKS.parent / "params" / "cpu.yaml").read_text()
    recipe.write_text(text.replace("MAX_BAD_SHARE: 0.01", "MAX_BAD_SHARE: 0.1"))
    return data, recipe, splits


@pytest.mark.slow
def test_a_student_is_taught_written_and_scored(distill, teacher, tmp_path, monkeypatch, capsys):
    data, recipe, splits = drawn(tmp_path, monkeypatch)
    votes = tmp_path / "votes.csv"  # all ten for the label: no face is more doubtful than others
    classes = np.array(splits.train.class_names)[splits.train.labels]
    ten = pd.DataFrame({name: 10 * (classes == canonical_emotion(name)) for name in VOTES})
    ten.assign(file=splits.train.files).to_csv(votes, index=False)
    monkeypatch.setattr(sys, "argv", [
        "distill", "--data", str(data), "--params", str(recipe), "--teachers", str(teacher),
        "--start", str(teacher), "--set", "FER_EPOCHS=2", "MIXUP=0.2", "IMAGE_SIZE=56",
        "FERPLUS_WEIGHT=0.5", f"FERPLUS_VOTES={votes}", "--lr", "0.01",
        "--out", str(tmp_path / "out"),
        "--final", str(tmp_path / "student.safetensors"),
    ])  # fmt: skip
    parts, choose = [], distill.as_doubtful
    monkeypatch.setattr(
        distill, "as_doubtful", lambda *sets: parts.append(choose(*sets)) or parts[-1]
    )
    distill.main()
    said = capsys.readouterr().out
    assert "| student |" in said and f"| {teacher} |" in said and "PublicTest" in said
    student = load_model(tmp_path / "student.safetensors")
    assert student.preprocess.size == 56  # its teacher's faces had 48
    assert student.extra["origin"] == "drawn" and len(student.extra["balanced_shift"]) == 7
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert {entry["stamp"]["split"] for entry in results} == {"PublicTest"}
    assert f"({len(parts[0])})" in results[0]["stamp"]["selection_set"]
    figures = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert figures == {"confusion", "reliability", "history"}


def test_a_test_folder_without_public_test_is_refused_first(distill, tmp_path, monkeypatch):
    from tests.tiny import faces, scored_faces, selection_faces

    private = Splits(faces(), selection_faces(), (scored_faces(split="PrivateTest"),), "")
    monkeypatch.setattr(distill, "read_fer", lambda *_: private)
    monkeypatch.setattr(sys, "argv", [
        "distill", "--teachers", str(tmp_path / "none"), "--final", str(tmp_path / "student"),
    ])  # fmt: skip
    with pytest.raises(SystemExit, match="No PublicTest image"):
        distill.main()


def test_a_start_of_other_classes_is_refused_first(distill, teacher, tmp_path, monkeypatch):
    from tests.tiny import faces, selection_faces

    monkeypatch.setattr(distill, "read_fer", lambda *_: Splits(faces(), selection_faces(), (), ""))
    monkeypatch.setattr(sys, "argv", [
        "distill", "--teachers", str(tmp_path / "none"), "--start", str(teacher),
    ])  # fmt: skip
    with pytest.raises(SystemExit, match="not these classes"):
        distill.main()


def test_a_start_of_three_channels_is_fed_three(distill, teacher, tmp_path, monkeypatch):
    from tests.tiny import faces, selection_faces

    names = load_model(teacher).class_names
    net = build_model(7, stem="small2", width=16)
    start = tmp_path / "start.safetensors"
    save_model(start, net, names, Preprocess(size=48, grey=True))
    fer = Splits(faces(names=names, n=14), selection_faces(), (), "")
    monkeypatch.setattr(distill, "read_fer", lambda *_: fer)

    class Trained(Exception):
        pass

    def train_phase(student, *_, preprocess, **__):
        raise Trained(student.architecture["channels"], preprocess.channels)

    monkeypatch.setattr(distill, "train_phase", train_phase)
    monkeypatch.setattr(sys, "argv", [
        "distill", "--teachers", str(teacher), "--start", str(start), "--out", str(tmp_path),
        "--device", "cpu",
    ])  # fmt: skip
    with pytest.raises(Trained, match=r"\(3, 3\)"):
        distill.main()


def test_a_live_teacher_is_asked_at_the_size_that_it_knows(distill, teacher, tmp_path, monkeypatch):
    from tests.tiny import faces, selection_faces

    names = load_model(teacher).class_names
    fer = Splits(faces(names=names, n=14), selection_faces(), (), "")
    monkeypatch.setattr(distill, "read_fer", lambda *_: fer)

    class Trained(Exception):
        pass

    def train_phase(*_, teacher, soft_labels, **__):
        raise Trained(teacher, soft_labels)

    monkeypatch.setattr(distill, "train_phase", train_phase)

    def run(*more):
        monkeypatch.setattr(sys, "argv", [
            "distill", "--live", str(teacher), "--live-share", "0.6", "--out", str(tmp_path),
            "--device", "cpu", *more,
        ])  # fmt: skip
        distill.main()

    for sizes in ([], ["--set", "IMAGE_SIZE=56", "START_SIZE=0"]):  # cpu.yaml grows faces to 48
        with pytest.raises(SystemExit, match="knows faces of 48 px: set IMAGE_SIZE=48"):
            run(*sizes)
    with pytest.raises(Trained) as caught:
        run("--set", "START_SIZE=0")
    asked, targets = caught.value.args
    assert (asked.share, asked.temperature) == (0.6, 2.0)
    assert np.array_equal(targets, np.eye(7, dtype=np.float32)[fer.train.labels])


def test_somebody_has_to_teach(distill, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill"])
    with pytest.raises(SystemExit):
        distill.main()
    assert "nobody teaches" in capsys.readouterr().err


def test_teachers_speak_in_probabilities(distill, teacher):
    from tests.tiny import faces

    one, other = load_model(teacher), replace(load_model(teacher), temperature=0.7)
    with torch.no_grad():
        other.model.head[-1].weight.neg_()
    some = faces(names=one.class_names, n=14)
    where = {"device": "cpu", "precision": "fp32"}
    said = distill.say([one, other], some, where)
    assert said.shape == (14, 7) and said.dtype == np.float32
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
    each = [predict_logits(t.model, some, t.preprocess, views=10) / t.temperature
            for t in (one, other)]  # fmt: skip
    np.testing.assert_allclose(said, sum(map(softmax, each)) / 2, atol=1e-6)
    with pytest.raises(SystemExit, match="not these classes"):
        distill.say([load_model(teacher)], faces(), {"device": "cpu", "precision": "fp32"})


def test_the_voters_are_one_more_teacher(distill):
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    votes = np.full((600, 4), 0.1)
    votes[np.arange(600), (labels + 1) % 3] = 0.7  # people call it otherwise, but reliably
    votes[:5] = 0  # nobody voted
    heard = np.full((600, 3), 1 / 3, dtype=np.float32)
    found = distill.with_voters(heard, 2, votes, labels)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[:5], heard[:5])
    sure = np.full(3, 2 / 9) + np.eye(3) / 3  # two know nothing, the third knows
    np.testing.assert_allclose(found[5:], sure[labels[5:]], atol=0.01)
    assert (heard == np.float32(1 / 3)).all()


def test_voters_need_votes(distill, teacher, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["distill", "--teachers", str(teacher), "--voters"])
    with pytest.raises(SystemExit):
        distill.main()
    assert "FERPLUS_VOTES" in capsys.readouterr().err


def test_targets_are_shares_of_label_and_teacher(distill):
    labels, heard = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.5, 0.5], [0.2, 0.8]])
    found = distill.mixed(labels, heard, 0.4)
    np.testing.assert_allclose(found, [[0.8, 0.2], [0.08, 0.92]], atol=1e-7)


def test_a_parameter_that_changes_nothing_is_refused(distill):
    assert distill.named_values(["MIXUP=0.2"]) == {"mixup": 0.2}
    with pytest.raises(SystemExit, match="NEAR_TWINS changes nothing"):
        distill.named_values(["MIXUP=0.2", "NEAR_TWINS=true"])
    with pytest.raises(SystemExit, match="WIDTH changes nothing"):
        distill.named_values(["WIDTH=16"], {"width"})


def test_an_average_is_the_mean_of_every_weight(average, teacher, tmp_path):
    networks = [load_model(teacher), load_model(network(tmp_path / "other.safetensors", seed=1))]
    found = average.mean_weights(networks)
    one, other = (network.model.state_dict() for network in networks)
    assert found.keys() == one.keys()
    for name, value in found.items():
        assert value.dtype == one[name].dtype
        if value.is_floating_point():
            torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_only_networks_of_one_kind_are_averaged(average, teacher, tmp_path):
    wider = network(tmp_path / "wider.safetensors", seed=1, width=24)
    with pytest.raises(SystemExit, match=r"wider\.safetensors and .* differ in architecture"):
        average.mean_weights([load_model(teacher), load_model(wider)])


@pytest.mark.slow
def test_an_average_is_written_and_scored(average, teacher, tmp_path, monkeypatch, capsys):
    data, recipe, _ = drawn(tmp_path, monkeypatch)
    other = network(tmp_path / "other.safetensors", seed=1)
    mean, final = tmp_path / "out" / "mean.safetensors", tmp_path / "student.safetensors"
    monkeypatch.setattr(sys, "argv", [
        "average.py", str(teacher), str(other), "--data", str(data), "--params", str(recipe),
        "--hold-out", "12", "--out", str(mean), "--final", str(final), "--device", "cpu",
    ])  # fmt: skip
    average.main()
    said = capsys.readouterr().out
    assert "| mean |" in said and f"| {other} |" in said and "PublicTest" in said
    written = load_model(final)
    assert written.extra["made_by"] == "average.py" and len(written.extra["balanced_shift"]) == 7
    whole, half = load_model(mean).model.state_dict(), written.model.state_dict()
    for name, value in whole.items():
        torch.testing.assert_close(half[name], value, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "out" / "metrics.json").exists()
    assert (tmp_path / "out" / "figures" / "confusion.png").exists()


def test_a_part_as_doubtful_as_train(distill):
    from tests.tiny import faces, selection_faces

    random = np.random.default_rng(0)

    def voted(count, doubtful):  # all votes for the label, or half of them for another class
        votes = np.eye(3)[labels[:count]]
        votes[:doubtful] = (votes[:doubtful] + np.roll(votes[:doubtful], 1, axis=1)) / 2
        return votes

    labels = random.integers(0, 3, 1000)
    names = ("Anger", "Happy", "Sad")
    train = replace(faces(names=names, n=1000), labels=labels)
    held = replace(selection_faces(names=names, n=200), labels=labels[:200])
    part = distill.as_doubtful(held, voted(200, 40), train, voted(1000, 400))
    doubtful = np.isin(part.files, held.files[:40]).sum()
    assert len(part) > 80 and doubtful / len(part) == pytest.approx(0.4, abs=0.03)  # as in train
    assert type(part) is type(held)
    with pytest.raises(SystemExit, match="hold out more"):
        distill.as_doubtful(held, voted(200, 0), train, voted(1000, 400))
