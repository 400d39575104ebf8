"""A training step as a textbook has it: one head, torch's own parts, plain autograd."""

import torch
from torch.nn import functional as F

from raffect.heads.head_batch import normalise
from tests.helpers.small_heads import CAPTIONS, textbook_cvar


def captions_loss(outputs, y, vectors, recipe):
    """InfoNCE of a head's outputs, with what a recipe makes of it: soft targets, CVaR, a class
    that is left out."""
    text = normalise(torch.from_numpy(vectors).double(), "l2")[y[:, 0]]
    keep = seen(y, recipe)
    logits, text = (outputs @ text.T)[keep][:, keep], text[keep]
    if recipe.loss.soft_targets:
        share = (text @ text.T / recipe.loss.soft_targets).softmax(1)
    else:
        equal = (text[:, None] == text[None]).all(-1).double()
        share = equal / equal.sum(1, keepdim=True)
    floor = torch.special.xlogy(share, share).sum(1)
    ways = [F.cross_entropy(way, share, reduction="none") for way in (logits, logits.T)]
    return textbook_cvar(sum(ways) / 2 + floor, recipe.loss.alpha)


def seen(y, recipe):
    """Which samples of a batch a head for captions may see."""
    left_out = recipe.loss.leave_out
    return y[:, 1] != (CAPTIONS.outputs.index(left_out) if left_out else -1)


def plain_step(optimizer, loss, rho=0.0):
    """An update by an optimiser of torch, SAM's with a walk over the parameters.

    Args:
        optimizer: Of the parameters.
        loss: Gives the loss where they are.
        rho: SAM's radius.
    """
    optimizer.zero_grad()
    loss().backward()
    if rho:
        parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        norm = torch.stack([tensor.grad.norm() for tensor in parameters]).norm()
        moves = [rho * tensor.grad / (norm + 1e-12) for tensor in parameters]
        with torch.no_grad():
            for tensor, move in zip(parameters, moves, strict=True):
                tensor.add_(move)
        optimizer.zero_grad()
        loss().backward()
        with torch.no_grad():
            for tensor, move in zip(parameters, moves, strict=True):
                tensor.sub_(move)
    optimizer.step()
