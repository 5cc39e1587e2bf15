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
# file, so a run that is killed at any moment and started again ends with the same bits.

# %%
"""One phase of training: loop, precision, schedules, guards, history, resuming."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from fer_helpers import checkpoints
from fer_helpers.augment import Augment, mix
from fer_helpers.config import Recipe
from fer_helpers.confusions import class_scores, confusion_matrix, confusion_scores, top_confusions
from fer_helpers.data import SelectionSet, TrainSet, train_class_weights
from fer_helpers.inference import autocast, predict_logits
from fer_helpers.models import EmotionNet, parameter_groups
from fer_helpers.preprocess import Preprocess

SAVE_SECONDS = 60.0
"""At most one state file in this time, so that a fast GPU does not wait for the disk."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; the message says what to do."""


# %% [markdown]
# ## What moves
#
# The optimizer, the schedule, the loss scaler (fp16 only), the running average of the weights and
# one generator of random numbers. torch has all of these; this only puts them together.


# %%
@dataclass
class Parts:
    """Everything that changes while a phase trains, apart from the counters."""

    model: EmotionNet
    optimizer: torch.optim.Optimizer
    schedule: Any
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    generator: torch.Generator
    loss: Callable[[Tensor, Tensor], Tensor]
    forward: nn.Module
    steps: int  # optimizer steps in an epoch


def make_optimizer(model: EmotionNet, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD with Nesterov momentum 0.9, in torch's fused form."""
    groups = parameter_groups(
        model,
        backbone_lr=recipe.backbone_lr,
        attention_lr=recipe.attention_lr,
        head_lr=recipe.head_lr,
        weight_decay=recipe.weight_decay,
        decay_norms=recipe.decay_norms,
    )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.head_lr, momentum=0.9, nesterov=True, fused=True)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, lr=recipe.head_lr, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate over a phase of `recipe.epochs` x `steps` steps.

    `plateau` is stepped once an epoch with the selection accuracy, the others after every step.
    """
    total = recipe.epochs * steps
    if recipe.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, "max", recipe.plateau_factor, recipe.plateau_patience
        )
    if recipe.schedule == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return lr_scheduler.OneCycleLR(
            optimizer,
            peaks,
            total_steps=total,
            pct_start=recipe.warmup or 0.3,
            cycle_momentum=False,
        )
    warm = min(round(recipe.warmup * total), total - 1)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, max(1, total - warm))
    if warm == 0:
        return cosine
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return lr_scheduler.SequentialLR(optimizer, [rise, cosine], [warm])


def make_loss(recipe: Recipe, labels: np.ndarray, class_names: tuple[str, ...],
              device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:  # fmt: skip
    """Cross-entropy or focal loss (Lin et al. 2017), weighted, smoothed or logit-adjusted.

    Logit adjustment adds tau x log(class share) to the logits in training only (Menon et al. 2021).
    Targets are class numbers (N,) or soft labels (N, K).
    """
    count = np.bincount(labels, minlength=len(class_names))
    if (count == 0).any():
        empty = ", ".join(name for name, n in zip(class_names, count, strict=True) if n == 0)
        raise TrainingError(f"No training image of {empty}: add some, or remove the class folder.")
    weight = None
    if recipe.class_weights != "none":
        values = train_class_weights(labels, len(class_names), recipe.class_weights)
        weight = torch.as_tensor(values, dtype=torch.float32, device=device)
    share = torch.as_tensor(count / count.sum(), dtype=torch.float32, device=device)
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
        return ((1 - hit) ** recipe.focal_gamma * value).mean()

    return loss


def make_parts(
    model: EmotionNet,
    train: TrainSet,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    precision: str,
    compile: bool = False,
) -> Parts:
    """Put together what a phase needs; `model` goes to `device` in channels-last order."""
    model.to(device, memory_format=torch.channels_last)
    steps = -(-len(train) // recipe.batch_size)
    optimizer = make_optimizer(model, recipe)
    average = None
    if recipe.ema:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0), use_buffers=True)
    return Parts(
        model=model,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, recipe, steps),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        average=average,
        # On the CPU, so that every device gets the same random numbers.
        generator=torch.Generator().manual_seed(seed),
        loss=make_loss(recipe, train.labels, train.class_names, device),
        forward=torch.compile(model) if compile else model,
        steps=steps,
    )


# %% [markdown]
# ## One step
#
# Nothing in here waits for a GPU: the loss and the number of hits stay on the device as tensors.


# %%
def train_step(
    parts: Parts,
    pixels: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    number: int,
    preprocess: Preprocess,
    augment: Augment,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on uint8 `pixels` (N, C, H, W) and `labels` (N,), both on the device.

    Args:
        parts: what moves.
        pixels: faces as stored.
        labels: class numbers.
        recipe: how to train.
        number: how many steps of this phase came before.
        preprocess: gives the input size and scale.
        augment: what is done to the faces on the way.
        precision: fp32, bf16 or fp16.

    Returns:
        the loss and the number of hits, each a tensor without dimensions.
    """
    targets = labels
    with torch.no_grad():
        batch = augment(pixels, preprocess, parts.generator)
        mixing = number < recipe.mix_until * recipe.epochs * parts.steps
        if mixing and (recipe.mixup or recipe.cutmix):
            batch, targets = mix(
                batch,
                labels,
                parts.model.architecture["num_classes"],
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                probability=recipe.mix_probability,
                generator=parts.generator,
            )
        batch = batch.contiguous(memory_format=torch.channels_last)
    with autocast(pixels.device, precision):
        logits = parts.forward(batch)
        loss = parts.loss(logits, targets)
    parts.optimizer.zero_grad(set_to_none=True)
    parts.scaler.scale(loss).backward()
    if recipe.clip_norm:
        parts.scaler.unscale_(parts.optimizer)
        nn.utils.clip_grad_norm_(parts.model.parameters(), recipe.clip_norm)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    if parts.average is not None:
        # A young average would mostly remember the random start, so it forgets faster at first.
        rate = min(recipe.ema, (1 + number) / (10 + number))
        parts.average.multi_avg_fn = get_ema_multi_avg_fn(rate)
        parts.average.update_parameters(parts.model)
    if recipe.schedule != "plateau":
        parts.schedule.step()
    with torch.no_grad():
        truth = targets if targets.ndim == 1 else targets.argmax(1)
        hits = (logits.argmax(1) == truth).sum()
    return loss.detach(), hits


