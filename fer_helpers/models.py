# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Models: a backbone, an attention, a head
#
# The net of the workflow is torchvision's ResNet-34, one spatial attention after its last stage,
# and a small head. Everything the original notebook only *advised* (channel attention, CBAM, other
# backbones) stands one parameter away here, so that it can be measured instead of believed; the
# attentions themselves are in `attention`. torchvision's module names are kept: its ImageNet
# weights load as they are.

# %%
"""Emotion nets: a torchvision backbone, an optional attention, the original notebook's head."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

from fer_helpers.attention import ATTENTIONS, make_attention
from fer_helpers.pretrained import WeightsError, load_pretrained, weights_file

RESNETS = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}
CONVNETS = (
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_v2_s",
    "convnext_tiny",
    "mobilenet_v3_large",
)
TRANSFORMERS = {"vit_b_16": 224, "swin_t": 224}  # side of the picture they take, pixels
BACKBONES = (*RESNETS, *CONVNETS, *TRANSFORMERS)
STEMS = {"imagenet": (7, 2), "small1": (3, 1), "small2": (3, 2)}  # kernel, stride
# On CPUs the shortcuts' 1x1 convolutions with stride 2 write past their memory when they meet fewer
# than 16 channels in channels-last order (AVX-512; 8 on AVX2): oneDNN issue 6035, torch 2.14.
MIN_WIDTH = 16


# %% [markdown]
# ## Backbones
#
# ResNets are stacked here from torchvision's own blocks, because a 48 px face is thrown away by a
# stem made for 224 px: after stride 2 and max-pooling twelve pixels are left. `small1` and `small2`
# keep a 3x3 convolution (stride 1 or 2) and no max-pool; `width` scales every stage. The other nets
# come from torchvision's registry unchanged.


# %%
def _resnet(backbone: str, stem: str, width: int) -> tuple[nn.Sequential, list[int]]:
    """A ResNet without pooling and classifier, and the channels after each of its four stages."""
    block, depths = RESNETS[backbone]
    kernel, stride = STEMS[stem]
    layers = OrderedDict(
        conv1=nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
    )
    if stem == "imagenet":
        layers["maxpool"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    inputs, channels = width, []
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        outputs = planes * block.expansion
        blocks = []
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            shortcut = None
            if stride != 1 or inputs != outputs:
                shortcut = nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))
            blocks.append(block(inputs, planes, stride, shortcut))
            inputs = outputs
        layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        channels.append(outputs)
    trunk = nn.Sequential(layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):  # torchvision's initialization
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk, channels


# %%
def _registered(backbone: str) -> tuple[nn.Sequential, nn.Module, int]:
    """A net of torchvision's registry: its trunk, the norm after its pooling, its feature count."""
    net = get_model(backbone, weights=None)
    if backbone in TRANSFORMERS:
        name = "heads" if backbone.startswith("vit") else "head"
        features = _first(getattr(net, name), nn.Linear).in_features
        setattr(net, name, nn.Identity())
        return nn.Sequential(OrderedDict(net=net)), nn.Identity(), features
    # ConvNeXt normalizes after pooling; its ImageNet features are not meant to be used without.
    norm = net.classifier[0] if backbone.startswith("convnext") else nn.Identity()
    features = _first(net.classifier, nn.Linear).in_features
    return nn.Sequential(OrderedDict(features=net.features)), norm, features


