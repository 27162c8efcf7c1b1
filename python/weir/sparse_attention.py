# SPDX-License-Identifier: Apache-2.0
"""The names of the sparse-attention repositories: OpenAI's functions, and the class of their PyTorch rewrite."""
import inspect

import torch

from . import SparseAttention as _SparseAttention

__all__ = ["SparseAttention", "attention_impl", "blocksparse_attention_impl"]


class SparseAttention(_SparseAttention):
    """`weir.SparseAttention`, which also takes `blocksize` for `block_size`, and for `attn_mode` a layout of blocks:
    a bool tensor (blocks, blocks) or (heads, blocks, blocks)."""

    def __init__(self, *args, blocksize=None, **kwargs):
        if blocksize is not None:
            kwargs["block_size"] = blocksize
        kwargs = inspect.signature(_SparseAttention).bind(*args, **kwargs).arguments
        if isinstance(kwargs.get("attn_mode"), torch.Tensor):
            kwargs.update(attn_mode="custom", layout=_rows(kwargs["attn_mode"], kwargs.get("heads", 1)))
        super().__init__(**kwargs)


def _rows(layout, heads):
    """The layout as the strings of the option `layout`."""
    blocks = layout.shape[-1] if layout.dim() > 0 else 0
    if layout.dtype != torch.bool or tuple(layout.shape) not in ((blocks, blocks), (heads, blocks, blocks)):
        raise ValueError(
            "SparseAttention: expected a layout in `attn_mode` to be bool (blocks, blocks) or (heads, blocks, blocks) "
            f"with {heads} heads, but got {layout.dtype} {list(layout.shape)}"
        )
    return ["".join(".1"[cell] for cell in row) for row in layout.reshape(-1, blocks).tolist()]


def blocksparse_attention_impl(
    q, k, v, heads, attn_mode="all", local_attn_ctx=None, blocksize=32, num_verts=None, vertsize=None, mask=None
):
    """Attention of q, k, v (batch, n, features) over a causal pattern; see `SparseAttention`."""
    module = SparseAttention(
        block_size=blocksize,
        heads=heads,
        attn_mode=attn_mode,
        local_attn_ctx=local_attn_ctx,
        num_verts=1 if num_verts is None else num_verts,
        vertsize=1 if vertsize is None else vertsize,
    )
    return module(q, k, v, mask=mask)


def attention_impl(q, k, v, heads, attn_mode="all", local_attn_ctx=None, mask=None):
    """The same with the defaults of `blocksparse_attention_impl`: no pattern is worth a dense computation here."""
    return blocksparse_attention_impl(q, k, v, heads, attn_mode, local_attn_ctx, mask=mask)
