# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention: where to look, and what for
#
# A mask between 0 and 1 multiplies the feature map: *where* to look (spatial), *what* to look for
# (channel, squeeze-and-excitation), or one after the other (CBAM).
#
# A fresh mask stands near one half, so it shrinks pretrained features at once. The **safe start**
# sets the last convolution to zero and adds one half to the mask: sigmoid(0) is exactly one half,
# so the net begins as exactly the net without attention and learns to leave from there. The half
# also stays as a floor: with a large learning rate one step can push a plain mask to zero
# everywhere, where the sigmoid has no gradient, and a net behind a closed mask never learns again.

# %%
"""Attention modules: spatial, channel, squeeze-and-excitation and CBAM, each with a safe start."""

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

ATTENTIONS = ("none", "spatial", "channel", "se", "cbam")
REDUCTION = 16  # of the channels, in every channel attention, as in the papers


# %%
class SpatialAttention(nn.Module):
    """One mask over the places of a map: `x * sigmoid(conv7x7([channel mean, channel max]))`.

    The spatial half of Woo et al. 2018, "CBAM: Convolutional Block Attention Module", equation 3,
    without a batch norm, as the original notebook has it. With the safe start, `x * (mask + 1/2)`.
    """

    def __init__(self, safe_start: bool = False) -> None:
        """Build the 7x7 convolution, two channels to one, without bias."""
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3, bias=False)
        self.shift = _start(self.conv, safe_start)

    def mask(self, x: Tensor) -> Tensor:
        """The mask (N, 1, h, w) for a map (N, C, h, w), values between 0 and 1."""
        # amax, not max: no indices to keep, and its gradient is deterministic on CUDA.
        return self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """The masked map, same shape."""
        return x * (self.mask(x) + self.shift)


# %%
class ChannelAttention(nn.Module):
    """One factor per channel, from the mean and the maximum of its map by one shared small net.

    The channel half of Woo et al. 2018 (CBAM), equation 2: `x * sigmoid(MLP(mean) + MLP(max))`.
    """

    def __init__(self, channels: int, safe_start: bool = False) -> None:
        """Build the shared net: channels -> channels / 16 -> channels, without biases."""
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )
        self.shift = _start(self.mlp[2], safe_start)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted map, same shape (N, C, h, w)."""
        mean, peak = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        return x * ((self.mlp(mean) + self.mlp(peak)).sigmoid() + self.shift)


# %%
class SqueezeExcite(SqueezeExcitation):
    """torchvision's squeeze-and-excitation (Hu et al. 2018) with the safe start as an option."""

    def __init__(self, channels: int, safe_start: bool = False) -> None:
        """Build the block: channels -> channels / 16 -> channels, with biases."""
        super().__init__(channels, max(1, channels // REDUCTION))
        self.shift = _start(self.fc2, safe_start)

    def forward(self, x: Tensor) -> Tensor:
        """The weighted map, same shape (N, C, h, w)."""
        weighted = super().forward(x)
        return weighted + self.shift * x if self.shift else weighted


# %%
class CBAM(nn.Sequential):
    """Channel attention, then spatial attention: the order Woo et al. 2018 found best."""

    def __init__(self, channels: int, safe_start: bool = False) -> None:
        """Build both halves."""
        super().__init__(ChannelAttention(channels, safe_start), SpatialAttention(safe_start))

    def mask(self, x: Tensor) -> Tensor:
        """The spatial half's mask (N, 1, h, w), values between 0 and 1."""
        return self[1].mask(self[0](x))


# %%
def _start(last: nn.Conv2d, safe_start: bool) -> float:
    """Set the last convolution for the wanted start and return what is added to the mask."""
    if safe_start:
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
    return 0.5 if safe_start else 0.0


def make_attention(kind: str, channels: int, safe_start: bool) -> nn.Module:
    """One attention module for a map of so many channels.

    Args:
        kind: one of `ATTENTIONS`, except "none".
        channels: of the map that it will meet (N, C, h, w); the spatial one takes any.
        safe_start: begin by leaving the map as it is.
    """
    if kind == "spatial":
        return SpatialAttention(safe_start)
    return {"channel": ChannelAttention, "se": SqueezeExcite, "cbam": CBAM}[kind](
        channels, safe_start
    )


# %% [markdown]
# ## Demo
#
# One drawn face through a net with spatial attention. The net has learned nothing, and its batch
# norms have seen no face to scale by, so its mask shows borders and contrasts and may lie far from
# one half: a mask is what the net *uses*, and says nothing before training.

# %% tags=["active-ipynb"]
# import matplotlib.pyplot as plt
#
# from fer_helpers.demo_faces import draw_face
# from fer_helpers.models import build_model
# from fer_helpers.preprocess import Preprocess
#
# torch.manual_seed(0)
# model = build_model(8, stem="small1", width=32, channels=1, dropout=0.2, head_hidden=0).eval()
# preprocess = Preprocess(size=96, channels=1, grey=True)
# face = preprocess(draw_face("Happy", seed=1))[None]
# with torch.inference_mode():
#     mask = model.attention_mask(face)
# print("logits", tuple(model(face).shape), "mask", tuple(mask.shape))
# figure, (left, right) = plt.subplots(1, 2, figsize=(5, 2.5))
# left.imshow(face[0, 0], cmap="gray")
# left.set_title("drawn face")
# right.imshow(mask[0, 0], vmin=0, vmax=1)
# right.set_title("untrained mask")
# for axes in (left, right):
#     axes.axis("off")
