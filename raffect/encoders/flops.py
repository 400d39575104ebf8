"""What an encoder computes for one picture, counted from the products of its tower."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raffect.bank.records import Identity
from raffect.encoders.timm_tower import build_timm
from raffect.encoders.tower import build_model
from raffect.encoders.weights import encoder_of, is_timm, model_configs, resolve


def count_flop(identity: Identity) -> int | None:
    """Floating-point operations of an image tower for one picture of its own size.

    A multiply-add counts as two, as in the tables of hardware; only matrix products and
    convolutions count, which are nearly all. Preparation of the picture is left out. Weights need
    not be on this machine.

    Args:
        identity: The encoder, as a bank names it.

    Returns:
        None for features whose encoder raffect does not have, such as imported ones.

    Source:
        `torch.utils.flop_counter`, on tensors without memory. Modules are open_clip's and timm's
        own, in training's path of attention: torch's fused kernels for evaluation are not counted.
    """
    if not (is_timm(identity.model) or identity.model in model_configs()):
        return None
    source = resolve(encoder_of(identity, "random:0"))
    tower = build_timm(source) if is_timm(identity.model) else build_model(source).visual
    size = int(str(identity.preprocess["size"]))
    picture = torch.zeros(1, 3, size, size, device="meta")
    tower = tower.to("meta").eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tower(picture)
    return counter.get_total_flops()
