# SPDX-License-Identifier: Apache-2.0
"""The operators as functions. They are `torch.ops.weir.*`, with autograd, `torch.compile` and `torch.export`."""
from collections import namedtuple

import torch

TopkReturn = namedtuple("TopkReturn", ["values", "indices", "coor_descent_values", "gates"])


def coordinate_descent(scores, budget, mask=None, n_iters=20, eps=0.1, eps_init=None, eps_decay=1.0, solver="iterative"):
    """Differentiable soft top-k: weights in [0, 1] that sum to about `budget`.

    Args:
        scores (torch.Tensor): (..., n); float32, float64, bfloat16 or float16. Unnormalised, not probabilities.
        budget (float | torch.Tensor): The k, any real > 0; a number, or a tensor that broadcasts to scores.shape[:-1].
        mask (torch.Tensor | None): Bool, true = keep; broadcasts to `scores`.
        n_iters (int): Iterations of the iterative solver, at least 1.
        eps (float): Entropy; smaller is harder.
        eps_init (float | None): Entropy of the first iteration; None: `eps`.
        eps_decay (float): Factor on the entropy from one iteration to the next.
        solver (str): "iterative" (the published function) or "exact" (rows sum to the budget).

    Returns:
        torch.Tensor: Weights (..., n), of the dtype of `scores`. Masked entries are 0.

    Source: Qian et al. 2022, arXiv:2211.01267.
    """
    return torch.ops.weir.coordinate_descent(
        scores, budget, mask=mask, n_iters=n_iters, eps=eps, eps_init=eps_init, eps_decay=eps_decay, solver=solver
    )


def coordinate_descent_attention(
    query,
    key,
    value,
    budget,
    key_mask=None,
    mask=None,
    causal=False,
    nulls=0,
    n_iters=20,
    eps=0.1,
    eps_init=None,
    eps_decay=1.0,
    solver="iterative",
    normalize=False,
    scale=None,
):
    """Attention whose weights are a soft top-k of the keys: `coordinate_descent` of scale * <q_i, k_j>, times the values.

    Nothing of size n x m is stored, forward or backward. Differentiable in query, key, value and budget.

    Args:
        query (torch.Tensor): (batch, heads, n, dim); float32, float64, bfloat16 or float16.
        key (torch.Tensor): (batch, kv_heads, m, dim); kv_heads divides heads.
        value (torch.Tensor): (batch, kv_heads, m, value_dim).
        budget (float | torch.Tensor): About how many keys a query attends to, any real > 0; a number, or a tensor that
            broadcasts to (batch, heads, n).
        key_mask (torch.Tensor | None): Bool (batch, m), true = keep.
        mask (torch.Tensor | None): Bool, broadcasts to (batch, heads, n, m), true = keep.
        causal (bool): Only keys up to the query's position; the last query stands at the last key.
        nulls (int): The first keys that every query sees, whatever causal says; positions count after them.
        n_iters (int): Iterations of the iterative solver, at least 1.
        eps (float): Entropy; smaller is harder.
        eps_init (float | None): Entropy of the first iteration; None: `eps`.
        eps_decay (float): Factor on the entropy from one iteration to the next.
        solver (str): "iterative" (the published function) or "exact" (weights sum to the budget).
        normalize (bool): Divide by the sum of the weights.
        scale (float | None): Factor on the logits; None: 1 / sqrt(dim).

    Returns:
        torch.Tensor: (batch, heads, n, value_dim); 0 where a query sees no key.

    Sources: github.com/lucidrains/coordinate-descent-attention, 2023; Qian et al. 2022, arXiv:2211.01267.
    """
    return torch.ops.weir.coordinate_descent_attention(
        query,
        key,
        value,
        budget,
        key_mask=key_mask,
        mask=mask,
        causal=causal,
        nulls=nulls,
        n_iters=n_iters,
        eps=eps,
        eps_init=eps_init,
        eps_decay=eps_decay,
        solver=solver,
        normalize=normalize,
        scale=scale,
    )


