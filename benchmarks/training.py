"""What training costs: the original's loop against ours, and what feeding and saving take.

    python benchmarks/training.py                          # everything; minutes on two idle cores
    python benchmarks/training.py --parts rates --sizes 48 --width 16 --rounds 1 --steps 2
    python benchmarks/training.py --device cuda --steps 200 --warm 20 --rounds 5

Both sides train the same net on the same files. The plain side is written as the original notebook
was: `ImageFolder`, PIL, torchvision transforms, two worker processes, `loss.item()` at every step;
fp32, or fp16 on a GPU (with long blocks there: its loader fetches four batches ahead, which a short
one would get for nothing). Every arm is timed in blocks of a few steps that take turns, and the
median block counts. On a loaded machine the ratios hold better than the rates. The parts are
`rates` (whole loops, single steps, and what each change gives), `saving` and `resuming`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

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
from fer_helpers.feeding import Feed
from fer_helpers.inference import pick_device, pick_precision, repeatable
from fer_helpers.models import build_model
from fer_helpers.phases import Phase, make_parts
from fer_helpers.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from fer_helpers.recipes import make_loss
from fer_helpers.resuming import Keeper, Progress
from fer_helpers.watching import epoch_bar

RECIPE = Config().recipe("fer2013")  # the original's
PARTS = ("rates", "saving", "resuming")


def net(options: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(7, width=options.width).to(device)


def plain_steps(
    options, size: int, device: torch.device, *, resident=False, channels_last=False, fused=False
):
    """The original's loop; yields after every step.

    `resident` leaves its loader out, `channels_last` and `fused` change what they are called after.
    """
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
    loader = DataLoader(images, RECIPE.batch_size, shuffle=True, num_workers=2, drop_last=True)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = net(options, device).train().to(memory_format=layout)
    loss_of = make_loss(RECIPE, np.full(7, 100), device)
    optimizer = torch.optim.Adam(
        [
            {"params": model.backbone.parameters(), "lr": RECIPE.backbone_lr},
            {"params": model.attention.parameters(), "lr": RECIPE.attention_lr},
            {"params": model.head.parameters(), "lr": RECIPE.head_lr},
        ],
        weight_decay=RECIPE.weight_decay,
        fused=fused,
    )
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    kept, total, right = None, 0.0, 0
    while True:
        for batch in loader if kept is None else [kept]:
            kept = batch if resident else None
            pixels = batch[0].to(device, memory_format=layout)
            labels = batch[1].to(device)
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


def plain_loop(*arguments, **changes):
    """A function that runs the original's loop for so many steps."""
    running = plain_steps(*arguments, **changes)

    def advance(steps: int) -> None:
        for _ in range(steps):
            next(running)

    return advance


def our_phase(options, size: int, device: torch.device, precision: str) -> Phase:
    """Phase 2 of the original's recipe."""
    splits = load_fer2013(
        options.train_dir, options.test_dir, cache_dir=options.cache, max_bad_share=0.1
    )
    augment = Augment(**Config().augment_kwargs("fer2013"))
    preprocess = Preprocess(size=size, grey=True)
    return Phase(splits.train, splits.selection, RECIPE, preprocess, augment, 0, device, precision)


def our_loop(options, size: int, device: torch.device, precision: str):
    """A function that runs our loop, `train_epoch` itself, for so many steps; saves nothing."""
    phase = our_phase(options, size, device, precision)
    parts, feed = make_parts(phase, net(options, device)), Feed(phase)
    keeper = SimpleNamespace(age=lambda: 0.0, save=lambda *_, **__: None)
    progress = Progress()

    @repeatable(device)  # as `train_phase` trains
    def advance(steps: int) -> None:
        nonlocal progress
        done = 0

        def why_stop() -> str:
            nonlocal done
            done += 1
            return "enough" if done == steps else ""

        while done < steps:
            with epoch_bar("", len(phase.train), progress.seen) as bar:
                training.train_epoch(phase, parts, progress, feed, keeper, why_stop, bar)
            if progress.step == phase.steps:
                progress = Progress(epoch=progress.epoch + 1)

    return advance


def our_step(options, size: int, device: torch.device, precision: str, *, augmented: bool):
    """A function that makes so many of our steps on one batch, with or without augmenting it."""
    phase = our_phase(options, size, device, precision)
    batch = Feed(phase)(np.arange(RECIPE.batch_size))
    if not augmented:
        ready = phase.augment(batch[0], phase.preprocess, torch.Generator())
        ready = ready.contiguous(memory_format=torch.channels_last)
        phase = replace(phase, augment=lambda *_: ready)
    parts = make_parts(phase, net(options, device).train())

    @repeatable(device)
    def advance(steps: int) -> None:
        for _ in range(steps):
            training.train_step(phase, parts, *batch, 0)

    return advance