# %% [markdown]
# ## Feeding it
#
# FER2013 is 66 MB as bytes: on a GPU the whole set is put there once and a batch is one gather. On
# the CPU a batch is gathered from the memory-mapped file. The order of an epoch follows from the
# seed and the epoch's number alone, so nothing about it needs saving but the position.


# %%
class Feed:
    """Batches of a set as uint8 tensors (n, C, H, W) and labels on the device."""

    def __init__(self, faces: TrainSet, device: torch.device) -> None:
        """Put the set on the device when it takes less than a quarter of its free memory."""
        self.faces, self.device, self.resident = faces, device, None
        self.labels = torch.from_numpy(np.ascontiguousarray(faces.labels, dtype=np.int64))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if len(faces) * int(np.prod(faces.pixels.shape[1:])) < free / 4:
                self.resident = torch.from_numpy(faces.images()).to(device)
                self.labels = self.labels.to(device)

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The faces at the positions `rows`."""
        if self.resident is not None:
            where = torch.from_numpy(rows).to(self.device, non_blocking=True)
            return self.resident[where].permute(0, 3, 1, 2), self.labels[where]
        pixels = torch.from_numpy(self.faces.images(rows)).permute(0, 3, 1, 2)
        labels = self.labels[torch.from_numpy(rows)]
        return (
            pixels.to(self.device, non_blocking=True),
            labels.to(self.device, non_blocking=True),
        )


def epoch_order(labels: np.ndarray, sampler: str, seed: int, epoch: int) -> np.ndarray:
    """In which order an epoch visits the faces: positions (N,), from `seed` and `epoch` alone.

    `shuffle` visits each face once; `balanced` draws with replacement so that every class is
    expected equally often.
    """
    random = np.random.default_rng([seed, epoch])
    if sampler == "shuffle":
        return random.permutation(len(labels))
    share = 1.0 / np.bincount(labels)[labels]
    return random.choice(len(labels), len(labels), p=share / share.sum())


# %% [markdown]
# ## Stopping cleanly
#
# The stop button and Ctrl-C send the same signal. It is answered between two steps, where the state
# is whole; a second one stops at once.


# %%
@contextlib.contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether somebody asked to stop."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def answer(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, answer)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# %% [markdown]
# ## One phase


# %%
@dataclass
class PhaseResult:
    """What a phase leaves behind; the model holds the kept weights."""

    history: list[dict[str, Any]]
    best_epoch: int
    selection_name: str
    stopped: str = ""  # "", "time budget" or "interrupted"


@dataclass
class _Counters:
    epoch: int = 0
    step: int = 0  # within the epoch
    loss: float = 0.0  # sum over the epoch's faces so far
    hits: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -1.0


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
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    compile: bool = False,
    deadline: float | None = None,
    commit: str = "unknown",
    extra: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = print,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> PhaseResult:
    """Train one phase, or continue it if `folder` holds its state.

    Args:
        model: trained in place; ends with the kept weights, in evaluation mode.
        train: what is learned from.
        selection: what epochs and learning rates are chosen on; None keeps the last weights.
        recipe: how to train.
        folder: gets `last.pt` (state) and `best.safetensors` (kept weights).
        name: of the phase, for the log.
        preprocess: what turns faces into inputs.
        augment: what is done to training faces before.
        seed: of everything random.
        device: where to train.
        precision: fp32, bf16 or fp16.
        compile: use `torch.compile`; costs a minute or two at the start.
        deadline: value of `time.monotonic()` after which to stop cleanly.
        commit: of the code; another one than the state's is a warning.
        extra: facts to store in the model file.
        log: gets every line of text.
        on_epoch: called with the history after every epoch, for live curves.

    Raises:
        TrainingError: the sets do not fit the recipe, a loss was not finite, or memory ran out.
        checkpoints.CheckpointError: the state in `folder` belongs to another training.
    """
    device = torch.device(device)
    _check(train, selection, recipe)
    identity = _identity(model, train, selection, recipe, preprocess, augment, seed, precision)
    torch.manual_seed(seed)
    parts = make_parts(
        model, train, recipe, seed=seed, device=device, precision=precision, compile=compile
    )
    state_file = Path(folder) / "last.pt"
    count, best = _Counters(), None
    if state_file.exists():
        count, best = _restore(state_file, parts, identity, commit, log)
    chosen_on = f"{selection.dataset} {selection.split}" if selection is not None else "nothing"
    result = PhaseResult(count.history, count.best_epoch, chosen_on)
    for row in count.history:
        log(_line(row, recipe.epochs, row["epoch"] == _best_until(count.history, row["epoch"])))

    def save() -> None:
        nonlocal saved
        kept = best if best is not None else _weights(parts)
        checkpoints.save_model(
            Path(folder) / "best.safetensors", model, train.class_names, preprocess,
            state=kept, extra={**(extra or {}), "epoch": count.best_epoch},
        )  # fmt: skip
        _save(state_file, parts, count, best, identity, commit)
        saved = time.monotonic()

    feed, saved = Feed(train, device), time.monotonic()
    arguments = {"preprocess": preprocess, "augment": augment, "precision": precision}
    if not state_file.exists():
        save()  # whatever happens from here on, there is something to continue from
    with stop_request() as asked_to_stop:
        while count.epoch < recipe.epochs and not result.stopped:
            order = epoch_order(train.labels, recipe.sampler, seed, count.epoch)
            began = time.monotonic()
            bar = tqdm(
                total=len(order), initial=count.seen, unit="img", leave=False, disable=None,
                desc=f"{name} {count.epoch + 1}/{recipe.epochs}",
            )  # fmt: skip
            model.train()
            loss_sum = torch.tensor(count.loss, dtype=torch.float64)
            # MPS has no float64; the sum is small enough for it to live on the CPU there.
            loss_sum = loss_sum.to(device) if device.type != "mps" else loss_sum
            hits = torch.tensor(count.hits, device=device)
            first_bad = torch.tensor(-1, device=device)
            for step in range(count.step, parts.steps):
                rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                if len(rows) == 1:  # batch normalization cannot learn from a single face
                    rows = np.concatenate([rows, order[:1]])
                pixels, labels = feed(rows)
                try:
                    loss, right = train_step(
                        parts, pixels, labels, recipe,
                        number=count.epoch * parts.steps + step, **arguments,
                    )  # fmt: skip
                except torch.OutOfMemoryError as error:
                    raise _out_of_memory(recipe, preprocess) from error
                bad = ~torch.isfinite(loss)
                first_bad = torch.where(bad & (first_bad < 0), step, first_bad)
                loss_sum += loss.to(loss_sum) * len(rows)
                hits += right
                count.step, count.seen = step + 1, count.seen + len(rows)
                bar.update(len(rows))
                timed_out = deadline is not None and time.monotonic() > deadline
                pause = timed_out or asked_to_stop()
                if count.step == parts.steps or pause or device.type == "cpu" or step % 50 == 49:
                    _refuse_bad_loss(int(first_bad), order, recipe, train, count, state_file)
                due = time.monotonic() - saved > 5 * SAVE_SECONDS
                if (pause or due) and count.step < parts.steps:
                    now = time.monotonic()
                    count.seconds, began = count.seconds + now - began, now
                    count.loss, count.hits = float(loss_sum), int(hits)
                    _try_to_save(save, log, must=pause)
                    if pause:
                        result.stopped = "time budget" if timed_out else "interrupted"
                        break
            bar.close()
            if count.step < parts.steps:
                break
            count.loss, count.hits = float(loss_sum), int(hits)
            count.seconds += time.monotonic() - began
            row = _close_epoch(parts, selection, recipe, count, device, arguments, log)
            if recipe.keep == "last" or row["epoch"] == count.best_epoch:
                best = {k: v.detach().cpu().clone() for k, v in _weights(parts).items()}
            if on_epoch is not None:
                on_epoch(count.history)
            finished = count.epoch == recipe.epochs
            early = recipe.early_stop and count.epoch - count.best_epoch >= recipe.early_stop
            timed_out = deadline is not None and time.monotonic() > deadline
            if not finished and (timed_out or asked_to_stop()):
                result.stopped = "time budget" if timed_out else "interrupted"
            if early and not finished:
                log(f"No better epoch in {recipe.early_stop}: stopped early.")
                count.epoch = recipe.epochs
                finished = True
            if finished or result.stopped or time.monotonic() - saved > SAVE_SECONDS:
                _try_to_save(save, log, must=finished or bool(result.stopped))
    result.history, result.best_epoch = count.history, count.best_epoch
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    if result.stopped:
        log(f"Stopped ({result.stopped}) in epoch {count.epoch + 1}: RESUME 'auto' continues here.")
    return result


def _close_epoch(
    parts: Parts,
    selection: SelectionSet | None,
    recipe: Recipe,
    count: _Counters,
    device: torch.device,
    arguments: Mapping[str, Any],
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Score the selection set, step a plateau, write the history row, reset the counters."""
    row: dict[str, Any] = {
        "epoch": count.epoch + 1,
        "train_loss": count.loss / count.seen,
        "train_accuracy": count.hits / count.seen,
    }
    began = time.monotonic()
    confusion = None
    if selection is not None:
        scored = parts.model if parts.average is None else parts.average.module
        logits = predict_logits(
            scored, selection, arguments["preprocess"],
            batch_size=max(recipe.batch_size, 64), device=device, precision=arguments["precision"],
        )  # fmt: skip
        confusion = confusion_matrix(selection.labels, logits.argmax(1), len(selection.class_names))
        scores = confusion_scores(confusion)
        truth = torch.from_numpy(np.asarray(selection.labels, dtype=np.int64))
        row["selection_loss"] = float(F.cross_entropy(torch.from_numpy(logits), truth))
        row["selection_accuracy"] = float(scores["accuracy"])
        row["selection_macro_f1"] = float(scores["macro_f1"])
    row["lr"] = parts.optimizer.param_groups[-1]["lr"]
    if recipe.schedule == "plateau" and selection is not None:
        parts.schedule.step(row["selection_accuracy"])
    score = row.get("selection_accuracy", float(row["epoch"]))
    if score > count.best_score or recipe.keep == "last":
        count.best_score, count.best_epoch = score, row["epoch"]
    row["seconds"] = round(count.seconds + time.monotonic() - began, 3)
    count.history.append(row)
    log(_line(row, recipe.epochs, row["epoch"] == count.best_epoch))
    if confusion is not None and recipe.detail_every and row["epoch"] % recipe.detail_every == 0:
        for line in detailed_lines(confusion, selection.class_names):
            log(f"    {line}")
    count.epoch, count.step, count.loss, count.hits = count.epoch + 1, 0, 0.0, 0
    count.seen, count.seconds = 0, 0.0
    return row


