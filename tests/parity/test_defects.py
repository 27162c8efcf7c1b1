# SPDX-License-Identifier: Apache-2.0
"""The rows of docs/differences.md that a CPU can show: what the package does, and that Weir does the right thing."""
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import weir

pytest.importorskip("coordinate_descent_attention", reason="tests/parity/requirements.txt is not installed")

from colt5_attention import coor_descent, topk
from colt5_attention.triton_coor_descent import num_to_groups
from coordinate_descent_attention import AutoregressiveWrapper
from coordinate_descent_attention import coordinate_descent_attention as published

import corrected
from cases import SMALL, attention_case, feed_forward_case, normal, tokens, transformer_case
from harness import build, check

ANNEALED = dict(n_iters=20, eps=0.03, eps_init=4.0, eps_decay=0.7)
SIZES = dict(dim=16, dim_head=8, heads=2)


@pytest.mark.parametrize(
    "dtype,package_is_off_by,rounding", ((torch.bfloat16, 0.3, 3.91e-3), (torch.float16, 0.02, 5e-4))
)
def test_a12_half_precision(dtype, package_is_off_by, rounding):
    scores = normal(4, 256).to(dtype)
    right = coor_descent(scores.double(), k=16, **ANNEALED)
    theirs, ours = (f(scores, k=16, **ANNEALED) for f in (coor_descent, weir.ops.coor_descent))
    assert (theirs.double() - right).abs().max() > package_is_off_by
    assert ours.dtype == dtype
    assert (ours.double() - right).abs().max() < rounding


def test_a9_topk_with_a_mask():
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0])
    first_masked, one_valid = torch.tensor([0, 1, 1, 1]).bool(), torch.tensor([0, 1, 0, 0]).bool()
    theirs = topk(scores, 2, mask=first_masked)
    assert theirs.indices.tolist() == [0, 1] and theirs.gates.tolist() == [1, 1]
    ours = weir.ops.topk(scores, 2, mask=first_masked)
    assert ours.indices.tolist() == [1, 2] and ours.values.tolist() == [2, 1] and ours.gates.tolist() == [1, 1]
    assert topk(scores, 2, mask=one_valid).gates.tolist() == [1, 1]
    ours = weir.ops.topk(scores, 2, mask=one_valid)
    assert ours.indices[0] == 1 and ours.gates.tolist() == [1, 0]


def test_b1_feed_forward_with_coordinate_descent():
    with pytest.raises(NameError, match="eslf"):
        published.FeedForward(dim=14, use_coor_descent=True)(normal(2, 5, 14).float())
    check(feed_forward_case(corrected.FeedForward, use_coor_descent=True), torch.float64)


def test_b2_fixed_sparsity():
    """On a CPU the n numbers broadcast; the fused kernel asserts one per row."""
    options = dict(use_coor_descent=True, coor_descent_sparsity_k=2)
    with mock.patch.object(published, "triton_coor_descent", side_effect=corrected.coor_descent_per_row) as fused:
        published.Attention(**SIZES, **options)(torch.randn(3, 5, 16))
    scores, k = fused.call_args.args[0], fused.call_args.kwargs["k"]
    assert scores.shape == (3, 2, 5, 5) and k.numel() == 5 != scores.shape[:-1].numel()
    check(attention_case(5, **options), torch.float64)


def test_b3_learned_sparsity():
    options = dict(use_coor_descent=True, coor_descent_sparsity_k=4, learned_sparsity_k=True)
    theirs = published.Attention(**SIZES, **options)
    with pytest.raises(RuntimeError, match="size of tensor"):
        theirs(torch.randn(2, 5, 16))
    assert theirs(torch.randn(2, 1, 16)).shape == (2, 4, 16), "one token becomes batch * heads"
    for length in (1, 5):
        check(attention_case(length, corrected.Attention, **options), torch.float64)


def test_b4_import_without_triton():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import weir; weir.CoordinateDescentAttention(dim=8); print('weir works', flush=True)\n"
        "import coordinate_descent_attention; print('the package works')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.stdout.startswith("weir works\ntriton is not installed"), result.stderr
    assert "the package works" not in result.stdout and result.returncode == 0, "the package ends the interpreter"


