# SPDX-License-Identifier: Apache-2.0
"""Weir: attention and feed-forward layers that choose where to spend compute.

    import torch, weir

    attention = weir.CoordinateDescentAttention(dim=512, use_coor_descent=True)
    out = attention(torch.randn(1, 128, 512))

Every module is a `torch.nn.Module`; `weir.modules()` lists them, `help(weir.CoordinateDescentAttention)` shows the
arguments of one. `weir.ops` has the operators as functions. The submodules named after published packages export
their names.
"""
from . import _library

library = _library.load()
"""Path of the libweir.so that is loaded."""

import torch as _torch  # noqa: E402

from . import _module, ops  # noqa: E402
from ._models import generate_options, load_model  # noqa: E402
from ._module import LanguageModel, Module  # noqa: E402

__version__ = _torch.ops.weir._version()


def modules():
    """Names of all modules."""
    return list(_torch.ops.weir._module_names())


for _name in modules():
    globals()[_name] = _module.make_class(_name)

__all__ = ["LanguageModel", "Module", "generate_options", "load_model", "modules", "ops", *modules()]

from . import colt5_attention, coordinate_descent_attention, local_attention, sparse_attention  # noqa: E402
