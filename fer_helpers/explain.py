# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explain: where the net looks, and whether the picture of it means anything
#
# Two maps can be laid over a face. The model's own mask is what the attention multiplied with (plus
# one half after a safe start): it is part of the answer, and the same for every emotion. Grad-CAM
# asks which places raise the logit of *one* emotion. Both look convincing even on a net that has
# learned nothing, so there is a third function: compare a map with the one of the same net with
# random weights. A map that hardly changes shows the picture's edges, not the net's knowledge.
#
# Grad-CAM comes from the library `grad-cam` (`pip install grad-cam`, extra `explain`).

# %%
"""Grad-CAM, the attention mask, and the check that a map depends on what was learned."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from fer_helpers.extras import lacking
from fer_helpers.models import TRANSFORMERS, EmotionNet, build_model


class ExplainError(RuntimeError):
    """A map cannot be made; the message says what to do."""


# %% [markdown]
# ## Two maps


# %%
def grad_cam(model: EmotionNet, batch: Tensor, targets: Sequence[int]) -> np.ndarray:
    """Grad-CAM of the last stage: the places that raise the logit of one class per face.

    Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
    Localization", as the library `grad-cam` computes it.

    Args:
        model: the net; it is not changed, and keeps its gradients.
        batch: preprocessed faces (N, C, H, W), on any device.
        targets: N class numbers, usually the predicted ones.

    Returns:
        float32 (N, H, W), each map scaled to 0..1; all 0 where nothing speaks for the class.

    Raises:
        ExplainError: the library cannot be used, or the backbone has no feature map.
        ValueError: not one target per face.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        why = lacking(error, "pytorch_grad_cam", "grad-cam")
        raise ExplainError(f"Grad-CAM cannot be made: {why}") from None
    backbone = model.architecture["backbone"]
    if backbone in TRANSFORMERS:
        raise ExplainError(
            f"{backbone} has no feature map for Grad-CAM; choose a convolutional backbone."
        )
    if len(targets) != len(batch):
        raise ValueError(f"{len(targets)} targets for {len(batch)} faces; give one class per face.")
    # A copy, because the library leaves hooks, evaluation mode and gradients behind.
    net = copy.deepcopy(model).eval()
    wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    with torch.enable_grad(), GradCAM(net, [net.backbone[-1]]) as cam:
        return np.asarray(cam(batch.clone(), wanted), dtype=np.float32)


# %%
def attention_map(model: EmotionNet, batch: Tensor) -> np.ndarray:
    """The net's own mask (N, h, w) float32, 0 to 1, at the size of its last map.

    Raises:
        ExplainError: its attention has no places (none, channel, se).
    """
    net = copy.deepcopy(model).eval()
    with torch.inference_mode():
        mask = net.attention_mask(batch)
    if mask is None:
        raise ExplainError(
            f"attention {model.architecture['attention']!r} has no mask over places; choose "
            "'spatial' or 'cbam' to see one."
        )
    return mask[:, 0].float().cpu().numpy()


# %%
MAPS: dict[str, Callable[[EmotionNet, Tensor, Sequence[int]], np.ndarray]] = {
    "mask": lambda model, batch, targets: attention_map(model, batch),
    "Grad-CAM": grad_cam,
}


