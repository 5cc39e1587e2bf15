# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inference: faces in, logits out
#
# Every network that is scored or asked runs through one function, so that the accuracy in a table
# and the answer for a photo come from the same pixels and the same views. (An exported file has a
# runtime of its own, see `export`.) Nothing here is random: asking twice gives the same numbers.

# %%
"""Batched forward passes over a set of faces: logits, test-time views, embeddings."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fer_helpers.preprocess import Preprocess

# %% [markdown]
# ## Device and precision
#
# `auto` takes what the hardware is good at: bf16 on x86 processors with bf16 instructions and
# on Ampere or later, fp16 on older CUDA cards such as Kaggle's T4, fp32 everywhere else.


# %%
NO_FP16 = re.compile(r"GTX 16\d\d|\bT(400|550|600|1000|1200|2000)\b")
"""Cards without tensor cores, whose convolutions give NaN in fp16 (pytorch issue 77955)."""


class DeviceError(RuntimeError):
    """The wished device or precision cannot be used here."""


def pick_device(wish: str = "auto") -> torch.device:
    """Turn `DEVICE` into a device that this build of torch can really use.

    Raises:
        DeviceError: the device is absent, or torch was built without kernels for it, as the
            image on Kaggle is for the P100.

    An NVIDIA GPU is told to compute fp32 as such, not in the shorter TF32 that cuDNN would take.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "mps" if _mps_works() else "cpu"
    try:
        device = torch.device(wish)
    except RuntimeError:  # a page of names that no other device answers to
        raise DeviceError(f"DEVICE is '{wish}', which torch does not know: use 'auto'.") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(f"DEVICE is '{wish}', but torch sees no CUDA device: use 'auto'.")
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(
                f"DEVICE is '{wish}', but torch sees only {torch.cuda.device_count()}: use 'cuda'."
            )
        if not _has_kernels(device):
            major, minor = torch.cuda.get_device_capability(device)
            raise DeviceError(
                f"This torch has no kernels for {torch.cuda.get_device_name(device)} "
                f"(sm_{major}{minor}): choose another accelerator (on Kaggle: GPU T4 x2), "
                "or set DEVICE to 'cpu'."
            )
        torch.backends.cudnn.allow_tf32 = False
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("DEVICE is 'mps', but this machine has no Apple GPU: use 'auto'.")
    return device


def _mps_works() -> bool:
    """Whether there is an Apple GPU that gives memory: in a virtual machine it may give none."""
    try:
        return torch.backends.mps.is_available() and bool(torch.ones(1, device="mps").item())
    except RuntimeError:
        return False


def _has_kernels(device: torch.device) -> bool:
    """Whether this build of torch can compute on an NVIDIA GPU (others say so themselves).

    By the CUDA programming guide's rules on compatibility: `sm_XY` is code for X.Y and for later
    minor versions of X; `compute_XY` is compiled on the spot for X.Y and everything later.
    """
    if torch.version.hip:
        return True
    here = torch.cuda.get_device_capability(device)
    for arch in torch.cuda.get_arch_list():
        kind, number = arch.rstrip("af").split("_")
        built = divmod(int(number), 10)
        if built <= here and (kind == "compute" or built[0] == here[0]):
            return True
    return False


def _cpu_has_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16", found.get("amx_tile")) or found.get("avx512_bf16"))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


def pick_precision(wish: str, device: torch.device) -> str:
    """Turn `PRECISION` into fp32, bf16 or fp16 for `device`.

    Raises:
        DeviceError: the precision exists but the device cannot compute in it.
    """
    if device.type == "cuda":
        # Asked of the hardware: `is_bf16_supported` alone counts slow emulation as support.
        if torch.cuda.get_device_capability(device) >= (8, 0):
            best, possible = "bf16", ("fp32", "fp16", "bf16")
        else:
            broken = NO_FP16.search(torch.cuda.get_device_name(device))
            best, possible = "fp32" if broken else "fp16", ("fp32", "fp16")
    elif device.type == "cpu":
        best = "bf16" if _cpu_has_bf16() else "fp32"
        possible = ("fp32", "bf16")  # bf16 without the instructions is slow, but it is right
    else:
        best, possible = "fp32", ("fp32",)
    if wish == "auto":
        return best
    if wish not in possible:
        raise DeviceError(
            f"PRECISION '{wish}' does not work on {device.type} here: use {' or '.join(possible)}."
        )
    return wish


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Lower precision where it is safe: weights stay fp32, torch chooses per operation."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Take only algorithms that give the same bits each time on the same GPU.

    On a CPU all do, but for the backward pass of `swin_t` on several threads, which is left alone.
    cuDNN's convolutions have such algorithms; the fast kernels of a transformer's attention have
    none for their backward pass.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


# %% [markdown]
# ## Logits, with or without views
#
# Ten views are the picture and its mirror image, each in the middle and moved by a few pixels to
# four sides. They are always the same ten; a random crop would score differently each time.


