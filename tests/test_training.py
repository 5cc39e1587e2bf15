import errno
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fer_helpers import feeding, files, phases, resuming, training
from fer_helpers.augment import Augment
from fer_helpers.checkpoints import CheckpointError, load_model, load_state, save_state
from fer_helpers.feeding import Feed, batch_rows, epoch_order, epoch_size
from fer_helpers.inference import predict_logits
from fer_helpers.models import build_model
from fer_helpers.phases import Teacher, TrainingError, make_parts
from fer_helpers.recipes import vote_loss
from fer_helpers.training import estimate_minutes, train_step
from fer_helpers.watching import detailed_lines, stop_request
from tests.tiny import (
    AUGMENT,
    MOBILE,
    NO_MEMORY,
    PREPROCESS,
    faces,
    full_disk,
    kept_in,
    net,
    phase,
    recipe,
    same_weights,
    scored_faces,
    selection_faces,
    some_soft_labels,
    some_votes,
    train,
    without_clock,
)

PAST = -1.0  # a deadline that has passed: one step, then stop

OPTIONS = {
    "plain": {},
    "adam": {"optimizer": "adam", "backbone_lr": 1e-3, "attention_lr": 1e-3, "head_lr": 1e-3},
    "cosine": {"schedule": "cosine", "warmup": 0.3, "optimizer": "adamw", "ema": 0.9},
    "onecycle": {"schedule": "onecycle", "clip_norm": 1.0, "loss": "focal", "decay_norms": False},
    "mixing": {"mixup": 0.4, "cutmix": 1.0, "mix_until": 0.7, "class_weights": "effective"},
    "rare classes": {"sampler": "balanced", "logit_adjustment": 1.0, "class_weights": "none"},
    "last": {"keep": "last", "schedule": "cosine", "selection": None},
    "growing": {"start_size": 8, "grow_until": 0.6},
    "votes": {"votes": some_votes(), "vote_weight": 0.5, "decay_norms": False, "clip_norm": 1.0},
    "mixed votes": {"votes": some_votes(), "vote_weight": 1.0, "mixup": 0.4, "ema": 0.9},
    "soft labels": {"soft_labels": some_soft_labels(), "label_smoothing": 0.0},
    "mixed soft labels": {"soft_labels": some_soft_labels(), "mixup": 0.4},
    "teacher": {"teacher": Teacher(net(seed=1), share=0.8), "mixup": 0.4},
    "bf16": {"precision": "bf16", "early_stop": 1},
    "fp16": {"precision": "fp16", "clip_norm": 1.0},
}


@pytest.fixture
def eager(monkeypatch):
    """Save after every step."""
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)


FILES = ["best.safetensors", "last.pt"]


# Learning


def test_loss_falls_on_one_batch(tmp_path):
    _, result = train(tmp_path, epochs=40, batch_size=24, augment=Augment(), label_smoothing=0.0)
    losses = [row["train_loss"] for row in result.history]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_and_resumes_to_the_bit(tmp_path, name):
    options = OPTIONS[name]
    unbroken, whole = train(tmp_path / "unbroken", **options)
    assert all(np.isfinite(row["train_loss"]) for row in whole.history)
    assert not same_weights(unbroken, net())
    sessions = 0
    while True:
        sessions += 1
        model, result = train(tmp_path / "broken", deadline=PAST, **options)
        if not result.stopped:
            break
        assert result.stopped == "time budget" and sessions < 20
    assert sessions >= 3 * len(whole.history) - 1  # a stop after every step but the last
    assert same_weights(model, unbroken)
    assert without_clock(result.history) == without_clock(whole.history)
    assert result.best_epoch == whole.best_epoch
    kept = (load_model(tmp_path / folder / "best.safetensors") for folder in ("unbroken", "broken"))
    assert all(same_weights(loaded.model, unbroken) for loaded in kept)


def test_a_vote_head_learns_the_votes_and_stays_out_of_the_model(tmp_path):
    votes = some_votes()
    model, _ = train(tmp_path, epochs=40, augment=Augment(), votes=votes, vote_weight=1.0)
    head = load_state(tmp_path / "last.pt")["vote head"]
    with torch.inference_mode():
        features = model.embed(PREPROCESS(faces().images()))
    logits = features @ head["weight"].T + head["bias"]
    voted = votes.any(1)
    found = vote_loss(logits, torch.from_numpy(votes))
    knowing_nothing = -(votes[voted] * np.log(votes[voted].mean(0))).sum(1).mean()
    people = -(votes[voted] * np.log(votes[voted])).sum(1).mean()  # no answer can be below
    assert people < found < (people + knowing_nothing) / 2
    assert model.state_dict().keys() == net().state_dict().keys()
    assert (
        load_model(tmp_path / "best.safetensors").model.state_dict().keys()
        == net().state_dict().keys()
    )


def test_votes_change_the_training_only_where_they_are_learned(tmp_path):
    plain, _ = train(tmp_path / "1")
    assert same_weights(plain, train(tmp_path / "2", votes=some_votes())[0])
    nobody = np.zeros_like(some_votes())
    learned, _ = train(tmp_path / "3", votes=some_votes(), vote_weight=0.5)
    unvoted, _ = train(tmp_path / "4", votes=nobody, vote_weight=0.5)
    assert not same_weights(plain, learned)
    assert not same_weights(unvoted, learned)