def block_sparse_attention(
    query,
    key,
    value,
    layout=None,
    key_mask=None,
    mask=None,
    block_size=32,
    causal=False,
    window=None,
    stride=1,
    prefix=0,
    scale=None,
    *,
    cu_seqlens=None,
    cu_seqlens_k=None,
    document_ids=None,
    local=0,
):
    """Softmax attention over the pairs of positions that a pattern allows; memory linear in n.

    Args:
        query (torch.Tensor): (batch, heads, n, dim).
        key (torch.Tensor): (batch, kv_heads, m, dim); kv_heads divides heads.
        value (torch.Tensor): (batch, kv_heads, m, value_dim).
        layout (torch.Tensor | None): Bool blocks, (n / block_size, m / block_size) rounded up, or (heads, ...).
        key_mask (torch.Tensor | None): Bool (batch, m), true = keep.
        mask (torch.Tensor | None): Bool, broadcasts to (batch, heads, n, m), true = keep.
        block_size (int): Positions per block of the layout, 1 to 128.
        causal (bool): Only keys up to the query's position; the last query stands at the last key.
        window (int | None): Only keys less than this many positions away.
        stride (int): Only keys a multiple of this many positions away.
        prefix (int): The first keys that every query may see, whatever causal and window say.
        scale (float | None): Factor on the logits; None: 1 / sqrt(dim).
        cu_seqlens (torch.Tensor | None): Int64 or int32 (sequences + 1): sequence s is queries cu_seqlens[s] ...
            cu_seqlens[s + 1]. Sequences do not see each other; all positions and the layout count within one.
        cu_seqlens_k (torch.Tensor | None): The same for keys; None: as queries.
        document_ids (torch.Tensor | None): Int64 or int32 (batch, n), n = m: neighbours with equal ids are one document,
            and documents do not see each other.
        local (int): Keys less than this many positions away are seen whatever layout, window and stride say.

    Returns:
        torch.Tensor: (batch, heads, n, value_dim); 0 where a query sees no key.

    Source: Child et al. 2019, arXiv:1904.10509.
    """
    return torch.ops.weir.block_sparse_attention(
        query,
        key,
        value,
        layout=layout,
        key_mask=key_mask,
        mask=mask,
        block_size=block_size,
        causal=causal,
        window=window,
        stride=stride,
        prefix=prefix,
        scale=scale,
        cu_seqlens=cu_seqlens,
        cu_seqlens_k=cu_seqlens_k,
        document_ids=document_ids,
        local=local,
    )


