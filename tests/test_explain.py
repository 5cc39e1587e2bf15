"""Maps over faces: where they point, what they leave untouched, and the check on them."""

import sys
import types

import numpy as np
import pytest
import torch

from fer_helpers import explain
from fer_helpers.explain import (
    ExplainError,
    all_maps,
    attention_map,
    grad_cam,
    randomization_check,
    similarity,
)
from fer_helpers.models import build_model


def corners(count=64, seed=0):
    """Noise with a bright block at the upper left (class 0) or the lower right (class 1)."""
    faces = 0.3 * torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 2
    faces[labels == 0, :, 2:12, 2:12] += 2
    faces[labels == 1, :, 20:30, 20:30] += 2
    return faces, labels


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    settings = {"backbone": "resnet18", "width": 16, "stem": "small1", "channels": 1}
    model = build_model(2, dropout=0.0, head_hidden=0, attention_safe_start=True, **settings)
    faces, labels = corners()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(6):
        for part in torch.randperm(64).split(16):
            loss = torch.nn.functional.cross_entropy(model(faces[part]), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@pytest.fixture
def cam_library():
    pytest.importorskip("pytorch_grad_cam", reason="needs the extra [explain]")


def test_grad_cam_has_one_scaled_map_per_face(trained, cam_library):
    faces, labels = corners(8, seed=1)
    maps = grad_cam(trained, faces, labels.tolist())
    assert maps.shape == (8, 32, 32) and maps.dtype == np.float32
    assert maps.min() >= 0 and maps.max() <= 1


def test_grad_cam_depends_on_the_class_asked_for(trained, cam_library):
    faces, _ = corners(4, seed=1)
    assert not np.allclose(grad_cam(trained, faces, [0] * 4), grad_cam(trained, faces, [1] * 4))


def test_maps_leave_the_net_as_it_was(trained, cam_library):
    faces, labels = corners(4)
    trained.train().zero_grad()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.no_grad():
        grad_cam(trained, faces, labels)
        attention_map(trained, faces)
    assert trained.training and not faces.requires_grad
    assert all(parameter.grad is None for parameter in trained.parameters())
    assert all(torch.equal(t, before[n]) for n, t in trained.state_dict().items())


def test_the_mask_is_the_nets_own(trained):
    faces, _ = corners(4)
    maps = attention_map(trained, faces)
    with torch.no_grad():
        assert np.allclose(maps, trained.eval().attention_mask(faces)[:, 0])


def test_random_weights_destroy_a_learned_map(trained, cam_library):
    faces, labels = corners(16, seed=2)
    for make in (attention_map, lambda net, batch: grad_cam(net, batch, labels.tolist())):
        maps = make(trained, faces)
        assert similarity(maps, maps) == pytest.approx(1)
        assert abs(randomization_check(make, trained, faces)) < 0.6


def test_the_check_exposes_a_map_that_ignores_the_net(trained):
    faces, _ = corners(8)
    state = torch.random.get_rng_state()
    edges = randomization_check(lambda net, batch: batch[:, 0].abs().numpy(), trained, faces)
    assert edges == pytest.approx(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("attention", ["spatial", "cbam"])
def test_a_safe_start_is_random_too_in_the_check(attention):
    settings = {"backbone": "resnet18", "width": 16, "channels": 1, "attention": attention}
    model = build_model(2, attention_safe_start=True, **settings)
    seen = []

    def masks(net, batch):
        seen.append(attention_map(net, batch))
        return seen[-1]

    randomization_check(masks, model, corners(2)[0].repeat(1, 1, 4, 4))
    trained, fresh, *_ = seen
    assert np.ptp(trained) == 0  # as it starts
    assert np.ptp(fresh[0]) > 0


def test_similarity_ranks_and_forgives_constants():
    maps = np.random.default_rng(0).random((3, 6, 6))
    assert similarity(maps, np.exp(maps)) == pytest.approx(1)
    assert similarity(maps, -maps) == pytest.approx(-1)
    assert similarity(maps, np.ones_like(maps)) == 0


@pytest.mark.parametrize("attention", ["none", "channel", "se"])
def test_no_mask_without_places(attention):
    model = build_model(2, backbone="resnet18", width=16, attention=attention)
    with pytest.raises(ExplainError, match="'spatial' or 'cbam'"):
        attention_map(model, torch.zeros(1, 3, 32, 32))


def test_what_cannot_be_explained_is_said(trained, cam_library, monkeypatch):
    with pytest.raises(ValueError, match="one class per face"):
        grad_cam(trained, corners(4)[0], [0])
    monkeypatch.setitem(trained.architecture, "backbone", "swin_t")
    with pytest.raises(ExplainError, match="no feature map"):
        grad_cam(trained, corners(1)[0], [0])


def test_one_sentence_where_the_extra_is_missing(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ExplainError, match="pip install grad-cam"):
        explain.grad_cam(trained, corners(1)[0], [0])


def test_a_library_that_does_not_load_is_not_called_missing(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", types.ModuleType("pytorch_grad_cam"))
    with pytest.raises(ExplainError, match=r"does not load \(cannot import name 'GradCAM'"):
        explain.grad_cam(trained, corners(1)[0], [0])


@pytest.mark.parametrize(
    ("attention", "kinds"), [("spatial", {"mask"}), ("cbam", {"mask"}), ("none", set())]
)
def test_all_maps_are_those_that_the_net_and_the_machine_have(attention, kinds, monkeypatch):
    torch.manual_seed(0)
    net = build_model(2, backbone="resnet18", width=16, channels=1, attention=attention)
    batch = corners(2)[0]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_grad_cam", None)
        maps, missing = all_maps(net, batch, [0, 1])
    assert set(maps) == kinds
    assert len(missing) == 2 - len(kinds)
    assert "pip install grad-cam" in missing[-1]
    pytest.importorskip("pytorch_grad_cam", reason="needs the extra [explain]")
    maps, missing = all_maps(net, batch, [0, 1])
    assert set(maps) == {*kinds, "Grad-CAM"}
    assert len(missing) == 1 - len(kinds)
    np.testing.assert_array_equal(maps["Grad-CAM"], grad_cam(net, batch, [0, 1]))