# %%
def _view(batch: Tensor, number: int) -> Tensor:
    """The `number`-th of ten views of `batch` (N, C, H, W); 0 is the batch itself."""
    if number % 2:
        batch = batch.flip(-1)
    if number < 2:
        return batch
    step = max(1, batch.shape[-1] // 24)  # two pixels of 48
    dy, dx = {1: (-step, 0), 2: (step, 0), 3: (0, -step), 4: (0, step)}[number // 2]
    padded = nn.functional.pad(batch, (step,) * 4, mode="replicate")
    height, width = batch.shape[-2:]
    return padded[..., step + dy : step + dy + height, step + dx : step + dx + width]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}  # frozen parts have another
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _over_batches(
    model: nn.Module,
    faces: Any,
    preprocess: Preprocess,
    forward: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    device: torch.device | str,
    precision: str,
) -> np.ndarray:
    device = torch.device(device)
    read = faces.images if hasattr(faces, "images") else faces.__getitem__
    parts = []
    with _evaluating(model), repeatable(device):
        for start in range(0, len(faces), batch_size):
            pixels = read(np.arange(start, min(start + batch_size, len(faces))))
            pixels = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
            parts.append(_in_parts(forward, preprocess, pixels.permute(0, 3, 1, 2), precision))
    return torch.cat(parts).numpy() if parts else np.zeros((0, 0), np.float32)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on whichever way a device says so.

    cuDNN finds no engine and cuBLAS allocates nothing where their workspace does not fit (pytorch
    issue 108645), and an Apple GPU and a processor have no exception of their own.
    """
    said = ("out of memory", "unable to find an engine", "ALLOC_FAILED", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)


def _in_parts(
    forward: Callable[[Tensor], Tensor], preprocess: Preprocess, pixels: Tensor, precision: str
) -> Tensor:
    """What `forward` gives on the CPU, from halves of the batch where the memory is too small."""
    try:
        batch = preprocess(pixels)
        if isinstance(preprocess, Preprocess):  # somebody else's network may want plain memory
            batch = batch.contiguous(memory_format=torch.channels_last)
        else:
            batch = batch.contiguous()
        with autocast(pixels.device, precision):  # the pixels themselves stay exact
            return forward(batch).float().cpu()
    except RuntimeError as error:
        if len(pixels) == 1 or not out_of_memory(error):
            raise
    halves = pixels.tensor_split(2)  # only outside of the block is the failed pass's memory free
    return torch.cat([_in_parts(forward, preprocess, half, precision) for half in halves])


def predict_logits(
    model: nn.Module,
    faces: Any,
    preprocess: Preprocess,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    views: int = 1,
) -> np.ndarray:
    """Score every face.

    Args:
        model: on `device`; its training mode is restored afterwards.
        faces: a `data.FaceSet` or what has a length and `images` as it does, or a uint8 array (N,
            H, W, C).
        preprocess: what turns pixels into the model's input.
        batch_size: faces per forward pass.
        device: where the model is.
        precision: fp32, bf16 or fp16.
        views: 1 for the picture alone; up to 10 averages the probabilities over the first `views`
            of the ten deterministic views.

    Returns:
        float32 (N, K): the logits for one view, else the logarithm of the mean probability, so
        that a softmax gives probabilities in both cases.

    Raises:
        ValueError: `views` is not in 1..10.
    """
    if not 1 <= views <= 10:
        raise ValueError(f"views is {views}: there are 1 to 10 deterministic views.")

    def forward(batch: Tensor) -> Tensor:
        if views == 1:
            return model(batch)
        mean = sum(model(_view(batch, v)).float().softmax(1) for v in range(views)) / views
        return mean.clamp_min(1e-12).log()

    return _over_batches(
        model, faces, preprocess, forward, batch_size=batch_size, device=device, precision=precision
    )


# %% [markdown]
# ## What the network sees on its way
#
# The embedding is the pooled feature vector before the head. What its attention looks at is shown
# by `explain`.


# %%
def embed(
    model: nn.Module,
    faces: Any,
    preprocess: Preprocess,
    *,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
) -> np.ndarray:
    """Pooled features of every face: float32 (N, F)."""
    how = {"batch_size": 256, "device": device, "precision": precision}
    return _over_batches(model, faces, preprocess, model.embed, **how)


# %% [markdown]
# ## Demo
#
# An untrained network and a few drawn faces: two passes give the same numbers, and ten views
# change the answer only a little.

# %% tags=["active-ipynb"]
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.models import build_model
#
# faces = np.stack([np.asarray(draw_face("Happy", seed, size=48)) for seed in range(4)])
# torch.manual_seed(0)
# model = build_model(7, stem="small2", width=16)
# preprocess = Preprocess(size=48)
# once = predict_logits(model, faces, preprocess)
# again = predict_logits(model, faces, preprocess)
# ten = predict_logits(model, faces, preprocess, views=10)
# print("logits", once.shape, "| the same twice:", bool((once == again).all()))
# moved = np.abs(np.exp(ten) - torch.from_numpy(once).softmax(1).numpy()).max()
# print(f"ten views move a probability by at most {moved:.3f}")
