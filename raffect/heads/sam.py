"""Sharpness-aware minimisation: step to where the loss nearby is highest, take the gradient there.

The update is then made from here:

    g = gradient at w;  w' = w + perturbation(g);  g' = gradient at w';  w = optimiser(w, g')

BatchNorm's running statistics move in the first pass only: the second sees weights that nobody will
use.
"""

from __future__ import annotations

import torch
from torch import Tensor


def perturb(
    weights_PN: Tensor,
    gradient_PN: Tensor,
    rho_P: Tensor,
    kind: str,
    out: Tensor,
) -> Tensor:
    """Weights moved towards higher loss by at most ``rho``.

    Args:
        weights_PN: All weights of each head, shape (P, N).
        gradient_PN: The gradient there.
        rho_P: Radius of each head, shape (P,); 0 leaves its weights as they are, bit by bit.
        kind: ``"l2"``: rho * g / |g|; ``"sign"``: rho * sign(g).
        out: Where to write, shape (P, N).

    Returns:
        ``out``.

    Source:
        Foret et al. 2021, eq. (2), is ``l2``, with their code's 1e-12 against division by zero. Lin
        et al. 2024, eq. (2), print ``sign`` as the maximum over an L2 ball; it is that of an
        L-infinity ball, and their code uses ``l2``.

    Example:
        >>> gradient, rho = torch.tensor([[3.0, 4.0]]), torch.tensor([0.5])
        >>> perturb(torch.zeros(1, 2), gradient, rho, "l2", torch.empty(1, 2))
        tensor([[0.3000, 0.4000]])
    """
    if kind == "sign":
        return torch.add(weights_PN, torch.sign(gradient_PN) * rho_P[:, None], out=out)
    # The constant keeps a gradient of 0 from dividing by 0.
    scale_P = rho_P / (gradient_PN.norm(dim=1) + 1e-12)
    return torch.addcmul(weights_PN, gradient_PN, scale_P[:, None], out=out)
