# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export: one file that answers without PyTorch
#
# A trained net leaves as an ONNX file that ONNX Runtime, and with it C++, a phone or a browser, can
# run. Class names, preprocessing and temperature travel inside the file: whoever opens it needs
# nothing else. The int8 file is a quarter of the size and, on processors with integer dot products,
# several times faster.
#
# No float file is written that was not compared: the exported net must agree with the PyTorch net
# on random pictures, or the export fails. An int8 file answers a little differently and is not
# compared: score it before you use it. Needs the packages of the extra `export`.

# %%
"""A net as an ONNX file, float or int8, with class names and preprocessing inside."""

import contextlib
import copy
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from fer_helpers.extras import lacking
from fer_helpers.files import replace_file
from fer_helpers.layouts import local_path
from fer_helpers.models import EmotionNet
from fer_helpers.preprocess import Preprocess

OPSET = 18  # the oldest one that can do everything here, so that older runtimes read the file
TOLERANCE = 1e-3  # largest accepted difference of two logits, PyTorch against ONNX Runtime


class ExportError(RuntimeError):
    """A net cannot be exported, or an ONNX file cannot be used; the message says what to do."""


def _extra(name: str) -> ModuleType:
    """A module of the optional packages, imported when it is needed and not before."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        why = lacking(error, name.split(".")[0], "onnx onnxruntime onnxscript")
        raise ExportError(f"ONNX files cannot be used: {why}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' and the quantizer's notes about themselves off the notebook."""
    with warnings.catch_warnings(), tempfile.TemporaryFile("w", encoding="utf-8") as nowhere:
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(before)


# %% [markdown]
# ## Float
#
# PyTorch has two exporters. The new one (`dynamo=True`) is the default since 2.9 and still has open
# faults; the old one is being retired. So the new one is tried first, the old one second, and what
# counts is agreement, not which of them did it.