def test_soft_labels_take_the_place_of_the_labels(tmp_path):
    """Taught that every face is of the third class, the network says so, and hits count that."""
    sure = np.eye(3, dtype=np.float32)[np.full(24, 2)]
    model, result = train(tmp_path, epochs=20, soft_labels=sure, label_smoothing=0.0)
    with torch.inference_mode():
        assert (model(PREPROCESS(faces().images())).argmax(1) == 2).all()
    assert result.history[-1]["train_accuracy"] == 1
    given = replace(phase(), soft_labels=some_soft_labels())
    _, targets, _ = Feed(given)(np.array([5, 3]))
    assert np.array_equal(targets.numpy(), some_soft_labels()[[5, 3]])


def test_soft_labels_of_other_faces_are_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"shape \(23, 3\).*needs \(24, 3\)"):
        train(tmp_path, soft_labels=some_soft_labels(23))
    train(tmp_path, deadline=PAST, soft_labels=some_soft_labels())
    with pytest.raises(CheckpointError, match=r"soft labels was .* and is not there"):
        train(tmp_path)
    with pytest.raises(CheckpointError, match=r"soft labels was \S+ and is \S+\w{16}"):
        train(tmp_path, soft_labels=np.roll(some_soft_labels(), 3, axis=0))


def test_a_teacher_is_asked_about_what_the_student_sees():
    """Augmented and mixed faces go to both; the label keeps the share that the teacher leaves."""
    teacher = Teacher(net(seed=1), temperature=2.0, share=0.75)
    given = replace(phase(mixup=0.4, mix_probability=1.0), teacher=teacher)
    parts, seen = make_parts(given, net()), []
    for network in (teacher.model, parts.model):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = Feed(given)(np.arange(8))
    aims, parts.loss = [], lambda logits, targets: aims.append(targets) or logits.sum()
    parts.embed = lambda inputs: seen.append(inputs) or parts.model.embed(inputs)
    train_step(given, parts, *batch, 0)
    assert torch.equal(*seen)
    with torch.no_grad():
        said = (teacher.model(seen[0]) / 2).softmax(1)
    rest = aims[0] - 0.75 * said
    assert torch.allclose(rest.sum(1), torch.tensor(0.25)) and rest.min() > -1e-6
    assert ((rest > 1e-3).sum(1) == 2).any()  # two labels where faces were mixed
    sure = teacher.targets(seen[0], batch[1])
    assert torch.allclose(sure - 0.75 * said, 0.25 * torch.eye(3)[batch[1]], atol=1e-6)


def test_a_student_learns_what_its_teacher_thinks_whatever_the_labels_say(tmp_path):
    teacher = net(seed=1)
    with torch.no_grad():
        teacher.head[-1].bias += torch.tensor([0.0, 0.0, 50.0])
    model, _ = train(tmp_path, epochs=20, teacher=Teacher(teacher.eval()), label_smoothing=0.0)
    with torch.inference_mode():
        assert (model(PREPROCESS(faces().images())).argmax(1) == 2).all()


def test_a_teacher_is_part_of_the_training(tmp_path):
    train(tmp_path, deadline=PAST, teacher=Teacher(net(seed=1)))
    for changed, other in {
        "weights": Teacher(net(seed=2)),
        "share": Teacher(net(seed=1), share=0.5),
        "temperature": Teacher(net(seed=1), temperature=2.0),
        "architecture": Teacher(net(seed=1, attention_safe_start=True)),
        "": None,
    }.items():
        with pytest.raises(CheckpointError, match=f"teacher {changed}"):
            train(tmp_path, teacher=other)


@pytest.mark.parametrize("other, sentence", [
    ({"num_classes": 7}, "knows 7 classes and the training set has 3"),
    ({"channels": 3}, "sees 3 channels and the student 1"),
    ({"share": 80.0}, "share is 80.0"),
    ({"temperature": 0.0}, "temperature is 0.0"),
])  # fmt: skip
def test_a_teacher_that_cannot_teach_is_refused(tmp_path, other, sentence):
    given = {name: other.pop(name) for name in ("share", "temperature") if name in other}
    small = {"stem": "small2", "width": 16, "num_classes": 3, "channels": 1, **other}
    with pytest.raises(TrainingError, match=sentence):
        train(tmp_path, teacher=Teacher(build_model(**small), **given))


def test_votes_count_as_much_as_the_recipe_says():
    losses = {}
    for weight in (0.25, 0.5, 1.0):
        given = phase(votes=some_votes(), vote_weight=weight)
        parts = make_parts(given, net())
        losses[weight] = float(training.train_step(given, parts, *Feed(given)(np.arange(8)), 0)[0])
    assert losses[1.0] - losses[0.5] > 0.1
    assert losses[1.0] - losses[0.5] == pytest.approx(2 * (losses[0.5] - losses[0.25]), rel=1e-4)


def test_votes_are_mixed_like_the_labels():
    """With the labels as votes, what is foretold of both is the same."""
    labels = np.arange(24) % 3
    votes = np.eye(3, dtype=np.float32)[labels]
    given = phase(votes=votes, mixup=1.0, mix_probability=1.0, vote_weight=1.0)
    batch = Feed(given)(np.arange(8))
    _, targets, votes = feeding.prepare(given, make_parts(given, net()), *batch, number=0)
    assert torch.equal(targets, votes)
    assert not torch.equal(votes, batch[2])


