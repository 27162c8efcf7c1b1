# SPDX-License-Identifier: Apache-2.0
"""The names of the package CoLT5-attention."""
from .ops import coor_descent, topk

__all__ = ["coor_descent", "topk"]
