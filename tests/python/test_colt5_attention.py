# SPDX-License-Identifier: Apache-2.0
"""CoordinateDescentRouter, whose call has two arguments and four results: what tests of other modules do not cover."""
import copy
import inspect
import pickle

import pytest
import torch
import weir
from weir.colt5_attention import ConditionalRoutedFeedForward, CoordinateDescentRouter, route_back


def tokens(batch=2, n=9):
    torch.manual_seed(0)
    return torch.randn(batch, n, 4)


def test_the_published_arguments():
    options = list(inspect.signature(weir.CoordinateDescentRouter).parameters)
    assert options[:9] == [
        "dim", "straight_through", "n_iters", "fetch_k_ratio", "eps", "eps_decay", "eps_init", "num_routing_tokens",
        "learned_routing_tokens",
    ]  # fmt: skip
    inputs = inspect.signature(weir.CoordinateDescentRouter.forward).parameters
    assert list(inputs) == ["self", "x", "num_tokens", "mask", "random_route", "routing_tokens", "keep_one_route_dim"]
    assert inputs["random_route"].default is False and inputs["mask"].default is None
    assert inputs["num_tokens"].annotation == "int | torch.Tensor"
    with pytest.raises(TypeError, match="missing a required argument: 'num_tokens'"):
        CoordinateDescentRouter(4)(tokens())


def test_the_results_have_names():
    routed = weir.CoordinateDescentRouter(4)(tokens(), num_tokens=3)
    assert routed._fields == ("indices", "scores", "routed_tokens", "routed_mask")
    assert type(routed) is weir.CoordinateDescentRouter.Outputs and routed.routed_mask is None
    assert torch.equal(pickle.loads(pickle.dumps(routed)).indices, routed.indices)
    indices, scores, routed_tokens, _ = routed
    assert torch.equal(routed_tokens, tokens().gather(1, indices[..., None].expand(-1, -1, 4)))
    assert scores.requires_grad and (scores == 1).all()
    assert weir.CoordinateDescentRouter(4)(tokens(), num_tokens=9).indices is None


def test_a_number_of_tokens_per_entry():
    routed = weir.CoordinateDescentRouter(4)(tokens(), num_tokens=torch.tensor([1, 3]))
    assert routed.routed_mask.tolist() == [[True, False, False], [True, True, True]]
    assert routed.indices[0, 1:].tolist() == [9, 9]


@pytest.mark.parametrize(
    "num_tokens, error, message",
    [
        (2.5, TypeError, "expected `num_tokens` to be an integer or a tensor, but got Double"),
        (0, ValueError, "expected `num_tokens` to be at least 1, but got 0"),
        (torch.tensor([2.0, 1.0]), TypeError, "expected `num_tokens` to be int64, but got Float"),
        (torch.tensor([2]), ValueError, r"expected `num_tokens` to have shape \[2\]"),
    ],
)
def test_wrong_numbers_of_tokens(num_tokens, error, message):
    with pytest.raises(error, match=message):
        weir.CoordinateDescentRouter(4)(tokens(), num_tokens)


def test_copies_of_the_published_class():
    router = CoordinateDescentRouter(4, use_triton=True, eps=1.0, straight_through=False)
    assert list(router.state_dict()) == ["routing_token"]
    expected = router(tokens(), num_tokens=3)
    for twin in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
        assert type(twin) is CoordinateDescentRouter
        assert torch.equal(twin(tokens(), num_tokens=3).scores, expected.scores)


def test_external_routing_tokens():
    router = CoordinateDescentRouter(4, num_routing_tokens=2, learned_routing_tokens=True)
    assert not router.state_dict()
    routed = router(tokens(), num_tokens=3, routing_tokens=torch.randn(2, 2, 4))
    assert routed.routed_tokens.shape == (2, 2, 3, 4)
    assert router(torch.zeros(0, 9, 4), num_tokens=3, routing_tokens=torch.zeros(0, 2, 4)).scores.shape == (0, 2, 3)


def test_route_back_per_route():
    src, new = torch.zeros(2, 3, 5, 4), torch.ones(2, 3, 2, 4, requires_grad=True)
    indices = torch.tensor([[0, 1], [4, 5], [3, 2]]).expand(2, 3, 2)
    out = route_back(src, new, indices, mask=torch.tensor([True, True]).expand(2, 3, 2))
    assert out.sum(-1)[0].tolist() == [[4, 4, 0, 0, 0], [0, 0, 0, 0, 4], [0, 0, 4, 4, 0]]
    out.sum().backward()
    assert new.grad[0, 1].tolist() == [[1] * 4, [0] * 4] and not src.any()


def test_options_inside_options():
    options = dict(dim=4, num_heavy_tokens=3)
    plain = weir.ConditionalRoutedFeedForward(**options)
    assert plain.options["router_kwargs"]["eps"] == 0.03
    hard = weir.ConditionalRoutedFeedForward(**options, router_kwargs={"eps": 0.01, "eps_init": None})
    assert hard.router_kwargs["eps"] == 0.01 and hard.router_kwargs["eps_init"] is None
    assert hard.router_kwargs["n_iters"] == plain.router_kwargs["n_iters"] == 20
    published = ConditionalRoutedFeedForward(**options, router_kwargs={"use_triton": True, "eps": 0.01, "eps_init": None})
    assert published.options == hard.options
    with pytest.raises(ValueError, match="unknown key `router_kwargs.epz`; did you mean `router_kwargs.eps`"):
        weir.ConditionalRoutedFeedForward(**options, router_kwargs={"epz": 1})
    with pytest.raises(ValueError, match="expected `eps` to be finite"):
        weir.ConditionalRoutedFeedForward(**options, router_kwargs={"eps": -1.0})


def test_another_number_of_heavy_tokens():
    layer = weir.ConditionalRoutedFeedForward(4, 3)
    few, all_of_them = layer(tokens(), num_heavy_tokens=1), layer(tokens(), num_heavy_tokens=9)
    assert ((few - all_of_them).abs().amax(-1) > 0).sum() == 16  # all but one in each row
    each = layer(tokens(), num_heavy_tokens=torch.tensor([1, 9]))
    torch.testing.assert_close(each, torch.stack([few[0], all_of_them[1]]))
    torch.testing.assert_close(layer(tokens(), num_heavy_tokens=None), layer(tokens(), num_heavy_tokens=3))
    with pytest.raises(TypeError, match="expected `num_heavy_tokens` to be an integer or a tensor, but got Double"):
        layer(tokens(), num_heavy_tokens=2.5)


def test_a_routed_layer_learns():
    """What the router is for: it finds the tokens on which a heavy branch pays, those with the largest first feature."""
    torch.manual_seed(0)
    router, heavy = CoordinateDescentRouter(4, eps=1.0), torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam([*router.parameters(), *heavy.parameters()], lr=2e-2)
    x = torch.randn(8, 16, 4)
    best = x[..., 0].topk(4).indices
    wanted = route_back(torch.zeros_like(x), x.gather(1, best[..., None].expand(-1, -1, 4)).flip(-1) + 1, best)
    losses, shares = [], []
    for _ in range(300):
        routed = router(x, num_tokens=4)
        out = router.route_back(torch.zeros_like(x), heavy(routed.routed_tokens) * routed.scores[..., None], routed.indices)
        loss = (out - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        shares.append((routed.indices[..., None] == best[:, None]).any(-1).float().mean().item())
    assert shares[0] < 0.6 and shares[-1] > 0.9
    assert losses[-1] < 0.1 * losses[0]