def test_mixing_ends_where_the_recipe_says():
    given = phase(mixup=1.0, mix_probability=1.0, mix_until=0.5)
    parts, batch = make_parts(given, net()), Feed(given)(np.arange(8))
    steps = [feeding.prepare(given, parts, *batch, number=number) for number in range(6)]
    assert [targets.ndim for _, targets, _ in steps] == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_clipped_at_their_true_size(precision):
    given = phase(votes=some_votes(), vote_weight=0.5, clip_norm=0.01, precision=precision)
    parts = make_parts(given, net())
    if precision == "fp16":
        parts.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    training.train_step(given, parts, *Feed(given)(np.arange(8)), 0)
    norms = [w.grad.norm() for group in parts.optimizer.param_groups for w in group["params"]]
    assert float(torch.stack(norms).norm()) == pytest.approx(0.01, rel=1e-3)


def test_pictures_grow_in_steps_of_eight_until_the_share_is_over(tmp_path):
    grows = recipe(epochs=10, start_size=32, grow_until=0.6)
    sides = [epoch_size(grows, epoch, 48) for epoch in range(10)]
    assert sides == [32, 32, 40, 40, 40, 48, 48, 48, 48, 48]
    assert {epoch_size(recipe(epochs=10), epoch, 48) for epoch in range(10)} == {48}
    assert epoch_size(recipe(epochs=2, start_size=20, grow_until=1.0), 0, 22) == 20
    seen = []

    class Watching(Augment):
        def __call__(self, images, preprocess, generator):
            seen.append(preprocess.size)
            return super().__call__(images, preprocess, generator)

    train(tmp_path, epochs=2, start_size=8, grow_until=0.5, augment=Watching())
    assert seen == [8] * 3 + [PREPROCESS.size] * 3


def test_history_and_lines(tmp_path):
    lines = []
    _, result = train(tmp_path, lines=lines, detail_every=2)
    assert [row["epoch"] for row in result.history] == [1, 2]
    assert set(result.history[0]) == {
        "epoch", "train_loss", "train_accuracy", "selection_loss", "selection_accuracy",
        "selection_macro_f1", "lr", "seconds",
    }  # fmt: skip
    assert lines[0] == "Tiny: 24 faces in 3 steps an epoch, chosen on Tiny selection."
    assert lines[1].startswith("epoch   1/2 | train loss ")
    assert lines[2].index("|") == lines[1].index("|")
    assert lines[3].startswith("    Happy ")  # the detailed evaluation of epoch 2
    assert lines[-1] == f"Kept: epoch {result.best_epoch}, the best on Tiny selection."
    assert result.selection_name == "Tiny selection"


def test_detailed_lines_name_the_largest_confusions():
    lines = detailed_lines(np.array([[8, 2, 0], [0, 10, 0], [3, 6, 1]]), ("Happy", "Sad", "Fear"))
    assert lines[0] == "Happy 80.0 %  Sad 100.0 %  Fear 10.0 %"
    assert lines[1:] == [
        "Fear -> Sad: 60.0 % (6)", "Fear -> Happy: 30.0 % (3)", "Happy -> Sad: 20.0 % (2)",
    ]  # fmt: skip


def test_same_seed_same_bits_other_seed_others(tmp_path):
    first, _ = train(tmp_path / "1")
    torch.rand(5), np.random.rand(5), random.random()  # what happened before does not matter
    assert same_weights(first, train(tmp_path / "2")[0])
    assert not same_weights(first, train(tmp_path / "3", seed=1)[0])


def test_best_epoch_is_kept_by_selection_accuracy_alone(tmp_path, monkeypatch):
    accuracies = iter([3, 6, 6, 4])  # of nine: the first of equals stays

    def logits(model, chosen, *_, **__):
        right = next(accuracies)
        guess = np.where(np.arange(9) < right, chosen.labels, (chosen.labels + 1) % 3)
        return np.eye(3, dtype=np.float32)[guess]

    monkeypatch.setattr(training, "predict_logits", logits)
    states = []
    model = net()
    _, result = train(
        tmp_path, model, epochs=4,
        on_epoch=lambda _: states.append({k: v.clone() for k, v in model.state_dict().items()}),
    )  # fmt: skip
    assert result.best_epoch == 2
    assert all(torch.equal(v, states[1][k]) for k, v in model.state_dict().items())
    assert load_model(tmp_path / "best.safetensors").extra["epoch"] == 2
    assert same_weights(train(tmp_path, epochs=4)[0], model)  # also when nothing is left to train


def test_last_epoch_is_kept_where_asked(tmp_path):
    _, result = train(tmp_path, keep="last", epochs=3)
    assert result.best_epoch == 3


def test_early_stop_counts_epochs_without_a_better_one(tmp_path, monkeypatch):
    monkeypatch.setattr(
        training, "predict_logits", lambda *_, **__: np.tile(np.float32([1, 0, 0]), (9, 1))
    )
    lines = []
    _, result = train(tmp_path, epochs=9, early_stop=2, lines=lines)
    assert len(result.history) == 3 and result.best_epoch == 1
    assert any("No better epoch in 2: stopped early." in line for line in lines)
    _, again = train(tmp_path, epochs=9, early_stop=2)  # and stays stopped
    assert len(again.history) == 3 and not again.stopped


