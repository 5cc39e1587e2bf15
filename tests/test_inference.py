from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fer_helpers import inference
from fer_helpers.inference import (
    DeviceError,
    embed,
    pick_device,
    pick_precision,
    predict_logits,
)
from tests.tiny import NO_MEMORY, PREPROCESS, faces, net

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
# What the wheels for Kaggle's image are built for (torch 2.10, CUDA 12.8): no Pascal.
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "compute_120"]
CARDS = {"T4": (7, 5), "P100": (6, 0), "V100": (7, 0), "A100": (8, 0), "L4": (8, 9), "H100": (9, 0)}
CARDS |= {"NVIDIA GeForce GTX 1650": (7, 5), "Quadro T1000": (7, 5)}


@pytest.fixture
def card(monkeypatch):
    """Pretend that one NVIDIA card is there."""

    def pretend(name, built=BUILT):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: CARDS[name])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: name)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)

    return pretend


# Device


def test_a_machine_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(DeviceError, match="no CUDA device: use 'auto'"):
        pick_device("cuda")
    with pytest.raises(DeviceError, match="'nix', which torch does not know"):
        pick_device("nix")
    with pytest.raises(DeviceError, match="no Apple GPU"):
        pick_device("mps")


def test_an_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with monkeypatch.context() as patch:

        def no_memory(*_, **__):
            raise RuntimeError("MPS backend out of memory")

        patch.setattr(inference.torch, "ones", no_memory)
        assert pick_device("auto") == CPU
    monkeypatch.setattr(inference, "_mps_works", lambda: True)
    assert pick_device("auto") == MPS
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["T4", "A100", "L4", "H100"])
def test_cards_with_kernels(card, name):
    card(name)
    assert pick_device("auto") == CUDA
    assert pick_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("name, number", [("P100", "sm_60"), ("V100", "sm_70")])
@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_card_without_kernels_is_refused_in_one_sentence(card, name, number, wish):
    card(name)
    with pytest.raises(DeviceError) as caught:
        pick_device(wish)
    assert f"no kernels for {name} ({number})" in str(caught.value)
    assert "GPU T4 x2" in str(caught.value)
    assert str(caught.value).count(". ") == 0
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("built, runs", [
    (["sm_50", "sm_60"], True),
    (["compute_50"], True),
    (["sm_50", "sm_70"], False),
    (["sm_61"], False),
    (["compute_61"], False),
    ([], False),
])  # fmt: skip
def test_which_kernels_a_p100_can_run(card, built, runs):
    card("P100", built)
    assert inference._has_kernels(CUDA) == runs


def test_amd_is_not_judged_by_nvidias_names(card, monkeypatch):
    card("A100", ["gfx90a"])
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert pick_device("auto") == CUDA


def test_a_second_card_that_is_not_there(card):
    card("T4")
    with pytest.raises(DeviceError, match="sees only 1: use 'cuda'"):
        pick_device("cuda:1")


# Precision


@pytest.mark.parametrize(
    "name, best",
    [
        ("T4", "fp16"),
        ("V100", "fp16"),
        ("A100", "bf16"),
        ("NVIDIA GeForce GTX 1650", "fp32"),  # fp16 gives NaN there
        ("Quadro T1000", "fp32"),
    ],
)
def test_precision_follows_the_card(card, name, best):
    card(name)
    assert pick_precision("auto", CUDA) == best
    assert pick_precision("fp32", CUDA) == "fp32"


def test_bf16_on_a_t4_is_refused(card):
    card("T4")
    with pytest.raises(DeviceError, match="'bf16' does not work on cuda here: use fp32 or fp16"):
        pick_precision("bf16", CUDA)


@pytest.mark.parametrize("able, best", [(True, "bf16"), (False, "fp32")])
def test_precision_on_a_processor(monkeypatch, able, best):
    monkeypatch.setattr(inference, "_cpu_has_bf16", lambda: able)
    assert pick_precision("auto", CPU) == best
    assert pick_precision("bf16", CPU) == "bf16"  # slow perhaps, but right
    with pytest.raises(DeviceError, match="fp16"):
        pick_precision("fp16", CPU)


