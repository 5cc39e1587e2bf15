"""Teach one network by others: how the shipped model is made.

    python benchmarks/distill.py --data data --teachers a.safetensors b.safetensors
    python benchmarks/distill.py --data data --teachers a.safetensors --start a.safetensors
    python benchmarks/distill.py ... --final --ship student.safetensors

The student is the network of `params/cpu.yaml`, from scratch or from the weights of `--start`. It
learns FER2013's train folder without the 3,000 images of docs/results/fer2013-selection-slice.txt,
which teachers must not have learned either. Its targets are the label and what the teachers say
about the same face (probabilities after their temperature, mean over teachers and over the face and
its mirror image; Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"). That takes
the place of label smoothing.

Killed, it continues to the bit with the same command. The table compares student and teachers on
the slice, on which nothing was chosen. `--final` scores PublicTest once, for a frozen recipe, and
`--ship` writes the student in half precision, temperature and balanced point fitted on the slice.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ablation import ROOT, cut_slice
from scipy.special import softmax

from fer_helpers.augment import Augment
from fer_helpers.checkpoints import LoadedModel, load_model
from fer_helpers.config import Config
from fer_helpers.data import TrainSet, load_fer2013
from fer_helpers.files import replace_file
from fer_helpers.inference import pick_device, pick_precision, predict_logits
from fer_helpers.models import build_model, describe
from fer_helpers.preprocess import Preprocess
from fer_helpers.runs import code_version
from fer_helpers.training import train_phase


def say(teachers: Sequence[LoadedModel], faces: TrainSet, where: dict) -> np.ndarray:
    """What the teachers think of each face: probabilities (N, K), two views, float32."""
    heard = 0
    for teacher in teachers:
        if teacher.class_names != faces.class_names:
            sys.exit(f"{teacher.path} knows {', '.join(teacher.class_names)}: not these classes.")
        logits = predict_logits(teacher.model, faces, teacher.preprocess, views=2, **where)
        heard = heard + softmax(logits / teacher.temperature, axis=1)
    return (heard / len(teachers)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--params", type=Path, default=ROOT / "params" / "cpu.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "distilled")
    parser.add_argument("--teachers", type=Path, nargs="+", required=True)
    parser.add_argument("--share", type=float, default=0.4, help="of the target that teachers set")
    parser.add_argument("--start", type=Path, help="weights to begin with")
    parser.add_argument("--epochs", type=int, default=0, help="0 takes the file's")
    parser.add_argument("--lr", type=float, default=0.0, help="of all weights; 0 takes the file's")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    changes = {"phases": "fer2013", "label_smoothing": 0.0, "seed": options.seed}
    if options.epochs:
        changes["fer_epochs"] = options.epochs
    if options.lr:
        changes |= dict.fromkeys(("fer_lr_backbone", "fer_lr_attention", "fer_lr_head"), options.lr)
    if options.start:
        changes["start_size"] = 0  # a network that knows full-size faces is not sent back
    config = Config.from_yaml(options.params).changed(**changes)
    device = pick_device(options.device)
    where = {"device": device, "precision": pick_precision(config.precision, device)}
    fer = cut_slice(load_fer2013(
        options.data / "fer2013" / "train", options.data / "fer2013" / "test", selection_size=0,
        max_bad_share=config.max_bad_share, size=config.image_size,
    ))  # fmt: skip
    teachers = [load_model(path, device) for path in options.teachers]

    heard = options.out / "teachers.npy"
    if not heard.exists():
        said = say(teachers, fer.train, where)
        options.out.mkdir(parents=True, exist_ok=True)
        replace_file(heard, partial(_save, array=said))
    labels = np.eye(len(fer.train.class_names), dtype=np.float32)[fer.train.labels]
    targets = (1 - options.share) * labels + options.share * np.load(heard)

    torch.manual_seed(config.seed)
    if options.start:
        student = load_model(options.start, device).model
    else:
        student = build_model(len(fer.train.class_names), **config.model_kwargs())
    print(f"{describe(student)} on {device} in {where['precision']}.", flush=True)
    preprocess = Preprocess(size=config.image_size, channels=config.input_channels, grey=True)
    result = train_phase(
        student, fer.train, fer.selection, config.recipe("fer2013"), options.out, name="Student",
        preprocess=preprocess, augment=Augment(**config.augment_kwargs("fer2013")),
        seed=config.seed, soft_labels=targets, commit=code_version(),
        log=partial(print, flush=True), **where,
    )  # fmt: skip
    if result.stopped:
        sys.exit("Stopped; the same command continues.")


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)


if __name__ == "__main__":
    main()
