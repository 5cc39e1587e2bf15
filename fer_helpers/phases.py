"""One phase of training: what it is given and stands still, and what it trains with and moves.

A phase is given a set to learn from and a set to choose on. There is no place for a test set, and
one that is handed over all the same is refused. Everything that changes while it trains stands in
one place, so that saving it can forget nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_helpers.augment import Augment
from fer_helpers.config import Recipe
from fer_helpers.models import EmotionNet
from fer_helpers.preprocess import Preprocess
from fer_helpers.recipes import make_loss, make_optimizer, make_schedule
from fer_helpers.splits import SelectionSet, TrainSet


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network that is asked about every face just as the student sees it.

    Augmented, mixed and at the same size, so that the student learns the teacher's function rather
    than its answers to known faces (Beyer et al. 2022, "Knowledge distillation: A good teacher is
    patient and consistent").

    Attributes:
        model: takes the student's inputs and knows its classes; is put in evaluation mode.
        temperature: what its logits are divided by.
        share: of the target that it sets, 0 to 1; labels set the rest.
    """

    model: EmotionNet
    temperature: float = 1.0
    share: float = 1.0

    @torch.no_grad()
    def targets(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Targets (N, K) for inputs (N, C, H, W) whose labels are numbers (N,) or shares (N, K)."""
        said = (self.model(inputs).float() / self.temperature).softmax(1)
        if targets.ndim == 1:
            targets = F.one_hot(targets, said.shape[1])
        return targets.float().lerp(said, self.share)


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
        teacher: who sets a share of what the loss aims at, asked in every step.

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
    teacher: Teacher | None = None

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
        if self.teacher is not None:
            self._expect_fitting(self.teacher)

    def _expect_fitting(self, teacher: Teacher) -> None:
        knows, sees = (teacher.model.architecture[name] for name in ("num_classes", "channels"))
        if knows != len(self.train.class_names):
            raise TrainingError(
                f"The teacher knows {knows} classes and the training set has "
                f"{len(self.train.class_names)}: take one that was trained on the same classes."
            )
        if sees != self.preprocess.channels:
            raise TrainingError(
                f"The teacher sees {sees} channels and the student {self.preprocess.channels}: "
                "take one that sees the same."
            )
        if not 0 <= teacher.share <= 1 or teacher.temperature <= 0:
            raise TrainingError(
                f"The teacher's share is {teacher.share} and its temperature is "
                f"{teacher.temperature}: give a share from 0 to 1 and a temperature above 0."
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


def _move_averages(rate: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    """Torch's running average, which keeps a share `rate` of the old; whole numbers are taken over.

    It would cut off their fraction each time, and Swin's table of places would point elsewhere.
    """
    move = get_ema_multi_avg_fn(rate)

    def update(averages: Sequence[Tensor], values: Sequence[Tensor], count: Any) -> None:
        if averages[0].is_floating_point():  # torch hands over one type at a time
            move(averages, values, count)
        else:
            torch._foreach_copy_(averages, values)  # one launch for all, as for the others

    return update


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
            self.average.multi_avg_fn = _move_averages(rate)
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


def memory_order(device: torch.device) -> torch.memory_format:
    """Channels last, which is faster; not on Apple GPUs.

    Some torch releases give wrong gradients of batch norm there (pytorch/pytorch#175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def make_parts(phase: Phase, model: EmotionNet, *, compile: bool = False) -> Parts:
    """Put together what a phase trains with; `model` goes to its device."""
    recipe = phase.recipe
    order = memory_order(phase.device)
    model.to(phase.device, memory_format=order)
    if phase.teacher is not None:
        phase.teacher.model.to(phase.device, memory_format=order).eval()
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
        # Else a backward pass compares what it computed anew in fp32 with a rounded maximum, finds
        # no place of it, and gives 0/0 (pytorch/pytorch#195214).
        torch._inductor.config.emulate_precision_casts = True
    if recipe.ema:
        average = AveragedModel(model, use_buffers=True)
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
