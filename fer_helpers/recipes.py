# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recipes: what a phase is made of
#
# A phase is data, a model and a recipe. This module turns a recipe, which is only numbers and
# words, into the things that do the work: an optimizer, a schedule for its learning rate, a loss,
# and perhaps a running average of the weights. torch has all of these; nothing is reinvented here,
# only chosen. The loop that uses them is in `training`.

# %%
"""Optimizer, schedule, loss and average that a recipe asks for."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_helpers.augment import Augment
from fer_helpers.config import Recipe
from fer_helpers.models import EmotionNet, parameter_groups
from fer_helpers.preprocess import Preprocess
from fer_helpers.splits import SelectionSet, TrainSet


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says what to do."""


# %% [markdown]
# ## What stands still
#
# A phase is given a set to learn from and a set to choose on. There is no place for a test set, and
# one that is handed over all the same is refused.


# %%
@dataclass(frozen=True, eq=False)
class Phase:
    """What one phase of training is given.

    Attributes:
        train: what is learned from.
        selection: what epochs and learning rates are chosen on; None keeps the last weights.
        recipe: how to train.
        preprocess: what turns faces into inputs.
        augment: what is done to training faces on the way.
        seed: of everything random.
        device: where to train.
        precision: fp32, bf16 or fp16.
        votes: for each training face what share of its voters chose what, float32 (N, V), zeros
            where nobody voted; needed where the recipe has a `vote_weight`.
        soft_labels: what the loss aims at instead of the labels, float32 (N, K) in shares;
            for distillation (Hinton et al. 2015).

    Raises:
        TrainingError: the sets are no such sets, do not fit together or do not fit the recipe.
    """

    train: TrainSet
    selection: SelectionSet | None
    recipe: Recipe
    preprocess: Preprocess
    augment: Augment
    seed: int
    device: torch.device
    precision: str
    votes: np.ndarray | None = None
    soft_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        train, selection, recipe = self.train, self.selection, self.recipe
        if not isinstance(train, TrainSet) or not isinstance(selection, SelectionSet | None):
            raise TrainingError(
                f"Training takes a TrainSet and a SelectionSet, not {type(train).__name__} and "
                f"{type(selection).__name__}: a test set is never trained or chosen on."
            )
        if len(train) < 2:
            raise TrainingError(f"{len(train)} training faces are too few: check the data folder.")
        empty = [n for n, k in zip(train.class_names, train.counts(), strict=True) if k == 0]
        if empty:
            raise TrainingError(
                f"No training image of {', '.join(empty)}: add some, or remove the class folder."
            )
        if selection is None:
            if recipe.keep == "best" or recipe.schedule == "plateau" or recipe.early_stop:
                raise TrainingError(
                    "Without a selection set there is nothing to choose on: use KEEP 'last', "
                    "SCHEDULE 'cosine' or 'onecycle' and EARLY_STOP 0, or set SELECTION_SIZE."
                )
        elif not len(selection):
            raise TrainingError("The selection set is empty: set SELECTION_SIZE to 1 or more.")
        elif selection.class_names != train.class_names:
            raise TrainingError(
                f"Training has the classes {', '.join(train.class_names)}, the selection set "
                f"{', '.join(selection.class_names)}: both must have the same."
            )
        if recipe.vote_weight and (self.votes is None or len(self.votes) != len(train)):
            given = "none" if self.votes is None else f"{len(self.votes):,} rows"
            raise TrainingError(
                f"Learning votes takes a row for each of {len(train):,} training faces, and there "
                f"are {given}: read FERPLUS_VOTES for this set, or set FERPLUS_WEIGHT to 0."
            )
        shape = (len(train), len(train.class_names))
        if self.soft_labels is not None and self.soft_labels.shape != shape:
            raise TrainingError(
                f"The soft labels have the shape {self.soft_labels.shape}, and this training set "
                f"needs {shape}: make them for exactly these faces."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch; the last batch may be smaller."""
        return -(-len(self.train) // self.recipe.batch_size)

    def shown(self) -> np.ndarray:
        """How often an epoch shows each class (K,): a balanced sampler evens that out."""
        counts = self.train.counts()
        if self.recipe.sampler == "balanced":
            return np.full_like(counts, max(1, len(self.train) // len(counts)))
        return counts


# %% [markdown]
# ## The optimizer
#
# Three groups of weights, each with its own learning rate: backbone, attention, head. The vote
# head, where there is one, learns like the other head.


# %%
def make_optimizer(
    model: EmotionNet, recipe: Recipe, vote_head: nn.Linear | None = None
) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with Nesterov momentum 0.9, in torch's fused form."""
    rules = {
        "backbone_lr": recipe.backbone_lr,
        "attention_lr": recipe.attention_lr,
        "head_lr": recipe.head_lr,
        "weight_decay": recipe.weight_decay,
        "decay_norms": recipe.decay_norms,
    }
    groups = parameter_groups(model, **rules)
    if vote_head is not None:
        groups += parameter_groups(nn.ModuleDict({"head": vote_head}), **rules)
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=recipe.head_lr, momentum=0.9, nesterov=True, fused=True)
        # The fused form makes its buffers in the first step and leaves in them what the memory held
        # if fp16 skips that step, as it mostly does. Zeros give the same bits as a first step.
        for weights in (weights for group in sgd.param_groups for weights in group["params"]):
            sgd.state[weights]["momentum_buffer"] = torch.zeros_like(weights)
        return sgd
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, lr=recipe.head_lr, fused=True)


