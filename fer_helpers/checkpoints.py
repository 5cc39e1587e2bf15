"""Saving, loading, resuming: two kinds of file, and neither is ever executed as a pickle.

A *model file* (safetensors) is what people share: weights plus everything that is needed to use
them, as JSON in its header: architecture, class names, preprocessing, temperature. A *state file*
is what a killed run continues from; it is read with `weights_only=True`, which rebuilds tensors and
plain values and refuses everything else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fer_helpers.files import replace_file
from fer_helpers.inference import out_of_memory
from fer_helpers.layouts import local_path
from fer_helpers.models import EmotionNet, build_model
from fer_helpers.preprocess import Preprocess

FORMAT = 1
"""Version of both file kinds; a file with a higher one comes from a later release."""

SHIPPED = Path(__file__).parent / "weights"

IN_A_FOLDER = (
    "model.safetensors",
    "best.safetensors",
    "fer2013/best.safetensors",
    "affectnet/best.safetensors",
)
"""Where a run folder, or a phase's folder in it, has its model; the first that learned counts."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or continued; the message says what to do."""


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """`files.replace_file` with an error that says what to do.

    Raises:
        CheckpointError: it could not be written; what stood at `path` before is untouched.
    """
    try:
        replace_file(path, write)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors report a full disk in their own exception types.
        raise CheckpointError(
            f"{path} could not be written ({error}): free some space or choose another OUTPUT_DIR; "
            "what was saved before is untouched."
        ) from error


# Model files


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to answer, with all that belongs to it."""

    model: EmotionNet
    class_names: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None


def save_model(
    path: str | Path,
    model: EmotionNet,
    class_names: Sequence[str],
    preprocess: Preprocess,
    *,
    temperature: float = 1.0,
    extra: Mapping[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model file.

    Args:
        path: ends in `.safetensors`.
        model: gives the architecture, and the weights unless `state` is given.
        class_names: in the order of the model's outputs.
        preprocess: what the model was trained with.
        temperature: what logits are divided by before the softmax.
        extra: JSON-able facts to keep (`origin`, `dataset`, scores ...).
        state: weights to store instead of the model's present ones.
    """
    about = {
        "format": FORMAT,
        "architecture": model.architecture,
        "class_names": list(class_names),
        "preprocess": preprocess.to_dict(),
        "temperature": float(temperature),
        "extra": dict(extra or {}),
    }
    weights = model.state_dict() if state is None else state
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    metadata = {"fer_helpers": json.dumps(about, sort_keys=True, allow_nan=False)}
    # Not `save_file`, whose files nobody but their owner may read.
    content = save(tensors, metadata=metadata)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def newest_model(folder: str | Path = "runs") -> Path | None:
    """The model of the run in `folder` that ended last, else the shipped one, else None.

    A run on drawn faces knows nothing about people, so it comes last of all; one that was stopped
    before its first epoch ended knows nothing at all and is left out.
    """
    found = list(Path(folder).glob("[!.]*/model.safetensors")) if Path(folder).is_dir() else []
    found.sort(key=lambda path: (path.stat().st_mtime, path.parent.name), reverse=True)
    found = [path for path in found if _epochs(path) != 0]
    real = (path for path in found if _extra(path).get("origin") != "drawn")
    return next(real, None) or next(SHIPPED.glob("*.safetensors"), None) or next(iter(found), None)


def _in_folder(folder: Path) -> Path:
    """The model of a run's or a phase's folder."""
    inside = [folder / name for name in IN_A_FOLDER]
    there = [file for file in inside if file.exists()]
    learned = [file for file in there if _epochs(file) != 0]
    chosen = next(iter(learned or there), inside[0])
    phase = next((file for file in learned if file.parent != folder), None)
    # A run that was stopped has left its model there; continued, it has learned more, or other
    # classes. Whoever saves a model need not say of which epoch it is.
    if phase is None:
        return chosen
    if _about(phase, "class_names") != _about(chosen, "class_names"):
        return phase if phase.parent.name == "fer2013" else chosen  # phase 2 comes after phase 1
    return phase if _epochs(chosen) not in (None, _epochs(phase)) else chosen


def _extra(path: Path) -> dict[str, Any]:
    found = _about(path, "extra")
    return dict(found) if isinstance(found, dict) else {}


def _about(path: Path, name: str) -> Any:
    """One entry of a file's description; None where it cannot be read: loading says why."""
    try:
        return _read_about(path)[name]
    except (CheckpointError, KeyError):
        return None


def _epochs(path: Path) -> int | None:
    """After how many epochs of its phase a model was kept; None where the file does not say."""
    extra = _extra(path)
    return extra.get("best_epoch", extra.get("epoch"))