def local_attention(
    query,
    key,
    value,
    window_size,
    key_mask=None,
    attn_bias=None,
    inv_freq=None,
    causal=False,
    look_backward=1,
    look_forward=None,
    exact_windowsize=False,
    scale=None,
    shared_qk=False,
    use_xpos=False,
    xpos_scale_base=None,
    dropout=0.0,
):
    """Softmax attention over a band of positions, in memory linear in n.

    Query i of bucket floor(i / window_size) sees the keys of that bucket, of `look_backward` buckets before and of
    `look_forward` after it. The last query stands at the last key; buckets are counted from key 0. Any n: nothing is
    padded. Differentiable in query, key, value and attn_bias.

    Args:
        query (torch.Tensor): (batch, heads, n, dim); float32, float64, bfloat16 or float16.
        key (torch.Tensor): (batch, kv_heads, m, dim); kv_heads divides heads.
        value (torch.Tensor): (batch, kv_heads, m, value_dim).
        window_size (int): Positions per bucket.
        key_mask (torch.Tensor | None): Bool (batch, m), true = keep.
        attn_bias (torch.Tensor | None): (heads, window_size, (look_backward + 1 + look_forward) * window_size), added to
            the logits: slot (a, p) is that of query a of a bucket and key p of its span, which begins look_backward
            buckets earlier.
        inv_freq (torch.Tensor | None): (dim / 2): rotary embedding of angle position * inv_freq, halves of a head
            paired.
        causal (bool): Only keys up to the query's position.
        look_backward (int): Buckets, or window sizes, seen backward.
        look_forward (int | None): The same forward; None: 0 if causal, else 1.
        exact_windowsize (bool): Windows of equal length around each query instead of whole buckets.
        scale (float | None): Factor on the logits; None: 1 / sqrt(dim).
        shared_qk (bool): Keys are normalised, and a query attends to itself only if nothing else is left.
        use_xpos (bool): Rotary embedding with the length scaling of xPos; needs `inv_freq`.
        xpos_scale_base (float | None): Distance over which xPos decays; None: window_size / 2, rounded down.
        dropout (float): Share of the weights to drop, in [0, 1). torch's seed decides which.

    Returns:
        torch.Tensor: (batch, heads, n, value_dim); 0 where a query sees no key.

    Sources: Beltagy et al. 2020, arXiv:2004.05150; Su et al. 2021, arXiv:2104.09864; Sun et al. 2022, arXiv:2212.10554.
    """
    return torch.ops.weir.local_attention(
        query,
        key,
        value,
        window_size,
        key_mask=key_mask,
        attn_bias=attn_bias,
        inv_freq=inv_freq,
        causal=causal,
        look_backward=look_backward,
        look_forward=look_forward,
        exact_windowsize=exact_windowsize,
        scale=scale,
        shared_qk=shared_qk,
        use_xpos=use_xpos,
        xpos_scale_base=xpos_scale_base,
        dropout=dropout,
    )


def low_rank_attention(
    route_query,
    route_key,
    query,
    key,
    value,
    k,
    key_mask=None,
    mask=None,
    causal=False,
    scale=None,
    route_scale=None,
    score="softmax",
    eps=0.1,
    k_ratio=9 / 8,
):
    """Attention of full heads over the `k` keys that cheap routing heads choose for each query; nothing n x m is stored.

    Kept are the visible keys of the largest route_scale * <route_query_i, route_key_j>. The forward pass is softmax
    attention over them; in the backward pass the values also carry a score of the routing logits, so that the routing
    heads learn. The gradient reaches what is kept only.

    Args:
        route_query (torch.Tensor): (batch, route_heads, n, route_dim); float32, float64, bfloat16 or float16. route_heads
            divides heads: head h takes the choice of routing head h // (heads // route_heads).
        route_key (torch.Tensor): (batch, route_kv_heads, m, route_dim); route_kv_heads divides route_heads.
        query (torch.Tensor): (batch, heads, n, dim).
        key (torch.Tensor): (batch, kv_heads, m, dim); kv_heads divides heads.
        value (torch.Tensor): (batch, kv_heads, m, value_dim).
        k (int): Keys to keep per query, at least 1.
        key_mask (torch.Tensor | None): Bool (batch, m), true = keep.
        mask (torch.Tensor | None): Bool, broadcasts to (batch, route_heads, n, m), true = keep.
        causal (bool): Only keys up to the query's position; the last query stands at the last key.
        scale (float | None): Factor on the logits; None: 1 / sqrt(dim).
        route_scale (float | None): Factor on the routing logits; None: 1 / sqrt(route_dim).
        score (str): How the routing heads learn: "softmax" of the kept routing logits, or "coordinate_descent" with the
            budget k / k_ratio.
        eps (float): Entropy of "coordinate_descent"; smaller is harder.
        k_ratio (float): At least 1.

    Returns:
        torch.Tensor: (batch, heads, n, value_dim); 0 where a query sees no key.
    """
    return torch.ops.weir.low_rank_attention(
        route_query,
        route_key,
        query,
        key,
        value,
        k,
        key_mask=key_mask,
        mask=mask,
        causal=causal,
        scale=scale,
        route_scale=route_scale,
        score=score,
        eps=eps,
        k_ratio=k_ratio,
    )


