# SPDX-License-Identifier: Apache-2.0
"""A small instance of every module, and inputs for it."""
import torch


def tokens():
    return torch.randn(2, 7, 16)


# They have tests of their own.
WITHOUT_PARAMETERS = ["LocalAttention", "SparseAttention"]


def small_modules():
    """(options, inputs) of every other module; one without an entry here fails test_all_modules_are_tested."""
    return {
        "CoordinateDescentAttention": (
            dict(dim=16, dim_head=8, heads=2, use_coor_descent=True, attn_null_kv=2, learned_sparsity_k=True,
                 coor_descent_sparsity_k=3.0),
            tokens,
        ),
        "CoordinateDescentFeedForward": (dict(dim=16, use_coor_descent=True), tokens),
        "CoordinateDescentTransformer": (
            dict(num_tokens=19, dim=16, seq_len=12, depth=2, dim_head=8, heads=2, attn_use_coor_descent=True),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
        "LocalFeedForward": (dict(dim=16), tokens),
        "LocalMHA": (
            dict(dim=16, window_size=3, dim_head=8, heads=2, prenorm=True, qk_rmsnorm=True, gate_values_per_head=True),
            tokens,
        ),
        "LocalTransformer": (
            dict(num_tokens=19, max_seq_len=12, dim=16, depth=2, local_attn_window_size=3, dim_head=8, heads=2),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
    }