@pytest.mark.parametrize("n_iters", (1, 2, 3, 4))
def test_b5_fewer_than_five_iterations(n_iters):
    with pytest.raises(AssertionError):
        num_to_groups(n_iters, n_iters // 5)  # what the fused kernel calls, with the segments the layers ask for
    options = dict(use_coor_descent=True, coor_descent_iters=n_iters, coor_descent_sparsity_k=2)
    check(attention_case(6, **options), torch.float64)
    check(feed_forward_case(corrected.FeedForward, **options), torch.float64)


def test_b7_default_sparsity_of_the_feed_forward():
    hidden = SMALL["dim"] * SMALL["ff_mult"]
    theirs = published.Transformer(**SMALL, ff_use_coor_descent=True)
    assert theirs.layers[0][1].coor_descent_sparsity_k == 2
    assert published.FeedForward(SMALL["dim"], SMALL["ff_mult"]).coor_descent_sparsity_k == hidden // 10 != 2
    text = tokens(3, 11, SMALL["num_tokens"])
    case = transformer_case(dict(ff_use_coor_descent=True, ff_coor_descent_sparsity_k=hidden // 10))
    module, reference = build(case, torch.float64)
    ours = weir.CoordinateDescentTransformer(**SMALL, ff_use_coor_descent=True).double().eval()
    ours.load_state_dict(reference.state_dict())
    torch.testing.assert_close(ours(text), reference(text), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours(text), module(text), rtol=0, atol=0)
    for feed_forward in (layer[1] for layer in reference.layers):
        feed_forward.coor_descent_sparsity_k = 2
    assert (ours(text) - reference(text)).abs().max() > 1e-2


SUMS = {
    "above": (normal(2, 4096, scale=512**0.5), 288, ANNEALED, (2, 3)),
    "below": (normal(2, 17, scale=3), 4, ANNEALED | dict(n_iters=15, eps=0.1), (0.7, 0.9)),
}


@pytest.mark.parametrize("scores,k,options,share", SUMS.values(), ids=SUMS)
def test_b8_sum_of_the_weights(scores, k, options, share):
    theirs = coor_descent(scores, k=k, **options)
    assert ((share[0] * k < theirs.sum(-1)) & (theirs.sum(-1) < share[1] * k)).all()
    torch.testing.assert_close(weir.ops.coordinate_descent(scores, k, **options), theirs, rtol=1e-9, atol=1e-9)
    exact = weir.ops.coordinate_descent(scores, k, **options, solver="exact")
    torch.testing.assert_close(exact.sum(-1), torch.full((2,), k).double(), rtol=1e-9, atol=0)


@pytest.fixture
def wrappers():
    """(package, Weir): a model of 8 tokens that gives token 3 all the probability, whatever it reads."""
    sizes = dict(num_tokens=8, dim=16, seq_len=8, depth=1, dim_head=8, heads=2)
    theirs, ours = published.Transformer(**sizes), weir.coordinate_descent_attention.Transformer(**sizes)
    with torch.no_grad():
        theirs.to_logits[1].weight.zero_()
        theirs.to_logits[1].bias.zero_()[3] = 50
    ours.load_state_dict(theirs.state_dict())
    return AutoregressiveWrapper(theirs), weir.coordinate_descent_attention.AutoregressiveWrapper(ours)


PROMPT = torch.zeros(4, 1, dtype=torch.long)


def test_generate_with_fewer_than_ten_tokens(wrappers):
    torch.manual_seed(0)
    theirs, ours = (wrapper.generate(PROMPT, 12) for wrapper in wrappers)
    assert len(theirs.unique()) == 8, "sampled uniformly"
    assert ours.shape == (4, 12) and (ours == 3).all()


def test_generate_at_temperature_0(wrappers):
    theirs, ours = wrappers
    with pytest.raises(RuntimeError, match="inf|nan"):
        theirs.generate(PROMPT, 2, temperature=0, filter_thres=0.5)
    assert (ours.generate(PROMPT, 12, temperature=0, filter_thres=0.5) == 3).all()


@pytest.mark.parametrize("scores", ([1.0, -torch.inf, 0.5, -torch.inf], [-torch.inf] * 3), ids=("some", "all"))
def test_scores_of_minus_infinity(scores):
    scores = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    assert coor_descent(scores, k=1, n_iters=5).isnan().any()
    valid = scores.detach().isfinite()
    ours = weir.ops.coor_descent(scores, k=1, n_iters=5)
    right = coor_descent(scores.detach().masked_fill(~valid, 0), k=1, n_iters=5, mask=valid)
    torch.testing.assert_close(ours.detach(), right, rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(ours.square().sum(), scores)
    assert gradient.isfinite().all() and not gradient[~valid].any()


def test_a_fully_masked_row_is_zero():
    """On a CPU the package is right too; its fused kernel gives +inf."""
    mask = torch.tensor([[True], [False]])
    for function in (coor_descent, weir.ops.coor_descent):
        scores, k = normal(2, 5).requires_grad_(), torch.tensor([2.0, 2.0], dtype=torch.float64, requires_grad=True)
        weights = function(scores, k=k, mask=mask, **ANNEALED)
        d_scores, d_k = torch.autograd.grad(weights.square().sum(), (scores, k))
        assert weights[0].any() and d_scores[0].any()
        assert not weights[1].any() and not d_scores[1].any() and d_k[1] == 0


def test_a_number_k_keeps_its_digits():
    """The package rounds it to float32, also for float64 scores."""
    scores = normal(3, 50)
    right = coor_descent(scores, k=torch.full((3,), 2.7, dtype=torch.float64), n_iters=20, eps=1.0)
    theirs, ours = (f(scores, k=2.7, n_iters=20, eps=1.0) for f in (coor_descent, weir.ops.coor_descent))
    assert (theirs - right).abs().max() > 1e-9
    torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12)