def l2_rms_norm(x, gamma):
    """Rows of length sqrt(dim), times `gamma`: x sqrt(dim) / max(|x|, 1e-12) gamma, from one read of `x`.

    Args:
        x (torch.Tensor): (..., dim); float32, float64, bfloat16 or float16.
        gamma (torch.Tensor): (dim).

    Returns:
        torch.Tensor: (..., dim), of the dtype of `x`.
    """
    return torch.ops.weir.l2_rms_norm(x, gamma)


def router_logits(x, tokens, cosine=False, scale=1.0):
    """Products of routing tokens with all tokens, or cosines; `x` is read once as it is, forward and backward.

    Args:
        x (torch.Tensor): (batch, n, dim); float32, float64, bfloat16 or float16.
        tokens (torch.Tensor): (routes, dim), or (batch, routes, dim) with others for each entry of the batch.
        cosine (bool): Divide by the lengths of token and routing token.
        scale (float): Factor on the logits.

    Returns:
        torch.Tensor: (batch, routes, n); float32, float64 for float64.
    """
    return torch.ops.weir.router_logits(x, tokens, cosine=cosine, scale=scale)


def top_k_attention(query, key, value, k, key_mask=None, mask=None, causal=False, scale=None):
    """Softmax attention of each query over the `k` visible keys of its largest logits; nothing n x m is stored.

    The gradient reaches the kept keys and values only. Of equal logits the smaller index is kept; a query that sees fewer
    than `k` keys keeps them all.

    Args:
        query (torch.Tensor): (batch, heads, n, dim); float32, float64, bfloat16 or float16.
        key (torch.Tensor): (batch, kv_heads, m, dim); kv_heads divides heads.
        value (torch.Tensor): (batch, kv_heads, m, value_dim).
        k (int): Keys to keep per query, at least 1.
        key_mask (torch.Tensor | None): Bool (batch, m), true = keep.
        mask (torch.Tensor | None): Bool, broadcasts to (batch, heads, n, m), true = keep.
        causal (bool): Only keys up to the query's position; the last query stands at the last key.
        scale (float | None): Factor on the logits; None: 1 / sqrt(dim).

    Returns:
        torch.Tensor: (batch, heads, n, value_dim); 0 where a query sees no key.

    Source: Gupta et al. 2021, arXiv:2106.06899.
    """
    return torch.ops.weir.top_k_attention(query, key, value, k, key_mask=key_mask, mask=mask, causal=causal, scale=scale)


def coor_descent(s, *, n_iters, k, eps=1e-1, eps_init=None, eps_decay=1.0, mask=None):
    """`coordinate_descent` with the signature of `colt5_attention.coor_descent`."""
    return coordinate_descent(s, k, mask, n_iters, eps, eps_init, eps_decay)


def topk(
    x,
    k,
    coor_descent_k_ratio=9 / 8,
    n_iters=20,
    eps=1e-1,
    eps_init=None,
    eps_decay=1.0,
    mask=None,
    fused=False,
    non_differentiable=False,
):
    """The k largest entries of each row, with the gradient of `coordinate_descent`.

    Args:
        x (torch.Tensor): (..., n) scores.
        k (int): How many.
        coor_descent_k_ratio (float): Budget of the soft top-k over `k`, at least 1.
        n_iters, eps, eps_init, eps_decay: As of `coordinate_descent`.
        mask (torch.Tensor | None): Bool, true = keep. Masked entries are chosen last, with gate 0.
        fused (bool): Accepted and not needed: there is one implementation.
        non_differentiable (bool): Plain top-k.

    Returns:
        TopkReturn: values, indices (int64), coor_descent_values, gates, each (..., k); the last two are None if
        non_differentiable.
    """
    del fused
    return TopkReturn(
        *torch.ops.weir.topk(
            x,
            k,
            coor_descent_k_ratio=coor_descent_k_ratio,
            n_iters=n_iters,
            eps=eps,
            eps_init=eps_init,
            eps_decay=eps_decay,
            mask=mask,
            non_differentiable=non_differentiable,
        )
    )