def detailed_lines(confusion: np.ndarray, class_names: tuple[str, ...]) -> list[str]:
    """Accuracy of each class and the three largest confusions above 10 %, as lines of text."""
    recall = class_scores(confusion)["recall"]
    lines = ["  ".join(f"{n} {100 * r:.1f} %" for n, r in zip(class_names, recall, strict=True))]
    for cell in top_confusions(confusion, class_names):
        lines.append(
            f"{cell['truth']} -> {cell['prediction']}: {100 * cell['share']:.1f} % ({cell['count']})"
        )
    return lines


def _line(row: Mapping[str, Any], epochs: int, best: bool) -> str:
    text = (
        f"epoch {row['epoch']:3d}/{epochs} | train loss {row['train_loss']:.3f} "
        f"accuracy {row['train_accuracy']:.3f}"
    )
    if "selection_accuracy" in row:
        text += (
            f" | selection loss {row['selection_loss']:.3f} "
            f"accuracy {row['selection_accuracy']:.3f} macro-F1 {row['selection_macro_f1']:.3f}"
        )
    return text + f" | lr {row['lr']:.1e}" + (" *" if best else "")


def _best_until(history: list[dict[str, Any]], epoch: int) -> int:
    """Which epoch was the best one when `epoch` ended."""
    rows = history[:epoch]
    return max(rows, key=lambda row: (row.get("selection_accuracy", row["epoch"]), -row["epoch"]))[
        "epoch"
    ]