def test_any_run_however_bad_leaves_a_checkpoint(tmp_path, monkeypatch):
    """Nothing is learned, and not one face of the selection set is told right in any epoch."""
    wrong = np.eye(3, dtype=np.float32)[(selection_faces().labels + 1) % 3]
    monkeypatch.setattr(training, "predict_logits", lambda *_, **__: wrong)
    _, result = train(tmp_path, backbone_lr=0.0, attention_lr=0.0, head_lr=1e-12)
    assert [row["selection_accuracy"] for row in result.history] == [0, 0]
    assert result.best_epoch == 1
    assert load_model(tmp_path / "best.safetensors").class_names == faces().class_names


def test_a_run_that_fails_in_its_first_step_leaves_a_checkpoint(tmp_path, monkeypatch):
    poison(monkeypatch, at=0)
    with pytest.raises(TrainingError, match="not finite in epoch 1, step 1 "):
        train(tmp_path)
    assert same_weights(load_model(tmp_path / "best.safetensors").model, net())


def test_the_rate_follows_its_schedule_step_by_step(tmp_path):
    given = {"schedule": "cosine", "warmup": 0.25, "head_lr": 0.02}
    _, result = train(tmp_path, batch_size=12, **given)  # twice two steps: one rises, three fall
    assert [row["lr"] for row in result.history] == pytest.approx([0.015, 0.0], abs=1e-9)


def test_the_rate_falls_when_the_accuracy_stalls(tmp_path, monkeypatch):
    surer = itertools.count(1)  # of the first class: the loss rises, the accuracy stays at a third
    monkeypatch.setattr(
        training,
        "predict_logits",
        lambda *_, **__: next(surer) * np.tile(np.float32([1, 0, 0]), (9, 1)),
    )
    _, result = train(tmp_path, epochs=3, batch_size=24, plateau_patience=0)
    assert [row["lr"] for row in result.history] == pytest.approx([0.01, 0.01, 0.005])


def test_the_average_is_what_is_scored_and_saved(tmp_path, monkeypatch):
    numbers, real = [], phases.Parts.update_average

    def update(self, decay, number):
        numbers.append(number)
        real(self, decay, number)

    monkeypatch.setattr(phases.Parts, "update_average", update)
    _, result = train(tmp_path, epochs=1, ema=0.9)
    assert numbers == [0, 1, 2]
    saved, chosen = load_model(tmp_path / "best.safetensors").model, selection_faces()
    logits = torch.from_numpy(predict_logits(saved, chosen, PREPROCESS))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(chosen.labels))
    assert float(loss) == pytest.approx(result.history[0]["selection_loss"], abs=1e-5)
    moving = load_state(tmp_path / "last.pt")["model"]
    assert any(not torch.equal(moving[name], v) for name, v in saved.state_dict().items())


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "onecycle"])
def test_a_schedule_may_be_longer_than_the_data(tmp_path, schedule):
    """One epoch of one step, and a rise that would take it all."""
    given = {"epochs": 1, "batch_size": 24, "warmup": 0.9, "schedule": schedule}
    model, result = train(tmp_path, **given)
    assert len(result.history) == 1 and not same_weights(model, net())


def test_nothing_is_written_outside_of_the_folder(tmp_path):
    train(tmp_path / "phase")
    assert os.listdir(tmp_path) == ["phase"]
    assert kept_in(tmp_path / "phase") == FILES


def test_a_test_set_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TrainingError, match="a test set is never trained or chosen on"):
        train(tmp_path, selection=scored_faces())
    assert not os.listdir(tmp_path)


