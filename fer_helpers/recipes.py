# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Recipes: from numbers to optimizer, schedule and loss
#
# A phase is data, a model and a recipe. This module turns a recipe, which is only numbers and
# words, into the things that do the work: an optimizer, a schedule for its learning rate, a loss.
# torch has all of these; nothing is reinvented here, only chosen. What else a phase trains with is
# put together in `phases`, and the loop that uses it all is in `training`.

# %%
"""Optimizer, schedule and loss that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from fer_helpers.config import Recipe
from fer_helpers.models import EmotionNet

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
    groups = _groups(model, recipe)
    if vote_head is not None:
        groups += _groups(nn.ModuleDict({"head": vote_head}), recipe)
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=recipe.head_lr, momentum=0.9, nesterov=True, fused=True)
        # The fused form makes its buffers in the first step and leaves in them what the memory held
        # if fp16 skips that step, as it mostly does. Zeros give the same bits as a first step.
        for weights in (weights for group in sgd.param_groups for weights in group["params"]):
            sgd.state[weights]["momentum_buffer"] = torch.zeros_like(weights)
        return sgd
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, lr=recipe.head_lr, fused=True)


def _groups(module: nn.Module, recipe: Recipe) -> list[dict]:
    """Groups for a torch optimizer, each with name (backbone, attention, head), lr, weight_decay.

    Every parameter stands in exactly one group; empty groups are left out. A norm after the
    backbone belongs to it. Biases, norms, position embeddings and layer scales decay as well, as in
    the original, or come in groups of their own: same name, decay 0.

    Args:
        module: the net, or any module whose parts are called backbone, norm, attention, head.
        recipe: how to train.
    """
    rates = {
        "backbone": recipe.backbone_lr,
        "attention": recipe.attention_lr,
        "head": recipe.head_lr,
    }
    groups = {}
    for name, parameter in module.named_parameters():
        part = name.split(".")[0].replace("norm", "backbone")
        spared = not recipe.decay_norms and (parameter.ndim < 2 or _not_a_weight(name))
        group = groups.setdefault(
            (part, spared),
            {
                "params": [],
                "name": part,
                "lr": rates[part],
                "weight_decay": 0.0 if spared else recipe.weight_decay,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _not_a_weight(name: str) -> bool:
    return name.endswith(
        ("class_token", "pos_embedding", "relative_position_bias_table", "layer_scale")
    )


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
        counts: how many faces each class has (K,), none of them zero.
        kind: "balanced" is N / (K n_c); "effective" is (1 - 0.999) / (1 - 0.999**n_c), scaled to
            mean 1 over the faces (Cui et al. 2019, "Class-balanced loss based on effective number
            of samples", who take it over the classes: then mixed labels, which torch divides by
            their number and not by their weights, would weigh less than plain ones).

    Returns:
        float64 (K,).
    """
    if kind == "balanced":
        return counts.sum() / (len(counts) * counts)
    weights = (1 - 0.999) / (1 - 0.999**counts)
    return weights * counts.sum() / (weights @ counts)


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