# %%
def export_onnx(
    path: str | Path,
    model: EmotionNet,
    class_names: Sequence[str],
    preprocess: Preprocess,
    *,
    temperature: float = 1.0,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write a net as an ONNX file with a free batch size: input `faces`, output `logits`.

    `faces` is float32 (N, C, size, size), normalized as the file's metadata says; `logits` is
    float32 (N, K). Metadata keys, each JSON: `class_names`, `preprocess`, `temperature`,
    `architecture`, `extra`.

    Args:
        path: the file to write; ends in `.onnx`.
        model: the net; it is not changed.
        class_names: in the order of the logits.
        preprocess: what the net was trained with.
        temperature: what logits are divided by before the softmax.
        extra: JSON-able facts to keep, such as `origin`.

    Returns:
        The path.

    Raises:
        ExportError: another ending, a missing package, or no exporter wrote a file that agrees with
            the net.
    """
    if Path(path).suffix.lower() != ".onnx":  # it would not be opened as one
        raise ExportError(f"{path} does not end in .onnx: give the file that ending.")
    onnx = _extra("onnx")
    _extra("onnxruntime")
    if len(class_names) != model.architecture["num_classes"]:
        raise ExportError(
            f"{len(class_names)} class names were given for {model.architecture['num_classes']} "
            "logits; give one name per logit."
        )
    path = local_path(path)
    metadata = {
        "class_names": list(class_names),
        "preprocess": preprocess.to_dict(),
        "temperature": temperature,
        "architecture": model.architecture,
        "extra": dict(extra or {}),
    }
    net = copy.deepcopy(model).cpu().float().eval().to(memory_format=torch.contiguous_format)
    side = preprocess.size
    # Not a batch of 1: the exporters take a 1 for a constant (pytorch/pytorch#157621).
    shape = (2, preprocess.channels, side, side)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for dynamo in (True, False):
            draft = Path(folder, f"{dynamo}.onnx")
            try:
                with _quiet():
                    _write(net, example, draft, dynamo)
                difference = _difference(net, draft, example)
            except Exception as error:  # an exporter may fail in any way; the other may not
                text = (str(error).splitlines() or ["without a word"])[0][:200]
                faults.append(f"{type(error).__name__}: {text}")
                continue
            if not difference <= TOLERANCE:  # nor for what is not a number
                faults.append(f"the logits differ by {difference:.2g}")
                continue
            proto = onnx.load(draft)
            texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
            onnx.helper.set_model_props(proto, texts)
            content = proto.SerializeToString()
            return replace_file(path, partial(Path.write_bytes, data=content))
    raise ExportError(
        f"{model.architecture['backbone']} could not be exported ({'; '.join(faults)}); update "
        "torch, onnx and onnxscript, or choose another backbone."
    )


def _write(net: EmotionNet, example: torch.Tensor, path: Path, dynamo: bool) -> None:
    """Export with one of PyTorch's two exporters."""
    free = {"dynamic_shapes": {"x": {0: torch.export.Dim("batch")}}}
    if not dynamo:
        free = {"dynamic_axes": {"faces": {0: "batch"}, "logits": {0: "batch"}}}
    torch.onnx.export(
        net,
        (example,),
        str(path),
        input_names=["faces"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=dynamo,
        external_data=False,
        **free,
    )


def _difference(net: EmotionNet, path: Path, example: torch.Tensor) -> float:
    """The largest difference of a logit between the net and the file, for batches of 1, 2 and 5."""
    session = _session(path)
    largest = 0.0
    for size in (1, 2, 5):
        batch = example[:1].expand(size, -1, -1, -1) * torch.linspace(1, 2, size).view(-1, 1, 1, 1)
        with torch.inference_mode():
            wanted = net(batch).numpy()
        got = session.run(None, {"faces": batch.contiguous().numpy()})[0]
        largest = np.maximum(largest, np.abs(wanted - got).max())  # `max` would forget a NaN
    return float(largest)


# %% [markdown]
# ## int8
#
# Static quantization: a few hundred training faces run through the net, the range of every
# activation is noted, and weights and activations become 8-bit numbers with a scale. Never
# calibrate on faces that are scored afterwards.
#
# Two choices make one file right on every processor. Weights get a scale per output channel and
# seven bits: without integer dot-product instructions (VNNI) eight bits overflow inside the x86
# kernels, silently. The attention stays in float: it is under one percent of the work, and eight
# bits of a mask are few.


# %%
def export_int8(onnx_path: str | Path, faces: np.ndarray, path: str | Path) -> Path:
    """Write the int8 version of a float file from `export_onnx`.

    Args:
        onnx_path: the float file.
        faces: uint8 (N, H, W, C), a few hundred training faces, any size; more change little.
        path: the file to write; ends in `.onnx`.

    Returns:
        The path.

    Raises:
        ExportError: a missing package, no faces, or not a file of this project.
    """
    onnx = _extra("onnx")
    quantization = _extra("onnxruntime.quantization")
    onnx_path, path = local_path(onnx_path), local_path(path)
    source = load_onnx(onnx_path)
    if len(faces) == 0:
        raise ExportError(
            "no faces were given to calibrate int8 on; give some hundred train faces."
        )

    class Reader(quantization.CalibrationDataReader):
        """The faces, preprocessed, in batches."""

        def __init__(self) -> None:
            starts = range(0, len(faces), 32)
            self.batches = (source.preprocess(faces[start : start + 32]) for start in starts)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"faces": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        folded, draft = Path(folder, "folded.onnx"), Path(folder, "int8.onnx")
        # Folds batch norms into convolutions and notes shapes; symbolic inference would add sympy.
        quantization.quant_pre_process(str(onnx_path), str(folded), skip_symbolic_shape=True)
        in_float, made = [], set()  # what the attention computes, until it meets the map again
        for node in onnx.load(folded).graph.node:
            if node.op_type != "Mul" and any(
                name.startswith("attention.") or name in made for name in node.input
            ):
                in_float.append(node.name)
                made.update(node.output)
        quantization.quantize_static(
            str(folded),
            str(draft),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=in_float,
        )
        proto = onnx.load(draft)
    kept = {prop.key: prop.value for prop in onnx.load(onnx_path).metadata_props}
    extra = json.dumps({**source.extra, "precision": "int8"}, ensure_ascii=False)
    onnx.helper.set_model_props(proto, {**kept, "extra": extra})
    return replace_file(path, partial(Path.write_bytes, data=proto.SerializeToString()))


# %% [markdown]
# ## Running a file
#
# The same `Preprocess` as everywhere else turns pictures into inputs; the file says with which
# settings.


# %%
@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file that is ready to answer, with all that belongs to it."""

    session: Any
    class_names: tuple[str, ...]
    preprocess: Preprocess
    temperature: float
    extra: dict[str, Any]
    path: Path

    def run(self, faces: torch.Tensor) -> np.ndarray:
        """Logits (N, K) float32 of preprocessed pictures (N, C, size, size) float32."""
        return self.session.run(None, {"faces": faces.numpy()})[0]


def load_onnx(path: str | Path, *, threads: int = 0) -> OnnxModel:
    """Open a file written here, on the CPU.

    Args:
        path: the `.onnx` file.
        threads: threads per picture; 0: ONNX Runtime's choice, one per core.

    Raises:
        ExportError: a missing package, no such file, or not a file of this project.
    """
    path = local_path(path)
    _extra("onnxruntime")
    if not os.path.isfile(path):  # nor where the name is too long for one
        raise ExportError(f"{path} does not exist; write it with export_onnx or export_int8.")
    try:
        session = _session(path, threads)
        metadata = session.get_modelmeta().custom_metadata_map
        names = json.loads(metadata["class_names"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("class_names is no list of names")
        preprocess = Preprocess.from_dict(json.loads(metadata["preprocess"]))
        wanted = [preprocess.channels, preprocess.size, preprocess.size]
        if session.get_inputs()[0].shape[1:] != wanted:
            raise ValueError("the preprocessing is another network's")
        temperature = float(json.loads(metadata["temperature"]))
        extra = dict(json.loads(metadata["extra"]))
    except Exception as error:
        raise ExportError(
            f"{path} is not an ONNX file of this project ({type(error).__name__}); write it with "
            "export_onnx or export_int8."
        ) from None
    return OnnxModel(session, tuple(names), preprocess, temperature, extra, path)


def _session(path: Path, threads: int = 0) -> Any:
    onnxruntime = _extra("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # From memory: Windows would not let go of a temporary file that is still open.
    return onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )


# %% [markdown]
# ## Demo
#
# A net that has learned nothing yet is enough to see a file written, opened and compared.

# %% tags=["active-ipynb"]
# import tempfile
# from pathlib import Path
#
# import numpy as np
# import torch
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.export import export_int8, export_onnx, load_onnx
# from fer_helpers.models import build_model
# from fer_helpers.preprocess import Preprocess
#
# classes = ("Anger", "Happy", "Sad", "Surprise")
# torch.manual_seed(0)
# model = build_model(4, backbone="resnet18", width=16, stem="small2", channels=1).eval()
# preprocess = Preprocess(size=48, channels=1, grey=True)
# drawn = [draw_face(classes[seed % 4], seed, size=48) for seed in range(32)]
# faces = np.stack([np.asarray(face) for face in drawn])
#
# folder = Path(tempfile.mkdtemp())
# export_onnx(folder / "net.onnx", model, classes, preprocess, extra={"origin": "drawn"})
# export_int8(folder / "net.onnx", faces, folder / "int8.onnx")
# with torch.inference_mode():
#     wanted = model(preprocess(faces)).numpy()
# net = load_onnx(folder / "net.onnx")
# same = (net.run(net.preprocess(faces)).argmax(1) == wanted.argmax(1)).sum()
# print(f"float: the same emotion as PyTorch for {same} of {len(faces)} drawn faces")
# small = load_onnx(folder / "int8.onnx")
# share = small.path.stat().st_size / (folder / "net.onnx").stat().st_size
# print(f"int8: {share:.0%} of the size, answers for {', '.join(small.class_names)}")
