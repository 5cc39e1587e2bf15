"""Time one ResNet-34 on the CPU by every way of running it, each in a process of its own.

    python benchmarks/inference.py                      # random weights: speed only
    python benchmarks/inference.py --checkpoint runs/x/best.safetensors --train DIR --test DIR

The second form calibrates int8 on the train faces of a FER2013 folder and scores those of
docs/results/fer2013-selection-slice.txt that the model never learned (`--hold-out 1000` for one
that learned the others), so the accuracy that int8 costs stands beside the time it saves. Times
are milliseconds a call, the median and, in brackets, the best: on a machine with other work the
best is the one to compare.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fer_helpers.checkpoints import load_model, save_model
from fer_helpers.demo_faces import EXPRESSIONS, draw_face
from fer_helpers.export import export_int8, export_onnx, load_onnx
from fer_helpers.models import build_model, describe
from fer_helpers.preprocess import Preprocess

BACKENDS = {
    "eager": "PyTorch eager, fp32",
    "eager-bf16": "PyTorch eager, bf16",
    "compiled": "PyTorch compiled, fp32",
    "compiled-bf16": "PyTorch compiled, bf16",
    "onnx": "ONNX Runtime, fp32",
    "int8": "ONNX Runtime, int8",
}
BATCHES = (1, 64)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write the model file, both ONNX files and the faces that every backend reads."""
    torch.manual_seed(0)
    if options.checkpoint:
        loaded = load_model(options.checkpoint)
        model, names, preprocess = loaded.model, loaded.class_names, loaded.preprocess
    else:
        model = build_model(7, stem="small2", channels=1, width=options.width)
        names = [name for name in EXPRESSIONS if name != "Contempt"]
        preprocess = Preprocess(size=48, channels=1, grey=True)
    faces, labels, train = data(options, names)
    save_model(folder / "net.safetensors", model, names, preprocess)
    export_onnx(folder / "net.onnx", model, names, preprocess)
    export_int8(folder / "net.onnx", train, folder / "int8.onnx")
    np.savez(folder / "faces.npz", faces=faces, labels=labels)
    print(describe(model))


