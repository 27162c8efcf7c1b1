# SPDX-License-Identifier: Apache-2.0
"""The names of the package coordinate-descent-attention."""
from . import CoordinateDescentAttention as Attention
from . import CoordinateDescentTransformer as Transformer
from ._autoregressive import AutoregressiveWrapper

__all__ = ["Attention", "AutoregressiveWrapper", "Transformer"]
