# SPDX-License-Identifier: Apache-2.0
"""The names of the package CoLT5-attention."""
import torch

from . import ConditionalRoutedAttention as _ConditionalRoutedAttention
from . import ConditionalRoutedAutoregressiveAttention as _ConditionalRoutedAutoregressiveAttention
from . import ConditionalRoutedCrossAttention as _ConditionalRoutedCrossAttention
from . import ConditionalRoutedFeedForward as _ConditionalRoutedFeedForward
from . import ConditionalRoutedImageAttention as _ConditionalRoutedImageAttention
from . import ConditionalRoutedTransformerBlock as _ConditionalRoutedTransformerBlock
from . import ConditionalRoutedViT as _ConditionalRoutedViT
from . import CoordinateDescentRouter as _CoordinateDescentRouter
from .ops import coor_descent, topk

__all__ = [
    "ConditionalRoutedAttention",
    "ConditionalRoutedAutoregressiveAttention",
    "ConditionalRoutedCrossAttention",
    "ConditionalRoutedFeedForward",
    "ConditionalRoutedImageAttention",
    "ConditionalRoutedTransformerBlock",
    "ConditionalRoutedViT",
    "CoordinateDescentRouter",
    "coor_descent",
    "route_back",
    "topk",
]

_UNUSED = ("use_triton", "triton_checkpoint_segments")


def route_back(src, tokens, indices, mask=None):
    """`src` with the rows at `indices` overwritten by `tokens`: a new tensor of the dtype of `src`.

    Args:
        src (torch.Tensor): (..., n, dim); leading sizes such as batch, or batch and routes.
        tokens (torch.Tensor): (..., k, dim), of any floating dtype.
        indices (torch.Tensor): int64 (..., k), each at most once in a row. Those outside [0, n), a router's fillers, are
            dropped.
        mask (torch.Tensor | None): Bool (..., k), false = drop too.

    Returns:
        torch.Tensor: (..., n, dim). Gradients of overwritten rows go to `tokens`, of the others to `src`.
    """
    return torch.ops.weir._route_back(src, tokens, indices, mask)


class CoordinateDescentRouter(_CoordinateDescentRouter):
    """`weir.CoordinateDescentRouter` with the package's `route_back`. `use_triton` and `triton_checkpoint_segments` are
    accepted and not needed: there is one implementation."""

    def __init__(self, *args, use_triton=False, triton_checkpoint_segments=None, **kwargs):
        del use_triton, triton_checkpoint_segments
        super().__init__(*args, **kwargs)

    def route_back(self, src, routed_tokens, indices):
        """`src` (batch, n, dim) with `routed_tokens` at `indices`; a new tensor, unlike the package's. See `route_back`."""
        return route_back(src, routed_tokens, indices)


class _Routed:
    """Also takes `use_triton`, here and in `router_kwargs`, and `use_flash_attn`: accepted and not needed."""

    def __init__(self, *args, use_triton=False, use_flash_attn=False, router_kwargs={}, **kwargs):
        del use_triton, use_flash_attn
        kept = {name: value for name, value in router_kwargs.items() if name not in _UNUSED}
        super().__init__(*args, router_kwargs=kept, **kwargs)


class ConditionalRoutedFeedForward(_Routed, _ConditionalRoutedFeedForward):
    """`weir.ConditionalRoutedFeedForward`, with the package's arguments."""


class ConditionalRoutedAttention(_Routed, _ConditionalRoutedAttention):
    """`weir.ConditionalRoutedAttention`, with the package's arguments."""


class ConditionalRoutedAutoregressiveAttention(_Routed, _ConditionalRoutedAutoregressiveAttention):
    """`weir.ConditionalRoutedAutoregressiveAttention`, with the package's arguments."""


class ConditionalRoutedImageAttention(_Routed, _ConditionalRoutedImageAttention):
    """`weir.ConditionalRoutedImageAttention`, with the package's arguments."""


class ConditionalRoutedCrossAttention(_Routed, _ConditionalRoutedCrossAttention):
    """`weir.ConditionalRoutedCrossAttention`, with the package's arguments; `num_sets_kv` is accepted and has no effect,
    as in the package: `kv_routing_tokens` is the number of sets."""

    def __init__(self, *args, num_sets_kv=1, **kwargs):
        del num_sets_kv
        super().__init__(*args, **kwargs)


class ConditionalRoutedTransformerBlock(_Routed, _ConditionalRoutedTransformerBlock):
    """`weir.ConditionalRoutedTransformerBlock`, with the package's arguments."""


class ConditionalRoutedViT(_Routed, _ConditionalRoutedViT):
    """`weir.ConditionalRoutedViT`, with the package's arguments: `default_coor_descent_eps` is the routers' eps unless
    `router_kwargs` has one; `router_use_triton` and `flash_attn` are accepted and not needed."""

    def __init__(self, *args, router_kwargs={}, router_use_triton=False, flash_attn=True, default_coor_descent_eps=1.0,
                 **kwargs):  # fmt: skip
        del router_use_triton, flash_attn
        super().__init__(*args, router_kwargs={"eps": default_coor_descent_eps, **router_kwargs}, **kwargs)