# %% [markdown]
# ## The schedule
#
# `plateau` lowers the learning rate when the selection accuracy stops rising. `cosine` and
# `onecycle` know the length of the phase beforehand.


# %%
def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate over a phase of `recipe.epochs` epochs of `steps` steps.

    `plateau` is stepped once an epoch with the selection accuracy, the others after every step.
    A rise that would take the whole phase or more is cut so that a fall is left.
    """
    total = recipe.epochs * steps
    if recipe.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, "max", recipe.plateau_factor, recipe.plateau_patience
        )
    if recipe.schedule == "onecycle":
        total = max(total, 4)  # torch divides by zero in a rise of one step or a fall of none
        rise = min(max(2, round((recipe.warmup or 0.3) * total)), total - 2)
        peaks = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(
            optimizer, peaks, total_steps=total, pct_start=rise / total, cycle_momentum=False
        )
    rise = min(round(recipe.warmup * total), total - 1)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, total - rise)
    if rise == 0:
        return fall
    warm = lr_scheduler.LinearLR(optimizer, start_factor=1 / (rise + 1), total_iters=rise)
    return lr_scheduler.SequentialLR(optimizer, [warm, fall], [rise])


# %% [markdown]
# ## The loss
#
# Cross-entropy in all its spellings. Weights and logit adjustment answer to the same thing, classes
# of unequal size: weights make a rare face count more, the adjustment makes the network overcome
# the prior while it learns, so that it does not rely on it later.


# %%
def class_weights(counts: np.ndarray, kind: str) -> np.ndarray:
    """Weights for the loss, one per class.

    Args:
        counts: how many faces each class has (K,).
        kind: "balanced" is N / (K n_c); "effective" is (1 - 0.999) / (1 - 0.999**n_c), scaled to
            mean 1 (Cui et al. 2019, "Class-balanced loss based on effective number of samples");
            "none" is 1.

    Returns:
        float64 (K,). A class without a face gets weight 0, and the others are weighted as if it
        were not there.

    Raises:
        ValueError: `kind` is none of the three, or no class has a face.
    """
    if kind not in ("balanced", "effective", "none"):
        raise ValueError(f"class weights are balanced, effective or none, not {kind!r}")
    present = np.flatnonzero(counts)
    if not len(present):
        raise ValueError("class weights need at least one face")
    faces = counts[present]
    weights = np.zeros(len(counts))
    if kind == "none":
        weights[present] = 1.0
    elif kind == "balanced":
        weights[present] = faces.sum() / (len(faces) * faces)
    else:
        weights[present] = (1 - 0.999) / (1 - 0.999**faces)
        weights[present] /= weights[present].mean()
    return weights


def make_loss(
    recipe: Recipe, counts: np.ndarray, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy or focal loss (Lin et al. 2017), weighted, smoothed or logit-adjusted.

    Logit adjustment adds tau x log(class share) to the logits in training only (Menon et al. 2021).

    Args:
        recipe: which of these.
        counts: how often each class is shown (K,), none of them zero.
        device: where logits and targets will be.

    Returns:
        a function of logits (N, K) and targets, class numbers (N,) or soft labels (N, K), that
        gives the mean over the batch.
    """
    weight = None
    if recipe.class_weights != "none":
        values = class_weights(counts, recipe.class_weights)
        weight = torch.as_tensor(values, dtype=torch.float32, device=device)
    share = torch.as_tensor(counts / counts.sum(), dtype=torch.float32, device=device)
    shift = recipe.logit_adjustment * share.log()

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        logits = logits.float() + shift
        focal = recipe.loss == "focal"
        value = F.cross_entropy(
            logits,
            targets,
            weight=weight,
            label_smoothing=recipe.label_smoothing,
            reduction="none" if focal else "mean",
        )
        if not focal:
            return value
        hard = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
        hit = (logits.softmax(1) * hard).sum(1)
        # Not 0: below gamma 1 the slope of the power is infinite there.
        return ((1 - hit).clamp_min(1e-6) ** recipe.focal_gamma * value).mean()

    return loss