def all_maps(
    model: EmotionNet, batch: Tensor, targets: Sequence[int]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of `MAPS` that this net and this machine can give.

    Args:
        model: the net; it is not changed.
        batch: preprocessed faces (N, C, H, W).
        targets: N class numbers for Grad-CAM.

    Returns:
        {name: maps (N, h, w)}, and one sentence for each kind that cannot be made.
    """
    maps, missing = {}, []
    for name, make in MAPS.items():
        try:
            maps[name] = make(model, batch, targets)
        except ExplainError as error:
            missing.append(str(error))
    return maps, missing


# %% [markdown]
# ## Does the map depend on what was learned?


# %%
def similarity(maps: np.ndarray, others: np.ndarray) -> float:
    """Mean Spearman rank correlation, face by face, of two sets of maps (N, h, w); -1 to 1.

    A constant map resembles nothing and counts 0.
    """
    values = [
        0.0 if np.ptp(one) == 0 or np.ptp(other) == 0 else spearmanr(one, other, axis=None)[0]
        for one, other in zip(maps, others, strict=True)
    ]
    return float(np.mean(values))


# %%
def randomization_check(
    make_maps: Callable[[EmotionNet, Tensor], np.ndarray],
    model: EmotionNet,
    batch: Tensor,
) -> float:
    """How much of a map survives when every weight of the net is random, mean over three nets.

    Near 0: the map came from what was learned, or is flat. Near 1: it would look the same without
    learning and explains nothing. Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (rank
    correlation, model parameter randomization).

    Args:
        make_maps: `attention_map`, or `lambda net, faces: grad_cam(net, faces, targets)`.
        model: the trained net; it is not changed.
        batch: preprocessed faces (N, C, H, W).
    """
    trained = make_maps(model, batch)
    survived = []
    for seed in range(3):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = build_model(**model.architecture)
            for part in fresh.modules():
                # The zeros of a safe start would make every mask flat, which resembles nothing.
                if isinstance(part, torch.nn.Conv2d) and not part.weight.any():
                    part.reset_parameters()
            fresh.to(batch.device)
            if len(batch) > 1:  # batch norms scale by these faces, or every mask is full or empty
                for part in fresh.modules():
                    if isinstance(part, torch.nn.BatchNorm2d):
                        part.momentum = None  # the mean over what was seen
                with torch.no_grad():
                    fresh.train()(batch)
        survived.append(similarity(trained, make_maps(fresh.eval(), batch)))
    return float(np.mean(survived))


# %% [markdown]
# ## Demo
#
# A small net learns for some seconds to tell two drawn expressions apart. Left the face, then its
# mask and its Grad-CAM, then the same two maps of a random net. Last the third function: how much
# each map is like those of three random nets, 0 for not at all.

# %% tags=["active-ipynb"]
# import matplotlib.pyplot as plt
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.preprocess import Preprocess
#
# classes = ("Happy", "Surprise")
# preprocess = Preprocess(size=48, channels=1, grey=True)
# drawn = [draw_face(classes[seed % 2], seed, size=48) for seed in range(64)]
# faces = torch.stack([preprocess(face) for face in drawn])
# labels = torch.arange(64) % 2
# torch.manual_seed(0)
# settings = {"backbone": "resnet18", "stem": "small1", "width": 16, "channels": 1}
# model = build_model(2, dropout=0.0, head_hidden=0, **settings)
# optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
# for epoch in range(6):
#     for part in torch.randperm(64).split(16):
#         loss = torch.nn.functional.cross_entropy(model(faces[part]), labels[part])
#         optimizer.zero_grad()
#         loss.backward()
#         optimizer.step()

# %% tags=["active-ipynb"]
# from fer_helpers.explain import attention_map, grad_cam
#
# torch.manual_seed(1)
# untrained = build_model(**model.architecture)
# figure, axes = plt.subplots(2, 5, figsize=(9, 4))
# for row, shown in enumerate(axes):
#     shown[0].imshow(drawn[row])
#     one, target = faces[row : row + 1], [row]
#     maps = [f(net) for net in (model, untrained) for f in (
#         lambda net, one=one: attention_map(net, one)[0],
#         lambda net, one=one, target=target: grad_cam(net, one, target)[0],
#     )]
#     for axis, picture in zip(shown[1:], maps, strict=True):
#         axis.imshow(picture)
# for axis, title in zip(
#     axes[0], ("face", "mask", "Grad-CAM", "random: mask", "Grad-CAM"), strict=True
# ):
#     axis.set_title(title)
# for axis in axes.flat:
#     axis.axis("off")

# %% tags=["active-ipynb"]
# some, targets = faces[:8], labels[:8].tolist()
# for name, make in {
#     "mask": attention_map, "Grad-CAM": lambda net, batch: grad_cam(net, batch, targets)
# }.items():
#     print(f"{name}: correlation with random nets' {randomization_check(make, model, some):.2f}")
