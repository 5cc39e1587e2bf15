"""What training costs: the original's loop against ours, and what feeding and saving take.

    python benchmarks/training.py                        # about five minutes on two idle cores
    python benchmarks/training.py --sizes 48 --width 16 --rounds 1 --steps 2   # a quick look

Both sides train the same net on the same files. The plain side is written as the original notebook
was: `ImageFolder`, PIL, torchvision transforms, two worker processes, fp32, `loss.item()` at every
step. Every arm is timed in blocks of a few steps that take turns, and the median block counts. On a
loaded machine the ratios hold better than the rates.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from fer_helpers import training
from fer_helpers.augment import Augment
from fer_helpers.config import Config
from fer_helpers.data import load_fer2013
from fer_helpers.demo_faces import write_demo_faces
from fer_helpers.inference import pick_device, pick_precision
from fer_helpers.models import build_model
from fer_helpers.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fer_helpers.recipes import Phase, make_loss, make_parts
from fer_helpers.resuming import Keeper, Progress

RECIPE = Config().recipe("fer2013")  # the original's


def net(options: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(7, width=options.width).to(device)


def plain_steps(options, size: int, device: torch.device, *, resident: bool):
    """The original's loop; yields after every step. `resident` leaves its loader out."""
    transform = T.Compose(
        [
            T.Grayscale(3),
            T.Resize((size, size)),
            T.RandomHorizontalFlip(),
            T.RandomRotation(12),
            T.RandomAffine(0, translate=(0.08, 0.08)),
            T.ColorJitter(brightness=0.25, contrast=0.25),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            T.RandomErasing(p=0.15, scale=(0.02, 0.12)),
        ]
    )
    images = ImageFolder(options.train_dir, transform)
    readable = [i for i in range(len(images)) if Path(images.samples[i][0]).stat().st_size > 400]
    images = torch.utils.data.Subset(images, readable)
    loader = DataLoader(images, RECIPE.batch_size, shuffle=True, num_workers=2, drop_last=True)
    model = net(options, device).train()
    loss_of = make_loss(RECIPE, np.full(7, 100), device)
    optimizer = torch.optim.Adam(
        [
            {"params": model.backbone.parameters(), "lr": RECIPE.backbone_lr},
            {"params": model.attention.parameters(), "lr": RECIPE.attention_lr},
            {"params": model.head.parameters(), "lr": RECIPE.head_lr},
        ],
        weight_decay=RECIPE.weight_decay,
    )
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    kept, total, right = None, 0.0, 0
    while True:
        for batch in loader if kept is None else [kept]:
            kept = batch if resident else None
            pixels, labels = batch[0].to(device), batch[1].to(device)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.float16, enabled=half):
                logits = model(pixels)
                loss = loss_of(logits, labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.item()
            right += (logits.argmax(1) == labels).sum().item()
            yield
            if resident:
                break


def our_phase(options, size: int, device: torch.device, precision: str) -> Phase:
    """Phase 2 of the original's recipe."""
    splits = load_fer2013(
        options.train_dir, options.test_dir, cache_dir=options.cache, max_bad_share=0.1
    )
    augment = Augment(**Config().augment_kwargs("fer2013"))
    preprocess = Preprocess(size=size, grey=True)
    return Phase(splits.train, splits.selection, RECIPE, preprocess, augment, 0, device, precision)


def our_steps(options, size: int, device: torch.device, precision: str, *, kind: str):
    """Our loop; yields after every step.

    `kind` is "whole" (epoch order, gathering, augmenting, stepping, looking at the loss),
    "resident" (the same step, always the same faces) or "model" (an input that is ready).
    """
    phase = our_phase(options, size, device, precision)
    model = net(options, device).train()
    feed = training.Feed(phase.train, device)
    rows = np.arange(RECIPE.batch_size)
    pixels, labels = feed(rows)
    if kind == "model":
        ready = phase.augment(pixels, phase.preprocess, torch.Generator())
        ready = ready.contiguous(memory_format=torch.channels_last)
        phase = Phase(
            phase.train, phase.selection, RECIPE, phase.preprocess, lambda *_: ready, 0, device,
            precision,
        )  # fmt: skip
    parts = make_parts(phase, model)
    epoch, progress, waiting = 0, Progress(), []
    while True:
        order = training.epoch_order(phase.train.labels, RECIPE.sampler, 0, epoch)
        epoch += 1
        for step in range(len(order) // RECIPE.batch_size):
            if kind == "whole":
                rows = training.batch_rows(order, step, RECIPE.batch_size)
                pixels, labels = feed(rows)
            waiting.append((rows, *training.train_step(phase, parts, pixels, labels, step)))
            if device.type == "cpu" or len(waiting) == training.LOOK_EVERY:
                training.look(phase, progress, waiting)
            yield


def rates(arms: dict, device: torch.device, *, rounds: int, steps: int, warm: int) -> dict:
    """Images per second of every arm: the median over `rounds` blocks, which take turns."""
    found = {name: [] for name in arms}
    for _ in range(rounds):
        for name, make in arms.items():
            running = make()
            for _ in range(warm):  # also empties what a loader has fetched ahead
                next(running)
            wait(device)
            began = time.perf_counter()
            for _ in range(steps):
                next(running)
            wait(device)
            found[name].append(steps * RECIPE.batch_size / (time.perf_counter() - began))
            running.close()
    return {name: float(np.median(values)) for name, values in found.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(options, size: int, device: torch.device) -> float:
    """Print the table of one input size; gives the rate of our whole loop."""
    best = pick_precision("auto", device)
    full = "fp16" if device.type == "cuda" else "fp32"
    arms = {
        "plain: whole loop": lambda: plain_steps(options, size, device, resident=False),
        "plain: one resident batch": lambda: plain_steps(options, size, device, resident=True),
    }
    for precision in dict.fromkeys((full, best)):
        for kind in ("model", "resident", "whole"):
            arms[f"ours, {precision}: {kind}"] = lambda p=precision, k=kind: our_steps(
                options, size, device, p, kind=k
            )
    found = rates(arms, device, rounds=options.rounds, steps=options.steps, warm=options.warm)
    plain = found["plain: whole loop"]
    print(f"\n{size} px, batch {RECIPE.batch_size}, {device.type}")
    print("| loop | images/s | against plain |\n|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:.1f} | {rate / plain:.2f} |")
    ours = {kind: found[f"ours, {best}: {kind}"] for kind in ("model", "resident", "whole")}
    print("Where the factor comes from:")
    layout = found[f"ours, {full}: whole"] / found["plain: one resident batch"]
    print(f"  its loader and transforms in our way of feeding: "
          f"{found['plain: one resident batch'] / plain:.2f} x")  # fmt: skip
    print(f"  channels last, fused optimizer, our augmentation: {layout:.2f} x")
    if best != full:
        print(f"  {best} instead of {full}: "
              f"{ours['whole'] / found[f'ours, {full}: whole']:.2f} x")  # fmt: skip
    print(f"  together: {ours['whole'] / plain:.2f} x")
    print(f"Whole loop against the same step with one resident batch: "
          f"{ours['whole'] / ours['resident']:.1%}; against the model alone: "
          f"{ours['whole'] / ours['model']:.1%}")  # fmt: skip
    return ours["whole"]


def saving(options, device: torch.device, rate: float, folder: Path) -> None:
    """Print what a checkpoint costs."""
    phase = our_phase(options, 48, device, "fp32")
    model = net(options, device)
    keeper = Keeper(folder, phase, model, commit="", extra=None, log=print)
    parts = make_parts(phase, model)
    training.train_step(phase, parts, *training.Feed(phase.train, device)(np.arange(8)), 0)
    keeper.keep(parts)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        keeper.save(parts, Progress(), must=True)
        took.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    seconds = float(np.median(took))
    epoch = max(28_709 / rate, training.SAVE_SECONDS)
    print(f"\nA checkpoint: {size:.0f} MB in {seconds:.2f} s. Written at most every "
          f"{training.SAVE_SECONDS:.0f} s; an epoch of FER2013 at {rate:.0f} images/s takes "
          f"{28_709 / rate:.0f} s, so saving is {seconds / epoch:.2%} of the time.")  # fmt: skip


def resume(options, device: torch.device) -> None:
    """Train one step and say so: what the parent process of `resuming` times."""
    phase = our_phase(options, 48, device, "fp32")
    step = training.train_step

    def told(*arguments):
        done = step(*arguments)
        print("stepping", flush=True)
        return done

    training.train_step = told
    training.train_phase(
        net(options, device), phase.train, phase.selection, RECIPE, options.resume, name="FER2013",
        preprocess=phase.preprocess, augment=phase.augment, seed=0, device=device, deadline=0.0,
        log=lambda line: None,
    )  # fmt: skip


def resuming(options, folder: Path) -> None:
    """Print how long a new process takes until it trains again."""
    took = []
    given = {"width": options.width, "train_dir": str(options.train_dir),
             "test_dir": str(options.test_dir), "cache": str(options.cache),
             "resume": str(folder), "device": options.device}  # fmt: skip
    for _ in range(3):  # the first one makes the state
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(given)], stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        with process:
            if process.stdout.readline() != "stepping\n":
                sys.exit("The resumed process did not train.")
            took.append(time.perf_counter() - began)
    print(f"From starting a process to its first step: {took[0]:.1f} s anew, "
          f"{min(took[1:]):.1f} s resumed.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 224])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="timed steps in a block")
    parser.add_argument("--warm", type=int, default=3, help="steps before them")
    parser.add_argument("--threads", type=int, default=0, help="0 leaves it to torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", help="a folder with FER2013's train and test; drawn faces if not")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    if options.child:
        options.__dict__.update(json.loads(options.child))
        resume(options, pick_device(options.device))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        faces = (
            Path(options.data) if options.data else write_demo_faces(folder / "faces") / "fer2013"
        )
        options.train_dir, options.test_dir = faces / "train", faces / "test"
        options.cache = folder / "cache"
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.type}, "
            f"ResNet-34 of width {options.width}, {'given' if options.data else 'drawn'} faces"
        )
        rate = {size: compare(options, size, device) for size in options.sizes}
        saving(options, device, rate[options.sizes[0]], folder / "state")
        resuming(options, folder / "run")


if __name__ == "__main__":
    main()
