# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/differences.md about local-attention: what the package does, and that Weir does the right thing."""
import pytest
import torch
import weir

published = pytest.importorskip("local_attention", reason="tests/parity/requirements.txt is not installed")

from cases import normal, tokens
from harness import perturb
from local_attention_cases import SMALL, distances_in_the_dtype_of_the_weights


def qkv(length, dim=8):
    return tuple(normal(2, length, dim, seed=seed) for seed in range(3))


def formula(q, k, v, allowed, rotary=False):
    """Dense attention over `allowed` (n, n), rotary embedding at the true positions."""
    n, dim = q.shape[-2:]
    if rotary:
        angles = torch.arange(n, dtype=q.dtype)[:, None] * 10000 ** (-torch.arange(0, dim, 2, dtype=q.dtype) / dim)
        turn = torch.polar(torch.ones_like(angles), angles)
        q, k = (torch.complex(*x.chunk(2, -1)) * turn for x in (q, k))
        q, k = (torch.cat((x.real, x.imag), -1) for x in (q, k))
    logits = (q @ k.mT * dim**-0.5).masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1) @ v


def buckets(n, w, backward=1, forward=1):
    bucket = torch.arange(n) // w
    apart = bucket - bucket[:, None]
    return (-backward <= apart) & (apart <= forward)


def off(got, want):
    return (got - want).abs().max().item()


def test_rotary_distances_when_looking_forward():
    options = dict(window_size=4, dim=8)
    right = formula(*qkv(16), buckets(16, 4), rotary=True)
    assert off(published.LocalAttention(**options).double()(*qkv(16)), right) > 1e-2
    assert off(weir.LocalAttention(**options)(*qkv(16)), right) < 1e-6  # frequencies are float32


def test_padding_is_attended_to():
    options = dict(window_size=16, autopad=True)
    right = formula(*qkv(100), buckets(100, 16))
    theirs, ours = (cls(**options)(*qkv(100)) for cls in (published.LocalAttention, weir.LocalAttention))
    assert off(theirs[:, :80], right[:, :80]) < 1e-12 and off(theirs[:, 96:], right[:, 96:]) > 1e-2
    assert off(ours, right) < 1e-12


def test_rows_without_a_key():
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    theirs, ours = (
        cls(4, causal=True)(*qkv(8), mask=nothing) for cls in (published.LocalAttention, weir.LocalAttention)
    )
    assert off(theirs[:, :4], (qkv(8)[2][:, :4].sum(1, keepdim=True) - 4) / 8) < 1e-12, "the fillers of -1 count"
    assert not ours.any()


def test_another_window_for_one_call():
    options = dict(window_size=2, causal=True, dim=8, use_xpos=True, exact_windowsize=True)
    seen = [
        (cls(**options)(*qkv(12, 8)[:2], torch.eye(12)[None].expand(2, -1, -1).double(), window_size=4)[0, 11] > 0).sum()
        for cls in (published.LocalAttention, weir.LocalAttention)
    ]
    assert seen == [3, 5], "2 + 1 keys, though the window is 4"


# -- keys and values that are kept ------------------------------------------------------------------------------------


def cached_error(**options):
    """The package's LocalMHA, token by token with its cache, against its own full pass: the error of each token."""
    torch.manual_seed(0)
    mha = published.LocalMHA(dim=12, window_size=4, dim_head=6, heads=2, causal=True, **options).double()
    x = normal(1, 24, 12)
    full, cache, errors = mha(x), None, []
    for i in range(24):
        out, cache = mha(x[:, i : i + 1], cache=cache, return_cache=True)
        errors.append(off(out[:, 0], full[:, i]))
    return torch.tensor(errors)


def weir_generates_the_same_with_its_cache(**options):
    torch.manual_seed(0)
    model = weir.LocalTransformer(**SMALL | dict(max_seq_len=40) | options).double()
    perturb(model)
    prompt = tokens(2, 5, SMALL["num_tokens"])
    cached, uncached = (model.generate(prompt, max_new_tokens=30, temperature=0, use_cache=c) for c in (True, False))
    return cached == uncached


def test_cached_keys_are_rotated_twice():
    errors = cached_error()
    assert errors[:2].max() < 1e-12 and errors[2:].min() > 1e-4
    assert cached_error(use_rotary_pos_emb=False).max() < 1e-12
    assert weir_generates_the_same_with_its_cache()


def test_the_cache_loses_a_window():
    errors = cached_error(use_rotary_pos_emb=False, exact_windowsize=False)
    at_ends = torch.arange(1, 25) % 4 == 0  # of buckets
    assert errors[~at_ends].max() < 1e-12 and errors[at_ends][1:].min() > 1e-4
    assert weir_generates_the_same_with_its_cache(exact_windowsize=False)


def test_the_cache_forgets_qk_scale():
    errors = cached_error(use_rotary_pos_emb=False, qk_rmsnorm=True)
    assert errors[0] < 1e-12 and errors[2:].min() > 1e-4
    assert weir_generates_the_same_with_its_cache(qk_rmsnorm=True)


# -- the model --------------------------------------------------------------------------------------------------------


def test_position_bias_in_float64():
    options = SMALL | dict(use_dynamic_pos_bias=True)
    text = tokens(2, 9, SMALL["num_tokens"])
    theirs = published.LocalTransformer(**options).double()
    with pytest.raises(RuntimeError, match="dtype"):
        theirs(text)
    ours = weir.LocalTransformer(**options).double()
    ours.load_state_dict(theirs.state_dict())
    distances_in_the_dtype_of_the_weights(theirs)
    assert off(ours(text), theirs(text)) < 1e-9


def test_position_bias_looking_back_two_windows():
    options = SMALL | dict(use_dynamic_pos_bias=True, look_backward=2)
    text = tokens(2, 9, SMALL["num_tokens"])
    with pytest.raises(RuntimeError, match="size of tensor"):
        published.LocalTransformer(**options)(text)
    assert weir.LocalTransformer(**options)(text).isfinite().all()


def test_generate_with_fewer_than_ten_tokens():
    options = SMALL | dict(num_tokens=8)
    theirs, ours = published.LocalTransformer(**options), weir.local_attention.LocalTransformer(**options)
    with torch.no_grad():  # token 3 always
        theirs.to_logits[0].weight.zero_()
        theirs.to_logits[0].bias.fill_(1)
        theirs.to_logits[1].weight.zero_()[3] = 1
    ours.load_state_dict(theirs.state_dict())
    prompt = torch.zeros(1, 1, dtype=torch.long)
    assert (theirs.generate(prompt, 4, temperature=0.0) == 0).all(), "no token is kept"
    assert (ours.generate(prompt, 4, temperature=0.0) == 3).all()
