"""What each attention adds to a training step, against the same net without attention.

    python benchmarks/attention_cost.py                       # 48 px, ResNet-34 width 64, 2 threads
    python benchmarks/attention_cost.py --device cuda --size 224 --stem imagenet --channels 3

The nets take turns, step by step, and each is compared with the plain net's step of the same round:
whatever else the machine does falls on both. With --threads 1 the clock is the processor time of
this process, which other work hardly touches. Printed are the median step of the plain net and, per
attention, the median of the ratios with a 95 % bootstrap interval.
"""

import argparse
import time

import numpy as np
import torch

from fer_helpers.inference import pick_device
from fer_helpers.models import build_model

ARMS = {
    "none": {"attention": "none"},
    "spatial, last": {"attention": "spatial"},
    "channel, last": {"attention": "channel"},
    "se, last": {"attention": "se"},
    "cbam, last": {"attention": "cbam"},
    "spatial, each": {"attention": "spatial", "attention_place": "each"},
    "cbam, each": {"attention": "cbam", "attention_place": "each"},
}


def make_step(settings: dict, faces: torch.Tensor, labels: torch.Tensor, precision: str):
    """One training step of one arm as a function of nothing."""
    torch.manual_seed(0)
    model = build_model(7, **settings).to(faces.device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast(faces.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(faces), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if faces.device.type != "cpu":
            torch.accelerator.synchronize(faces.device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet34")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stem", default="small2")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.device = str(pick_device(options.device))  # fp32 on CUDA is fp32 then, not TF32
    shape = (options.batch, options.channels, options.size, options.size)
    faces = torch.randn(shape).to(options.device, memory_format=torch.channels_last)
    labels = torch.randint(7, (options.batch,)).to(options.device)
    common = {name: getattr(options, name) for name in ("backbone", "width", "stem", "channels")}
    steps = {
        arm: make_step({**common, **ARMS[arm]}, faces, labels, options.precision)
        for arm in dict.fromkeys(["none", *options.arms])
    }
    alone = options.device == "cpu" and options.threads == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {arm: [] for arm in steps}
    generator = np.random.default_rng(0)
    for round_number in range(options.rounds + 2):
        for arm in generator.permutation(list(steps)):
            start = clock()
            steps[arm]()
            if round_number >= 2:  # the first two rounds warm up
                times[arm].append(clock() - start)
    print(
        f"{common}, {options.size} px, batch {options.batch}, {options.precision}, {options.device}"
    )
    print(f"plain step: {1000 * np.median(times['none']):.1f} ms, {options.rounds} rounds\n")
    print("| attention | added to the step | 95 % interval |\n|---|---|---|")
    for arm in list(steps)[1:]:
        ratios = np.array(times[arm]) / np.array(times["none"])
        draws = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
        low, high = 100 * (np.quantile(draws, (0.025, 0.975)) - 1)
        print(f"| {arm} | {100 * (np.median(ratios) - 1):+.1f} % | {low:+.1f} ... {high:+.1f} % |")


if __name__ == "__main__":
    main()
