"""Average the weights of networks that were trained on from the same one: what `distill` leaves.

    python benchmarks/average.py a.safetensors b.safetensors --out mean.safetensors
    python benchmarks/average.py a.safetensors b.safetensors --out ... --final student.safetensors

Networks that began with the same trained weights and went on differently often lie in one valley of
the loss; the mean of their weights then answers better than most of them, for the price of one
(Wortsman et al. 2022, "Model soups"). All that are given count alike; which are given was written
down before (docs/results/experiments.md), none is left out for its score.

The table compares the mean with each of them on the `--hold-out` images of
docs/results/fer2013-selection-slice.txt, which none of them may have learned. `--out` gets the mean
in full precision, to train on from. `--final` writes it as `distill.py` does, in half precision and
with temperature and balanced point fitted on these images (with `--votes`, the table of FER+, on
those that make a set as doubtful as train), and scores that file once on PublicTest.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from ablation import ROOT, public_only, read_fer, run_program, votes_of
from distill import as_doubtful, expect_classes, finish, on_held_out, write_scores
from torch import Tensor

from fer_helpers.checkpoints import LoadedModel, load_model, save_model
from fer_helpers.config import Config
from fer_helpers.inference import pick_device, pick_precision


def mean_weights(networks: Sequence[LoadedModel]) -> dict[str, Tensor]:
    """The mean of every tensor, batch norm statistics as well; counters are the first network's.

    Raises:
        SystemExit: they differ in architecture or in the size of the faces that they know.
    """
    first, *others = networks
    for other in others:
        same = other.model.architecture == first.model.architecture
        if not same or other.preprocess != first.preprocess:
            sys.exit(f"{other.path} and {first.path} differ in architecture or preprocessing: only "
                     "networks of one kind can be averaged.")  # fmt: skip
    states = [network.model.state_dict() for network in networks]
    return {
        # On the processor, since Apple GPUs know no float64.
        name: torch.stack([state[name].cpu() for state in states]).double().mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--params", type=Path, default=ROOT / "params" / "cpu.yaml")
    parser.add_argument("--out", type=Path, required=True, help="the mean, in full precision")
    parser.add_argument("--hold-out", type=int, default=1000, help="images of the slice")
    parser.add_argument("--votes", default="", help="of FER+, as FERPLUS_VOTES")
    parser.add_argument("--seed", type=int, default=42, help="of the intervals")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--final", type=Path, help="score PublicTest and write the network")
    options = parser.parse_args()
    if options.hold_out < 1:
        parser.error("--hold-out: temperature and balanced point need at least one image")
    if len(options.networks) < 2:
        parser.error("one network is its own mean: give two or more")
    device = pick_device(options.device)
    networks = [load_model(path, device) for path in options.networks]
    weights, preprocess = mean_weights(networks), networks[0].preprocess
    config = Config.from_yaml(options.params).changed(
        phases="fer2013", image_size=preprocess.size, seed=options.seed,
        ferplus_votes=options.votes, ferplus_weight=float(bool(options.votes)),
    )  # fmt: skip
    where = {"device": device, "precision": pick_precision(config.precision, device)}
    fer = read_fer(options.data, config, options.hold_out)
    if options.final:
        fer = public_only(fer, options.data)
    for network in networks:
        expect_classes(network, fer.train)
    mean = load_model(options.networks[0], device).model
    mean.load_state_dict(weights)
    about = {"origin": fer.train.origin, "dataset": fer.train.dataset}
    save_model(options.out, mean, fer.train.class_names, preprocess, extra=about)
    print(on_held_out(mean, preprocess, networks, fer.selection, where, name="mean"), flush=True)
    if options.final:
        if options.votes:
            held, own = (votes_of(config, faces) for faces in (fer.selection, fer.train))
            fer = replace(fer, selection=as_doubtful(fer.selection, held, fer.train, own))
        score, entries = finish(options.final, mean, preprocess, fer, options.seed, where)
        write_scores(score, entries, options.out.parent)


if __name__ == "__main__":
    run_program(main)
