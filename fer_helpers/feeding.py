"""What the network is fed with in training: which faces, in which order, and how they are prepared.

FER2013 is 66 MB as bytes: on a GPU the whole set is put there once and a batch is one gather. On
the CPU a batch is gathered from the memory-mapped file. The order of an epoch follows from the seed
and the epoch's number alone, so nothing about it needs saving but the position.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fer_helpers.augment import mix
from fer_helpers.config import Recipe
from fer_helpers.phases import Parts, Phase, memory_order


class Feed:
    """Batches of faces on the phase's device: uint8 pixels (n, C, H, W), labels (n,), votes (n, V).

    V is 0 unless votes are learned. Soft labels (n, K) take the place of the labels.
    """

    def __init__(self, phase: Phase) -> None:
        """Put the set on the device when it takes less than a quarter of its free memory."""
        faces, self.device, self.resident = phase.train, phase.device, None
        votes = phase.votes if phase.recipe.vote_weight else np.zeros((len(faces), 0))
        self.faces = faces
        labels = np.ascontiguousarray(faces.labels, dtype=np.int64)
        if phase.soft_labels is not None:
            labels = np.ascontiguousarray(phase.soft_labels, dtype=np.float32)
        self.labels = torch.from_numpy(labels)
        self.votes = torch.from_numpy(np.ascontiguousarray(votes, dtype=np.float32))
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if len(faces) * int(np.prod(faces.pixels.shape[1:])) < free / 4:
                self.resident = torch.from_numpy(faces.images()).to(self.device)
                self.labels, self.votes = self.labels.to(self.device), self.votes.to(self.device)

    def __call__(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """The faces at the positions `rows`."""
        where = torch.from_numpy(rows)
        if self.resident is not None:
            where = where.to(self.device, non_blocking=True)
            pixels = self.resident[where]
        else:
            pixels = torch.from_numpy(self.faces.images(rows))
        batch = pixels.permute(0, 3, 1, 2), self.labels[where], self.votes[where]
        # Only CUDA keeps the memory of a copy it has not made yet (Apple: pytorch issue 189690).
        early = self.device.type == "cuda"
        if early and self.resident is None:
            # Out of ordinary memory a copy would first wait for the step before.
            batch = batch[0].pin_memory(), *batch[1:]
        return tuple(part.to(self.device, non_blocking=early) for part in batch)


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


def epoch_size(recipe: Recipe, epoch: int, size: int) -> int:
    """Side of the training inputs in an epoch (0 is the first), pixels.

    Small pictures first cost less and teach the coarse shapes (progressive resizing: Tan and Le
    2021, "EfficientNetV2"). The side grows evenly from `start_size` to `size` in steps of 8 pixels
    until the share `grow_until` of the epochs is over.
    """
    growing = recipe.grow_until * recipe.epochs
    if not recipe.start_size or epoch >= growing:
        return size
    side = recipe.start_size + (size - recipe.start_size) * epoch / growing
    return min(size, max(recipe.start_size, round(side / 8) * 8))


def batch_rows(order: np.ndarray, step: int, size: int) -> np.ndarray:
    """Which faces the batch of a step holds; never a single one, which has no batch statistics."""
    rows = order[step * size : (step + 1) * size]
    return rows if len(rows) > 1 else np.concatenate([rows, order[:1]])


@torch.no_grad()
def prepare(
    phase: Phase, parts: Parts, pixels: Tensor, labels: Tensor, votes: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (N, C, H, W), targets and votes of a step: faces augmented and perhaps mixed.

    Arguments are those of `training.train_step`. Targets are the class numbers (N,), or shares of
    the classes (N, K) where labels are soft or mixing is on. Votes are shares too, so they are
    mixed in the same way.
    """
    recipe, classes = phase.recipe, len(phase.train.class_names)
    side = epoch_size(recipe, number // phase.steps, phase.preprocess.size)
    inputs = phase.augment(pixels, replace(phase.preprocess, size=side), parts.generator)
    targets = labels
    mixing = number < recipe.mix_until * recipe.epochs * phase.steps
    if mixing and (recipe.mixup or recipe.cutmix):
        inputs, known = mix(
            inputs,
            torch.cat([labels if labels.ndim == 2 else F.one_hot(labels, classes), votes], 1),
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            probability=recipe.mix_probability,
            generator=parts.generator,
        )
        targets, votes = known[:, :classes], known[:, classes:]
    return inputs.contiguous(memory_format=memory_order(inputs.device)), targets, votes
