# SPDX-License-Identifier: Apache-2.0
"""The table of the package local-attention, hyper-connections included: rows as in cases.py.

Where a padding mask is given, positions that it drops are not compared: the package leaves junk there.
"""
import dataclasses
import itertools
import random

import torch
import weir
from local_attention import LocalAttention, LocalMHA, LocalTransformer
from local_attention.rotary import SinusoidalEmbeddings
from local_attention.transformer import FeedForward
from torch import nn

from cases import label, normal, tokens
from harness import TOLERANCES, Case

REGIME = "causal, or look_forward 0 or rotary off, and n a multiple of the window or a mask"


class Kept(nn.Module):
    """What `module` gives at the positions that the mask, its last input, keeps."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        mask = inputs[-1]
        return self.module(*inputs)[mask if inputs[0].dim() == 3 else mask[:, None].expand(inputs[0].shape[:-1])]


class Biased(nn.Module):
    """`module` with its last input as attn_bias."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs[:-1], attn_bias=inputs[-1])


def padding(batch, length):
    """bool: every row shorter than the one before."""
    return torch.arange(length) < length - 3 * torch.arange(batch)[:, None]


def xpos_in_float64(module):
    """The package computes the base of its powers in float32."""
    for part in module.modules():
        if isinstance(part, SinusoidalEmbeddings):
            dim = 2 * len(part.scale)
            part.scale = ((torch.arange(0, dim, 2).double() + 0.4 * dim) / (1.4 * dim)).to(part.inv_freq)


def module_cases(name, ours, theirs, inputs, length, wrap=None, **options):
    """A row of the plain module, or of both modules inside `wrap`."""
    wrap = wrap or (lambda module: module)
    return Case(
        f"{name}: n {length}, {label(**options)}{', ' + wrap.__name__ if isinstance(wrap, type) else ''}",
        lambda: wrap(ours(**options)),
        lambda: wrap(theirs(**options)),
        inputs,
        regime=REGIME,
        prepare=xpos_in_float64,
    )


# -- LocalAttention ---------------------------------------------------------------------------------------------------


def attention_case(length, extra=(), wrap=None, **options):
    def inputs():
        return (*(normal(2, 3, length, 8, seed=seed) for seed in range(3)), *extra)

    options = dict(window_size=4) | options
    return module_cases("LocalAttention", weir.LocalAttention, LocalAttention, inputs, length, wrap, **options)


def attention_cases():
    for exact, dim, back, length in itertools.product((False, True), (None, 8), (1, 2), (4, 16)):
        yield attention_case(length, causal=True, exact_windowsize=exact, dim=dim, look_backward=back)
    for exact, options in itertools.product((False, True), (dict(dim=8, look_forward=0), dict(), dict(look_forward=2))):
        yield attention_case(16, exact_windowsize=exact, **options)
        yield attention_case(15, (padding(2, 15),), Kept, exact_windowsize=exact, autopad=True, **options)
    for length in (3, 9, 15):
        yield attention_case(length, causal=True, autopad=True, dim=8)
    # The gradient of a query with one key is 0, and what is found in float32 is rounding.
    one = attention_case(1, causal=True, autopad=True, dim=8)
    yield dataclasses.replace(one, dtypes=(torch.float64,))
    for options in (dict(scale=0.5), dict(shared_qk=True), dict(shared_qk=True, dim=8), dict(look_backward=0)):
        yield attention_case(16, causal=True, **options)
    for base, exact in itertools.product((None, 3), (False, True)):
        yield attention_case(16, causal=True, dim=8, use_xpos=True, xpos_scale_base=base, exact_windowsize=exact)
    yield attention_case(16, causal=True, rel_pos_emb_config=[8, 3], dim=4)
    yield attention_case(16, (normal(3, 4, 8, seed=9),), Biased, causal=True, dim=8)
    yield attention_case(16, (normal(3, 4, 12, seed=9),), Biased)


# -- LocalMHA, FeedForward --------------------------------------------------------------------------------------------