def test_what_cannot_be_compiled_is_known_beforehand(tmp_path, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(phases.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(phases.sys, "platform", "linux")
    monkeypatch.setattr(phases.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(phases.sysconfig, "get_path", lambda *_: str(tmp_path))
    assert "python3-dev" in phases.missing_for_compile(cuda)
    (tmp_path / "Python.h").touch()
    assert "C++ compiler" in phases.missing_for_compile(cpu)
    assert "gcc or clang" in phases.missing_for_compile(cuda)
    monkeypatch.setattr(phases.shutil, "which", lambda name: name)
    assert phases.missing_for_compile(cpu) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "7.0" in phases.missing_for_compile(cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    for there in (None, object()):
        monkeypatch.setattr(phases.importlib.util, "find_spec", lambda name, there=there: there)
        assert phases.missing_for_compile(cpu) == ""
        assert ("Triton" in phases.missing_for_compile(cuda)) is (there is None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_rounded_maximum_of_a_compiled_network_has_a_gradient(tmp_path):
    if missing := phases.missing_for_compile(torch.device("cpu")):
        pytest.skip(f"torch.compile needs {missing}")
    before = net(**MOBILE)
    after, _ = train(tmp_path, net(**MOBILE), compile=True, precision="bf16", epochs=1)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_a_training_that_skips_every_step_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SMALLEST_SCALE", 1e4)  # three steps, not thirty
    model = net()
    model.head[-1].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(TrainingError, match="No step could be taken in fp16"):
        train(tmp_path, model, precision="fp16")


def test_a_compiled_network_trains_the_same(tmp_path, monkeypatch):
    """With torch's own operations behind the compiler, as far as that is quick to test."""
    given = {"epochs": 1, "votes": some_votes(), "vote_weight": 0.5}
    monkeypatch.setattr(training, "missing_for_compile", lambda device: "")
    plain, _ = train(tmp_path / "plain", **given)
    calls, real = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda what, **given: calls.append(given) or real(what, backend="eager")
    )
    compiled, _ = train(tmp_path / "compiled", compile=True, **given)
    assert calls == [{"dynamic": False}] and same_weights(plain, compiled)


def test_a_step_reads_no_value_off_the_device():
    """On a GPU, a value that is read waits for everything before it."""

    reading = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}

    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function not in reading, f"a step calls {function}"
            return function(*args, **kwargs or {})

    # Without what reads on a CPU alone: `one_hot` (mixing, focal loss) looks at its input there,
    # and the running average at its counter, which never leaves the CPU.
    given = phase(votes=some_votes(), clip_norm=1.0, vote_weight=0.5, schedule="cosine")
    parts, batch = make_parts(given, net()), Feed(given)(np.arange(8))
    with NoReading():
        training.train_step(given, parts, *batch, 0)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReading():
        float(torch.ones(1))


# Order and batches


def test_order_follows_from_seed_and_epoch_alone():
    labels = faces().labels
    first = epoch_order(labels, "shuffle", 3, 1)
    np.random.rand()
    assert np.array_equal(first, epoch_order(labels, "shuffle", 3, 1))
    assert sorted(first) == list(range(24))
    others = [epoch_order(labels, "shuffle", seed, epoch) for seed, epoch in ((3, 2), (4, 1))]
    for one, other in itertools.combinations([first, *others], 2):
        assert not np.array_equal(one, other)


def test_balanced_order_shows_every_class_equally_often():
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    drawn = labels[np.concatenate([epoch_order(labels, "balanced", 0, e) for e in range(20)])]
    assert len(drawn) == 20_000
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), 1 / 3, atol=0.02)


def test_no_batch_holds_a_single_face(tmp_path):
    order = np.array([3, 1, 0, 2, 4])
    assert batch_rows(order, 0, 2).tolist() == [3, 1]
    assert batch_rows(order, 2, 2).tolist() == [4, 3]
    train(tmp_path, train=faces(n=9), epochs=1)  # eight and one


def test_feed_gives_the_faces_of_the_rows():
    some = faces().take(np.array([4, 8, 15]))
    given = phase(some, votes=np.arange(6, dtype=np.float32).reshape(3, 2), vote_weight=0.5)
    pixels, labels, votes = Feed(given)(np.array([2, 0]))
    assert pixels.shape == (2, 1, 16, 16) and pixels.dtype == torch.uint8
    assert np.array_equal(pixels[0, 0].numpy(), faces().images()[15, ..., 0])
    assert labels.tolist() == [0, 1] and votes.tolist() == [[4, 5], [0, 1]]
    assert Feed(replace(given, recipe=recipe()))(np.array([2, 0]))[2].shape == (2, 0)


# Stopping and going on


def test_an_interrupt_is_a_clean_stop(tmp_path):
    unbroken, _ = train(tmp_path / "1")
    lines = []
    _, result = train(
        tmp_path / "2", on_epoch=lambda _: signal.raise_signal(signal.SIGINT), lines=lines
    )
    assert result.stopped == "interrupted" and len(result.history) == 1
    assert lines[-1].startswith("Stopped (interrupted) in epoch 2: run all from the start")
    lines.clear()
    model, result = train(tmp_path / "2", lines=lines)
    assert not result.stopped and same_weights(model, unbroken)
    assert lines[1].startswith("epoch   1/2")  # what was done before is told again


def test_an_interrupt_within_an_epoch_keeps_the_steps_done(tmp_path, monkeypatch):
    real = training.train_step

    def interrupted(*arguments):
        if arguments[-1] == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(training, "train_step", interrupted)
    _, result = train(tmp_path / "2")
    assert result.stopped == "interrupted"
    progress = load_state(tmp_path / "2" / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 2)
    monkeypatch.undo()
    assert same_weights(train(tmp_path / "2")[0], train(tmp_path / "1")[0])


@pytest.mark.parametrize("moment", ["train_step", "predict_logits"])
def test_an_interrupt_at_the_end_of_a_phase_is_heard_and_loses_nothing(
    tmp_path, monkeypatch, moment
):
    unbroken, _ = train(tmp_path / "1")
    real, calls, lines = getattr(training, moment), [], []

    def interrupted(*arguments, **more):
        calls.append(1)
        if len(calls) == (6 if moment == "train_step" else 2):  # the last one
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **more)

    monkeypatch.setattr(training, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "2", lines=lines)
    assert lines[-1] == "Tiny has ended and is kept: started again, the run goes on after it."
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("trained again"))
    model, result = train(tmp_path / "2")
    assert same_weights(model, unbroken) and not result.stopped


def test_a_second_interrupt_stops_at_once_and_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stop_request() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_training_outside_of_the_main_thread(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train(tmp_path, epochs=1)[1]))
    thread.start()
    thread.join()
    assert found[0].best_epoch == 1


def test_a_finished_phase_is_not_trained_again(tmp_path, monkeypatch):
    model, first = train(tmp_path)
    monkeypatch.setattr(training, "train_step", lambda *_: pytest.fail("trained again"))
    again, second = train(tmp_path)
    assert same_weights(model, again) and second.history == first.history
    assert second.best_epoch == first.best_epoch