def _weights(parts: Parts) -> dict[str, Tensor]:
    kept = parts.model if parts.average is None else parts.average.module
    return kept.state_dict()


# %% [markdown]
# ## Saving and continuing
#
# What must agree for a state to be continued is exactly what changes the result. Paths, budgets
# and the device may differ.


# %%
def _identity(
    model: EmotionNet,
    train: TrainSet,
    selection: SelectionSet | None,
    recipe: Recipe,
    preprocess: Preprocess,
    augment: Augment,
    seed: int,
    precision: str,
) -> dict[str, Any]:
    def data(faces: TrainSet | SelectionSet | None) -> Any:
        if faces is None:
            return None
        listing = "\n".join(faces.files.tolist()).encode() + faces.labels.tobytes()
        return f"{faces.content_hash[:16]} {hashlib.sha256(listing).hexdigest()[:16]}"

    identity = {
        "training data": data(train),
        "selection data": data(selection),
        "class names": train.class_names,
        "architecture": model.architecture,
        "starting weights": checkpoints.weights_hash(model)[:16],
        "preprocessing": preprocess.to_dict(),
        "augmentation": asdict(augment),
        "seed": seed,
        "precision": precision,
        **{f"recipe {k}": v for k, v in asdict(recipe).items() if k != "detail_every"},
    }
    return json.loads(json.dumps(identity))  # lists for tuples, as it is read back