def load_model(
    path: str | Path | None = None, device: torch.device | str = "cpu", runs: str | Path = "runs"
) -> LoadedModel:
    """Rebuild a model from its file alone.

    Args:
        path: a model file, a run folder or a phase's folder in it; None takes the model of the
            newest run on real faces in `runs`, else the one that is shipped with the package, else
            that of a run on drawn faces. Of a run that has not reached its end, the best so far.
        device: where the model goes, whatever device it was trained on.
        runs: where to look for runs when `path` is None.

    Raises:
        CheckpointError: there is no such file, it is not one of ours, it is from a later release,
            or its weights do not fit its own description.
    """
    if path is None:
        path = newest_model(runs)
        if path is not None and path.name == IN_A_FOLDER[0]:
            path = path.parent
        if path is None:
            raise CheckpointError(
                f"No trained model in {runs} and none is shipped: run the notebook once, or give "
                "the path of a model file."
            )
    path = local_path(path)
    if os.path.isdir(path):  # `Path.is_dir` raises where a name is too long, or closed to us
        path = _in_folder(path)
    about = _read_about(path)
    try:
        names = tuple(about["class_names"])
        architecture = {**about["architecture"], "pretrained": "none"}  # a file fetches nothing
        preprocess = Preprocess.from_dict(about["preprocess"])
        temperature, extra = float(about["temperature"]), dict(about["extra"])
        if not 0 < temperature < float("inf"):  # a negative one would turn the answers around
            raise ValueError(f"temperature is {temperature}, not above 0")
        if isinstance(about["class_names"], str) or not all(isinstance(n, str) for n in names):
            raise ValueError("class_names is no list of names")
        if len(set(names)) != len(names):
            raise CheckpointError(
                f"{path} names a class twice ({', '.join(map(str, names))}): the file was put "
                "together wrongly, save it again."
            )
        if len(names) != architecture["num_classes"]:
            raise CheckpointError(
                f"{path} names {len(names)} classes but its network answers for "
                f"{architecture['num_classes']}: the file was put together wrongly, save it again."
            )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The description inside {path} is incomplete or unknown here ({error!r}): "
            "save the model again with this version."
        ) from None
    try:
        model = build_model(**architecture)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # the last: no such memory
        raise CheckpointError(
            f"{path} holds a network that this version does not build ({error}): train it again, "
            "or name another model file."
        ) from None
    channels = model.architecture["channels"]
    if preprocess.channels != channels:
        raise CheckpointError(
            f"{path} prepares pictures of {preprocess.channels} channel(s) for a network of "
            f"{channels}: the file was put together wrongly, save it again."
        )
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - weights.keys())
    foreign = sorted(weights.keys() - wanted.keys())
    shapes = sorted(
        n for n in wanted.keys() & weights.keys() if wanted[n].shape != weights[n].shape
    )
    if missing or foreign or shapes:
        what = ", ".join(
            f"{len(names)} {word} (such as {names[0]})"
            for names, word in ((missing, "missing"), (foreign, "unknown"), (shapes, "misshapen"))
            if names
        )
        raise CheckpointError(
            f"The weights in {path} do not fit its own description: {what}; "
            "the file is damaged or was edited, take an intact copy."
        )
    model.load_state_dict(weights)
    model.to(device).eval()
    return LoadedModel(model, names, preprocess, temperature, extra, path)


def _read_about(path: Path) -> dict[str, Any]:
    if not os.path.exists(path):
        raise CheckpointError(f"There is no model file at {path}: check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("fer_helpers")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}): take an intact copy."
        ) from None
    if text is None:
        raise CheckpointError(
            f"{path} holds weights but not what they are for: only files that this project saved "
            "can be loaded without other arguments."
        )
    try:
        about = json.loads(text)
        version = int(about["format"])
    except (ValueError, TypeError, KeyError, OverflowError):
        raise CheckpointError(
            f"The description inside {path} cannot be read: take an intact copy."
        ) from None
    _refuse_later(version, path)
    return about


def _refuse_later(version: int, path: str | Path) -> None:
    if version > FORMAT:
        raise CheckpointError(
            f"{path} was saved by a later release (format {version}, this one reads up to "
            f"{FORMAT}): update fer_helpers."
        )


# State files


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the whole state of a training; tensors, numbers, strings and containers of them."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a state file on the CPU, executing nothing.

    Raises:
        CheckpointError: it is damaged, holds anything but plain values, or is from a later release.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise nearly anything
        if isinstance(error, OSError | MemoryError) or out_of_memory(error):
            raise CheckpointError(
                f"{path} cannot be read now ({error}): close what holds it, make it readable for "
                "you, or free memory; do not delete it, it holds the training."
            ) from error
        raise CheckpointError(
            f"{path} is damaged or holds more than plain values ({type(error).__name__}): "
            "delete it to start this phase again, or set RESUME to 'never'."
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise CheckpointError(
            f"{path} is not the state of a training: delete it, or set RESUME to 'never'."
        )
    _refuse_later(state["format"], path)
    return state


def random_state(augment: torch.Generator, device: torch.device) -> dict[str, Any]:
    """The position of every random stream that training on `device` draws from.

    Nothing draws from Python's or NumPy's own: orders and batches follow from the seed alone.
    """
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "generators": {"augment": augment.get_state()},
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(
    state: Mapping[str, Any], augment: torch.Generator, device: torch.device
) -> None:
    """Put every random stream back to where `random_state` found it.

    A run may go on with another GPU's number; on another kind of device its stream starts anew.
    """
    torch.set_rng_state(state["torch"])
    augment.set_state(state["generators"]["augment"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if "mps" in state and device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of all weights: equal exactly when the models are."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
