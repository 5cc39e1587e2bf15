# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training: one loop for both phases
#
# A phase is data, a model and a recipe. The loop below is the same for AffectNet and FER2013, on a
# laptop and on a T4. It never sees a test set: what it chooses an epoch or a learning rate on is a
# *selection set*, and the types insist on it.
#
# Everything random comes from the seed and from counters, and everything that moves is in one state
# file, so a run that is killed at any moment and started again ends with the same bits. (Not so
# `swin_t` on several threads of a CPU: torch adds up the gradient of its bias in any order.)
#
# What a recipe means is in `recipes`, what a phase consists of in `phases`, what the network is fed
# with in `feeding`, what is written and read again in `resuming`, and what a person sees meanwhile
# in `watching`.

# %%
"""One phase of training: step, epoch, selection, guards."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fer_helpers.augment import Augment
from fer_helpers.config import Recipe
from fer_helpers.confusions import confusion_matrix, confusion_scores
from fer_helpers.feeding import Feed, batch_rows, epoch_order, epoch_size, prepare
from fer_helpers.files import sole_writer
from fer_helpers.inference import autocast, out_of_memory, predict_logits, repeatable
from fer_helpers.models import TRANSFORMERS, EmotionNet
from fer_helpers.phases import Parts, Phase, Teacher, TrainingError, make_parts, missing_for_compile
from fer_helpers.preprocess import Preprocess
from fer_helpers.recipes import vote_loss
from fer_helpers.resuming import Keeper, Progress
from fer_helpers.splits import SelectionSet, TrainSet
from fer_helpers.watching import detailed_lines, epoch_bar, epoch_line, stop_request

SMALLEST_SCALE = 1e-3
"""Of the loss in fp16, which is halved after every step that was skipped: below it none is left."""

SAVE_SECONDS = 60.0
"""At most one state file in this time between epochs, so that a fast GPU does not wait for the
disk; within an epoch, one in five times this."""

LOOK_EVERY = 50  # steps between two looks at the loss on a GPU; each look waits for it


# %% [markdown]
# ## One step
#
# Augment, mix, forward, loss, backward, step. Nothing in here waits for a GPU (but torch's running
# average, which sends its counter there): the loss and the number of hits stay on the device.


# %%
def train_step(
    phase: Phase, parts: Parts, pixels: Tensor, labels: Tensor, votes: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """One optimizer step.

    Args:
        phase: what stands still.
        parts: what moves.
        pixels: faces as stored, uint8 (N, C, H, W) on the device.
        labels: class numbers (N,) or soft labels (N, K) on the device.
        votes: share of the voters that chose what (N, V) on the device.
        number: how many steps of this phase came before.

    Returns:
        the loss and the number of hits, each a tensor without dimensions.
    """
    recipe = phase.recipe
    inputs, targets, votes = prepare(phase, parts, pixels, labels, votes, number)
    with autocast(phase.device, phase.precision):
        if phase.teacher is not None:
            targets = phase.teacher.targets(inputs, targets)
        features = parts.embed(inputs)
        logits = parts.model.head(features)
        loss = parts.loss(logits, targets)
        if parts.vote_head is not None:
            loss = loss + recipe.vote_weight * vote_loss(parts.vote_head(features), votes)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    if recipe.clip_norm:
        parts.scaler.unscale_(parts.optimizer)
        weights = [w for group in parts.optimizer.param_groups for w in group["params"]]
        nn.utils.clip_grad_norm_(weights, recipe.clip_norm)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.update_average(recipe.ema, number)
    if recipe.schedule != "plateau":
        parts.schedule.step()
    with torch.no_grad():
        truth = targets if targets.ndim == 1 else targets.argmax(1)
        hits = (logits.argmax(1) == truth).sum()
    return loss.detach(), hits


# %% [markdown]
# ## One epoch
#
# The loop itself. Losses are looked at in the order of the steps, after every step on a CPU and now
# and then on a GPU, and nothing is saved before it was looked at: a state on disk is a good one.


# %%
def train_epoch(
    phase: Phase,
    parts: Parts,
    progress: Progress,
    feed: Feed,
    keeper: Keeper,
    why_stop: Callable[[], str],
    bar: tqdm,
) -> str:
    """Run an epoch from where `progress` stands.

    Args:
        phase: what stands still.
        parts: what moves.
        progress: brought up to date.
        feed: gives batches.
        keeper: writes the state.
        why_stop: gives "" or the reason to stop now.
        bar: shows the progress.

    Returns:
        "" when the epoch ended, else why it was stopped; the state is saved then.

    Raises:
        TrainingError: a loss was not finite, or the GPU's memory ran out.
    """
    order = epoch_order(phase.train.labels, phase.recipe.sampler, phase.seed, progress.epoch)
    began, waiting = time.monotonic(), []
    parts.model.train()
    for step in range(progress.step, phase.steps):
        rows = batch_rows(order, step, phase.recipe.batch_size)
        loss, hits = step_that_fits(phase, parts, feed, rows, progress.epoch * phase.steps + step)
        waiting.append((rows, loss, hits))
        bar.update(len(rows))
        last, reason = step + 1 == phase.steps, why_stop()
        save_now = keeper.age() > 5 * SAVE_SECONDS
        at_once = last or reason or save_now or phase.device.type == "cpu"
        if at_once or len(waiting) == LOOK_EVERY:
            look(phase, progress, waiting)
            now = time.monotonic()
            progress.seconds, began = progress.seconds + now - began, now
        if not last and (reason or save_now):
            keeper.save(parts, progress, must=bool(reason))
            if reason:
                return reason
    return ""


def look(
    phase: Phase, progress: Progress, waiting: list[tuple[np.ndarray, Tensor, Tensor]]
) -> None:
    """Add the waiting steps' losses and hits to `progress`, in order, and forget them.

    Raises:
        TrainingError: a loss was not finite; names the batch's files.
    """
    losses = torch.stack([loss for _, loss, _ in waiting]).tolist()
    hits = torch.stack([right for _, _, right in waiting]).tolist()
    for (rows, _, _), loss, right in zip(waiting, losses, hits, strict=True):
        if not math.isfinite(loss):
            files = ", ".join(phase.train.files[rows])
            raise TrainingError(
                f"The loss was not finite in epoch {progress.epoch + 1}, step {progress.step + 1} "
                f"(batch with {files}): in a new run (another RUN_NAME) lower the learning rate or "
                f"set CLIP_NORM to 1.0{' or PRECISION to fp32' * (phase.precision == 'fp16')}; the "
                "last good state is kept."
            )
        progress.loss += loss * len(rows)
        progress.hits += right
        progress.seen += len(rows)
        progress.step += 1
    waiting.clear()


def step_that_fits(
    phase: Phase, parts: Parts, feed: Feed, rows: np.ndarray, number: int
) -> tuple[Tensor, Tensor]:
    """`train_step`; where memory runs out, try halves to say which batch would fit."""
    try:
        return train_step(phase, parts, *feed(rows), number)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        said = str(error).splitlines()[0]  # what the failed step held is free outside of this block
    size = len(rows) // 2
    while size >= 2:
        parts.optimizer.zero_grad(set_to_none=True)
        # Memory may have run out in the middle of their step; nothing goes on from what is left.
        parts.optimizer.state.clear()
        parts.scaler = torch.amp.GradScaler(phase.device.type, enabled=False)
        if phase.device.type != "cpu":  # `torch.accelerator` cannot on MPS: pytorch issue 186430
            (torch.mps if phase.device.type == "mps" else torch.cuda).empty_cache()
        try:
            train_step(phase, parts, *feed(rows[:size]), number)
            break
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            size //= 2
    advice = f"BATCH_SIZE {size} fits" if size >= 2 else "not even BATCH_SIZE 2 fits"
    memory = "memory" if phase.device.type == "cpu" else "the GPU's memory"
    raise TrainingError(
        f"BATCH_SIZE {phase.recipe.batch_size} at IMAGE_SIZE {phase.preprocess.size} does not fit "
        f"into {memory} ({said}): {advice}, and a smaller IMAGE_SIZE or WIDTH takes less; "
        "each wants a new run (another RUN_NAME)."
    )


# %% [markdown]
# ## After an epoch
#
# The selection set is scored, and what it says decides about the learning rate and about which
# weights are kept. Nothing else decides anything.


# %%
def close_epoch(phase: Phase, parts: Parts, progress: Progress) -> list[str]:
    """Score the selection set, step a plateau, add a row to the history.

    Returns:
        lines of text for the reader, the first one about the whole epoch.
    """
    recipe, selection = phase.recipe, phase.selection
    if parts.scaler.is_enabled() and parts.scaler.get_scale() < SMALLEST_SCALE:
        raise TrainingError(
            f"No step could be taken in fp16 for most of epoch {progress.epoch + 1}, whatever the "
            "scale of the loss: set PRECISION to fp32, and RUN_NAME to a new name."
        )
    progress.epoch += 1
    row: dict[str, Any] = {
        "epoch": progress.epoch,
        "train_loss": progress.loss / progress.seen,
        "train_accuracy": progress.hits / progress.seen,
    }
    began, details = time.monotonic(), []
    if selection is not None:
        logits = predict_logits(
            parts.kept(),
            selection,
            phase.preprocess,
            batch_size=max(recipe.batch_size, 64),
            device=phase.device,
            precision=phase.precision,
        )
        confusion = confusion_matrix(selection.labels, logits.argmax(1), len(selection.class_names))
        scores = confusion_scores(confusion)
        truth = torch.from_numpy(np.asarray(selection.labels, dtype=np.int64))
        row["selection_loss"] = float(F.cross_entropy(torch.from_numpy(logits), truth))
        row["selection_accuracy"] = float(scores["accuracy"])
        row["selection_macro_f1"] = float(scores["macro_f1"])
        if recipe.detail_every and progress.epoch % recipe.detail_every == 0:
            details = detailed_lines(confusion, selection.class_names)
    row["lr"] = parts.optimizer.param_groups[-1]["lr"]
    if recipe.schedule == "plateau":
        parts.schedule.step(row["selection_accuracy"])
    if recipe.keep == "last":
        progress.best_epoch = progress.epoch
    elif row["selection_accuracy"] > progress.best_score:
        progress.best_score, progress.best_epoch = row["selection_accuracy"], progress.epoch
    row["seconds"] = round(progress.seconds + time.monotonic() - began, 3)
    progress.history.append(row)
    progress.step, progress.loss, progress.hits = 0, 0.0, 0
    progress.seen, progress.seconds = 0, 0.0
    without_better = progress.epoch - progress.best_epoch
    early = bool(recipe.early_stop) and without_better >= recipe.early_stop
    progress.ended = early or progress.epoch == recipe.epochs
    if early:
        details.append(f"No better epoch in {recipe.early_stop}: stopped early.")
    return [epoch_line(row, recipe), *(f"    {line}" for line in details)]


# %% [markdown]
# ## One phase


# %%
@dataclass
class PhaseResult:
    """What a phase leaves behind; the model holds the kept weights.

    Attributes:
        history: a row for each epoch: epoch, train_loss (of all that is learned, votes as well),
            train_accuracy (0..1), selection_loss (nats, unweighted), selection_accuracy,
            selection_macro_f1, lr (of the head) and seconds.
        best_epoch: whose weights are kept; 0 if no epoch ended.
        selection_name: what that was decided on, "FER2013 PublicTest".
        stopped: "", "time budget" or "interrupted".
    """

    history: list[dict[str, Any]]
    best_epoch: int
    selection_name: str
    stopped: str = ""


def train_phase(
    model: EmotionNet,
    train: TrainSet,
    selection: SelectionSet | None,
    recipe: Recipe,
    folder: str | Path,
    *,
    name: str,
    preprocess: Preprocess,
    augment: Augment,
    seed: int,
    votes: np.ndarray | None = None,
    soft_labels: np.ndarray | None = None,
    teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    compile: bool = False,
    deadline: float | None = None,
    extra: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> PhaseResult:
    """Train one phase, or continue it if `folder` holds its state; by other code, that is said.

    Args:
        model: trained in place; ends with the kept weights, in evaluation mode.
        train: what is learned from.
        selection: what epochs and learning rates are chosen on; None keeps the last weights.
        recipe: how to train.
        folder: gets `last.pt` (state) and `best.safetensors` (kept weights).
        name: of the phase, for the log.
        preprocess: what turns faces into inputs.
        augment: what is done to training faces on the way.
        seed: of everything random.
        votes: what the voters on each training face chose, shares (N, V), zeros where nobody voted;
            for a recipe with a `vote_weight`.
        soft_labels: what the loss aims at instead of the labels, shares of the classes (N, K); hits
            are then counted against the largest share.
        teacher: a trained network that sets a share of what the loss aims at, asked in every step;
            hits are counted against the target that this gives.
        device: where to train.
        precision: fp32, bf16 or fp16.
        compile: use `torch.compile`; costs a minute or two at the start.
        deadline: value of `time.monotonic()` after which to stop cleanly.
        extra: facts to store in the model file.
        log: gets every line of text.
        on_epoch: called with the history after every epoch; see `watching`.

    Raises:
        TrainingError: the sets do not fit the recipe, a loss was not finite, or memory ran out.
        checkpoints.CheckpointError: the state in `folder` belongs to another training, or nothing
            can be written there.
        files.FolderInUseError: another process trains in `folder`.
        KeyboardInterrupt: somebody asked to stop when the phase was about to end; it is kept, and
            called again this returns it.
    """
    device = torch.device(device)
    if compile and (missing := missing_for_compile(device)):
        log(f"COMPILE needs {missing}: training goes on without it.")
        compile = False
    phase = Phase(
        train, selection, recipe, preprocess, augment, seed, device, precision, votes, soft_labels,
        teacher,
    )  # fmt: skip
    keeper = Keeper(folder, phase, model, extra=extra, log=log)
    torch.manual_seed(seed)
    parts = make_parts(phase, model, compile=compile)
    chosen_on = f"{selection.dataset} {selection.split}" if selection is not None else "nothing"
    feed, stopped = Feed(phase), ""
    with sole_writer(folder), stop_request() as asked_to_stop, repeatable(device):
        progress = keeper.restore(parts)
        size = f"{len(train):,} faces in {phase.steps:,} steps an epoch"
        log(f"{name}: {size}, chosen on {chosen_on}.")
        for row in progress.history:
            log(epoch_line(row, recipe))

        def why_stop() -> str:
            if deadline is not None and time.monotonic() > deadline:
                return "time budget"
            return "interrupted" if asked_to_stop() else ""

        while not (progress.ended or stopped):
            title = f"{name} {progress.epoch + 1}/{recipe.epochs}"
            with epoch_bar(title, len(train), progress.seen) as bar:
                stopped = train_epoch(phase, parts, progress, feed, keeper, why_stop, bar)
            if stopped:
                break
            for line in close_epoch(phase, parts, progress):
                log(line)
            if progress.best_epoch == progress.epoch:
                keeper.keep(parts)
            stopped = "" if progress.ended else why_stop()
            if progress.ended or stopped or keeper.age() > SAVE_SECONDS:
                keeper.save(parts, progress, must=progress.ended or bool(stopped))
            if on_epoch is not None:  # what is shown comes after what is kept
                on_epoch(progress.history)
        if progress.ended and asked_to_stop():
            # The phase is whole, so there is nothing to say of it; but what follows may take hours.
            log(f"{name} has ended and is kept: started again, the run goes on after it.")
            raise KeyboardInterrupt
    if stopped:
        log(f"Stopped ({stopped}) in epoch {progress.epoch + 1}: "
            "run all from the start, and RESUME 'auto' continues here.")  # fmt: skip
    elif recipe.keep == "best":
        log(f"Kept: epoch {progress.best_epoch}, the best on {chosen_on}.")
    model.load_state_dict(keeper.best or parts.kept().state_dict())
    model.eval()
    return PhaseResult(progress.history, progress.best_epoch, chosen_on, stopped)


# %% [markdown]
# ## How long will it take?
#
# A few steps on a copy of the model answer that before anybody waits.


# %%
def estimate_minutes(
    model: EmotionNet,
    train: TrainSet,
    selection: SelectionSet | None,
    recipe: Recipe,
    *,
    preprocess: Preprocess,
    augment: Augment,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> float:
    """About how many minutes the phase will take here, from a few timed steps on a copy.

    Raises:
        TrainingError: memory ran out; says which batch would fit.
    """
    device = torch.device(device)
    # A plateau takes any number of steps; the other schedules know the length of the phase.
    schedule = "plateau" if selection is not None else recipe.schedule
    sizes = [epoch_size(recipe, epoch, preprocess.size) for epoch in range(recipe.epochs)]
    work = float(np.mean(np.square(sizes))) / preprocess.size**2  # of small pictures
    if model.architecture["backbone"] in TRANSFORMERS:  # which enlarge every picture to one size
        work = 1.0
    recipe = replace(recipe, schedule=schedule, start_size=0, vote_weight=0.0)
    phase = Phase(train, selection, recipe, preprocess, augment, 0, device, precision)
    parts, feed = make_parts(phase, copy.deepcopy(model)), Feed(phase)
    rows = np.arange(min(recipe.batch_size, len(train)))
    parts.model.train()
    took = []
    for number in range(1 + min(3, recipe.epochs * phase.steps - 1)):
        began = time.perf_counter()  # on Windows `monotonic` counts 16 ms at a time
        step_that_fits(phase, parts, feed, rows, number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        took.append(time.perf_counter() - began)
    per_face = float(np.median(took[1:] or took)) / len(rows)  # the first step warms up
    scoring = (len(selection) if selection is not None else 0) / 3  # forward is a third of a step
    return recipe.epochs * (work * len(train) + scoring) * per_face / 60


# %% [markdown]
# ## Demo
#
# A tiny network learns to tell three expressions apart. On faces that it did not learn it begins at
# chance, one right answer in three, and within seconds is clearly above.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.config import Config
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.models import build_model
#
# names = ("Happy", "Sad", "Surprise")
# labels = np.arange(360) % 3
# drawn = [draw_face(names[label], seed, size=32) for seed, label in enumerate(labels)]
# pixels = np.stack([np.asarray(face) for face in drawn])
# sets = [
#     kind(pixels, rows, labels[rows], names, np.array([f"{r}.png" for r in rows]),
#          split, "demo", "drawn", "demo")
#     for kind, rows, split in (
#         (TrainSet, np.arange(300), "train"), (SelectionSet, np.arange(300, 360), "selection"))
# ]
# rates = dict.fromkeys(("fer_lr_backbone", "fer_lr_attention", "fer_lr_head"), 3e-3)
# config = Config(fer_epochs=8, batch_size=20, schedule="cosine", **rates)
# torch.manual_seed(0)
# with tempfile.TemporaryDirectory() as folder:
#     result = train_phase(
#         build_model(3, stem="small2", width=16), *sets, config.recipe("fer2013"), folder,
#         name="demo", preprocess=Preprocess(size=32), augment=Augment(), seed=0,
#     )
# print("best epoch:", result.best_epoch)