def data(
    options: argparse.Namespace, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces to score, their labels (-1: none), and train faces to calibrate on.

    Raises:
        SystemExit: the folders have other classes than the network's `names`.
    """
    if options.test:
        from ablation import cut_slice

        from fer_helpers.data import load_fer2013

        splits = load_fer2013(options.train, options.test, selection_size=0)
        if tuple(names) != splits.train.class_names:
            sys.exit(f"The network knows {', '.join(names)}: not the classes of {options.train}.")
        splits = cut_slice(splits, options.hold_out)
        test = splits.selection
        print(
            f"scored on {test.split}, n {len(test)}, calibrated on {options.calibrate} train faces"
        )
        chosen = np.random.default_rng(0).permutation(len(splits.train))[: options.calibrate]
        return test.images(), test.labels, splits.train.images(np.sort(chosen))
    drawn = [draw_face(EXPRESSIONS[seed % len(EXPRESSIONS)], seed, 48) for seed in range(192)]
    faces = np.stack([np.asarray(face.convert("L"))[..., None] for face in drawn])
    return faces[:64], np.full(64, -1), faces[64:]


def runner(backend: str, folder: Path, threads: int):
    """A function from preprocessed faces to logits, by one backend."""
    if backend in ("onnx", "int8"):
        return load_onnx(
            folder / ("net.onnx" if backend == "onnx" else "int8.onnx"), threads=threads
        )
    torch.set_num_threads(threads)
    net = load_model(folder / "net.safetensors").model.eval()
    net = net.to(memory_format=torch.channels_last)
    if backend.startswith("compiled"):
        net = torch.compile(net, dynamic=False)
    half = torch.autocast("cpu", torch.bfloat16) if backend.endswith("bf16") else None

    class Torch:
        def run(self, faces: torch.Tensor) -> np.ndarray:
            with torch.inference_mode(), half or contextlib.nullcontext():
                return net(faces.contiguous(memory_format=torch.channels_last)).float().numpy()

    return Torch()


def measure(backend: str, folder: Path, options: argparse.Namespace) -> dict:
    """Milliseconds a call for each batch size, and the logits of every face."""
    run = runner(backend, folder, options.threads).run
    stored = np.load(folder / "faces.npz")
    faces = load_model(folder / "net.safetensors").preprocess(stored["faces"])
    result = {}
    for size in BATCHES:
        batch = faces[:size].contiguous()
        for _ in range(3):
            run(batch)
        times, stop = [], time.perf_counter() + options.seconds
        while time.perf_counter() < stop or len(times) < 5:
            start = time.perf_counter()
            run(batch)
            times.append(1000 * (time.perf_counter() - start))
        result[str(size)] = [float(np.median(times)), float(np.min(times))]
    if not backend.startswith("compiled"):  # a last odd batch would be compiled anew
        logits = np.concatenate([run(part) for part in faces.split(64)])
        result["answers"] = logits.argmax(1).tolist()
        result["accuracy"] = float((logits.argmax(1) == stored["labels"]).mean())
    return result


def table(results: dict[str, dict]) -> str:
    """Rows of a markdown table, eager fp32 as the measure."""
    head = "| backend | batch 1, ms | speed | batch 64, ms | speed | same answer | accuracy |"
    lines = [head, "|---" * 7 + "|"]
    base = results["eager"]
    for backend, result in results.items():
        if "error" in result:
            lines.append(f"| {BACKENDS[backend]} | not run: {result['error']} | | | | | |")
            continue
        cells = [BACKENDS[backend]]
        for size in map(str, BATCHES):
            median, best = result[size]
            cells += [f"{median:.2f} ({best:.2f})", f"{base[size][1] / best:.1f}x"]
        same = ""
        if "answers" in result:
            same = f"{100 * np.mean(np.equal(result['answers'], base['answers'])):.1f} %"
        scored = f"{100 * result['accuracy']:.2f} %" if result.get("accuracy") else ""
        lines.append(f"| {' | '.join([*cells, same, scored])} |")
    return "\n".join(lines)


def machine(threads: int) -> str:
    """The processor and the packages, one line."""
    name, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        fields = dict(
            line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16")
        name = fields.get("model name", name)
        flags = ", " + " ".join(flag for flag in known if flag in fields.get("flags", "").split())
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "onnxruntime")]
    return f"{name}{flags}; {threads} threads; {', '.join(packages)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="model file; default: random weights, 48 px grey")
    parser.add_argument("--train", help="FER2013 train folder")
    parser.add_argument("--test", help="FER2013 test folder")
    parser.add_argument("--hold-out", type=int, default=3000, help="images the model never learned")
    parser.add_argument("--calibrate", type=int, default=512, help="train faces for int8")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=4.0, help="per backend and batch size")
    parser.add_argument("--rounds", type=int, default=1, help="turns that every backend gets")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold_out < 1:
        parser.error("--hold-out: there must be images to score")
    if bool(options.train) != bool(options.test):
        parser.error("--train and --test: give both folders, or neither for drawn faces")
    if options.child:
        print(json.dumps(measure(options.child, options.folder, options)))
        return
    print(machine(options.threads), flush=True)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), options)
        wanted = list(dict.fromkeys(["eager", *options.backends]))
        for backend in wanted * options.rounds:
            command = [sys.executable, __file__, "--child", backend, "--folder", folder]
            command += ["--threads", str(options.threads), "--seconds", str(options.seconds)]
            child = subprocess.run(command, capture_output=True, text=True, check=False)
            if child.returncode == 0:
                result = json.loads(child.stdout.splitlines()[-1])
                before = results[backend] if "1" in results.get(backend, {}) else result
                results[backend] = before
                for size in map(str, BATCHES):  # of several rounds, the least disturbed
                    before[size] = min(before[size], result[size], key=lambda pair: pair[1])
            else:
                lines = child.stderr.strip().splitlines() or ["no message"]
                results.setdefault(backend, {"error": lines[-1][:100]})
    if "error" in results["eager"]:
        sys.exit(f"There is nothing to compare with: {results['eager']['error']}")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
