"""How many training images a second: the original's way against the batched one, in one run.

    python benchmarks/input_pipeline.py                    # drawn faces, about two minutes
    python benchmarks/input_pipeline.py --folder train/    # the JPEGs of a real folder

The original opens each JPEG with PIL and pushes it through torchvision's transforms in a DataLoader
with two workers. Ours gathers a batch from bytes in memory (decoded once) and calls `Augment`.
Beside it stand two libraries that could do its work: torchvision.transforms.v2 on tensors in
memory, one image after the other (on a batch it draws one angle for all), and kornia, where it is
installed. Images a second is what the model waits for; CPU time per image, workers included, is the
fairer number on a machine that others use at the same time.
"""

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from fer_helpers.augment import Augment
from fer_helpers.preprocess import Preprocess

AFFECTNET = Augment(flip=0.5, rotation=8, brightness=0.15, contrast=0.15)
FER = Augment(flip=0.5, rotation=12, shift=0.08, brightness=0.25, contrast=0.25, erase=0.15)
# name: recipe, stored side and channels, what the model takes
CASES = {
    "48 px grey": (FER, 48, 1, Preprocess(size=48, channels=1)),
    "48 px grey to 224 px": (FER, 48, 1, Preprocess(size=224, grey=True)),
    "75 px color to 224 px": (AFFECTNET, 75, 3, Preprocess(size=224)),
}


def recipe_steps(library, recipe: Augment, preprocess: Preprocess, start: list) -> list:
    """The original's list of transforms, from torchvision's first or second edition."""
    steps = [*start, library.Resize((preprocess.size, preprocess.size))]
    steps += [library.RandomHorizontalFlip(recipe.flip), library.RandomRotation(recipe.rotation)]
    if recipe.shift:
        steps.append(library.RandomAffine(0, translate=(recipe.shift, recipe.shift)))
    steps.append(library.ColorJitter(brightness=recipe.brightness, contrast=recipe.contrast))
    if library is transforms:
        steps.append(transforms.ToTensor())
    else:
        steps.append(v2.ToDtype(torch.float32, scale=True))
    steps.append(library.Normalize(preprocess.mean, preprocess.std))
    if recipe.erase:
        scale = (recipe.erase_min, recipe.erase_max)
        steps.append(library.RandomErasing(recipe.erase, scale=scale))
    return steps


