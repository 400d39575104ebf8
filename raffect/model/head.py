"""One trained head, for use: an ordinary torch module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from raffect.model.pack import EPS, MOMENTUM, Layout


class Head(nn.Module):
    """Hidden blocks Linear -> BatchNorm -> ReLU -> Dropout, then one Linear (Lin et al. 2024, section II-B).

    Args:
        layout: Its shape.
        dropout: Share of hidden units dropped in training mode.

    Example:
        >>> sum(p.numel() for p in Head(Layout(768, 768, 3, 8)).parameters())
        1782536
    """

    def __init__(self, layout: Layout, dropout: float = 0.0) -> None:
        super().__init__()
        self.layout = layout
        layers: list[nn.Module] = []
        for block in range(layout.depth):
            inputs = layout.dim if block == 0 else layout.width
            layers += [nn.Linear(inputs, layout.width), nn.BatchNorm1d(layout.width, eps=EPS, momentum=MOMENTUM), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(layout.width, layout.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, outputs) of raw features (B, dim)."""
        return self.layers(x)


def member_state(layout: Layout, weights_N: Tensor, mean_LW: Tensor, var_LW: Tensor) -> dict[str, Tensor]:
    """One member's row and running statistics as the state of a `Head`, without BatchNorm's count of batches."""
    state = {name: view[0].clone() for name, view in layout.views(weights_N[None]).items()}
    for block in range(layout.depth):
        state[f"layers.{4 * block + 1}.running_mean"] = mean_LW[block].clone()
        state[f"layers.{4 * block + 1}.running_var"] = var_LW[block].clone()
    return state


def build_head(layout: Layout, state: Mapping[str, Tensor]) -> Head:
    """A head in evaluation mode from the tensors of `member_state`.

    Raises:
        RuntimeError: If names or shapes differ.
    """
    head = Head(layout).to(next(iter(state.values())).dtype)
    counts = {name: value for name, value in head.state_dict().items() if name.endswith("num_batches_tracked")}
    head.load_state_dict({**counts, **state})
    return head.eval()
