"""The nets: every part one parameter away, each claim about it checked."""

import copy
import json

import pytest
import torch
from torch import nn
from torchvision.models import resnet34

from fer_helpers import models
from fer_helpers.attention import ATTENTIONS, SpatialAttention
from fer_helpers.models import (
    BACKBONES,
    TRANSFORMERS,
    build_model,
    describe,
    swap_head,
)
from fer_helpers.pretrained import WeightsError
from fer_helpers.recipes import make_optimizer
from tests.tiny import recipe

AFFECTNET = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
FER = tuple(name for name in AFFECTNET if name != "Contempt")
SMALL = {"backbone": "resnet18", "width": 16, "stem": "small2", "channels": 1}
FAST = ("resnet34", "efficientnet_b0", "vit_b_16")


def faces(count=4, channels=1, size=48, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def small(seed=0, classes=8, **changes):
    torch.manual_seed(seed)
    return build_model(classes, **{**SMALL, **changes})


def test_the_default_is_the_originals_net():
    model = build_model(8)
    names = {name for name in resnet34().state_dict() if not name.startswith("fc.")}
    assert set(model.backbone.state_dict()) == names
    assert [type(layer) for layer in model.head] == [
        nn.Dropout,
        nn.Linear,
        nn.ReLU,
        nn.Dropout,
        nn.Linear,
    ]
    assert (model.head[0].p, model.head[1].out_features, model.head[3].p) == (0.4, 256, 0.3)
    assert sum(p.numel() for p in model.attention.parameters()) == 2 * 7 * 7
    assert describe(model) == (
        "resnet34 on RGB + spatial attention after the last stage + head 512 -> 256 -> 8: "
        "21.42 M parameters"
    )


def test_the_trunk_computes_what_torchvisions_resnet_computes():
    torch.manual_seed(0)
    reference, model = resnet34().eval(), build_model(8, attention="none").eval()
    state = {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    model.backbone.load_state_dict(state)
    reference.fc = nn.Identity()
    x = faces(2, 3, 64)
    with torch.no_grad():
        assert torch.allclose(model.embed(x), reference(x), atol=1e-5)


@pytest.mark.parametrize(
    "backbone", [b if b in FAST else pytest.param(b, marks=pytest.mark.slow) for b in BACKBONES]
)
def test_every_backbone_builds_trains_a_step_and_swaps_its_head(backbone):
    torch.manual_seed(0)
    attention = "none" if backbone in TRANSFORMERS else "spatial"
    model = build_model(8, backbone=backbone, attention=attention)
    optimizer = make_optimizer(model, recipe())
    before = [p.detach().clone() for p in model.head.parameters()]
    count = 1 if backbone in TRANSFORMERS else 2
    loss = nn.functional.cross_entropy(model(faces(count, 3, 64)), torch.arange(count))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.head.parameters(), strict=True))
    swap_head(model, AFFECTNET, FER, carry=True).eval()
    with torch.inference_mode():
        assert model(faces(1, 3, 64)).shape == (1, 7)
    json.dumps(model.architecture)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("place", ["last", "each"])
def test_every_attention_in_every_place(attention, place):
    model = small(attention=attention, attention_place=place)
    model(faces()).sum().backward()
    assert len(model.attention) == (0 if attention == "none" else 4 if place == "each" else 1)
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("attention", ATTENTIONS[1:])
@pytest.mark.parametrize("place", ["last", "each"])
def test_a_safe_start_is_exactly_the_net_without_attention(attention, place):
    settings = {"attention": attention, "attention_place": place}
    plain = small(attention="none").eval()
    safe = small(**settings, attention_safe_start=True).eval()
    bold = small(**settings).eval()
    for model in (safe, bold):  # the attention draws numbers between backbone and head
        model.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(safe(faces()), plain(faces()))
        assert not torch.allclose(bold(faces()), plain(faces()))
    safe(faces()).square().sum().backward()  # and it can leave from there
    assert any(p.grad.abs().sum() > 0 for p in safe.attention.parameters())


def test_spatial_attention_against_a_slow_version():
    torch.manual_seed(0)
    attention = SpatialAttention()
    x = torch.randn(1, 5, 6, 4)
    weight = attention.conv.weight[0]
    stacked = nn.functional.pad(torch.stack([x[0].mean(0), x[0].max(0)[0]]), (3, 3, 3, 3))
    mask = torch.zeros(6, 4)
    for row in range(6):
        for column in range(4):
            window = stacked[:, row : row + 7, column : column + 7]
            mask[row, column] = torch.sigmoid((window * weight).sum())
    assert torch.allclose(attention.mask(x)[0, 0], mask, atol=1e-6)
    assert torch.allclose(attention(x), x * mask, atol=1e-6)


@pytest.mark.parametrize(
    ("attention", "has_places"),
    [("none", False), ("spatial", True), ("channel", False), ("se", False), ("cbam", True)],
)
def test_the_net_shows_its_mask(attention, has_places):
    model = small(attention=attention, attention_place="each").eval()
    mask = model.attention_mask(faces())
    if not has_places:
        assert mask is None
        return
    assert mask.shape == (4, 1, 3, 3)  # 48 px, stem 2, three stages of 2
    assert (mask > 0).all() and (mask < 1).all()
    assert mask.std() > 0


