import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load, save_file

from fer_helpers import checkpoints
from fer_helpers.checkpoints import (
    CheckpointError,
    load_model,
    load_state,
    newest_model,
    random_state,
    restore_random_state,
    save_model,
    save_state,
    weights_hash,
    write_atomically,
)
from fer_helpers.files import remove_partials, replace_file
from fer_helpers.inference import predict_logits
from fer_helpers.plain import differences
from tests.tiny import (
    NAMES,
    NO_MEMORY_HERE,
    PREPROCESS,
    full_disk,
    net,
    same_weights,
    selection_faces,
    train,
)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def saved(folder, **more):
    path = folder / "model.safetensors"
    save_model(path, net(), NAMES, PREPROCESS, **more)
    return path


def edit(path, change):
    """Rewrite a model file after `change(tensors, about)`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["fer_helpers"])
    tensors = load(path.read_bytes())  # a mapped file could not be replaced on Windows
    change(tensors, about)
    save_file(tensors, path, metadata={"fer_helpers": json.dumps(about)})


# Writing


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "x"
    replace_file(path, lambda partial: partial.write_text("old"))

    def half(partial):
        partial.write_text("ne")
        raise RuntimeError("the stream broke")  # torch's way to report a full disk

    with pytest.raises(CheckpointError, match=r"x could not be written \(the stream broke\)"):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()
    full_disk(monkeypatch)
    with pytest.raises(CheckpointError, match=r"No space left.*free some space.*untouched"):
        save_model(path, net(seed=1), NAMES, PREPROCESS)
    with pytest.raises(CheckpointError, match="No space left"):
        save_state(tmp_path / "last.pt", {"x": 1})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="another OUTPUT_DIR"):
        save_state(tmp_path / "file" / "last.pt", {})


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in (".last.pt.123.partial", "last.pt", ".hidden"):
        (tmp_path / name).write_text("")
    remove_partials(tmp_path)
    remove_partials(tmp_path / "absent")
    assert sorted(os.listdir(tmp_path)) == [".hidden", "last.pt"]


def test_what_another_process_may_still_write_stays(tmp_path):
    for minutes in (5, 15):
        partial = tmp_path / f".last.pt.{minutes}.partial"
        partial.write_text("")
        os.utime(partial, (partial.stat().st_mtime - 60 * minutes,) * 2)
    remove_partials(tmp_path, minutes=10)
    assert os.listdir(tmp_path) == [".last.pt.5.partial"]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "in use"), MemoryError("no memory"), NO_MEMORY_HERE]
)
def test_a_state_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    save_state(tmp_path / "last.pt", {"x": 1})

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read now.*do not delete it"):
        load_state(tmp_path / "last.pt")


# Model files


def test_a_model_file_holds_everything_that_is_needed_to_use_it(tmp_path):
    path = saved(tmp_path, temperature=1.5, extra={"origin": "drawn"})
    loaded = load_model(path)
    assert loaded.class_names == NAMES
    assert loaded.preprocess == PREPROCESS
    assert (loaded.temperature, loaded.extra, loaded.path) == (1.5, {"origin": "drawn"}, path)
    assert same_weights(loaded.model, net())
    assert not loaded.model.training


def test_best_weights_reproduce_their_score_in_a_fresh_model(tmp_path):
    _, result = train(tmp_path, epochs=3)
    loaded = load_model(tmp_path / "best.safetensors")
    chosen = selection_faces()
    logits = predict_logits(loaded.model, chosen, loaded.preprocess)
    row = result.history[result.best_epoch - 1]
    assert loaded.extra["epoch"] == result.best_epoch
    assert (logits.argmax(1) == chosen.labels).mean() == row["selection_accuracy"]
    truth = torch.from_numpy(chosen.labels)
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits), truth)
    assert float(loss) == pytest.approx(row["selection_loss"], abs=1e-6)


def test_half_precision_weights_come_back_as_floats(tmp_path):
    half = {n: v.half() if v.is_floating_point() else v for n, v in net().state_dict().items()}
    save_model(tmp_path / "half.safetensors", net(), NAMES, PREPROCESS, state=half)
    model = load_model(tmp_path / "half.safetensors").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_run_folder_phase_folder_and_newest_run(tmp_path, monkeypatch):
    for name, time in (("a", 200), ("b", 100)):
        (tmp_path / name).mkdir()
        os.utime(saved(tmp_path / name, extra={"run": name}), (time, time))
    (tmp_path / "c" / "fer2013").mkdir(parents=True)  # a run that was stopped in phase 2
    save_model(tmp_path / "c" / "fer2013" / "best.safetensors", net(), NAMES, PREPROCESS)
    assert load_model(tmp_path / "b").extra["run"] == "b"
    assert load_model(runs=tmp_path).extra["run"] == "a"
    assert newest_model(tmp_path) == tmp_path / "a" / "model.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_model("~/b").extra["run"] == load_model("~/b/model.safetensors").extra["run"] == "b"
    for folder in (tmp_path / "c", tmp_path / "c" / "fer2013"):
        assert load_model(folder).path.name == "best.safetensors"


def test_a_phase_that_has_only_begun_does_not_answer_for_the_one_before(tmp_path):
    for phase, epochs in (("affectnet", 3), ("fer2013", 0)):
        (tmp_path / phase).mkdir()
        best = tmp_path / phase / "best.safetensors"
        save_model(best, net(), NAMES, PREPROCESS, extra={"epoch": epochs})
    assert load_model(tmp_path).path.parent.name == "affectnet"
    assert load_model(tmp_path / "fer2013").extra["epoch"] == 0  # if asked for


def test_a_run_continued_in_phase_2_no_longer_answers_with_phase_1(tmp_path):
    run = tmp_path / "run"
    (run / "fer2013").mkdir(parents=True)
    saved(run, extra={"best_epoch": 3})  # it was stopped in phase 1
    best = run / "fer2013" / "best.safetensors"
    names = ("Fear", *NAMES[1:])
    save_model(best, net(), names, PREPROCESS, extra={"epoch": 0})
    assert load_model(run).class_names == NAMES
    save_model(best, net(), names, PREPROCESS, extra={"epoch": 2})
    assert load_model(run).class_names == load_model(runs=tmp_path).class_names == names


def test_a_run_whose_last_phase_was_deleted_does_not_answer_with_phase_1(tmp_path):
    saved(tmp_path, extra={"best_epoch": 3})
    (tmp_path / "affectnet").mkdir()
    names, best = ("Fear", *NAMES[1:]), tmp_path / "affectnet" / "best.safetensors"
    save_model(best, net(), names, PREPROCESS, extra={"epoch": 5})
    assert load_model(tmp_path).class_names == NAMES


@pytest.mark.parametrize("phase", ["affectnet", "fer2013"])
def test_a_run_continued_in_a_phase_no_longer_answers_as_it_did_when_it_was_stopped(
    tmp_path, phase
):
    (tmp_path / phase).mkdir()
    best = {"path": tmp_path / phase / "best.safetensors", "model": net(), "class_names": NAMES}
    for stopped, epochs, answers in ((2, 2, "model"), (2, 5, "best"), (None, 5, "model")):
        saved(tmp_path, extra={"best_epoch": stopped} if stopped else {})
        save_model(**best, preprocess=PREPROCESS, extra={"epoch": epochs})
        assert load_model(tmp_path).path.stem == answers


def test_a_run_on_drawn_faces_answers_only_where_nothing_else_can(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "weights")
    for folder, origin, time in (("demo", "drawn", 300), ("old", "real", 100)):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        os.utime(saved(tmp_path / "runs" / folder, extra={"origin": origin}), (time, time))
    assert newest_model(tmp_path / "runs").parent.name == "old"
    (tmp_path / "runs" / "old" / "model.safetensors").unlink()
    assert newest_model(tmp_path / "runs").parent.name == "demo"
    (tmp_path / "weights").mkdir()
    shipped = saved(tmp_path / "weights")
    assert newest_model(tmp_path / "runs") == shipped == newest_model(tmp_path / "nowhere")


def test_a_run_without_an_epoch_answers_nowhere(tmp_path):
    for name, epochs, time in (("good", 5, 100), ("stopped at once", 0, 300)):
        (tmp_path / name).mkdir()
        extra = {"origin": "real", "best_epoch": epochs}
        os.utime(saved(tmp_path / name, extra=extra), (time, time))
    assert newest_model(tmp_path).parent.name == "good"
    assert load_model(tmp_path / "stopped at once").extra["best_epoch"] == 0  # if asked for


def test_no_model_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "weights")
    with pytest.raises(CheckpointError, match="run the notebook once"):
        load_model(runs=tmp_path / "runs")
    with pytest.raises(CheckpointError, match="There is no model file"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="There is no model file"):
        load_model("x" * 5000)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no model file at .*model\.safetensors"):
        load_model(tmp_path / "empty")


def drop(name):
    return lambda tensors, about: tensors.pop(name)


def add(tensors, about):
    tensors["head.9.weight"] = torch.zeros(3)


def reshape(tensors, about):
    tensors["head.4.weight"] = torch.zeros(3, 9)


def describe(**changes):
    return lambda tensors, about: about.update(changes)


def forget(name):
    return lambda tensors, about: about.pop(name)


@pytest.mark.parametrize(
    "change, words",
    [
        (describe(format=99), "saved by a later release .format 99.*update fer_helpers"),
        (describe(format="new"), "cannot be read"),
        (describe(format=float("inf")), "cannot be read"),
        (forget("format"), "cannot be read"),
        (describe(class_names=["Happy", "Sad"]), "names 2 classes but its network answers for 3"),
        (describe(class_names=["Sad", "Sad", "Happy"]), "names a class twice .Sad, Sad, Happy"),
        (describe(architecture={"num_classes": 3, "backbone": "x"}), "does not build"),
        (describe(architecture={"num_classes": 3, "flavor": "x"}), "does not build"),
        (describe(architecture={"num_classes": 3, "head_hidden": -1}), "0 leaves the hidden layer"),
        (describe(architecture={"num_classes": 3, "width": 10**6}), "does not build"),
        (describe(preprocess={"size": 16, "crop": 3}), "incomplete or unknown"),
        (describe(preprocess={"size": 16, "channels": 3}), "channel.s. for a network of"),
        (forget("extra"), "incomplete or unknown"),
        (forget("temperature"), "incomplete or unknown"),
        (forget("class_names"), "incomplete or unknown"),
        (describe(temperature=-1.0), "temperature is -1.0, not above 0"),
        (describe(temperature=float("nan")), "temperature is nan"),
        (describe(class_names=[1, 2, 3]), "no list of names"),
        (describe(class_names="ABC"), "no list of names"),
        (drop("head.4.bias"), r"1 missing .such as head\.4\.bias"),
        (add, r"1 unknown .such as head\.9\.weight"),
        (reshape, r"1 misshapen .such as head\.4\.weight"),
    ],
)
def test_a_model_file_that_does_not_fit_is_refused(tmp_path, change, words):
    path = saved(tmp_path)
    edit(path, change)
    with pytest.raises(CheckpointError, match=words):
        load_model(path)


def test_a_model_file_fetches_nothing(tmp_path, monkeypatch):
    path = saved(tmp_path)
    wanted = {**net().architecture, "pretrained": "imagenet"}
    edit(path, describe(architecture=wanted))
    monkeypatch.setattr("fer_helpers.models.load_pretrained", lambda *_: pytest.fail("fetched"))
    assert same_weights(load_model(path).model, net())


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_damaged_model_file_is_refused(tmp_path, keep):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="take an intact copy"):
        load_model(path)


def test_weights_without_description_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not what they are for"):
        load_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_pickle_is_refused_and_not_executed(tmp_path, write):
    write({"format": 1, "x": Bomb(tmp_path / "executed")}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="delete it"):
        load_state(tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_model(tmp_path / "bomb.pt")
    assert not (tmp_path / "executed").exists()


# State files


def test_a_state_goes_through_a_file_unchanged(tmp_path):
    state = {"a": torch.arange(3), "b": [1, 2.5, None, "x"], "c": {"d": (True, False)}}
    save_state(tmp_path / "last.pt", state)
    back = load_state(tmp_path / "last.pt")
    assert torch.equal(back.pop("a"), state.pop("a"))
    assert back == {"format": 1, **state}


def test_a_state_is_plain_enough_for_weights_only(tmp_path):
    train(tmp_path, epochs=1)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["epoch"] == 1


@pytest.mark.parametrize("content, words", [
    (b"", "damaged"),
    (b"PK\x03\x04 half a file", "damaged"),
])  # fmt: skip
def test_a_damaged_state_is_refused(tmp_path, content, words):
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        load_state(tmp_path / "last.pt")


def test_a_state_of_a_later_release_and_of_something_else(tmp_path):
    torch.save({"format": 99}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="later release"):
        load_state(tmp_path / "last.pt")
    torch.save([1], tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="not the state of a training"):
        load_state(tmp_path / "last.pt")


def test_every_random_stream_is_put_back(tmp_path):
    own = torch.Generator().manual_seed(3)

    def draw():
        return torch.rand(2, generator=own).tolist(), torch.rand(2).tolist()

    save_state(tmp_path / "x", random_state(own, torch.device("cpu")))
    first = draw()
    restore_random_state(load_state(tmp_path / "x"), own, torch.device("cpu"))
    assert draw() == first


def test_weights_hash_sees_every_bit_and_no_memory_order():
    model = net()
    assert weights_hash(model) == weights_hash(net())
    assert weights_hash(model) == weights_hash(net().to(memory_format=torch.channels_last))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-7
    assert weights_hash(model) != weights_hash(net())


def test_differences_are_listed_entry_by_entry():
    before = {"seed": 1, "architecture": {"width": 16, "stem": "small2"}, "data": "a"}
    now = {"seed": 2, "architecture": {"width": 32, "stem": "small2"}, "data": "a", "new": True}
    assert differences(before, now) == [
        "architecture width was 16 and is 32",
        "new was not there and is true",
        "seed was 1 and is 2",
    ]
    assert differences(now, dict(now)) == []
