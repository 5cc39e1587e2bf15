"""Tiny faces, nets and recipes for the tests of training: learnable, and done in a moment."""

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from fer_helpers.augment import Augment
from fer_helpers.config import Config
from fer_helpers.files import LOCK
from fer_helpers.models import build_model
from fer_helpers.phases import Phase
from fer_helpers.preprocess import Preprocess
from fer_helpers.splits import SelectionSet, TestSet, TrainSet
from fer_helpers.training import train_phase

NAMES = ("Happy", "Sad", "Surprise")
PREPROCESS = Preprocess(size=16, channels=1)
NO_MEMORY_HERE = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 8000000 bytes. Error code 12 (Cannot allocate memory)"
)
# As CUDA, cuDNN, an Apple GPU and a processor say it.
NO_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    NO_MEMORY_HERE,
)
AUGMENT = Augment(flip=0.5, rotation=10, brightness=0.2, erase=0.2)


def faces(kind=TrainSet, n=24, *, seed=0, split="train", names=NAMES, labels=None, **more):
    """Noise with a bright band whose place tells the class."""
    labels = np.arange(n) % len(names) if labels is None else np.asarray(labels)
    pixels = np.random.default_rng(seed).integers(0, 100, (len(labels), 16, 16, 1), np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[5 * label : 5 * label + 5] += 120
    return kind(
        pixels=pixels,
        rows=np.arange(len(labels)),
        labels=labels.astype(np.int64),
        class_names=names,
        files=np.array([f"{split}/{names[k]}/{i}.png" for i, k in enumerate(labels)]),
        split=split,
        dataset="Tiny",
        origin="drawn",
        content_hash="0" * 64,
        **more,
    )


def selection_faces(n=9, **more):
    return faces(SelectionSet, n, seed=1, split="selection", **more)


def scored_faces(n=12, *, leak_free=None, **more):
    leak_free = np.ones(n, bool) if leak_free is None else leak_free
    return faces(TestSet, n, seed=2, leak_free=leak_free, **{"split": "test", **more})


def some_votes(n=24, choices=5):
    """Shares of votes for `faces(n)`: most for the label, and none at all for every fifth face."""
    votes = np.random.default_rng(3).dirichlet(np.ones(choices), n)
    votes[np.arange(n), np.arange(n) % 3] += 3
    votes[::5] = 0
    return (votes / np.maximum(votes.sum(1, keepdims=True), 1)).astype(np.float32)


def some_soft_labels(n=24):
    """Mostly the labels of `faces(n)`, with some doubt: shares of the three classes."""
    doubt = np.random.default_rng(4).dirichlet(np.ones(3), n)
    return (0.6 * np.eye(3)[np.arange(n) % 3] + 0.4 * doubt).astype(np.float32)


MOBILE = {"backbone": "mobilenet_v3_large", "stem": "imagenet", "width": 64}
"""The change of `net` to a network in which a maximum follows what is not kept for backward."""


def net(seed=0, **changes):
    torch.manual_seed(seed)
    small = {"backbone": "resnet18", "stem": "small2", "width": 16, "channels": 1, "head_hidden": 8}
    return build_model(3, **{**small, **changes})


def recipe(**changes):
    """Two epochs of three steps."""
    given = Config(
        fer_epochs=2, fer_lr_backbone=1e-2, fer_lr_attention=1e-2, fer_lr_head=1e-2, optimizer="sgd"
    ).recipe("fer2013")
    return replace(given, **{"batch_size": 8, "detail_every": 0, **changes})


def phase(train=None, selection="tiny", votes=None, *, precision="fp32", **changes):
    """What `train_phase` makes of tiny sets; `changes` go to the recipe."""
    return Phase(
        faces() if train is None else train,
        selection_faces() if selection == "tiny" else selection,
        recipe(**changes),
        PREPROCESS,
        AUGMENT,
        seed=0,
        device=torch.device("cpu"),
        precision=precision,
        votes=votes,
    )


def train(folder, model=None, *, train=None, selection=True, lines=None, **changes):
    """`train_phase` on tiny sets; keywords of the loop are taken as such, others go to the recipe.

    Returns the model and the result; `lines` collects what was logged.
    """
    loop = {
        name: changes.pop(name)
        for name in (
            "deadline", "on_epoch", "device", "precision", "compile", "seed", "augment",
            "votes", "soft_labels", "teacher",
        )
        if name in changes
    }  # fmt: skip
    model = net() if model is None else model
    result = train_phase(
        model,
        faces() if train is None else train,
        selection_faces() if selection is True else selection,
        recipe(**changes),
        folder,
        name="Tiny",
        preprocess=PREPROCESS,
        log=(lines if lines is not None else []).append,
        **{"seed": 0, "augment": AUGMENT, **loop},
    )
    return model, result


def same_weights(one, other):
    """Whether two models agree in every bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def without_clock(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def kept_in(folder):
    """What stands in a folder, without the lock, which Windows takes away."""
    return sorted(name for name in os.listdir(folder) if name != LOCK)


@pytest.fixture(autouse=True)
def one_thread():
    """Wherever it is imported: pictures so small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def full_disk(monkeypatch, full=True):
    """Nothing can be put on the disk for good while the returned dict says that it is full."""
    disk, real = {"full": full}, os.fsync

    def fsync(descriptor):
        if disk["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return disk