def _save(
    path: Path,
    parts: Parts,
    count: _Counters,
    best: dict[str, Tensor] | None,
    identity: Mapping[str, Any],
    commit: str,
) -> None:
    checkpoints.save_state(
        path,
        {
            "identity": json.dumps(identity),
            "commit": commit,
            "counters": asdict(count),
            "model": parts.model.state_dict(),
            "average": parts.average.state_dict() if parts.average is not None else None,
            "optimizer": parts.optimizer.state_dict(),
            "schedule": parts.schedule.state_dict(),
            "scaler": parts.scaler.state_dict(),
            "random": checkpoints.random_state({"augment": parts.generator}),
            "best": best,
        },
    )


def _restore(
    path: Path,
    parts: Parts,
    identity: Mapping[str, Any],
    commit: str,
    log: Callable[[str], None],
) -> tuple[_Counters, dict[str, Tensor] | None]:
    state = checkpoints.load_state(path)
    checkpoints.compare_identity(identity, json.loads(state["identity"]), path)
    if state["commit"] != commit:
        log(f"Warning: {path} was written by commit {state['commit']}, this is {commit}.")
    parts.model.load_state_dict(state["model"])
    if parts.average is not None:
        parts.average.load_state_dict(state["average"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.schedule.load_state_dict(state["schedule"])
    parts.scaler.load_state_dict(state["scaler"])
    checkpoints.restore_random_state(state["random"], {"augment": parts.generator})
    return _Counters(**state["counters"]), state["best"]


def _try_to_save(save: Callable[[], None], log: Callable[[str], None], *, must: bool) -> None:
    """Save; a disk that is full in the middle of a run must not end the run."""
    try:
        save()
    except checkpoints.CheckpointError as error:
        if must:
            raise
        log(f"Warning: {error}")


# %% [markdown]
# ## Guards


# %%
def _check(train: TrainSet, selection: SelectionSet | None, recipe: Recipe) -> None:
    if not isinstance(train, TrainSet) or not isinstance(selection, SelectionSet | None):
        raise TrainingError(
            f"Training takes a TrainSet and a SelectionSet, not {type(train).__name__} and "
            f"{type(selection).__name__}: a test set is never trained or chosen on."
        )
    if len(train) < 2:
        raise TrainingError(f"{len(train)} training faces are too few: check the data folder.")
    if selection is None:
        if recipe.keep == "best" or recipe.schedule == "plateau" or recipe.early_stop:
            raise TrainingError(
                "Without a selection set there is nothing to choose on: use KEEP 'last', SCHEDULE "
                "'cosine' or 'onecycle' and EARLY_STOP 0, or set SELECTION_SIZE."
            )
    elif selection.class_names != train.class_names:
        raise TrainingError(
            f"Training has the classes {train.class_names}, the selection set "
            f"{selection.class_names}: both must have the same."
        )


def _refuse_bad_loss(
    first_bad: int,
    order: np.ndarray,
    recipe: Recipe,
    train: TrainSet,
    count: _Counters,
    state_file: Path,
) -> None:
    if first_bad < 0:
        return
    rows = order[first_bad * recipe.batch_size : (first_bad + 1) * recipe.batch_size]
    names = ", ".join(train.files[rows][:8])
    raise TrainingError(
        f"The loss was not finite in epoch {count.epoch + 1}, step {first_bad + 1} (batch with "
        f"{names}{' ...' if len(rows) > 8 else ''}): lower the learning rate or set CLIP_NORM 1.0; "
        f"the last good state is kept in {state_file}."
    )


def _out_of_memory(recipe: Recipe, preprocess: Preprocess) -> TrainingError:
    return TrainingError(
        f"BATCH_SIZE {recipe.batch_size} at IMAGE_SIZE {preprocess.size} does not fit into the "
        f"GPU's memory: try BATCH_SIZE {max(2, recipe.batch_size // 2)} or a smaller IMAGE_SIZE."
    )


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
    steps: int = 3,
) -> float:
    """About how many minutes the phase will take here, from `steps` timed steps on a copy."""
    device = torch.device(device)
    parts = make_parts(
        copy.deepcopy(model), train, recipe, seed=0, device=device, precision=precision
    )
    feed = Feed(train, device)
    rows = np.arange(min(recipe.batch_size, len(train)))
    arguments = {"preprocess": preprocess, "augment": augment, "precision": precision}
    parts.model.train()
    took = []
    for step in range(steps + 1):
        began = time.monotonic()
        train_step(parts, *feed(rows), recipe, number=step, **arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(time.monotonic() - began)
    per_face = float(np.median(took[1:])) / len(rows)  # the first step warms up
    scoring = (len(selection) if selection is not None else 0) / 3  # forward is a third of a step
    return recipe.epochs * (len(train) + scoring) * per_face / 60


# %% [markdown]
# ## Demo
#
# A tiny network learns to tell three expressions apart; the loss falls from the first epoch on.

# %% tags=["active-ipynb"]
# import tempfile
#
# from fer_helpers.config import Config
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.models import build_model
#
# names = ("Happy", "Sad", "Surprise")
# labels = np.arange(90) % 3
# pixels = np.stack([np.asarray(draw_face(names[k], seed, size=32)) for seed, k in enumerate(labels)])
# sets = [
#     kind(pixels, rows, labels[rows], names, np.array([f"{r}.png" for r in rows]),
#          split, "demo", "drawn", "demo")
#     for kind, rows, split in (
#         (TrainSet, np.arange(60), "train"), (SelectionSet, np.arange(60, 90), "selection"))
# ]
# config = Config(fer_epochs=3, batch_size=10, schedule="cosine", fer_lr_backbone=1e-3)
# torch.manual_seed(0)
# with tempfile.TemporaryDirectory() as folder:
#     result = train_phase(
#         build_model(3, stem="small2", width=8), *sets, config.recipe("fer2013"), folder,
#         name="demo", preprocess=Preprocess(size=32), augment=Augment(), seed=0,
#     )
# print("best epoch:", result.best_epoch)
