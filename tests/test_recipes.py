import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fer_helpers.config import Config
from fer_helpers.models import build_model
from fer_helpers.phases import TrainingError, make_parts
from fer_helpers.recipes import (
    class_weights,
    make_loss,
    make_optimizer,
    make_schedule,
    vote_loss,
)
from tests.test_config import ROOT
from tests.tiny import faces, net, phase, recipe, scored_faces, selection_faces

COUNTS = np.array([50, 30, 20])
PLAIN = {"class_weights": "none", "label_smoothing": 0.0}


@pytest.fixture(scope="module")
def batch():
    """Logits (16, 3), class numbers (16,) and soft labels (16, 3)."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 3, generator=draw) * 2
    labels = torch.randint(3, (16,), generator=draw)
    return logits, labels, torch.rand(16, 3, generator=draw).softmax(1)


# What a phase refuses


@pytest.mark.parametrize(
    "sets",
    [
        {"train": scored_faces()},
        {"selection": scored_faces()},
        {"selection": faces()},
        {"train": selection_faces()},
    ],
    ids=["trained on test", "chosen on test", "chosen on train", "trained on selection"],
)
def test_sets_are_refused_by_their_type(sets):
    with pytest.raises(TrainingError, match="a test set is never trained or chosen on"):
        phase(**sets)


@pytest.mark.parametrize("changes", [
    {"keep": "best", "schedule": "cosine"},
    {"keep": "last", "schedule": "plateau"},
    {"keep": "last", "schedule": "cosine", "early_stop": 1},
])  # fmt: skip
def test_nothing_to_choose_on(changes):
    with pytest.raises(TrainingError, match="nothing to choose on"):
        phase(selection=None, **changes)


def test_without_selection_set_the_last_weights_can_be_kept():
    assert phase(selection=None, keep="last", schedule="cosine").selection is None


def test_a_class_without_a_face_is_named():
    with pytest.raises(TrainingError, match="No training image of Sad, Surprise:"):
        phase(faces(labels=[0] * 9))


def test_too_few_faces_and_other_classes():
    with pytest.raises(TrainingError, match="1 training faces are too few"):
        phase(faces(n=1, names=("Happy",)))
    with pytest.raises(TrainingError, match="the selection set Anger, Sad, Surprise"):
        phase(selection=selection_faces(names=("Anger", "Sad", "Surprise")))
    with pytest.raises(TrainingError, match="selection set is empty"):
        phase(selection=selection_faces(n=0))


def test_votes_must_be_there_and_fit_where_they_are_learned():
    assert phase().votes is None
    for votes, words in (
        (None, "24 training faces, and there are none"),
        (np.zeros((9, 8)), "9 rows"),
    ):
        with pytest.raises(TrainingError, match=words):
            phase(votes=votes, vote_weight=0.5)
    phase(votes=np.zeros((9, 8)))  # not learned, not looked at


# Loss


def test_class_weights_by_hand():
    counts = np.array([6, 3, 1])
    np.testing.assert_allclose(class_weights(counts, "balanced"), [10 / 18, 10 / 9, 10 / 3])
    slow = np.array([(1 - 0.999) / (1 - 0.999**n) for n in (6, 3, 1)])
    slow *= counts.sum() / (slow @ counts)
    np.testing.assert_allclose(class_weights(counts, "effective"), slow)


@pytest.mark.parametrize("kind", ["balanced", "effective"])
def test_plain_and_mixed_labels_weigh_the_same(kind):
    labels = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))
    logits = torch.zeros(len(labels), 3)  # where every face has the same loss
    loss = make_loss(recipe(**{**PLAIN, "class_weights": kind}), COUNTS)
    plain, mixed = loss(logits, labels), loss(logits, F.one_hot(labels, 3).float())
    assert float(plain) == pytest.approx(float(mixed), rel=1e-5)


@pytest.mark.parametrize("kind", ["balanced", "effective", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs(batch, kind, smoothing):
    logits, labels, soft = batch
    loss = make_loss(recipe(class_weights=kind, label_smoothing=smoothing), COUNTS)
    weight = {"balanced": 100 / (3 * COUNTS), "none": np.ones(3)}.get(kind)
    if kind == "effective":
        weight = (1 - 0.999) / (1 - 0.999**COUNTS)
        weight = weight * COUNTS.sum() / (weight @ COUNTS)
    weight = torch.tensor(weight, dtype=torch.float32)
    for targets in (labels, soft):
        theirs = F.cross_entropy(logits, targets, weight=weight, label_smoothing=smoothing)
        assert float(loss(logits, targets)) == pytest.approx(float(theirs), rel=1e-6)


def test_focal_loss_of_a_certain_answer_has_a_gradient():
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    given = recipe(loss="focal", focal_gamma=0.5, **PLAIN)
    make_loss(given, COUNTS)(logits, torch.tensor([0])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_equals_a_slow_one(batch, gamma):
    logits, labels, _ = batch
    loss = make_loss(recipe(loss="focal", focal_gamma=gamma, **PLAIN), COUNTS)
    slow = 0.0
    for row, label in zip(logits.double(), labels, strict=True):
        p = float(torch.exp(row[label]) / torch.exp(row).sum())
        slow += -((1 - p) ** gamma) * np.log(p) / len(labels)
    assert float(loss(logits, labels)) == pytest.approx(slow, rel=1e-5)


def test_focal_loss_takes_soft_labels(batch):
    logits, labels, _ = batch
    loss = make_loss(recipe(loss="focal", **PLAIN), COUNTS)
    hard = F.one_hot(labels, 3).float()
    assert float(loss(logits, hard)) == pytest.approx(float(loss(logits, labels)), rel=1e-6)


def test_logit_adjustment_adds_the_logarithm_of_the_share(batch):
    logits, labels, _ = batch
    loss = make_loss(recipe(logit_adjustment=1.5, **PLAIN), COUNTS)
    moved = logits + 1.5 * torch.log(torch.tensor([0.5, 0.3, 0.2]))
    assert float(loss(logits, labels)) == pytest.approx(float(F.cross_entropy(moved, labels)))


@pytest.mark.parametrize("sampler, counts", [("shuffle", [16, 6, 2]), ("balanced", [8, 8, 8])])
def test_the_loss_knows_how_often_each_class_is_shown(batch, sampler, counts):
    logits, labels, _ = batch
    given = {"sampler": sampler, "logit_adjustment": 1.0}
    parts = make_parts(phase(faces(labels=np.repeat([0, 1, 2], [16, 6, 2])), **given), net())
    theirs = make_loss(recipe(**given), np.array(counts))(logits, labels)
    assert float(parts.loss(logits, labels)) == pytest.approx(float(theirs))


def test_loss_is_taken_in_full_precision(batch):
    logits, labels, _ = batch
    assert make_loss(recipe(), COUNTS)(logits.bfloat16(), labels).dtype == torch.float32


def test_vote_loss_equals_a_slow_one_over_the_faces_with_votes(batch):
    logits, _, votes = batch
    votes = votes.clone()
    votes[[2, 5]] = 0
    slow = -(votes * logits.double().log_softmax(1)).sum(1)
    expected = sum(float(cost) for face, cost in enumerate(slow) if face not in (2, 5)) / 14
    assert float(vote_loss(logits, votes)) == pytest.approx(expected, rel=1e-5)
    assert vote_loss(logits.bfloat16(), votes).dtype == torch.float32


def test_no_votes_at_all_teach_nothing(batch):
    logits = batch[0].clone().requires_grad_()
    loss = vote_loss(logits, torch.zeros(16, 3))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


# Schedule


def rates(name, epochs, steps, warmup=0.0, accuracies=()):
    """The learning rate of every step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    given = recipe(schedule=name, epochs=epochs, warmup=warmup, plateau_patience=1)
    schedule = make_schedule(optimizer, given, steps)
    found = []
    for step in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if name != "plateau":
            schedule.step()
        elif step % steps == steps - 1:
            schedule.step(accuracies[step // steps])
    return np.array(found)


def test_cosine_rises_and_falls():
    found = rates("cosine", 10, 10, warmup=0.1)
    np.testing.assert_allclose(found[:10], np.linspace(1 / 11, 10 / 11, 10))
    np.testing.assert_allclose(found[10:], (1 + np.cos(np.pi * np.arange(90) / 90)) / 2, atol=1e-9)


def test_one_cycle_has_its_peak_where_the_warm_up_ends():
    found = rates("onecycle", 10, 10, warmup=0.2)
    assert found.argmax() == 19 and found.max() == pytest.approx(1.0)
    assert found[0] == pytest.approx(1 / 25) and found[-1] < 1e-4


def test_one_cycle_rises_for_three_tenths_unless_told_otherwise():
    assert rates("onecycle", 10, 10).argmax() == 29


def test_in_one_cycle_every_group_has_a_peak_of_its_own():
    given = recipe(schedule="onecycle", backbone_lr=0.1, attention_lr=0.2, head_lr=0.4)
    optimizer = make_optimizer(net(attention="se"), given)
    make_schedule(optimizer, given, steps=3)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == pytest.approx({"backbone": 0.1 / 25, "attention": 0.2 / 25, "head": 0.4 / 25})


def test_plateau_halves_when_accuracy_stops_rising():
    found = rates("plateau", 6, 2, accuracies=[0.1, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert found[::2].tolist() == [1, 1, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("epochs, steps", [(1, 1), (1, 2), (2, 1), (1, 3), (3, 3)])
def test_a_schedule_longer_than_the_data(name, warmup, epochs, steps):
    found = rates(name, epochs, steps, warmup)
    assert np.isfinite(found).all() and (found >= 0).all() and found.max() > 0


# Optimizer


@pytest.mark.parametrize("name, kind", [
    ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD),
])  # fmt: skip
def test_optimizers(name, kind):
    optimizer = make_optimizer(net(), recipe(optimizer=name))
    assert type(optimizer) is kind
    assert all(group["fused"] for group in optimizer.param_groups)
    if name == "sgd":
        assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_first_step_that_fp16_skips_leaves_no_trace(name):
    """The first loss scale is nearly always too high, so this is the usual beginning on a T4."""
    after = []
    for overflow in (True, False):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"head": torch.nn.Linear(64, 64)})
        optimizer = make_optimizer(model, recipe(optimizer=name, head_lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        for skipped in [True] * overflow + [False] * 3:
            scaler.scale(model["head"](torch.ones(2, 64)).square().mean()).backward()
            if skipped:
                model["head"].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update(4.0)
            optimizer.zero_grad()
        after.append(model["head"].weight.detach())
    assert torch.equal(*after)


@pytest.mark.parametrize("decay_norms", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"attention": "none"}, {"attention": "cbam", "attention_place": "each"}]
)
def test_groups_hold_each_parameter_once(decay_norms, changes):
    model = net(**changes)
    rates = {"backbone": 1e-5, "attention": 5e-5, "head": 1e-3}
    given = {f"{part}_lr": rate for part, rate in rates.items()}
    groups = make_optimizer(
        model, recipe(weight_decay=0.1, decay_norms=decay_norms, **given)
    ).param_groups
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for group in groups:
        assert group["lr"] == rates[group["name"]]
        assert group["params"]
        if not decay_norms:
            flat = all(p.ndim < 2 for p in group["params"])
            assert group["weight_decay"] == (0.0 if flat else 0.1)
    there = {group["name"] for group in groups}
    assert ("attention" in there) == (changes != {"attention": "none"})


def test_the_vote_head_learns_at_the_rate_of_the_head():
    given = {"votes": np.ones((24, 8), np.float32) / 8, "decay_norms": False}
    parts = make_parts(phase(vote_weight=0.5, head_lr=0.7, **given), net())
    assert parts.vote_head.out_features == 8
    rates = {
        id(weights): (group["lr"], group["weight_decay"])
        for group in parts.optimizer.param_groups
        for weights in group["params"]
    }
    assert rates[id(parts.vote_head.weight)] == (0.7, recipe().weight_decay)
    assert rates[id(parts.vote_head.bias)] == (0.7, 0.0)
    assert make_parts(phase(**given), net()).vote_head is None


def test_weights_lie_in_channels_last_order():
    convolution = make_parts(phase(), net()).model.backbone.layer1[0].conv1
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.weight.is_contiguous()


# Average


def test_average_is_torchs_after_its_youth():
    parts = make_parts(phase(ema=0.9), net())
    slow = {}
    for number in range(100, 104):
        with torch.no_grad():
            for p in parts.model.parameters():
                p += 1
        parts.update_average(0.9, number)
        for name, p in parts.model.named_parameters():
            now = p.detach().clone()
            slow[name] = now if number == 100 else 0.9 * slow[name] + 0.1 * now
    for name, p in parts.kept().named_parameters():
        torch.testing.assert_close(p, slow[name])
    assert parts.kept() is not parts.model


def test_a_young_average_forgets_faster_and_takes_the_buffers_along():
    parts, slow = make_parts(phase(ema=0.9), net()), {}
    state = parts.model.state_dict()
    moving = {n: v for n, v in state.items() if v.is_floating_point()}
    whole = state.keys() - moving.keys()
    assert any("running_mean" in name for name in moving)
    assert any("num_batches" in name for name in whole)
    for number in range(4):
        rate = (1 + number) / (10 + number)
        for name, values in moving.items():
            values += 1
            slow[name] = rate * slow.get(name, values) + (1 - rate) * values
        for name in whole:
            state[name] += 1
        parts.update_average(0.9, number)
    kept = parts.kept().state_dict()
    assert all(torch.equal(kept[name], state[name]) for name in whole)  # not rounded down
    for name, values in slow.items():
        torch.testing.assert_close(kept[name], values)


def test_without_average_the_weights_themselves_are_kept():
    parts = make_parts(phase(ema=0.0), net())
    assert parts.kept() is parts.model


# The original


@pytest.fixture(scope="module")
def original():
    config = Config.from_yaml(ROOT / "params" / "original.yaml")
    given = config.model_kwargs()
    assert given == {
        "backbone": "resnet34", "pretrained": "imagenet", "attention": "spatial",
        "attention_place": "last", "attention_safe_start": False, "stem": "imagenet", "width": 64,
        "channels": 3, "dropout": 0.4, "head_hidden": 256, "head_dropout": 0.3,
    }  # fmt: skip
    return config, build_model(7, **{**given, "pretrained": "none", "width": 16})


@pytest.mark.parametrize("name, backbone, attention, head, epochs", [
    ("affectnet", 1e-4, 1e-4, 1e-4, 15),
    ("fer2013", 1e-5, 5e-5, 1e-3, 12),
])  # fmt: skip
def test_the_originals_optimizer_and_schedule(original, name, backbone, attention, head, epochs):
    config, model = original
    given = config.recipe(name)
    optimizer = make_optimizer(model, given)
    assert type(optimizer) is torch.optim.Adam
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {name: group["lr"] for name, group in groups.items()} == {
        "backbone": backbone, "attention": attention, "head": head,
    }  # fmt: skip
    assert {group["weight_decay"] for group in groups.values()} == {1e-4}
    assert all((g["betas"], g["eps"], g["amsgrad"]) == ((0.9, 0.999), 1e-8, False)
               for g in groups.values())  # fmt: skip
    trained = {id(p) for group in groups.values() for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    schedule = make_schedule(optimizer, given, steps=100)
    assert type(schedule) is torch.optim.lr_scheduler.ReduceLROnPlateau
    assert (schedule.mode, schedule.factor, schedule.patience) == ("max", 0.5, 3)
    assert (schedule.threshold, schedule.cooldown) == (1e-4, 0)  # the defaults
    assert (given.epochs, given.batch_size) == (epochs, 32)
    off = (
        "ema", "clip_norm", "early_stop", "mixup", "cutmix", "logit_adjustment", "warmup",
        "vote_weight", "start_size",
    )  # fmt: skip
    assert not any(getattr(given, option) for option in off)
    assert (given.sampler, given.keep, given.loss) == ("shuffle", "best", "cross_entropy")


def test_the_originals_loss(original):
    counts = np.array([3995, 436, 4097, 7215, 4965, 4830, 3171])  # FER2013's Training
    weight = torch.tensor([1.0266, 9.4066, 1.0010, 0.5684, 0.8260, 0.8491, 1.2934])  # as it printed
    logits = torch.randn(32, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 7
    ours = make_loss(original[0].recipe("fer2013"), counts)(logits, labels)
    theirs = F.cross_entropy(logits, labels, weight=weight, label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_the_last_batch_of_an_epoch_may_be_smaller():
    assert phase().steps == 3
    assert phase(faces(n=9)).steps == 2
