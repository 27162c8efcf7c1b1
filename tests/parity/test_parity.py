# SPDX-License-Identifier: Apache-2.0
"""Weir against the published packages: every row of the table, and training step by step."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import weir

pytest.importorskip("coordinate_descent_attention", reason="tests/parity/requirements.txt is not installed")

from coordinate_descent_attention import AutoregressiveWrapper  # noqa: E402

from cases import CASES, SMALL, TRANSFORMERS, attention_case, normal, operator_case, tokens, uniform
from colt5_cases import COLT5_CASES
from colt5_causal_cases import COLT5_CAUSAL_CASES
from harness import Function, build, check
from local_attention_cases import LOCAL_CASES, LOCAL_TRANSFORMERS

STEPS = 10
ALL_CASES = CASES + LOCAL_CASES + COLT5_CASES + COLT5_CAUSAL_CASES


def by_name(case):
    return case.name


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32), ids=("float64", "float32"))
@pytest.mark.parametrize("case", ALL_CASES, ids=by_name)
def test_parity(case, dtype, record_property):
    if dtype not in case.dtypes:
        pytest.skip("the package does not compute in this dtype")
    record_property("deviation", check(case, dtype))


def test_names_are_unique():
    assert len({case.name for case in ALL_CASES}) == len(ALL_CASES)


OFF_BY_ONE_OPTION = ({"coor_descent_sparsity_k": 2.001}, {"coor_descent_iters": 21}, {"coor_descent_eps": 0.1001})


@pytest.mark.parametrize("option", OFF_BY_ONE_OPTION, ids=str)
def test_the_harness_sees_a_small_difference(option):
    options = dict(use_coor_descent=True, coor_descent_sparsity_k=2, coor_descent_iters=20, coor_descent_eps=0.1)
    right, wrong = attention_case(9, **options), attention_case(9, **(options | option))
    with pytest.raises(AssertionError, match="output 0"):
        check(dataclasses.replace(right, weir=wrong.weir), torch.float32)


def test_the_harness_sees_a_lost_gradient():
    def without_gradient(s, k):
        return weir.ops.coor_descent(s, k=k.detach(), n_iters=9)

    case = operator_case("lost", dict(n_iters=9), (normal(3, 17), uniform(3, low=1, high=4)))
    check(case, torch.float32)
    with pytest.raises(AssertionError, match="{'d input 1'"):
        check(dataclasses.replace(case, weir=lambda: Function(without_gradient)), torch.float32)


def losses(model, dtype):
    """The losses of a few steps of AdamW on next-token prediction."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    found = []
    for step in range(STEPS):
        text = tokens(4, SMALL["seq_len"], SMALL["num_tokens"], seed=step)
        loss = F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("dtype,tolerance", ((torch.float64, 1e-9), (torch.float32, 1e-6)), ids=("float64", "float32"))
@pytest.mark.parametrize("case", TRANSFORMERS + LOCAL_TRANSFORMERS, ids=by_name)
def test_training(case, dtype, tolerance, record_property):
    if dtype == torch.float32 and "qk_rmsnorm" in case.name:
        pytest.skip("rounding grows to 2e-6 in ten steps")
    module, reference = build(case, dtype)
    want, got = losses(reference, dtype), losses(module, dtype)
    assert (want[1:] - want[0]).abs().max() > 1e-2
    record_property("deviation", (got - want).abs().max().item())
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_wrapper_loss():
    """The published wrapper's loss, over either network."""
    module, reference = build(TRANSFORMERS[0], torch.float64)
    text = tokens(3, SMALL["seq_len"], SMALL["num_tokens"])
    got = weir.coordinate_descent_attention.AutoregressiveWrapper(module)(text)
    torch.testing.assert_close(got, AutoregressiveWrapper(reference)(text), rtol=1e-9, atol=1e-9)