@pytest.mark.parametrize("changes, words", [
    ({"train": faces(seed=5, n=27)}, r"training data was \S+ and is"),
    ({"epochs": 3}, "recipe epochs was 2 and is 3"),
    ({"seed": 1}, "seed was 0 and is 1"),
    ({"model": net(width=24)}, r"architecture width was 16 and is 24; starting weights was"),
    ({"model": net(seed=1)}, "starting weights was"),
    ({"augment": Augment()}, r"augmentation brightness was 0\.2 and is 0\.0; .*augmentation flip"),
    ({"precision": "bf16"}, r"precision was \S*fp32\S* and is \S*bf16"),
    ({"selection": selection_faces(n=12)}, "selection data was"),
    ({"votes": some_votes(), "vote_weight": 0.5}, r"recipe vote_weight was 0\.0.*votes was null"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_another_training_is_refused_with_the_differences(tmp_path, changes, words):
    train(tmp_path, deadline=PAST)
    with pytest.raises(CheckpointError, match=words) as caught:
        train(tmp_path, **changes)
    assert "belongs to another training" in str(caught.value)
    assert "RESUME to 'never'" in str(caught.value)


def test_other_votes_are_refused_where_they_are_learned(tmp_path):
    others = np.roll(some_votes(), 3, axis=0)
    train(tmp_path / "1", deadline=PAST, votes=some_votes(), vote_weight=0.5)
    with pytest.raises(CheckpointError, match=r"votes was \S+ and is"):
        train(tmp_path / "1", votes=others, vote_weight=0.5)
    train(tmp_path / "2", deadline=PAST, votes=some_votes())
    assert not train(tmp_path / "2", votes=others)[1].stopped


@pytest.mark.parametrize("change", [
    {"labels": np.roll(faces().labels, 1)},
    {"files": faces().files[::-1]},
    {"pixel_hashes": faces().pixel_hashes[::-1]},
], ids=lambda change: next(iter(change)))  # fmt: skip
def test_every_part_of_the_data_tells_one_training_from_another(change):
    one, other = (resuming.identity(phase(f), net()) for f in (faces(), replace(faces(), **change)))
    assert {name for name in one if one[name] != other[name]} == {"training data"}


def test_another_test_folder_is_no_other_training():
    """Its faces are in the dataset's hash, which is that of all splits."""
    one, other = (
        resuming.identity(phase(f, replace(selection_faces(), content_hash=f.content_hash)), net())
        for f in (faces(), replace(faces(), content_hash="1" * 64))
    )
    assert one == other


def test_the_scale_of_fp16_is_taken_up_again(tmp_path):
    train(tmp_path, deadline=PAST, precision="fp16")
    state = load_state(tmp_path / "last.pt")
    state["scaler"]["scale"] = 8.0
    save_state(tmp_path / "last.pt", state)
    train(tmp_path, deadline=PAST, precision="fp16")
    assert load_state(tmp_path / "last.pt")["scaler"]["scale"] == 8.0


def test_what_does_not_change_the_result_may_differ(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_COMMIT", "1111")
    train(tmp_path / "here", deadline=PAST)
    os.rename(tmp_path / "here", tmp_path / "moved")
    monkeypatch.setenv("FER_COMMIT", "2222")
    lines = []
    _, result = train(tmp_path / "moved", detail_every=1, lines=lines)
    assert len(result.history) == 2
    assert "was written by commit 1111, this is 2222." in lines[0]


def test_an_incomplete_state_is_explained(tmp_path):
    train(tmp_path, deadline=PAST)
    state = load_state(tmp_path / "last.pt")
    del state["schedule"]
    torch.save(state, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="is incomplete"):
        train(tmp_path)


# Guards


def poison(monkeypatch, at):
    """Let the loss of one step be nan."""
    real = training.train_step

    def step(*arguments):
        loss, hits = real(*arguments)
        return (loss * float("nan") if arguments[-1] == at else loss), hits

    monkeypatch.setattr(training, "train_step", step)


def test_a_loss_that_is_not_finite_names_the_files_and_keeps_the_last_good_state(
    tmp_path, monkeypatch, eager
):
    poison(monkeypatch, at=3)
    with pytest.raises(TrainingError) as caught:
        train(tmp_path / "1", batch_size=12)
    rows = epoch_order(faces().labels, "shuffle", 0, 1)[12:24]
    assert f"epoch 2, step 2 (batch with {', '.join(faces().files[rows])})" in str(caught.value)
    assert "in a new run (another RUN_NAME)" in str(caught.value)
    progress = load_state(tmp_path / "1" / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 1)
    monkeypatch.undo()
    continued, unbroken = (train(tmp_path / name, batch_size=12)[0] for name in "12")
    assert same_weights(continued, unbroken)


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, eager):
    real = training.train_step

    def step(phase, parts, *rest):
        found = real(phase, parts, *rest)
        nn.init.constant_(parts.model.head[-1].weight, float("nan"))
        return found

    monkeypatch.setattr(training, "train_step", step)
    with pytest.raises(TrainingError, match=r"weights are not finite: .* \(another RUN_NAME\)"):
        train(tmp_path)
    for weights in (load_state(tmp_path / "last.pt")["model"],
                    load_model(tmp_path / "best.safetensors").model.state_dict()):  # fmt: skip
        assert all(torch.isfinite(v).all() for v in weights.values() if v.is_floating_point())


def test_losses_are_looked_at_in_order_however_rarely(tmp_path, monkeypatch):
    """As on a GPU, where a look waits: the sums of an epoch must not depend on when."""
    given = phase()
    losses = torch.rand(6, generator=torch.Generator().manual_seed(0))
    waiting = [(np.arange(8), loss, torch.tensor(3)) for loss in losses]
    at_once, one_by_one = resuming.Progress(), resuming.Progress()
    for one in waiting:
        training.look(given, one_by_one, [one])
    training.look(given, at_once, waiting)
    assert at_once == one_by_one and not waiting
    assert (at_once.step, at_once.seen, at_once.hits) == (6, 48, 18)
    assert at_once.loss == pytest.approx(8 * float(losses.sum()))


@pytest.mark.parametrize("error", NO_MEMORY)
def test_out_of_memory_names_the_largest_half_that_fits(tmp_path, monkeypatch, error):
    real = training.train_step

    def greedy(phase, parts, pixels, *rest):
        if len(pixels) > fits:
            raise error
        return real(phase, parts, pixels, *rest)

    monkeypatch.setattr(training, "train_step", greedy)
    for fits, words in ((5, "BATCH_SIZE 4 fits"), (3, "BATCH_SIZE 2 fits"), (1, "not even BATCH_")):
        with pytest.raises(TrainingError) as caught:
            train(tmp_path / str(fits))
        assert "BATCH_SIZE 8 at IMAGE_SIZE 16 does not fit into memory (" in str(caught.value)
        assert words in str(caught.value)
        given = {"preprocess": PREPROCESS, "augment": AUGMENT}
        with pytest.raises(TrainingError, match=words):
            estimate_minutes(net(), faces(), selection_faces(), recipe(), **given)


def test_memory_may_run_out_in_the_optimizer(tmp_path, monkeypatch):
    """In the middle of it: Adam has begun its state, the scaler its step."""
    real, fails = training.make_parts, iter([True, True, False])  # of 8, 4 and 2 faces

    def begin(optimizer, *_):
        if next(fails):
            optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] = torch.tensor(0.0)
            raise NO_MEMORY[0]

    def make_parts(*arguments, **options):
        parts = real(*arguments, **options)
        parts.optimizer.register_step_pre_hook(begin)
        return parts

    monkeypatch.setattr(training, "make_parts", make_parts)
    with pytest.raises(TrainingError, match=r"BATCH_SIZE 2 fits, .* \(another RUN_NAME\)"):
        train(tmp_path, **(OPTIONS["adam"] | OPTIONS["fp16"]))


def test_a_full_disk_in_the_middle_is_a_warning(tmp_path, monkeypatch, eager):
    disk, lines = full_disk(monkeypatch, full=False), []

    def on_epoch(history):
        disk["full"] = len(history) == 1

    model, result = train(tmp_path / "1", epochs=3, on_epoch=on_epoch, lines=lines)
    assert len(result.history) == 3
    assert any(line.startswith("Warning: ") and "free some space" in line for line in lines)
    assert load_state(tmp_path / "1" / "last.pt")["progress"]["epoch"] == 3
    assert same_weights(model, train(tmp_path / "2", epochs=3)[0])


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_full_disk_at_the_start_and_at_the_end_is_an_error(tmp_path, monkeypatch, epoch):
    disk = full_disk(monkeypatch, full=epoch == 0)

    def on_epoch(history):
        disk["full"] = len(history) == epoch - 1  # until the last epoch is to be saved

    with pytest.raises(CheckpointError, match="free some space"):
        train(tmp_path, on_epoch=on_epoch)
    disk["full"] = False
    _, result = train(tmp_path)  # and nothing is lost that had been saved
    assert len(result.history) == 2


def test_a_full_disk_is_not_asked_again_at_every_step(tmp_path, monkeypatch):
    disk, lines = full_disk(monkeypatch, full=False), []
    keepers = []
    real = resuming.Keeper.__init__

    def remember(self, *arguments, **more):
        real(self, *arguments, **more)
        keepers.append(self)

    def on_epoch(history):
        disk["full"] = len(history) == 1
        keepers[0].tried -= 1000 * (len(history) == 1)

    monkeypatch.setattr(resuming.Keeper, "__init__", remember)
    train(tmp_path, epochs=3, on_epoch=on_epoch, lines=lines)
    assert sum(line.startswith("Warning") for line in lines) == 1


def test_a_disk_that_will_be_too_small_is_known_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(resuming.shutil, "disk_usage", lambda _: (10**9, 10**9 - 1000, 1000))
    for _ in range(2):  # the second time there is a state
        with pytest.raises(CheckpointError, match=r"has room for 0 MB.*free some space"):
            train(tmp_path)
    monkeypatch.setattr(resuming.shutil, "disk_usage", lambda _: (0, 0, 0))  # a disk that says none
    train(tmp_path)


@pytest.mark.parametrize("name", ["plain", "adam", "cosine"])  # SGD, Adam, and with an average
def test_the_room_asked_for_is_what_the_state_will_take(tmp_path, monkeypatch, name):
    def train_with(free, folder):
        monkeypatch.setattr(resuming.shutil, "disk_usage", lambda _: (10**9, 10**9 - free, free))
        train(tmp_path / folder, epochs=1, **OPTIONS[name])
        return (tmp_path / folder / "last.pt").stat().st_size

    grown = train_with(10**9, "all")
    with pytest.raises(CheckpointError, match="has room"):
        train_with(1, "none")
    needed = 2 * grown - (tmp_path / "none" / "last.pt").stat().st_size  # old and new, once
    with pytest.raises(CheckpointError, match="has room"):
        train_with(int(0.97 * needed), "too little")
    train_with(int(1.03 * needed), "enough")


def test_a_state_that_cannot_be_written_again_is_known_before_training(tmp_path, monkeypatch):
    disk = full_disk(monkeypatch, full=False)
    train(tmp_path, deadline=0.0)
    disk["full"], steps = True, []
    monkeypatch.setattr(training, "train_epoch", lambda *_: steps.append(1))
    with pytest.raises(CheckpointError, match="free some space"):
        train(tmp_path)
    assert not steps


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with files.sole_writer(tmp_path), pytest.raises(files.FolderInUseError, match="RUN_NAME"):
        train(tmp_path)
    train(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="every disk of Windows can lock")
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_killed_process_leaves_no_lock_on_a_disk_that_cannot_lock(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    held = [files.sole_writer(tmp_path / "run" / "fer2013") for _ in range(2)]
    for one in held:  # neither comes to its end
        one.__enter__()
        assert not files.in_use(tmp_path / "run")
    lock = tmp_path / "run" / "fer2013" / files.LOCK
    lock.write_text("1\nanother-container\n")  # as filelock left one before
    assert not files.in_use(tmp_path / "run")
    files.sole_writer(lock.parent).__enter__()


# How long


@pytest.mark.parametrize("changes", [
    {}, {"schedule": "onecycle", "epochs": 1, "batch_size": 24}, {"mixup": 1.0, "ema": 0.9},
    {"vote_weight": 0.5},
])  # fmt: skip
def test_estimate_changes_nothing(changes):
    model = net()
    given = {"preprocess": PREPROCESS, "augment": AUGMENT}
    estimate_minutes(model, faces(), selection_faces(), recipe(**changes), **given)
    assert same_weights(model, net())


ONE_STEP = {"keep": "last", "schedule": "onecycle", "epochs": 1, "batch_size": 24}
SMALL_FIRST = {"start_size": 8, "grow_until": 0.5}


@pytest.mark.parametrize("backbone, selection, changes, seconds", [
    # A face takes 0.05 s: 0.4 s for eight, without the first, slow step and an odd one.
    ("resnet18", selection_faces(), {}, 2 * (24 + 9 / 3) * 0.05),
    # Half of the epochs are at a quarter of the pixels, and the selection set is never smaller.
    ("resnet18", selection_faces(), SMALL_FIRST, 2 * (24 * 5 / 8 + 9 / 3) * 0.05),
    ("swin_t", selection_faces(), SMALL_FIRST, 2 * (24 + 9 / 3) * 0.05),
    ("resnet18", None, {"keep": "last", "schedule": "cosine"}, 2 * 24 * 0.05),
    ("resnet18", None, ONE_STEP, 6.0),  # there is no other step to measure
], ids=["plain", "growing", "transformer", "nothing to choose on", "one step"])  # fmt: skip
def test_estimate_by_hand(monkeypatch, backbone, selection, changes, seconds):
    model = net()
    model.architecture["backbone"] = backbone
    clock = iter([0.0, 6.0, 6.0, 6.4, 6.4, 6.8, 6.8, 9.8])
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(training, "step_that_fits", lambda *_: None)
    given = {"preprocess": PREPROCESS, "augment": AUGMENT}
    minutes = estimate_minutes(model, faces(), selection, recipe(**changes), **given)
    assert 60 * minutes == pytest.approx(seconds)


# Killing

CHILD = textwrap.dedent("""
    import os
    import signal
    import sys
    import threading

    from fer_helpers import training
    from fer_helpers.checkpoints import weights_hash
    from tests.tiny import some_votes, train

    folder, moment, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    training.SAVE_SECONDS = 0.0  # save after every step, so that kills fall into saving too
    step = training.train_step
    kill = (os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # which is as hard on Windows

    def told(*arguments):
        done = step(*arguments)
        print("step", flush=True)
        if 0 <= moment <= arguments[-1]:
            threading.Timer(delay, os.kill, kill).start()
        return done

    training.train_step = told
    model, result = train(
        folder, epochs=60, schedule="cosine", warmup=0.2, optimizer="adamw", ema=0.9, mixup=0.4,
        backbone_lr=1e-3, attention_lr=1e-3, head_lr=1e-3, votes=some_votes(), vote_weight=0.5,
    )
    print("hash", weights_hash(model), [
        {k: v for k, v in row.items() if k != "seconds"} for row in result.history
    ], flush=True)
""")


def child(folder, moment=-1, delay=0.0):
    """What a process printed that trains in `folder`, and its exit status.

    It kills itself `delay` seconds after it has made step `moment` of 180. Killed from outside, it
    might long have ended on a busy machine.
    """
    command = [sys.executable, "-c", CHILD, str(folder), str(moment), str(delay)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines(), done.returncode


@pytest.mark.slow
def test_killed_at_twenty_moments_and_still_the_same_bits(tmp_path):
    chance = random.Random(0)
    told, status = child(tmp_path / "unbroken")
    assert told.count("step") == 180 and status == 0
    for moment in sorted(chance.sample(range(160), 20)):
        # Anywhere in saving, scoring or one of the next steps.
        _, status = child(tmp_path / "killed", moment, chance.uniform(0, 0.05))
        assert status != 0
        assert len(list((tmp_path / "killed").glob(".*.partial"))) <= 1  # never piling up
    again, status = child(tmp_path / "killed")
    assert 0 < again.count("step") < 180 and status == 0
    assert again[-1] == told[-1] and again[-1].startswith("hash ")
    assert kept_in(tmp_path / "killed") == FILES
