"""How long an answer takes: a photo with its face to find, a folder of crops, the first answer.

    python benchmarks/prediction.py --photo face.jpg
    python benchmarks/prediction.py --photo face.jpg --checkpoint runs/x --crops data/fer2013/test

The middle of the photo is brought to 640x480 and answered with the detector included. Every way to
run the model gets a process of its own. The last line is a photo of 200 megapixels and its memory.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from fer_helpers.checkpoints import load_model, save_model
from fer_helpers.demo_faces import EXPRESSIONS, draw_face
from fer_helpers.export import export_int8, export_onnx
from fer_helpers.models import build_model
from fer_helpers.prediction import load_classifier, predict_images, predict_single_image
from fer_helpers.preprocess import Preprocess
from fer_helpers.sources import named_sources

MODELS = {"torch, fp32": "net.safetensors", "ONNX, fp32": "net.onnx", "ONNX, int8": "int8.onnx"}


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """The model in three forms, the photo in two sizes, a thousand crops."""
    drawn = [draw_face(EXPRESSIONS[seed % 8], seed, 48, color=False) for seed in range(256)]
    if options.checkpoint:
        kept = load_model(options.checkpoint)
        model, names, preprocess = kept.model, kept.class_names, kept.preprocess
    else:
        torch.manual_seed(0)
        model = build_model(7, stem="small2", width=32, channels=1).eval()
        names = [name for name in EXPRESSIONS if name != "Contempt"]
        preprocess = Preprocess(size=48, channels=1, grey=True)
    save_model(folder / "net.safetensors", model, names, preprocess)
    export_onnx(folder / "net.onnx", model, names, preprocess)
    faces = np.stack([np.asarray(face) for face in drawn])[..., None]
    export_int8(folder / "net.onnx", faces, folder / "int8.onnx")
    photo = Image.open(options.photo).convert("RGB")
    ImageOps.fit(photo, (640, 480)).save(folder / "photo.jpg", quality=92)
    ImageOps.fit(photo, (16_000, 12_500)).save(folder / "huge.jpg", quality=85)
    if not options.crops:
        options.crops = folder / "crops"
        options.crops.mkdir()
        for number in range(1000):
            drawn[number % len(drawn)].save(options.crops / f"{number}.jpg")


def peak() -> float:
    """Peak memory of this process, MB; nan where the system does not say.

    Linux's `ru_maxrss` starts at what the parent held, so its own file is asked there first.
    """
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if MAC else 2**10)


MAC = sys.platform == "darwin"


def child(task: str, options: argparse.Namespace) -> dict:
    """What one process measures."""
    began, folder = time.perf_counter(), options.folder
    if task == "huge":
        classifier = load_classifier(folder / "net.safetensors")
        predict_single_image(folder / "photo.jpg", classifier, show=False, crop="detect")
        before, began = peak(), time.perf_counter()
        predict_single_image(folder / "huge.jpg", classifier, show=False)
        return {"seconds": time.perf_counter() - began, "mb": peak(), "more": peak() - before}
    classifier = load_classifier(folder / MODELS[task])
    times = []
    for _ in range(3 + options.repeats):
        began = time.perf_counter()
        answer = predict_single_image(folder / "photo.jpg", classifier, show=False)
        times.append(1000 * (time.perf_counter() - began))
    files = [name for name, _ in named_sources([options.crops])][:1000]
    began = time.perf_counter()
    predict_images(files, classifier, progress=False)
    return {
        "ms": float(np.median(times[3:])),
        "best": min(times[3:]),
        "crops": time.perf_counter() - began,
        "count": len(files),
        "face": answer.face_box is not None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path, required=True, help="a photo of one face")
    parser.add_argument("--checkpoint", help="default: random weights, ResNet-34 of width 32")
    parser.add_argument("--crops", type=Path, help="a folder of face crops; default: drawn ones")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(options, folder)

        def ask(task: str) -> dict:
            command = [sys.executable, __file__, "--child", task, "--folder", str(folder)]
            command += ["--photo", str(options.photo), "--crops", str(options.crops)]
            done = subprocess.run(
                [*command, "--repeats", str(options.repeats)], capture_output=True, text=True
            )
            if done.returncode:
                said = done.stderr.strip().splitlines()
                sys.exit(said[-1] if said else f"{task} was ended ({done.returncode}).")
            return json.loads(done.stdout.splitlines()[-1])

        print(f"torch {torch.__version__}, {os.cpu_count()} processors")
        print("| model | photo 640x480, ms (best) | folder of crops, s |\n|---|---|---|")
        for task in MODELS:
            found = ask(task)
            if not found["face"]:
                sys.exit(f"No face was found in {options.photo}: give another photo.")
            print(f"| {task} | {found['ms']:.0f} ({found['best']:.0f}) | "
                  f"{found['crops']:.1f} ({found['count']:,}) |")  # fmt: skip
        code = (
            "from fer_helpers.prediction import predict_single_image as p; "
            f"p({str(folder / 'photo.jpg')!r}, {str(folder / 'net.safetensors')!r}, show=False)"
        )
        took = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            took.append(time.perf_counter() - began)
        print(f"\nFrom starting Python to the first answer: {np.median(took):.1f} s "
              f"(best {min(took):.1f}).")  # fmt: skip
        found = ask("huge")
        print(f"A photo of 200 megapixels: {found['seconds']:.1f} s, {found['mb']:.0f} MB at the "
              f"peak, {found['more']:.0f} MB of them for the photo.")  # fmt: skip


if __name__ == "__main__":
    main()
