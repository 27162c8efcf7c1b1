# SPDX-License-Identifier: Apache-2.0
"""The names of the sparse-attention repositories: OpenAI's functions, and the class of their PyTorch rewrite."""
from . import SparseAttention as _SparseAttention

__all__ = ["SparseAttention", "attention_impl", "blocksparse_attention_impl"]


class SparseAttention(_SparseAttention):
    """`weir.SparseAttention`, which also takes `blocksize` for `block_size`."""

    def __init__(self, *args, blocksize=None, **kwargs):
        if blocksize is not None:
            kwargs["block_size"] = blocksize
        super().__init__(*args, **kwargs)


def blocksparse_attention_impl(
    q, k, v, heads, attn_mode="all", local_attn_ctx=None, blocksize=32, num_verts=None, vertsize=None, mask=None
):
    """Attention of q, k, v (batch, n, features) over a causal pattern; see `weir.SparseAttention`."""
    module = _SparseAttention(
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