def test_the_mask_is_the_one_the_net_applies():
    model = small().eval()
    x = faces()
    with torch.no_grad():
        before = model._before_last_attention(x)
        by_hand = (before * model.attention_mask(x)).mean((2, 3))
        assert torch.allclose(model.embed(x), by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("stem", "side"), [("imagenet", 2), ("small2", 3), ("small1", 6)], ids=lambda v: str(v)
)
def test_stems_keep_more_of_a_small_face(stem, side):
    model = small(stem=stem).eval()
    assert model.attention_mask(faces()).shape[-2:] == (side, side)


def test_width_scales_every_stage():
    model = build_model(7, backbone="resnet50", width=16, attention="none", head_hidden=0)
    widths = [model.backbone.get_submodule(f"layer{i}")[-1].bn3.num_features for i in (1, 2, 3, 4)]
    assert widths == [64, 128, 256, 512]
    assert isinstance(model.head[-1], nn.Linear) and len(model.head) == 2


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large"])
def test_a_grey_net_is_the_color_net_on_the_replicated_picture(backbone):
    nets = []
    for channels in (1, 3):
        torch.manual_seed(0)
        nets.append(build_model(7, backbone=backbone, channels=channels).eval())
    x = faces(2)
    with torch.no_grad():
        assert torch.allclose(nets[0](x), nets[1](x.expand(-1, 3, -1, -1)), atol=1e-4)


def test_same_seed_same_net_and_the_architecture_rebuilds_it():
    first, second = small(3), small(3)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    again = build_model(**json.loads(json.dumps(first.architecture)))
    again.load_state_dict(first.state_dict())
    assert describe(again) == describe(first)
    assert torch.equal(again.eval()(faces()), first.eval()(faces()))
    assert first.architecture["pretrained"] == "none"


@pytest.mark.parametrize("hidden", [0, 16])
def test_swapping_the_head_carries_classes_by_name(hidden):
    model = small(head_hidden=hidden)
    old = copy.deepcopy(model.head)
    swap_head(model, AFFECTNET, FER[::-1], carry=True)
    for row, name in enumerate(FER[::-1]):
        assert torch.equal(model.head[-1].weight[row], old[-1].weight[AFFECTNET.index(name)])
        assert torch.equal(model.head[-1].bias[row], old[-1].bias[AFFECTNET.index(name)])
    if hidden:
        assert torch.equal(model.head[1].weight, old[1].weight)
    assert model.architecture["num_classes"] == 7
    assert build_model(**model.architecture)(faces()).shape == (4, 7)
    swap_head(model, FER[::-1], ("Anger", "Boredom"), carry=True)
    assert model(faces()).shape == (4, 2)


def test_swapping_without_carry_starts_the_whole_head_anew():
    first, second = small(head_hidden=16), small(head_hidden=16)
    old = first.head[1].weight.clone()
    backbone = first.backbone.conv1.weight.clone()
    state = torch.random.get_rng_state()
    for model in (first, second):
        swap_head(model, AFFECTNET, FER, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.random.get_rng_state(), state)  # only the generator was used
    assert not torch.equal(first.head[1].weight, old)
    assert torch.equal(first.head[1].weight, second.head[1].weight)
    assert torch.equal(first.backbone.conv1.weight, backbone)
    assert first.head[0].training
    assert not any(part.training for part in swap_head(first.eval(), FER, AFFECTNET).modules())


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (FER, FER, "names 7 classes"),
        (AFFECTNET, ("Anger", "Anger"), "twice"),
        (("Anger",) * 8, FER, "twice"),
    ],
)
def test_swapping_refuses_wrong_names(old, new, words):
    with pytest.raises(ValueError, match=words):
        swap_head(small(), old, new)


def test_the_new_head_is_drawn_as_pytorch_draws_linear_layers():
    torch.manual_seed(0)
    ours, theirs = models._linear(64, 500), nn.Linear(64, 500)
    assert ours.weight.abs().max() <= 1 / 8
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.03)
    assert ours.bias.std().item() == pytest.approx(theirs.bias.std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "resnet99"}, "choose one of resnet18"),
        ({"attention": "self"}, "choose one of none"),
        ({"attention_place": "first"}, "choose one of last"),
        ({"stem": "big"}, "choose one of imagenet"),
        ({"channels": 4}, "choose one of 1, 3"),
        ({"num_classes": 1}, "at least 2"),
        ({"width": 0}, "width is 0"),
        ({"width": 15}, "at least 16"),
        ({"backbone": "vit_b_16"}, "set attention to 'none'"),
        ({"backbone": "swin_t", "attention": "cbam"}, "set attention to 'none'"),
        ({"backbone": "efficientnet_b0", "stem": "small1"}, "ResNets only"),
        ({"backbone": "convnext_tiny", "width": 32}, "ResNets only"),
        ({"backbone": "mobilenet_v3_large", "attention_place": "each"}, "ResNets only"),
        ({"width": 32, "pretrained": "imagenet"}, "WIDTH=64"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_sentence(settings, words):
    with pytest.raises((ValueError, WeightsError), match=words) as caught:
        build_model(**{"num_classes": 8, **settings})
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_evaluation_is_repeatable_and_memory_format_does_not_matter():
    model = small(attention="cbam").eval()
    with torch.no_grad():
        once = model(faces())
        assert torch.equal(model(faces()), once)
        by_channels_last = model.to(memory_format=torch.channels_last)(
            faces().to(memory_format=torch.channels_last)
        )
    assert torch.allclose(by_channels_last, once, atol=1e-5)


def test_the_net_compiles_as_one_graph():
    model = small(attention="cbam", attention_place="each").eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(faces()), model(faces()))


def test_the_loss_falls_on_one_batch():
    model = small(classes=4, dropout=0.0, head_hidden=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(faces(8)), torch.arange(8) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
