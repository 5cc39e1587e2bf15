"""Pretrained backbone weights: found, checked by hash, read as tensors only, fitted to the net.

Torchvision's ImageNet file is looked for attached to a Kaggle session, then in torch's cache, then
on the internet. Torchvision writes the first digits of a file's SHA-256 into its name; they are
checked wherever the file came from.
"""

import hashlib
import http.client
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from fer_helpers.layouts import local_path
from fer_helpers.mounts import attached_files

CLASSIFIERS = ("fc.", "classifier.", "heads.", "head.", "attention.")


class WeightsError(RuntimeError):
    """Pretrained weights cannot be had or do not fit; the message says what to do."""


def load_pretrained(trunk: nn.Module, norm: nn.Module, backbone: str, source: str) -> str:
    """Fill a backbone with pretrained weights and return one phrase on where they came from.

    Args:
        trunk: the backbone under torchvision's parameter names, without its classifier.
        norm: the norm between pooling and classifier (ConvNeXt's), or `nn.Identity()`.
        backbone: torchvision's name of the net.
        source: "imagenet", or a .pth / .safetensors file that holds a `state_dict` of this backbone
            or a checkpoint of this project.

    Raises:
        WeightsError: not found, not downloaded, damaged, unreadable, or of another net.
    """
    path = _imagenet_file(backbone) if source == "imagenet" else weights_file(source)
    theirs = {}
    for name, tensor in _read(path, backbone).items():
        # A checkpoint of this project says backbone.layer1..., backbone.net.encoder..., norm...;
        # ConvNeXt's norm is the first layer of torchvision's classifier.
        name = name.removeprefix("backbone.").removeprefix("net.")
        name = name.replace("classifier.0.", "norm.") if len(norm.state_dict()) else name
        if not name.startswith(CLASSIFIERS):
            theirs[name] = tensor
    ours = dict(trunk.state_dict())  # these tensors share the modules' memory
    ours |= {f"norm.{name}": tensor for name, tensor in norm.state_dict().items()}
    # Files from before torchvision 0.3 lack the batch counters; a net with momentum ignores them.
    optional = {name for name in ours if name.endswith("num_batches_tracked")}

    note = f"backbone from {path.name}"
    first = next(name for name, tensor in ours.items() if tensor.ndim == 4)
    if first in theirs and theirs[first].shape[2:] != ours[first].shape[2:]:
        stem = {name for name in ours if name.startswith((first, "bn1."))}
        ours = {name: tensor for name, tensor in ours.items() if name not in stem}
        theirs = {name: tensor for name, tensor in theirs.items() if name not in stem}
        note += ", its stem random (the file has another kernel size)"
    elif first in theirs and theirs[first].shape[1] == 3 and ours[first].shape[1] == 1:
        theirs[first] = theirs[first].sum(1, keepdim=True)

    wrong = sorted(ours.keys() - theirs.keys() - optional) + sorted(theirs.keys() - ours.keys())
    wrong += [name for name in ours if name in theirs and theirs[name].shape != ours[name].shape]
    if wrong:
        raise WeightsError(
            f"{path.name} does not fit this {backbone}: {len(wrong)} tensors are missing, foreign "
            f"or of another shape, {wrong[0]} among them; give weights of the same backbone, "
            "WIDTH and INPUT_CHANNELS, or set PRETRAINED=none."
        )
    with torch.no_grad():
        for name, tensor in theirs.items():
            ours[name].copy_(tensor)
    return note


def weights_file(source: str) -> Path:
    """The file that PRETRAINED names.

    Raises:
        WeightsError: it is no file.
    """
    path = local_path(source)
    if not path.is_file():
        raise WeightsError(
            f"PRETRAINED names {source}, which is no file; give a .pth or .safetensors file (of a "
            "run: its model.safetensors), 'imagenet' or 'none'."
        )
    return path


def _imagenet_file(backbone: str) -> Path:
    """Torchvision's default ImageNet weights as a local file, downloaded when nothing is there."""
    url = get_model_weights(backbone).DEFAULT.url
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    attached = _attached(backbone)
    if attached is not None:
        return attached
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        promised = _promised_hash(path, backbone)
        torch.hub.download_url_to_file(url, str(path), promised, progress=False)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        said = str(error).strip()  # an answer that is no HTTP has its line break
        raise WeightsError(
            f"the ImageNet weights {path.name} could not be downloaded from {url} ({said}): "
            "switch the internet on, attach the file as a Kaggle dataset, name a local copy as "
            "PRETRAINED, or set PRETRAINED=none."
        ) from None
    return path


def _attached(backbone: str) -> Path | None:
    """The first file under Kaggle's inputs named like the weights: resnet34-b627a593.pth.

    Not more: `resnet34_best.pth` may be anybody's network, trained on anything.
    """
    name = rf"{backbone}(_rwightman)?(-[0-9a-f]{{8}})?\.(pth|safetensors)"
    return next(attached_files(name), None)


def _promised_hash(path: Path, backbone: str) -> str | None:
    """The first digits of the SHA-256 in torchvision's file names, b627a593 in the one above.

    Other names promise nothing, as they may end in a commit; nor do digits alone, a date.
    """
    found = re.fullmatch(rf"{backbone}(_rwightman)?-(?!\d+\.)([0-9a-f]{{8}})\.pth", path.name)
    return found[2] if found else None


def _read(path: Path, backbone: str) -> dict[str, Tensor]:
    """Read tensors by name, after checking the hash that the file name promises."""
    promised = _promised_hash(path, backbone)
    if promised is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(promised):
            raise WeightsError(
                f"{path} is damaged: its SHA-256 starts with {digest[: len(promised)]}, its name "
                f"promises {promised}; rename it if it is a net of your own, else delete it "
                "and fetch it again."
            )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({type(error).__name__}); give a .pth file that "
            "holds tensors only, or a .safetensors file."
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise WeightsError(
            f"{path} holds something other than named tensors; save the net's state_dict() instead."
        )
    spoiled = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if spoiled:
        raise WeightsError(
            f"{path} holds NaN or infinity in {spoiled[0]}: the net it was saved from had "
            "diverged; take an earlier one."
        )
    return state