# %% [markdown]
# ## The votes
#
# A label is one word for a face; the ten people who looked at it for FER+ often chose several
# (Barsoum et al. 2016). A second head on the same features may learn what share of them chose what:
# that a face is half fear, half surprise is worth knowing. The saved model does without that head.


# %%
def vote_loss(logits: Tensor, votes: Tensor) -> Tensor:
    """Cross-entropy of foretold votes, the mean over the faces that have any.

    Args:
        logits: of the vote head (N, V).
        votes: share of each choice (N, V); a row of zeros, a face without votes, counts nothing.

    Returns:
        a tensor without dimensions; 0 where no face has votes.
    """
    voted = votes.sum().clamp(min=1)
    return F.cross_entropy(logits.float(), votes, reduction="sum") / voted


# %% [markdown]
# ## What moves
#
# Everything that changes while a phase trains stands in one place, so that saving it can forget
# nothing.


# %%
@dataclass
class Parts:
    """What a phase trains with."""

    model: EmotionNet
    embed: Callable[[Tensor], Tensor]  # the model up to its head, perhaps compiled
    vote_head: nn.Linear | None  # learns votes from the same features; in no model file
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler  # does nothing unless the precision is fp16
    average: AveragedModel | None
    generator: torch.Generator
    loss: Callable[[Tensor, Tensor], Tensor]

    def update_average(self, decay: float, number: int) -> None:
        """Move the average towards the weights after step `number` of the phase (0 is the first).

        A young average would mostly remember the random start, so it forgets faster at first, as
        in TensorFlow's `ExponentialMovingAverage` with `num_updates`.
        """
        if self.average is not None:
            rate = min(decay, (1 + number) / (10 + number))
            self.average.multi_avg_fn = get_ema_multi_avg_fn(rate)
            self.average.update_parameters(self.model)

    def kept(self) -> EmotionNet:
        """The weights that are scored and kept: the average where there is one."""
        return self.model if self.average is None else self.average.module


def missing_for_compile(device: torch.device) -> str:
    """What `torch.compile` would need and does not find here; "" where nothing is missing."""
    if sys.platform == "linux":
        # What is compiled includes it. Debian keeps it in a package of its own.
        headers = Path(sysconfig.get_path("include", "posix_prefix"))
        if not (headers / "Python.h").exists():
            return "the headers of Python (package python3-dev), which are not found here"
    if device.type != "cuda":
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        name = (os.environ.get("CXX") or usual).split()[0]
        return "" if shutil.which(name) else f"the C++ compiler {name}, which is not found here"
    if importlib.util.find_spec("triton") is None:
        return "Triton, which is not installed here"
    if not torch.version.hip and torch.cuda.get_device_capability(device) < (7, 0):
        return "a GPU of compute capability 7.0 or later"
    # Triton starts one; on Windows it brings its own.
    found = os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang")))
    if not found and sys.platform != "win32":
        return "a C compiler (gcc or clang), which is not found here"
    return ""