def _first(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return next(found for found in module.modules() if isinstance(found, kind))


# %% [markdown]
# ## The head
#
# Dropout and one or two linear layers. They are drawn from a generator of choice, because a new
# head is made in the middle of a run, between its two phases.


# %%
def _linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer with PyTorch's own initialization, drawn from a generator of choice."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _head(
    features: int,
    num_classes: int,
    dropout: float,
    hidden: int,
    head_dropout: float,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    if hidden:
        layers += [_linear(features, hidden, generator), nn.ReLU(), nn.Dropout(head_dropout)]
    return nn.Sequential(*layers, _linear(hidden or features, num_classes, generator))


# %% [markdown]
# ## The net


# %%
class EmotionNet(nn.Module):
    """Backbone, attention, pooling, head; `build_model(**net.architecture)` rebuilds it.

    Attributes:
        backbone: the trunk, stage by stage, with torchvision's names inside.
        attention: one module per stage that has one, under the stage's name; empty for "none".
        norm: what the backbone does between pooling and classifier (ConvNeXt), else nothing.
        head: dropout, linear, ReLU, dropout, linear; or dropout and one linear layer.
        architecture: every argument of `build_model`, JSON-able; `pretrained` reads "none".
        weights_note: where pretrained weights came from, one phrase; "" without them.
    """

    def __init__(
        self,
        backbone: nn.Sequential,
        attention: dict[str, nn.Module],
        norm: nn.Module,
        head: nn.Sequential,
        architecture: dict,
    ) -> None:
        """Put the parts together; use `build_model`."""
        super().__init__()
        self.backbone = backbone
        self.attention = nn.ModuleDict(attention)
        self.norm = norm
        self.head = head
        self.architecture = architecture
        self.weights_note = ""
        self.last_stage = list(dict(backbone.named_children()))[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of normalized pictures (N, C, H, W), float."""
        return self.head(self.embed(x))

    def embed(self, x: Tensor) -> Tensor:
        """The pooled features (N, F) that the head sees."""
        x = self._before_last_attention(x)
        if self.last_stage in self.attention:
            x = self.attention[self.last_stage](x)
        if x.ndim == 4:  # the transformers have pooled already
            # A mean, not adaptive pooling: the same value with a deterministic gradient on CUDA.
            x = self.norm(x.mean((2, 3), keepdim=True)).flatten(1)
        return x

    @property
    def num_features(self) -> int:
        """How many pooled features F the head sees."""
        return _first(self.head, nn.Linear).in_features

    def attention_mask(self, x: Tensor) -> Tensor | None:
        """The last attention's mask (N, 1, h, w), 0 to 1; None without places (channel, se).

        The features are multiplied by it, or with the safe start by it plus one half.
        """
        attention = dict(self.attention.items()).get(self.last_stage)
        if not hasattr(attention, "mask"):
            return None
        return attention.mask(self._before_last_attention(x))

    def _before_last_attention(self, x: Tensor) -> Tensor:
        """The last stage's output, earlier attentions applied: (N, F, h, w), or pooled (N, F)."""
        size = TRANSFORMERS.get(self.architecture["backbone"])
        if size is not None and x.shape[-2:] != (size, size):
            x = F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
        for name, stage in self.backbone.named_children():
            x = stage(x)
            if name in self.attention and name != self.last_stage:
                x = self.attention[name](x)
        return x


# %%
def build_model(
    num_classes: int,
    *,
    backbone: str = "resnet34",
    pretrained: str = "none",
    attention: str = "spatial",
    attention_place: str = "last",
    attention_safe_start: bool = False,
    stem: str = "imagenet",
    width: int = 64,
    channels: int = 3,
    dropout: float = 0.4,
    head_hidden: int = 256,
    head_dropout: float = 0.3,
) -> EmotionNet:
    """Build a net; the defaults are the original's, random weights follow `torch.manual_seed`.

    Args:
        num_classes: number of emotions K.
        backbone: one of `BACKBONES`.
        pretrained: "none", "imagenet" (torchvision's weights) or a .pth / .safetensors file.
        attention: one of `attention.ATTENTIONS`; the transformers take "none" only.
        attention_place: "last", after the last stage, or "each", after every stage (ResNets).
        attention_safe_start: begin as exactly the net without attention.
        stem: "imagenet" (7x7, stride 2, max-pool), "small1" or "small2" (3x3, stride 1 or 2, no
            max-pool; ResNets).
        width: channels of the first stage (ResNets; 64 is the published net), at least `MIN_WIDTH`.
        channels: 3, or 1 for grey: exactly the net that a replicated grey picture would meet, at a
            third of the first layer's work (its filters are summed over the colors).
        dropout: share dropped before the head's first linear layer.
        head_hidden: size of the head's hidden layer; 0: one linear layer.
        head_dropout: share dropped before the last linear layer of a head with a hidden layer.

    Raises:
        ValueError: an unknown name, or a combination that does not exist.
        WeightsError: pretrained weights that cannot be had or do not fit.
    """
    given = locals()
    _refuse_impossible(given)
    architecture = {**given, "pretrained": "none"}
    norm: nn.Module = nn.Identity()
    if backbone in RESNETS:
        trunk, widths = _resnet(backbone, stem, width)
        stages = [f"layer{number}" for number in (1, 2, 3, 4)]
    else:
        trunk, norm, features = _registered(backbone)
        widths, stages = [features], ["features"]
    if attention_place == "last":
        widths, stages = widths[-1:], stages[-1:]
    attentions = {}
    if attention != "none":
        for stage, stage_width in zip(stages, widths, strict=True):
            attentions[stage] = make_attention(attention, stage_width, attention_safe_start)
    if channels == 1:
        first = _first(trunk, nn.Conv2d)
        first.weight = nn.Parameter(first.weight.detach().sum(1, keepdim=True))
        first.in_channels = 1
    head = _head(widths[-1], num_classes, dropout, head_hidden, head_dropout)
    model = EmotionNet(trunk, attentions, norm, head, architecture)
    if pretrained != "none":
        torchvision_part = trunk.net if backbone in TRANSFORMERS else trunk
        model.weights_note = load_pretrained(torchvision_part, norm, backbone, pretrained)
    return model


# %%
def _refuse_impossible(given: dict[str, Any]) -> None:
    """Raise what `build_model` raises for its arguments `given`, before anything is downloaded."""
    choices = {
        "backbone": BACKBONES,
        "attention": ATTENTIONS,
        "attention_place": ("last", "each"),
        "stem": tuple(STEMS),
        "channels": (1, 3),
    }
    for name, allowed in choices.items():
        if given[name] not in allowed:
            known = ", ".join(map(str, allowed))
            raise ValueError(f"{name} is {given[name]!r}; choose one of {known}.")
    backbone = given["backbone"]
    if given["pretrained"] == "imagenet" and given["width"] != 64:
        raise WeightsError(
            f"ImageNet weights exist for width 64, not {given['width']}; set WIDTH=64 or "
            "PRETRAINED=none."
        )
    if given["pretrained"] not in ("none", "imagenet"):
        weights_file(given["pretrained"])
    if given["num_classes"] < 2:
        raise ValueError(f"num_classes is {given['num_classes']}; a classifier needs at least 2.")
    if given["head_hidden"] < 0:
        raise ValueError(f"head_hidden is {given['head_hidden']}; 0 leaves the hidden layer out.")
    if given["width"] < MIN_WIDTH:
        raise ValueError(
            f"width is {given['width']}; give the first stage at least {MIN_WIDTH} channels."
        )
    if backbone in TRANSFORMERS and given["attention"] != "none":
        raise ValueError(
            f"{backbone} is made of attention and has no map to put {given['attention']!r} on; "
            "set attention to 'none'."
        )
    if backbone not in RESNETS:
        if given["stem"] != "imagenet" or given["width"] != 64:
            raise ValueError(
                f"stem and width change ResNets only; keep stem='imagenet' and width=64 for "
                f"{backbone}."
            )
        if given["attention_place"] == "each" and given["attention"] != "none":
            raise ValueError(
                "attention after each stage is for ResNets only; use attention_place='last' for "
                f"{backbone}."
            )


# %% [markdown]
# ## Another head between the two phases
#
# AffectNet has eight classes, FER2013 seven. The original throws the whole head away between them;
# `carry` keeps the hidden layer and the rows of the classes that share a name.


# %%
def swap_head(
    model: EmotionNet,
    old_classes: tuple[str, ...],
    new_classes: tuple[str, ...],
    *,
    carry: bool = False,
    generator: torch.Generator | None = None,
) -> EmotionNet:
    """Give a net the head for other classes, in place, and return it.

    Args:
        model: the net.
        old_classes: its class names, in the order of its logits.
        new_classes: the class names wanted, in the order wanted.
        carry: keep the hidden layer, and the last layer's rows of classes with the same name;
            otherwise the whole head starts anew, as in the original notebook.
        generator: source of the new random weights (CPU); None: PyTorch's global one.

    Raises:
        ValueError: `old_classes` does not name the net's outputs, or a list names a class twice.
    """
    if len(old_classes) != model.architecture["num_classes"]:
        raise ValueError(
            f"old_classes names {len(old_classes)} classes, the model has "
            f"{model.architecture['num_classes']} outputs; give the names it was trained with."
        )
    for name, classes in (("old_classes", old_classes), ("new_classes", new_classes)):
        if len(set(classes)) != len(classes):
            raise ValueError(f"{name} names a class twice: {', '.join(classes)}.")
    old = model.head[-1]
    settings = model.architecture
    if carry:
        last = _linear(old.in_features, len(new_classes), generator).to(old.weight)
        shared = [name for name in new_classes if name in old_classes]
        to = [new_classes.index(name) for name in shared]
        come = [old_classes.index(name) for name in shared]
        with torch.no_grad():
            last.weight[to] = old.weight[come]
            last.bias[to] = old.bias[come]
        model.head[-1] = last
    else:
        model.head = _head(
            model.num_features,
            len(new_classes),
            settings["dropout"],
            settings["head_hidden"],
            settings["head_dropout"],
            generator,
        ).to(old.weight)
    model.head.train(model.training)  # new layers begin as if in training
    model.architecture = {**settings, "num_classes": len(new_classes)}
    return model


# %% [markdown]
# ## A net in one line


# %%
def describe(model: EmotionNet) -> str:
    """One line about a net: backbone, attention, head, number of parameters."""
    given = model.architecture
    words = [given["backbone"]]
    if given["backbone"] in RESNETS and (given["stem"], given["width"]) != ("imagenet", 64):
        words.append(f"(width {given['width']}, {given['stem']} stem)")
    words.append("on grey" if given["channels"] == 1 else "on RGB")
    if given["attention"] != "none":
        place = "each stage" if given["attention_place"] == "each" else "the last stage"
        safe = " (safe start)" if given["attention_safe_start"] else ""
        words.append(f"+ {given['attention']} attention{safe} after {place}")
    sizes = [model.num_features, given["head_hidden"], given["num_classes"]]
    words.append("+ head " + " -> ".join(str(size) for size in sizes if size))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    text = f"{' '.join(words)}: {millions:.2f} M parameters"
    return f"{text}; {model.weights_note}" if model.weights_note else text


# %% [markdown]
# ## Demo
#
# The kinds of attention side by side: parameters they add to a small ResNet-34 for grey faces of 48
# px.

# %% tags=["active-ipynb"]
# import torch
#
# from fer_helpers.attention import ATTENTIONS
# from fer_helpers.models import build_model, describe, swap_head
#
# small = {"stem": "small2", "width": 32, "channels": 1, "dropout": 0.2, "head_hidden": 0}
# print(describe(build_model(7, **small)))
# for attention in ATTENTIONS:
#     added = build_model(7, attention=attention, **small).attention.parameters()
#     print(f"{attention:8} adds {sum(p.numel() for p in added):6,} parameters")

# %% [markdown]
# Between the phases: eight AffectNet classes to seven FER2013 classes, rows of shared names carried
# over.

# %% tags=["active-ipynb"]
# model = build_model(8, **small)
# affectnet = ("Anger", "Contempt", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
# fer = tuple(name for name in affectnet if name != "Contempt")
# before = model.head[-1].weight[affectnet.index("Surprise")].clone()
# swap_head(model, affectnet, fer, carry=True)
# after = model.head[-1].weight[fer.index("Surprise")]
# print(describe(model), "| Surprise row kept:", torch.equal(before, after))
