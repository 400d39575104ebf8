"""Triton kernels of the fused step: one for each layer and pass of a batch of MLPs.

32 samples hold whole columns, so one program computes some columns of one head from the product
to what BatchNorm, ReLU and dropout make of them. Programs run over column blocks in a grid's first
axis and over heads in its second. Products are float32's own (``ieee``: TF32 is off). Nothing here
is tuned at run time. `raffect.heads.fused_step` launches them; these modules import Triton, which
macOS does not have, and so are imported late.

Shape letters of names: B samples, N columns of a block, K terms of a product's sum, M outputs of a
Linear, A 16 samples, C classes, P heads. Sizes in capitals are constants of a compiled kernel.
"""

from raffect.heads.fused_backward import block_backward, class_losses, square_norms
from raffect.heads.fused_forward import block_forward, last_forward
from raffect.heads.fused_update import count_step, layer_update

__all__ = [
    "block_backward",
    "block_forward",
    "class_losses",
    "count_step",
    "last_forward",
    "layer_update",
    "square_norms",
]