@pytest.mark.parametrize("found, able", [
    ({"amx_bf16": True}, True),
    ({"avx512_bf16": True, "amx_tile": False}, True),
    ({"avx512_bf16": False, "amx_bf16": False}, False),
    ({}, False),
])  # fmt: skip
def test_bf16_is_asked_of_the_processor(monkeypatch, found, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert inference._cpu_has_bf16() == able


def test_bf16_with_a_torch_that_tells_less(monkeypatch):
    old = SimpleNamespace(_is_avx512_bf16_supported=lambda: True)
    monkeypatch.setattr(inference.torch, "cpu", old)
    assert inference._cpu_has_bf16()
    monkeypatch.setattr(inference.torch, "cpu", SimpleNamespace())
    assert not inference._cpu_has_bf16()


def test_apple_computes_in_fp32():
    assert pick_precision("auto", MPS) == "fp32"
    with pytest.raises(DeviceError, match="use fp32"):
        pick_precision("fp16", MPS)


# Forward


def test_two_evaluations_give_identical_logits_and_restore_the_mode():
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for views in (1, 10):
        first = predict_logits(model, faces(), PREPROCESS, views=views)
        assert first.shape == (24, 3) and first.dtype == np.float32
        assert np.array_equal(first, predict_logits(model, faces(), PREPROCESS, views=views))
    assert model.training
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    predict_logits(model.eval(), faces(), PREPROCESS)
    assert not model.training
    model.train().backbone.eval()  # frozen norms in a net that is training
    modes = [module.training for module in model.modules()]
    predict_logits(model, faces(), PREPROCESS)
    assert [module.training for module in model.modules()] == modes


def test_the_mode_is_restored_after_an_error():
    model = net().train()
    with pytest.raises(RuntimeError):
        predict_logits(model, np.zeros((2, 16, 16, 3), np.uint8), PREPROCESS, precision="fp32",
                       device="meta")  # fmt: skip
    assert model.training


@pytest.mark.parametrize("views", [1, 4])
def test_batch_size_does_not_matter(views):
    model, kept = net(), {"views": views}
    at_once = predict_logits(model, faces(), PREPROCESS, batch_size=64, **kept)
    for size in (1, 5, 24):
        parts = predict_logits(model, faces(), PREPROCESS, batch_size=size, **kept)
        np.testing.assert_allclose(parts, at_once, atol=1e-5)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_batch_that_does_not_fit_is_scored_in_parts(views, error):
    class Greedy(torch.nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise error
            return x.flatten(1)[:, :4]

    pixels = faces(n=20).images()
    found = predict_logits(Greedy(), pixels, PREPROCESS, views=views)
    np.testing.assert_array_equal(
        found, predict_logits(Greedy(), pixels, PREPROCESS, views=views, batch_size=2)
    )
    assert found.shape == (20, 4)


def test_another_error_is_not_taken_for_missing_memory():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        predict_logits(Broken(), faces(n=4).images(), PREPROCESS)


def test_pixels_are_prepared_in_full_precision():
    seen = []

    def watched(pixels):
        seen.append(torch.is_autocast_enabled("cpu"))
        return PREPROCESS(pixels)

    class Watched(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return x.flatten(1)[:, :4]

    predict_logits(Watched(), faces(n=4).images(), watched, precision="bf16")
    assert seen == [False, True]


def test_sets_and_arrays_are_the_same():
    some = faces().take(np.array([5, 2, 9]))
    from_set = predict_logits(net(), some, PREPROCESS)
    assert np.array_equal(from_set, predict_logits(net(), some.images(), PREPROCESS))
    everything = predict_logits(net(), faces(), PREPROCESS)
    np.testing.assert_allclose(from_set, everything[[5, 2, 9]], atol=1e-5)


def test_no_face_gives_no_logits():
    assert len(predict_logits(net(), faces().images()[:0], PREPROCESS)) == 0


def test_views_are_the_mean_probability_of_picture_mirror_and_shifts():
    model, images = net().eval(), faces().images()[:2]
    batch = PREPROCESS(images)
    with torch.inference_mode():
        mirrored = model(batch.flip(-1)).softmax(1)
        mean = (model(batch).softmax(1) + mirrored) / 2
    two = predict_logits(model, images, PREPROCESS, views=2)
    np.testing.assert_allclose(np.exp(two), mean.numpy(), atol=1e-6)
    ten = predict_logits(model, images, PREPROCESS, views=10)
    np.testing.assert_allclose(np.exp(ten).sum(1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="1 to 10"):
        predict_logits(model, images, PREPROCESS, views=11)


def test_ten_views_are_ten_different_pictures_of_the_same_size():
    batch = torch.arange(48 * 48.0).reshape(1, 1, 48, 48)
    views = [inference._view(batch, number) for number in range(10)]
    assert torch.equal(views[0], batch)
    assert {tuple(view.shape) for view in views} == {(1, 1, 48, 48)}
    assert len({tuple(view.flatten().tolist()) for view in views}) == 10
    # two pixels of 48, the edge repeated
    assert torch.equal(views[2][..., 2:, :], batch[..., :-2, :])
    assert torch.equal(views[2][..., 0, :], batch[..., 0, :])


def test_bf16_is_near_fp32():
    exact = predict_logits(net(), faces(), PREPROCESS)
    rough = predict_logits(net(), faces(), PREPROCESS, precision="bf16")
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.1)


def test_embedding_is_what_the_head_sees():
    model = net().eval()
    features = embed(model, faces(), PREPROCESS)
    with torch.inference_mode():
        logits = model.head(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(logits, predict_logits(model, faces(), PREPROCESS), atol=1e-5)