def mha_case(length, extra=(), wrap=None, **options):
    options = dict(dim=12, window_size=4, dim_head=6, heads=2) | options
    return module_cases(
        "LocalMHA", weir.LocalMHA, LocalMHA, lambda: (normal(3, length, 12), *extra), length, wrap, **options
    )


def mha_cases():
    switches = (False, True)
    for prenorm, rms, gate, exact in itertools.product(switches, switches, switches, switches):
        options = dict(prenorm=prenorm, qk_rmsnorm=rms, gate_values_per_head=gate, exact_windowsize=exact)
        yield mha_case(15, causal=True, **options)
    yield mha_case(16, causal=True, use_xpos=True)
    yield mha_case(16, causal=True, use_rotary_pos_emb=False, look_backward=2, shared_qk=True)
    yield mha_case(16, causal=True, qk_rmsnorm=True, qk_scale=3.0)
    yield mha_case(16, look_forward=0)
    yield mha_case(15, (padding(3, 15),), Kept, use_rotary_pos_emb=False, prenorm=True)
    yield mha_case(15, (padding(3, 15),), Kept, causal=True, gate_values_per_head=True)
    yield mha_case(15, (normal(2, 4, 8, seed=9),), Biased, causal=True)


def feed_forward_cases():
    for mult in (4, 2.5):
        yield Case(
            f"local FeedForward: mult {mult}",
            lambda mult=mult: weir.LocalFeedForward(dim=14, mult=mult),
            lambda mult=mult: FeedForward(dim=14, mult=mult),
            lambda: (normal(2, 5, 14),),
        )


# -- LocalTransformer -------------------------------------------------------------------------------------------------

SMALL = dict(
    num_tokens=11, max_seq_len=12, dim=16, depth=2, local_attn_window_size=3, dim_head=8, heads=2, ff_mult=3
)


def prepare_transformer(model):
    xpos_in_float64(model)
    without_the_constant(model)
    distances_in_the_dtype_of_the_weights(model)


def without_the_constant(model):
    """Freezes a bias that adds the same to all logits of a row: its gradient is 0, and what is found is rounding."""
    for name, parameter in model.named_parameters():
        if name == "dynamic_pos_bias.mlp.4.bias":
            parameter.requires_grad_(False)
    return model


def distances_in_the_dtype_of_the_weights(model):
    """The package's position bias is computed from float32 distances, which only float32 weights take."""
    if model.dynamic_pos_bias is not None:
        model.dynamic_pos_bias.mlp.register_forward_pre_hook(lambda mlp, args: args[0].to(mlp[0].weight.dtype))


# With several streams a scale is one number whose gradient sums terms of both signs over all tokens and streams: in
# float32 the package's own is off by up to 4e-5.
STREAM_TOLERANCES = {torch.float64: 1e-9, torch.float32: 5e-5}


def published_transformer(**options):
    random.seed(0)  # it chooses the stream that each branch reads
    return LocalTransformer(**options)


def transformer_case(options):
    options = SMALL | options
    streams = options.get("num_residual_streams", 4)
    return Case(
        f"LocalTransformer: {label(**options)}",
        lambda: without_the_constant(weir.LocalTransformer(**options)),
        lambda: published_transformer(**options),
        lambda: (tokens(3, 11, options["num_tokens"]),),
        prepare=prepare_transformer,
        tolerances=TOLERANCES if streams == 1 else STREAM_TOLERANCES,
    )


def transformer_cases():
    for streams, bias in itertools.product((1, 2, 4), (False, True)):
        yield transformer_case(dict(num_residual_streams=streams, use_dynamic_pos_bias=bias))
    yield transformer_case(dict(qk_rmsnorm=True, gate_values_per_head=True, exact_windowsize=False))
    yield transformer_case(dict(use_xpos=True, look_backward=2, causal=True))


LOCAL_TRANSFORMERS = list(transformer_cases())
LOCAL_CASES = [*attention_cases(), *mha_cases(), *feed_forward_cases(), *LOCAL_TRANSFORMERS]
