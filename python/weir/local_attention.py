# SPDX-License-Identifier: Apache-2.0
"""The names of the package local-attention."""
from . import LocalAttention, LocalMHA, LocalTransformer

__all__ = ["LocalAttention", "LocalMHA", "LocalTransformer"]
