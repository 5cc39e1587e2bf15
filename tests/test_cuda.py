"""What only an NVIDIA GPU can show: that a killed training continues there to the bit, too."""

import numpy as np
import pytest
import torch

from fer_helpers import training
from fer_helpers.feeding import Feed
from fer_helpers.inference import pick_device, pick_precision
from fer_helpers.phases import Phase, missing_for_compile
from tests.tiny import (
    AUGMENT,
    MOBILE,
    PREPROCESS,
    faces,
    net,
    recipe,
    same_weights,
    selection_faces,
    some_votes,
    train,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

OPTIONS = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16", "clip_norm": 1.0},
    "votes": {"ema": 0.9, "mixup": 0.4, "votes": some_votes(), "vote_weight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("given", OPTIONS.values(), ids=OPTIONS)
def test_killed_after_every_step_it_ends_with_the_same_bits(tmp_path, given, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    unbroken, _ = train(tmp_path / "one", device="cuda", **given)
    for _ in range(6):  # all steps
        train(tmp_path / "other", device="cuda", deadline=-1.0, **given)
    continued, result = train(tmp_path / "other", device="cuda", **given)
    assert not result.stopped and same_weights(unbroken, continued)


# Its maxima are compared with rounded ones where nothing forbids it.
@pytest.mark.parametrize("kind", [{}, MOBILE], ids=["resnet18", "mobilenet_v3_large"])
@pytest.mark.filterwarnings("ignore:CUDA_HOME")
def test_compiled_it_learns_and_ends_with_the_same_bits(tmp_path, kind, monkeypatch):
    device = pick_device("cuda")
    if missing := missing_for_compile(device):
        pytest.skip(f"torch.compile needs {missing}")
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    given = {"device": "cuda", "compile": True, "precision": pick_precision("auto", device)}
    unbroken, _ = train(tmp_path / "one", net(**kind), **given)
    pairs = zip(net(**kind).parameters(), unbroken.cpu().parameters(), strict=True)
    assert not any(torch.equal(before, after) for before, after in pairs)
    for _ in range(6):  # all steps
        train(tmp_path / "other", net(**kind), deadline=-1.0, **given)
    continued, result = train(tmp_path / "other", net(**kind), **given)
    assert not result.stopped and same_weights(unbroken, continued.cpu())


def test_faces_that_lie_on_the_gpu_are_those_that_are_sent_there(monkeypatch):
    device = pick_device("cuda")
    phase = Phase(faces(), selection_faces(), recipe(), PREPROCESS, AUGMENT, 0, device, "fp32")
    resident = Feed(phase)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1, 1))
    sent = Feed(phase)
    assert resident.resident is not None and sent.resident is None
    rows = np.array([5, 3, 8, 1])
    assert all(map(torch.equal, resident(rows), sent(rows)))
