"""What a phase continues from after it was stopped or killed, and what must agree for that."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fer_helpers import checkpoints
from fer_helpers.files import remove_partials
from fer_helpers.models import EmotionNet
from fer_helpers.phases import Parts, Phase, TrainingError
from fer_helpers.plain import differences
from fer_helpers.versions import code_version

STATE, BEST = "last.pt", "best.safetensors"


@dataclass
class Progress:
    """How far a phase has come.

    `epoch` counts the epochs that ended, `step` the steps of the one that runs. `loss`, `hits`,
    `seen` and `seconds` are sums over that epoch so far.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    hits: int = 0
    seen: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -1.0
    ended: bool = False


def identity(phase: Phase, model: EmotionNet) -> dict[str, Any]:
    """What decides about the result, as JSON types: must agree for a phase to continue.

    Paths, time budgets, the device and `compile`, which changes the last digits, are not part of
    it.
    """

    def of(shares: np.ndarray | None) -> str | None:
        if shares is None:
            return None
        return hashlib.sha256(shares.astype("<f4").tobytes()).hexdigest()[:16]

    recipe = {name: value for name, value in asdict(phase.recipe).items() if name != "detail_every"}
    parts = {
        # Another test folder changes nothing here.
        "training data": phase.train.fingerprint(),
        "selection data": None if phase.selection is None else phase.selection.fingerprint(),
        "votes": of(phase.votes if phase.recipe.vote_weight else None),
        "classes": phase.train.class_names,
        "architecture": model.architecture,
        "starting weights": checkpoints.weights_hash(model)[:16],
        "preprocessing": phase.preprocess.to_dict(),
        "augmentation": asdict(phase.augment),
        "seed": phase.seed,
        "precision": phase.precision,
        "recipe": recipe,
    }
    if phase.soft_labels is not None:
        parts["soft labels"] = of(phase.soft_labels)
    if (teacher := phase.teacher) is not None:
        parts["teacher"] = {
            "weights": checkpoints.weights_hash(teacher.model)[:16],
            "architecture": teacher.model.architecture,
            "temperature": teacher.temperature,
            "share": teacher.share,
        }
    return json.loads(json.dumps(parts))  # lists for tuples, as it is read back


