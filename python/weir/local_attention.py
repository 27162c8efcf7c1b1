# SPDX-License-Identifier: Apache-2.0
"""The names of the package local-attention."""
import torch

from . import LocalAttention, LocalMHA
from . import LocalTransformer as _LocalTransformer
from ._autoregressive import _kept

__all__ = ["LocalAttention", "LocalMHA", "LocalTransformer"]


class LocalTransformer(_LocalTransformer):
    """`weir.LocalTransformer` with the package's `generate`."""

    def generate(self, prime, seq_len, temperature=1.0, filter_thres=0.9, use_kv_cache=True):
        """Samples `seq_len` tokens after `prime`.

        Args:
            prime (torch.Tensor): int64 (batch, t), t at least 1.
            seq_len (int): New tokens.
            temperature (float): Divides the logits; 0 takes the likeliest token.
            filter_thres (float): The share of the vocabulary that is not sampled from; at least one token is kept.
            use_kv_cache (bool): Keep keys and values; without it every token reads the whole row again.

        Returns:
            torch.Tensor: The new tokens, int64 (batch, seq_len).
        """
        rows = super().generate(
            prime,
            max_new_tokens=seq_len,
            temperature=temperature,
            top_k=_kept(filter_thres, self.num_tokens),
            seed=int(torch.randint(2**31, ()).item()),
            use_cache=use_kv_cache,
        )
        return torch.tensor(rows, dtype=prime.dtype, device=prime.device)