def make_parts(phase: Phase, model: EmotionNet, *, compile: bool = False) -> Parts:
    """Put together what a phase trains with; `model` goes to its device in channels-last order."""
    recipe = phase.recipe
    model.to(phase.device, memory_format=torch.channels_last)
    vote_head = None
    if recipe.vote_weight:
        vote_head = nn.Linear(model.num_features, phase.votes.shape[1]).to(phase.device)
    optimizer = make_optimizer(model, recipe, vote_head)
    average = None
    if compile:
        # One kernel a shape, whatever came before, so that a continued run meets the same; and room
        # for every shape of both phases, since torch would go on uncompiled after the eighth.
        limit = max(torch._dynamo.config.recompile_limit, 256)
        torch._dynamo.config.recompile_limit = limit
        # No stopwatch may decide an order of summation: it would decide otherwise another day.
        torch._inductor.config.deterministic = True
    if recipe.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    return Parts(
        model=model,
        embed=torch.compile(model.embed, dynamic=False) if compile else model.embed,
        vote_head=vote_head,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, recipe, phase.steps),
        scaler=torch.amp.GradScaler(phase.device.type, enabled=phase.precision == "fp16"),
        average=average,
        # On the CPU, so that every device gets the same random numbers.
        generator=torch.Generator().manual_seed(phase.seed),
        loss=make_loss(recipe, phase.shown(), phase.device),
    )


# %% [markdown]
# ## Demo
#
# The learning rate over six epochs of ten steps, as each schedule sets it. For `plateau` the
# accuracy stops rising after the second epoch here.

# %% tags=["active-ipynb"]
# from dataclasses import replace
#
# import matplotlib.pyplot as plt
#
# from fer_helpers.config import Config
# from fer_helpers.models import build_model
# from fer_helpers.recipes import make_loss, make_optimizer, make_schedule
#
# recipe = Config(
#     affectnet_epochs=6, affectnet_lr=0.1, optimizer="sgd", schedule="cosine", warmup=0.2,
#     plateau_patience=1,
# ).recipe("affectnet")
# model = build_model(3, stem="small2", width=16, channels=1)
# figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
# for name in ("plateau", "cosine", "onecycle"):
#     optimizer = make_optimizer(model, recipe)
#     schedule = make_schedule(optimizer, replace(recipe, schedule=name), steps=10)
#     rates = []
#     for step in range(60):
#         rates.append(optimizer.param_groups[0]["lr"])
#         optimizer.step()
#         if name != "plateau":
#             schedule.step()
#         elif step % 10 == 9:
#             schedule.step(min(step // 10, 1))
#     axes.plot(rates, label=name)
# axes.set(xlabel="step", ylabel="learning rate")
# axes.legend();

# %% [markdown]
# What a face costs, depending on how sure the network is of the right answer: the focal loss hardly
# looks at what is right already, and label smoothing makes being too sure expensive again.

# %% tags=["active-ipynb"]
# sure = torch.linspace(-4, 8, 60)
# logits = torch.stack([sure, torch.zeros(60), torch.zeros(60)], 1)
# plain = replace(recipe, class_weights="none", label_smoothing=0.0)
# shown = {
#     "cross-entropy": plain,
#     "focal, gamma 2": replace(plain, loss="focal"),
#     "smoothed by 0.1": replace(plain, label_smoothing=0.1),
# }
# figure, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
# for name, changed in shown.items():
#     loss = make_loss(changed, np.array([10, 10, 10]))
#     cost = [float(loss(row[None], torch.tensor([0]))) for row in logits]
#     axes.plot(logits.softmax(1)[:, 0], cost, label=name)
# axes.set(xlabel="probability of the right answer", ylabel="loss")
# axes.legend();
