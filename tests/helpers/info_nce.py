"""InfoNCE of drawn outputs and texts."""

import torch

from raffect.heads.head_batch import normalise
from raffect.heads.losses import info_nce_losses, text_shares

B = 12


def draw(seed=0, size=B, dim=6, heads=2):
    """Outputs of a head with a scale of 5, and unit vectors of texts, for several heads."""
    rng = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, heads, size, dim, generator=rng, dtype=torch.float64)
    return 5 * normalise(image, "l2"), normalise(text, "l2")


def info_nce(outputs, text, same=None, **options):
    count = outputs.shape[1]
    same = torch.arange(count).expand(len(outputs), count) if same is None else same
    return info_nce_losses(outputs @ text.transpose(1, 2), text_shares(same, text, **options))[0]