def rates(arms: dict, device: torch.device, *, rounds: int, steps: int, warm: int) -> dict:
    """Images per second of every arm: the median over `rounds` blocks, which take turns."""
    found = {name: [] for name in arms}
    for _ in range(rounds):
        for name, make in arms.items():
            advance = make()
            advance(warm)
            wait(device)
            began = time.perf_counter()
            advance(steps)
            wait(device)
            found[name].append(steps * RECIPE.batch_size / (time.perf_counter() - began))
            del advance  # and with it the loader's processes
    return {name: float(np.median(values)) for name, values in found.items()}


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def compare(options, size: int, device: torch.device) -> None:
    """Print the table of one input size."""
    best = pick_precision("auto", device)
    full = "fp16" if device.type == "cuda" else "fp32"
    given = (options, size, device)
    # Each line of the first block differs from the one above in a single thing.
    arms = {
        "plain: whole loop": partial(plain_loop, *given),
        "plain: one batch": partial(plain_loop, *given, resident=True),
        "... in channels-last order": partial(
            plain_loop, *given, resident=True, channels_last=True
        ),
        "... and a fused optimizer": partial(
            plain_loop, *given, resident=True, channels_last=True, fused=True
        ),
        f"ours, {full}: whole loop": partial(our_loop, *given, full),
    }
    arms[f"ours, {best}: whole loop"] = partial(our_loop, *given, best)
    arms[f"ours, {best}: one batch"] = partial(our_step, *given, best, augmented=True)
    arms[f"ours, {best}: model alone"] = partial(our_step, *given, best, augmented=False)
    found = rates(arms, device, rounds=options.rounds, steps=options.steps, warm=options.warm)
    plain, one_batch, ordered, fused = list(found.values())[:4]
    whole_full, whole = found[f"ours, {full}: whole loop"], found[f"ours, {best}: whole loop"]
    print(f"\n{size} px, batch {RECIPE.batch_size}, {device.type}")
    print("| loop | images/s | against plain |\n|---|---|---|")
    for name, rate in found.items():
        print(f"| {name} | {rate:.1f} | {rate / plain:.2f} |")
    print("Where the factor comes from (the same net on both sides, so stem and width are none):")
    factors = {
        "no waiting for a loader with PIL and transforms": one_batch / plain,
        "channels-last order": ordered / one_batch,
        "a fused optimizer": fused / ordered,
        "our feeding, augmenting and looking at the loss"
        + ", and convolutions that repeat" * (device.type == "cuda"): whole_full / fused,
        f"{best} instead of {full}": whole / whole_full,
        "together": whole / plain,
    }
    for what, factor in factors.items():
        if what != f"{full} instead of {full}":
            print(f"  {factor:5.2f} x  {what}")
    print("Our whole loop runs at")
    for name, words in (
        ("model alone", "of the rate of the model alone, on an input that is ready"),
        ("one batch", "of the rate of the same step, augmenting one batch that is at hand"),
    ):
        print(f"  {whole / found[f'ours, {best}: {name}']:.1%} {words}")


def saving(options, device: torch.device, folder: Path) -> None:
    """Print what a checkpoint costs."""
    phase = our_phase(options, 48, device, "fp32")
    model = net(options, device)
    keeper = Keeper(folder, phase, model, extra=None, log=print)
    parts = make_parts(phase, model)
    training.train_step(phase, parts, *Feed(phase)(np.arange(8)), 0)
    keeper.keep(parts)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        keeper.save(parts, Progress(), must=True)
        took.append(time.perf_counter() - began)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    seconds = float(np.median(took))
    side, precision = options.sizes[0], pick_precision("auto", device)
    ours = {"ours": partial(our_loop, options, side, device, precision)}
    timed = {"rounds": options.rounds, "steps": options.steps, "warm": options.warm}
    epoch = 28_709 / rates(ours, device, **timed)["ours"]  # FER2013's training faces
    # After an epoch if that is SAVE_SECONDS later, and within one every five times that.
    saves = 1 + epoch // (5 * training.SAVE_SECONDS)
    share = saves * seconds / max(epoch, training.SAVE_SECONDS)
    print(f"\nA checkpoint: {size:.0f} MB in {seconds:.2f} s. An epoch of FER2013 at {side} px "
          f"takes {epoch:.0f} s here; saving is {share:.2%} of the time.")  # fmt: skip


def resume(options, device: torch.device) -> None:
    """Train one step and say so: what the parent process of `resuming` times."""
    phase = our_phase(options, 48, device, "fp32")
    step = training.train_step

    def told(*arguments):
        done = step(*arguments)
        print("stepping", time.process_time(), flush=True)
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
             "resume": str(folder), "device": options.device, "threads": options.threads,
             }  # fmt: skip
    for _ in range(3):  # the first one makes the state
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(given)], stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        with process:
            line = process.stdout.readline()
            if not line.startswith("stepping "):
                sys.exit("The resumed process did not train.")
            took.append((time.perf_counter() - began, float(line.split()[1])))
    (anew, _), (resumed, busy) = took[0], min(took[1:])
    print(f"From starting a process to its first step: {anew:.1f} s anew, {resumed:.1f} s resumed "
          f"({busy:.1f} s of processor time; a loaded machine lets it wait).")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
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
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.child:
        resume(options, pick_device(options.device))
        return
    device = pick_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        faces = (
            Path(options.data)
            if options.data
            else write_demo_faces(folder / "faces", flaws=False) / "fer2013"
        )
        options.train_dir, options.test_dir = faces / "train", faces / "test"
        options.cache = folder / "cache"
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.type}, "
            f"ResNet-34 of width {options.width}, {'given' if options.data else 'drawn'} faces"
        )
        if "rates" in options.parts:
            for size in options.sizes:
                compare(options, size, device)
        if "saving" in options.parts:
            saving(options, device, folder / "state")
        if "resuming" in options.parts:
            resuming(options, folder / "run")


if __name__ == "__main__":
    main()