class Keeper:
    """Writes and reads the two files of a phase: its whole state, and the weights worth keeping."""

    def __init__(
        self,
        folder: str | Path,
        phase: Phase,
        model: EmotionNet,
        *,
        extra: Mapping[str, Any] | None,
        log: Callable[[str], None],
    ) -> None:
        """Note what must agree, before anything moves.

        Args:
            folder: gets `last.pt` and `best.safetensors`.
            phase: what is trained.
            model: as it is before the first step.
            extra: facts to store in the model file.
            log: gets warnings.
        """
        self.folder, self.phase, self.log = Path(folder), phase, log
        self.identity, self.extra = identity(phase, model), dict(extra or {})
        self.commit = code_version()
        self.state_file = self.folder / STATE
        self.best: dict[str, Tensor] | None = None  # of the best epoch, on the CPU
        self.tried = time.monotonic()

    def restore(self, parts: Parts) -> Progress:
        """Put every moving part back to where the state file says; start one if there is none.

        Returns:
            how far the phase has come.

        Raises:
            checkpoints.CheckpointError: the state is damaged or belongs to another training, or
                the folder cannot be written, or has too little room.
        """
        remove_partials(self.folder)
        progress = self._read(parts) if self.state_file.exists() else Progress()
        if not progress.ended:
            # There is something to continue from, and that it can be written is known before hours.
            self.save(parts, progress, must=True)
        if progress == Progress():
            self._expect_room()
        return progress

    def _read(self, parts: Parts) -> Progress:
        state = checkpoints.load_state(self.state_file)
        try:
            if found := differences(json.loads(state["identity"]), self.identity):
                raise checkpoints.CheckpointError(
                    f"{self.state_file} belongs to another training: {'; '.join(found)}. Set these "
                    "back, choose another RUN_NAME, or set RESUME to 'never'."
                )
            if state["commit"] != self.commit:
                self.log(
                    f"Warning: {self.state_file} was written by commit {state['commit']}, "
                    f"this is {self.commit}."
                )
            parts.model.load_state_dict(state["model"])
            if parts.vote_head is not None:
                parts.vote_head.load_state_dict(state["vote head"])
            if parts.average is not None:
                parts.average.load_state_dict(state["average"])
            parts.optimizer.load_state_dict(state["optimizer"])
            parts.schedule.load_state_dict(state["schedule"])
            parts.scaler.load_state_dict(state["scaler"])
            checkpoints.restore_random_state(state["random"], parts.generator, self.phase.device)
            self.best = state["best"]
            return Progress(**state["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise checkpoints.CheckpointError(
                f"{self.state_file} is incomplete ({error!r}): delete it to start this phase "
                "again, or set RESUME to 'never'."
            ) from None

    def _expect_room(self) -> None:
        """Refuse a disk that the state will outgrow: by the optimizer's and the best weights."""
        total, _, free = shutil.disk_usage(self.folder)
        size, weights = (path.stat().st_size for path in (self.state_file, self.folder / BEST))
        # The weights and an average of them are there, as is SGD's momentum; the best weights come
        # after an epoch, Adam's two moments with the first step. Then old and new exist at once.
        grown = size + weights * (1 if self.phase.recipe.optimizer == "sgd" else 3)
        needed = 2 * grown - size
        if total and free < needed:  # some network disks know neither
            raise checkpoints.CheckpointError(
                f"{self.folder} has room for {free / 1e6:,.0f} MB, its checkpoints will need about "
                f"{needed / 1e6:,.0f}: free some space or set OUTPUT_DIR to another disk."
            )

    def keep(self, parts: Parts) -> None:
        """Note the present weights as the best ones."""
        self.best = {k: v.detach().cpu().clone() for k, v in parts.kept().state_dict().items()}

    def save(self, parts: Parts, progress: Progress, *, must: bool) -> None:
        """Write both files.

        Args:
            parts: what moves.
            progress: how far it has come.
            must: raise where it cannot be written; otherwise a full disk in the middle of a run is
                a warning, and the run goes on.

        Raises:
            checkpoints.CheckpointError: `must`, and it could not be written.
            TrainingError: the weights are not finite; the last good state stays.
        """
        moving = [parts.model.state_dict(), _weights(parts.vote_head) or {}]
        weights = [v for part in moving for v in part.values() if v.is_floating_point()]
        if not all(bool(torch.isfinite(values).all()) for values in weights):
            raise TrainingError(
                "The weights are not finite: in a new run (another RUN_NAME) lower the learning "
                "rate or set CLIP_NORM to 1.0; the last good state is kept."
            )
        self.tried = time.monotonic()
        try:
            checkpoints.save_model(
                self.folder / BEST,
                parts.model,
                self.phase.train.class_names,
                self.phase.preprocess,
                state=self.best or parts.kept().state_dict(),
                extra={**self.extra, "epoch": progress.best_epoch},
            )
            checkpoints.save_state(self.state_file, self._state(parts, progress))
        except checkpoints.CheckpointError as error:
            if must:
                raise
            self.log(f"Warning: {error}")

    def _state(self, parts: Parts, progress: Progress) -> dict[str, Any]:
        return {
            "identity": json.dumps(self.identity),
            "commit": self.commit,
            "progress": asdict(progress),
            "model": parts.model.state_dict(),
            "vote head": _weights(parts.vote_head),
            "average": _weights(parts.average),
            "optimizer": parts.optimizer.state_dict(),
            "schedule": parts.schedule.state_dict(),
            "scaler": parts.scaler.state_dict(),
            "random": checkpoints.random_state(parts.generator, self.phase.device),
            "best": self.best,
        }

    def age(self) -> float:
        """Seconds since something was last written, or tried to."""
        return time.monotonic() - self.tried


def _weights(module: nn.Module | None) -> dict[str, Tensor] | None:
    return None if module is None else module.state_dict()
