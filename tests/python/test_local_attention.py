# SPDX-License-Identifier: Apache-2.0
"""LocalAttention, which has a buffer but no parameters: what tests of other modules do not cover."""
import copy
import inspect
import pickle

import pytest
import torch
import weir
from weir.local_attention import LocalAttention, LocalMHA, LocalTransformer


def inputs():
    torch.manual_seed(0)
    return tuple(torch.randn(2, 3, 8, 4, dtype=torch.float64) for _ in range(3))


def test_the_published_order_of_arguments():
    names = list(inspect.signature(LocalAttention).parameters)
    assert names[:8] == [
        "window_size", "causal", "look_backward", "look_forward", "dropout", "shared_qk", "rel_pos_emb_config", "dim"
    ]  # fmt: skip
    assert list(inspect.signature(LocalAttention.forward).parameters) == [
        "self", "q", "k", "v", "mask", "input_mask", "attn_bias", "window_size"
    ]  # fmt: skip
    assert LocalMHA is weir.LocalMHA


def test_copies():
    module = LocalAttention(4, causal=True, dim=4)
    assert list(module.state_dict()) == ["rel_pos.inv_freq"] and not list(module.parameters())
    module.rel_pos.inv_freq.mul_(0.5)
    expected = module(*inputs())
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin(*inputs()), expected, rtol=0, atol=0)


def test_a_window_of_the_call():
    module = LocalAttention(4, causal=True, dim=4, use_xpos=True)
    other = LocalAttention(2, causal=True, dim=4, use_xpos=True, xpos_scale_base=2)
    torch.testing.assert_close(module(*inputs(), window_size=2), other(*inputs()), rtol=0, atol=1e-12)
    assert (module(*inputs(), window_size=2) - module(*inputs())).abs().max() > 1e-2
    with pytest.raises(ValueError, match="expected `window_size` only with `use_xpos`, but got 2"):
        LocalAttention(4)(*inputs(), window_size=2)


def test_the_published_generate():
    model = LocalTransformer(num_tokens=19, max_seq_len=12, dim=16, depth=1, local_attn_window_size=3, heads=2)
    assert model.max_length == 12
    prime = torch.randint(0, 19, (2, 4))
    greedy = model.generate(prime, 7, temperature=0.0)
    assert greedy.shape == (2, 7) and greedy.dtype == torch.int64
    assert torch.equal(greedy, model.generate(prime, 7, temperature=0.0, use_kv_cache=False))
    assert torch.equal(pickle.loads(pickle.dumps(model)).generate(prime, 7, temperature=0.0), greedy)
    torch.manual_seed(0)
    sampled = model.generate(prime, 7)
    torch.manual_seed(0)
    assert torch.equal(model.generate(prime, 7), sampled)


def test_any_length_with_autopad():
    q, k, v = (x[..., :7, :] for x in inputs())
    with pytest.raises(ValueError, match="multiple of `window_size`, 4, but got 7"):
        LocalAttention(4)(q, k, v)
    assert LocalAttention(4, autopad=True)(q, k, v).shape == (2, 3, 7, 4)
