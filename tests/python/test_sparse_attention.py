# SPDX-License-Identifier: Apache-2.0
"""SparseAttention against torch's dense attention under the closed form of each pattern."""
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import weir
from weir.sparse_attention import SparseAttention, attention_impl, blocksparse_attention_impl


def closed_form(n, mode, ctx=None, block=None, heads=1, num_verts=1, vertsize=1):
    """bool (heads, n, n): the pairs, by position."""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    allowed = (j <= i).expand(heads, n, n).clone()
    if mode == "local":
        allowed &= i - j < ctx
    if mode == "strided":
        allowed &= (i - j) % ctx == 0
    if mode == "fixed":
        for head in range(heads):
            v = head % num_verts
            summaries = {ctx // block - 1 - v * vertsize - u for u in range(vertsize)}
            in_summary = torch.tensor([(p // block) % (ctx // block) in summaries for p in range(n)])
            allowed[head] &= (i // ctx == j // ctx) | in_summary[None]
    return allowed


def dense(q, k, v, heads, allowed):
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=allowed)
    return out.transpose(1, 2).flatten(2)


def inputs(n, features=24, batch=2):
    torch.manual_seed(0)
    return tuple(torch.randn(batch, n, features, dtype=torch.float64, requires_grad=True) for _ in range(3))


PATTERNS = [
    dict(mode="all"),
    dict(mode="local", ctx=8),
    dict(mode="local", ctx=13),
    dict(mode="strided", ctx=8),
    dict(mode="strided", ctx=5),
    dict(mode="fixed", ctx=16, block=4),
    dict(mode="fixed", ctx=16, block=8, num_verts=2),
    dict(mode="fixed", ctx=32, block=4, num_verts=4, vertsize=2),
]


@pytest.mark.parametrize("n", [1, 31, 64, 97])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_modes(n, pattern):
    q, k, v = inputs(n)
    allowed = closed_form(n, heads=4, **pattern)
    extra = {name: value for name, value in pattern.items() if name in ("num_verts", "vertsize")}
    ours = SparseAttention(
        blocksize=pattern.get("block", 16), heads=4, attn_mode=pattern["mode"], local_attn_ctx=pattern.get("ctx"), **extra
    )(q, k, v)
    expected = dense(q, k, v, 4, allowed)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_causality_by_perturbation(pattern):
    q, k, v = (x.detach() for x in inputs(50))
    options = dict(block_size=pattern.get("block", 16), heads=4, attn_mode=pattern["mode"], local_attn_ctx=pattern.get("ctx"))
    module = weir.SparseAttention(**options)
    before = module(q, k, v)
    for x in (q, k, v):
        x[:, 30:] = torch.randn_like(x[:, 30:]) * 100
    assert torch.equal(module(q, k, v)[:, :30], before[:, :30])


def test_masks():
    q, k, v = inputs(64)
    module = weir.SparseAttention(block_size=16, heads=4)
    layout = torch.rand(4, 4) < 0.6
    layout.fill_diagonal_(True)
    wide = layout.repeat_interleave(16, 0).repeat_interleave(16, 1)
    allowed = closed_form(64, "all", heads=4) & wide
    torch.testing.assert_close(module(q, k, v, mask=layout), dense(q, k, v, 4, allowed), rtol=0, atol=1e-12)
    torch.testing.assert_close(module(q, k, v, mask=wide), dense(q, k, v, 4, allowed), rtol=0, atol=1e-12)
    per_head = torch.stack([layout, torch.eye(4, dtype=torch.bool), layout, torch.ones(4, 4, dtype=torch.bool)])
    wide = per_head.repeat_interleave(16, 1).repeat_interleave(16, 2)
    allowed = closed_form(64, "all", heads=4) & wide
    torch.testing.assert_close(module(q, k, v, mask=per_head), dense(q, k, v, 4, allowed), rtol=0, atol=1e-12)
    key_mask = torch.ones(2, 64, dtype=torch.bool)
    key_mask[:, 0] = False
    poisoned = v.detach().clone()
    poisoned[:, 0] = torch.nan
    out = module(q, k, poisoned, key_mask=key_mask)
    assert out.isfinite().all() and (out[:, 0] == 0).all()


def test_functions_and_published_forms():
    q, k, v = (torch.randn(1, 128, 512) for _ in range(3))
    out = SparseAttention(block_size=32)(q, k, v)
    torch.testing.assert_close(out, dense(q, k, v, 1, closed_form(128, "all")), rtol=0, atol=1e-5)
    mask = torch.rand(128, 128) < 0.5
    mask.fill_diagonal_(True)
    out = SparseAttention(block_size=32)(q, k, v, mask)
    torch.testing.assert_close(out, dense(q, k, v, 1, closed_form(128, "all") & mask), rtol=0, atol=1e-5)
    torch.testing.assert_close(attention_impl(q, k, v, heads=4), dense(q, k, v, 4, closed_form(128, "all", heads=4)), rtol=0, atol=1e-5)
    ours = blocksparse_attention_impl(q, k, v, heads=4, attn_mode="strided", local_attn_ctx=32, blocksize=32)
    torch.testing.assert_close(ours, attention_impl(q, k, v, heads=4, attn_mode="strided", local_attn_ctx=32))


def test_unions_and_patterns_per_head():
    q, k, v = inputs(50)
    local, strided = closed_form(50, "local", ctx=5, heads=2), closed_form(50, "strided", ctx=5, heads=2)
    for mode, allowed in (("local+strided", torch.cat([local | strided] * 2)), ("local,strided", torch.cat([local, strided]))):
        ours = weir.SparseAttention(heads=4, attn_mode=mode, local_attn_ctx=5)(q, k, v)
        torch.testing.assert_close(ours, dense(q, k, v, 4, allowed), rtol=0, atol=1e-12)


@pytest.mark.parametrize("heads_of_layout", [None, 4])
def test_a_layout_as_mode(heads_of_layout):
    q, k, v = inputs(64)
    shape = (4, 4) if heads_of_layout is None else (heads_of_layout, 4, 4)
    layout = (torch.rand(shape) < 0.5) | torch.eye(4, dtype=torch.bool)
    wide = layout.repeat_interleave(16, -2).repeat_interleave(16, -1)
    module = SparseAttention(block_size=16, heads=4, attn_mode=layout)
    expected = dense(q, k, v, 4, closed_form(64, "all", heads=4) & wide)
    torch.testing.assert_close(module(q, k, v), expected, rtol=0, atol=1e-12)
    assert module.attn_mode == "custom" and len(module.layout) == layout.numel() // 4
    by_name = weir.SparseAttention(block_size=16, heads=4, attn_mode="custom", layout=module.layout)
    assert torch.equal(by_name(q, k, v), module(q, k, v))
    positional = SparseAttention(16, 4, layout)
    assert positional.options == module.options
    ours = blocksparse_attention_impl(q, k, v, heads=4, attn_mode=layout, blocksize=16)
    assert torch.equal(ours, module(q, k, v))


def test_packed_sequences():
    q, k, v = inputs(50)
    module = weir.SparseAttention(heads=4, attn_mode="local+strided", local_attn_ctx=5)
    alone = torch.cat([module(*(x[:, part] for x in (q, k, v))) for part in (slice(0, 13), slice(13, 50))], 1)
    packed = module(q, k, v, cu_seqlens=torch.tensor([0, 13, 50]))
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)
    ids = (torch.arange(50) >= 13).long().expand(2, 50)
    torch.testing.assert_close(module(q, k, v, document_ids=ids), alone, rtol=0, atol=1e-12)


def test_copies_and_pickles():
    q, k, v = inputs(20)
    layout = torch.ones(1, 1, dtype=torch.bool)
    custom = SparseAttention(heads=3, attn_mode=layout)
    assert copy.deepcopy(custom).options == custom.options == pickle.loads(pickle.dumps(custom)).options
    module = weir.SparseAttention(heads=3, attn_mode="local", local_attn_ctx=4)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(q, k, v), module(q, k, v)) and twin.options == module.options
    assert module.double().eval() is module and not list(module.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(attn_mode="sparse"), 'to be "all", "local", "strided", "fixed" or "custom", but got "sparse"'),
        (dict(attn_mode="all+local"), 'a union to be "local.strided", "local.fixed" or "local.custom", but got "all.local"'),
        (dict(attn_mode="custom"), 'expected `layout` with `attn_mode` "custom", but got none'),
        (dict(attn_mode="local"), 'expected `local_attn_ctx` with `attn_mode` "local", but got none'),
        (dict(attn_mode="fixed", local_attn_ctx=40), "a multiple of `block_size`, 32, but got 40"),
        (dict(attn_mode="fixed", local_attn_ctx=64, num_verts=3, heads=3), "at most the 2 blocks of a chunk, but got 3"),
        (dict(attn_mode="fixed", local_attn_ctx=64, num_verts=2, heads=3), "to divide `heads`, 3, but got 2"),
        (dict(attn_mode="fixed", local_attn_ctx=128, vertsize=3), "to divide the 4 blocks of a chunk, but got 3"),
        (dict(block_size=0), "expected `block_size` to lie in"),
        (dict(heads=0), "expected `heads` to be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        weir.SparseAttention(**options)


@pytest.mark.parametrize("layout", [torch.ones(2, 2), torch.ones(2, 3) > 0, torch.ones(3, 2, 2) > 0, torch.ones(2) > 0])
def test_wrong_layouts(layout):
    with pytest.raises(ValueError, match="expected a layout in `attn_mode` to be bool"):
        SparseAttention(heads=2, attn_mode=layout)


def test_wrong_inputs():
    q, k, v = inputs(8, features=10)
    with pytest.raises(ValueError, match="features a multiple of `heads`, 4"):
        weir.SparseAttention(heads=4)(q, k, v)
    with pytest.raises(ValueError, match="equal length with `attn_mode` \"fixed\""):
        weir.SparseAttention(attn_mode="fixed", local_attn_ctx=32)(q[:, :3], k, v)
