# SPDX-License-Identifier: Apache-2.0
"""The functions of weir.ops pass every argument on to the operator of the same name, and have its defaults."""
import inspect
from types import SimpleNamespace

import pytest
import torch
import weir


def recorded(monkeypatch, name, *args, **keywords):
    """Arguments by name that `torch.ops.weir.<name>` gets from weir.ops.<name>(*args, **keywords)."""
    names = [x.name for x in getattr(torch.ops.weir, name).default._schema.arguments]
    calls = []

    def record(*positional, **named):
        calls.append(dict(zip(names, positional)) | named)

    with monkeypatch.context() as patch:
        patch.setattr(weir.ops.torch, "ops", SimpleNamespace(weir=SimpleNamespace(**{name: record})))
        getattr(weir.ops, name)(*args, **keywords)
    return calls[0]


@pytest.mark.parametrize("name", ["block_sparse_attention", "l2_rms_norm", "local_attention", "low_rank_attention", "router_logits", "top_k_attention"])
def test_every_argument_is_passed_on(monkeypatch, name):
    schema = getattr(torch.ops.weir, name).default._schema.arguments
    parameters = inspect.signature(getattr(weir.ops, name)).parameters
    assert set(parameters) == {x.name for x in schema}
    values = {x.name: object() for x in schema}
    assert recorded(monkeypatch, name, **values) == values
    for x in schema:
        if x.has_default_value():
            assert parameters[x.name].default == x.default_value, x.name
        assert f"        {x.name} (" in getattr(weir.ops, name).__doc__, x.name


def test_arguments_of_block_sparse_attention_change_its_answer():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 12, 4)
    plain = weir.ops.block_sparse_attention(x, x, x, causal=True, window=2)
    ends, ids = torch.tensor([0, 5, 12]), torch.tensor([[0] * 5 + [1] * 7] * 2)
    packed = weir.ops.block_sparse_attention(x, x, x, causal=True, window=2, cu_seqlens=ends)
    assert not torch.equal(packed, plain)
    parts = [weir.ops.block_sparse_attention(p, p, p, causal=True, window=2) for p in x.split([5, 7], 2)]
    torch.testing.assert_close(packed, torch.cat(parts, 2))
    torch.testing.assert_close(weir.ops.block_sparse_attention(x, x, x, causal=True, window=2, document_ids=ids), packed)
    keys = torch.tensor([0, 4, 12])
    moved = weir.ops.block_sparse_attention(x, x, x, causal=True, window=2, cu_seqlens=ends, cu_seqlens_k=keys)
    assert not torch.equal(moved, packed)
    wide = weir.ops.block_sparse_attention(x, x, x, causal=True, window=4)
    torch.testing.assert_close(weir.ops.block_sparse_attention(x, x, x, causal=True, window=2, local=4), wide)


def test_local_attention_equals_torch():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 21, 4) for _ in range(3))
    i, j = torch.arange(21).unsqueeze(1), torch.arange(21)
    near = (j <= i) & (j >= (i // 5 - 1) * 5)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near)
    torch.testing.assert_close(weir.ops.local_attention(q, k, v, 5, causal=True), expected)