@dataclass
class Files(Dataset):
    """JPEG files through a list of transforms, as ImageFolder does it."""

    files: list[Path]
    transform: Callable

    def __len__(self):  # noqa: D105
        return len(self.files)

    def __getitem__(self, index):  # noqa: D105
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def original(files, faces, recipe, preprocess, batch):
    grey = preprocess.channels == 1 or preprocess.grey
    start = [transforms.Grayscale(preprocess.channels)] if grey else []
    transform = transforms.Compose(recipe_steps(transforms, recipe, preprocess, start))
    # Kept from epoch to epoch, unlike the original's: of epochs this short they would cost more.
    loader = DataLoader(
        Files(files, transform), batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    while True:
        yield from loader


def in_memory(augment_batch, faces, batch):
    order = torch.Generator().manual_seed(0)
    while True:
        for picked in torch.randperm(len(faces), generator=order).split(batch):
            yield augment_batch(faces[picked])


def ours(files, faces, recipe, preprocess, batch):
    generator = torch.Generator().manual_seed(0)
    return in_memory(lambda images: recipe(images, preprocess, generator), faces, batch)


def torchvision_v2(files, faces, recipe, preprocess, batch):
    grey = preprocess.channels == 1 or preprocess.grey
    start = [v2.Grayscale(preprocess.channels)] if grey else []
    transform = v2.Compose(recipe_steps(v2, recipe, preprocess, start))
    return in_memory(lambda images: torch.stack([transform(i) for i in images]), faces, batch)


def kornia(files, faces, recipe, preprocess, batch):
    from kornia import augmentation

    steps = [
        augmentation.Resize((preprocess.size, preprocess.size)),
        augmentation.RandomHorizontalFlip(p=recipe.flip),
        augmentation.RandomAffine(recipe.rotation, (recipe.shift, recipe.shift), p=1.0),
        # Its ColorJitter takes three channels only.
        augmentation.RandomBrightness((1 - recipe.brightness, 1 + recipe.brightness), p=1.0),
        augmentation.RandomContrast((1 - recipe.contrast, 1 + recipe.contrast), p=1.0),
        augmentation.Normalize(torch.tensor(preprocess.mean), torch.tensor(preprocess.std)),
    ]
    if recipe.erase:
        scale = (recipe.erase_min, recipe.erase_max)
        steps.append(augmentation.RandomErasing(scale, p=recipe.erase))
    sequence = torch.nn.Sequential(*steps)

    def augment_batch(images):
        return sequence(images.float().div_(255).expand(-1, preprocess.channels, -1, -1))

    return in_memory(augment_batch, faces, batch)


def cpu_seconds() -> float:
    """CPU seconds of this process and of the workers it has seen end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def measure(batches, seconds: float) -> tuple[float, float]:
    """Images a second, and CPU microseconds per image, of an endless stream of batches."""
    cpu, count, warm = cpu_seconds(), 0, 0
    stop = None
    for batch in batches:
        count += len(batch)
        now = time.perf_counter()
        if stop is None and count >= 4 * len(batch):  # workers are up, caches are warm
            start, warm, stop = now, count, now + seconds
        elif stop is not None and now > stop:
            break
    rate = (count - warm) / (now - start)
    batches.close()  # ends the workers, whose CPU time counts from then on
    return rate, (cpu_seconds() - cpu) / count * 1e6


def drawn_files(folder: Path, side: int, channels: int, count: int) -> list[Path]:
    """Drawn faces as JPEG files, each several times, for pixels of a real face's complexity."""
    from fer_helpers.demo_faces import EXPRESSIONS, draw_face

    kinds = list(EXPRESSIONS)
    drawn = [
        draw_face(kinds[k % len(kinds)], seed=k, size=side, color=channels == 3) for k in range(64)
    ]
    files = [folder / f"{side}_{channels}_{k}.jpg" for k in range(count)]
    for k, file in enumerate(files):
        drawn[k % len(drawn)].save(file, quality=90)
    return files


def decoded(files: list[Path], side: int, channels: int) -> torch.Tensor:
    """What `data` keeps in memory: uint8 (N, C, H, W)."""
    mode = "L" if channels == 1 else "RGB"
    pixels = [np.asarray(Image.open(f).convert(mode).resize((side, side))) for f in files]
    return torch.from_numpy(np.stack(pixels).reshape(-1, side, side, channels)).permute(0, 3, 1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="folder of JPEGs, instead of drawn faces")
    parser.add_argument("--count", type=int, default=2048, help="files")
    parser.add_argument("--batch", type=int, default=32, help="images per batch")
    parser.add_argument("--seconds", type=float, default=4, help="per way, case and round")
    parser.add_argument("--rounds", type=int, default=2, help="the best round counts")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 is torch's default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    ways = {"original": original, "ours": ours, "torchvision v2": torchvision_v2}
    if importlib.util.find_spec("kornia"):
        ways["kornia"] = kornia
    else:
        print("kornia is not installed: its column is left out")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print(f"{'':24}" + "".join(f"{way:>26}" for way in ways) + "   ours/original")
    print(f"{'':24}" + f"{'images/s  CPU us/image':>26}" * len(ways) + "    wall     CPU")
    with tempfile.TemporaryDirectory() as folder:
        for name, (recipe, side, channels, preprocess) in CASES.items():
            if options.folder:
                files = sorted(options.folder.rglob("*.jpg"))[: options.count]
            else:
                files = drawn_files(Path(folder), side, channels, options.count)
            faces = decoded(files, side, channels)
            best = dict.fromkeys(ways, (0.0, float("inf")))
            for _ in range(options.rounds):  # in turn, so that a busy minute hits all alike
                for way, start in ways.items():
                    stream = start(files, faces, recipe, preprocess, options.batch)
                    rate, cpu = measure(stream, options.seconds)
                    best[way] = max(best[way][0], rate), min(best[way][1], cpu)
            cells = "".join(f"{rate:>14,.0f}{cpu:>12,.0f}" for rate, cpu in best.values())
            faster = best["ours"][0] / best["original"][0]
            lighter = best["original"][1] / best["ours"][1]
            print(f"{name:24}{cells}{faster:>7.1f}x{lighter:>7.1f}x", flush=True)


if __name__ == "__main__":
    main()
