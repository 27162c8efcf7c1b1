# SPDX-License-Identifier: Apache-2.0
"""A small instance of every module, and inputs for it."""
import torch
import weir
from weir.colt5_attention import route_back


def tokens():
    return torch.randn(2, 7, 16)


def small_vit():
    return dict(
        image_size=(8, 12), patch_size=2, num_classes=5, dim=16, depth=2, attn_num_heavy_tokens_q=3,
        attn_num_heavy_tokens_kv=4, attn_heavy_dim_head=4, attn_heavy_heads=2, attn_light_dim_head=4, attn_light_heads=2,
        attn_light_window_size=2, ff_num_heavy_tokens=5, ff_heavy_mult=2, ff_light_mult=0.5,
    )  # fmt: skip


# They have tests of their own.
WITHOUT_PARAMETERS = ["LocalAttention", "SparseAttention"]


class DenseRouter(weir.CoordinateDescentRouter):
    """A router of one argument and one result: the routed tokens, times their scores, back at their places."""

    def forward(self, x):
        routed = super().forward(x, num_tokens=4)
        return route_back(torch.zeros_like(x), routed.routed_tokens * routed.scores[..., None], routed.indices)


class Remembering(weir.ConditionalRoutedCrossAttention):
    """Cross attention of one argument: to itself, twice as long."""

    def forward(self, x):
        return super().forward(x, torch.cat([x, x.flip(0)], dim=1))


# In place of the module itself, where that is not from one tensor to one.
SUBCLASSES = {"ConditionalRoutedCrossAttention": Remembering, "CoordinateDescentRouter": DenseRouter}


def small_modules():
    """(options, inputs) of every other module; one without an entry here fails test_all_modules_are_tested."""
    return {
        "ConditionalRoutedAttention": (
            dict(dim=16, num_heavy_tokens_q=3, num_heavy_tokens_kv=2, num_routed_kv=2, light_dim_head=4, light_heads=2,
                 light_window_size=4, heavy_dim_head=4, heavy_heads=2, rotary_emb=True, router_kwargs=dict(eps=1.0)),
            tokens,
        ),
        "ConditionalRoutedAutoregressiveAttention": (
            dict(dim=16, num_heavy_tokens_q=1, num_heavy_tokens_kv=2, num_routed_kv=2, light_dim_head=4, light_heads=2,
                 light_window_size=2, heavy_dim_head=4, heavy_heads=2, rotary_emb=True, router_kwargs=dict(eps=1.0)),
            tokens,
        ),
        "ConditionalRoutedTransformer": (
            dict(num_tokens=19, dim=16, max_seq_len=12, depth=1, num_heavy_attn_tokens_q=1, num_heavy_attn_tokens_kv=2,
                 num_heavy_ff_tokens=1, light_dim_head=4, light_heads=2, light_window_size=2, heavy_dim_head=4, heavy_heads=2),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
        "ConditionalRoutedCrossAttention": (
            dict(dim=16, num_tokens_q=3, num_tokens_kv=2, kv_routing_tokens=2, dim_head=4, heads=2, kv_routing_from_x=True,
                 router_kwargs=dict(eps=1.0)),
            tokens,
        ),
        "ConditionalRoutedFeedForward": (dict(dim=16, num_heavy_tokens=3, router_kwargs={"eps": 1.0}), tokens),
        "ConditionalRoutedImageAttention": (
            dict(dim=16, num_heavy_tokens_q=3, num_heavy_tokens_kv=2, num_routed_kv=2, light_dim_head=4, light_heads=2,
                 light_window_size=2, heavy_dim_head=4, heavy_heads=2, router_kwargs=dict(eps=1.0)),
            lambda: torch.randn(2, 4, 6, 16),
        ),
        "ConditionalRoutedTransformerBlock": (
            dict(dim=16, num_heavy_attn_tokens_q=3, num_heavy_attn_tokens_kv=2, num_heavy_ff_tokens=3, light_dim_head=4,
                 light_heads=2, light_window_size=4, heavy_dim_head=4, heavy_heads=2, rotary_emb=True,
                 router_kwargs=dict(eps=1.0)),
            lambda: torch.rand(2, 7, 16),
        ),
        "ConditionalRoutedViT": (small_vit(), lambda: torch.randn(2, 3, 8, 12)),
        "CoordinateDescentAttention": (
            dict(dim=16, dim_head=8, heads=2, use_coor_descent=True, attn_null_kv=2, learned_sparsity_k=True,
                 coor_descent_sparsity_k=3.0),
            tokens,
        ),
        "CoordinateDescentFeedForward": (dict(dim=16, use_coor_descent=True), tokens),
        "CoordinateDescentRouter": (dict(dim=16, straight_through=False, eps=1.0), lambda: torch.rand(2, 7, 16)),
        "CoordinateDescentTransformer": (
            dict(num_tokens=19, dim=16, seq_len=12, depth=2, dim_head=8, heads=2, attn_use_coor_descent=True),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
        "HeavyAttention": (dict(dim=16, dim_head=4, heads=2), tokens),
        "LocalFeedForward": (dict(dim=16), tokens),
        "LocalMHA": (
            dict(dim=16, window_size=3, dim_head=8, heads=2, prenorm=True, qk_rmsnorm=True, gate_values_per_head=True),
            tokens,
        ),
        "LocalTransformer": (
            dict(num_tokens=19, max_seq_len=12, dim=16, depth=2, local_attn_window_size=3, dim_head=8, heads=2),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
        "SelfAttention": (dict(dim=16, dim_head=4, heads=2, prenorm=True), tokens),
        "SparseSelfAttention": (
            dict(dim=16, seq_len=12, heads=2, attn_mode="local,custom", local_attn_ctx=3, block_size=4,
                 layout=["1..", "11.", "1.1"]),
            tokens,
        ),
        "SparseTransformer": (
            dict(num_tokens=19, dim=16, seq_len=12, depth=2, heads=2, attn_mode="local;local+strided", local_attn_ctx=3),
            lambda: torch.randint(0, 19, (2, 7)),
        ),
    }
