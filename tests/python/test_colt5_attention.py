# SPDX-License-Identifier: Apache-2.0
"""CoordinateDescentRouter, whose call has two arguments and four results, and the README of the package: what tests of
other modules do not cover."""
import copy
import inspect
import pickle

import pytest
import torch
import weir
from weir.colt5_attention import (
    ConditionalRoutedAttention,
    ConditionalRoutedCrossAttention,
    ConditionalRoutedFeedForward,
    ConditionalRoutedImageAttention,
    ConditionalRoutedTransformerBlock,
    ConditionalRoutedViT,
    CoordinateDescentRouter,
    route_back,
)

from small_modules import SUBCLASSES, small_modules, small_vit


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


# -- the README of the package: its calls, at reduced sizes ---------------------------------------------------------------


def test_readme_encoder():
    tokens, mask = torch.randn(2, 512, 32), torch.ones(2, 512).bool()
    heads = dict(light_dim_head=8, light_heads=4, light_window_size=16, heavy_dim_head=8, heavy_heads=4)
    ff = ConditionalRoutedFeedForward(dim=32, light_ff_mult=0.5, heavy_ff_mult=4, num_heavy_tokens=64)
    attn = ConditionalRoutedAttention(dim=32, **heads, num_heavy_tokens_q=64, num_heavy_tokens_kv=64)
    block = ConditionalRoutedTransformerBlock(
        dim=32, **heads, light_ff_mult=0.5, heavy_ff_mult=4, num_heavy_ff_tokens=64, num_heavy_attn_tokens_q=64,
        num_heavy_attn_tokens_kv=64,
    )  # fmt: skip
    for layer in (ff, attn, block):
        assert layer(tokens, mask=mask).shape == (2, 512, 32)


def test_readme_cross_attention():
    tokens, tokens_mask = torch.randn(1, 64, 32), torch.ones(1, 64).bool()
    memories, memories_mask = torch.randn(1, 4096, 32), torch.ones(1, 4096).bool()
    sizes = dict(dim=32, dim_head=8, heads=8, num_tokens_q=32, num_tokens_kv=64, kv_routing_tokens=2)
    cross_attn = ConditionalRoutedCrossAttention(**sizes, use_triton=True, route_block_size=512, num_sets_kv=2)
    out = cross_attn(tokens, context=memories, mask=tokens_mask, context_mask=memories_mask)
    assert out.shape == (1, 64, 32)
    assert torch.equal(out, weir_twin(cross_attn)(tokens, memories, mask=tokens_mask, context_mask=memories_mask))
    attending = (out != cross_attn.null_q_token).any(-1)
    assert attending.sum() == 32
    with pytest.raises(TypeError, match="missing a required argument: 'context'"):
        cross_attn(tokens)


def weir_twin(layer):
    """The layer under its own name, without the package's arguments."""
    twin = getattr(weir, type(layer).__name__)(**layer.options)
    twin.load_state_dict(layer.state_dict())
    return twin


def test_readme_image_attention():
    sizes = dict(light_dim_head=8, light_heads=2, light_window_size=8, heavy_dim_head=8, heavy_heads=2)
    attn = ConditionalRoutedImageAttention(
        dim=16, **sizes, channel_first=True, num_heavy_tokens_q=64, num_heavy_tokens_kv=64
    )
    fmap = torch.randn(1, 16, 32, 32)
    assert attn(fmap).shape == (1, 16, 32, 32)
    last = ConditionalRoutedImageAttention(dim=16, **sizes, num_heavy_tokens_q=64, num_heavy_tokens_kv=64)
    last.load_state_dict(attn.state_dict())
    torch.testing.assert_close(last(fmap.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), attn(fmap))


def test_readme_vit():
    vit = ConditionalRoutedViT(
        image_size=64, patch_size=8, num_classes=10, dim=32, depth=2, attn_num_heavy_tokens_q=16,
        attn_num_heavy_tokens_kv=16, attn_heavy_dim_head=8, attn_heavy_heads=4, attn_light_dim_head=8, attn_light_heads=2,
        attn_light_window_size=4, ff_num_heavy_tokens=16, ff_heavy_mult=4, ff_light_mult=2,
    )  # fmt: skip
    assert vit(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    assert vit.image_size == 64 and vit.routing == "global" and vit.router_kwargs["eps"] == 1.0


def test_sizes_of_images():
    vit = weir.ConditionalRoutedViT(**small_vit())
    assert vit.image_size == [8, 12] and vit.patch_size == 2
    assert vit(torch.randn(2, 3, 8, 12)).shape == vit(torch.randn(2, 3, 16, 8)).shape == (2, 5)
    for wrong in ((8, 12, 4), 8.5, "8"):
        with pytest.raises(ValueError, match="`image_size`: expected an integer or two integers"):
            weir.ConditionalRoutedViT(**small_vit() | dict(image_size=wrong))
    with pytest.raises(ValueError, match=r"expected `patch_size` to divide `image_size`, 9, but got 2"):
        weir.ConditionalRoutedViT(**small_vit() | dict(image_size=9))


def test_the_eps_of_a_vit():
    def eps(**options):
        return ConditionalRoutedViT(**small_vit(), router_use_triton=True, flash_attn=False, **options).router_kwargs["eps"]

    assert eps() == weir.ConditionalRoutedViT(**small_vit()).router_kwargs["eps"] == 1.0
    assert eps(default_coor_descent_eps=0.5) == 0.5
    assert eps(default_coor_descent_eps=0.5, router_kwargs=dict(eps=0.1)) == 0.1
    assert eps(router_kwargs=dict(n_iters=5)) == 1.0


def test_a_vit_learns():
    """Which quarter of the image is bright."""
    torch.manual_seed(0)
    vit = weir.ConditionalRoutedViT(**small_vit() | dict(image_size=8, channels=1, num_classes=4))
    optimizer = torch.optim.AdamW(vit.parameters(), lr=3e-3)
    labels = torch.arange(4).repeat(8)
    images = 0.1 * torch.randn(32, 1, 8, 8)
    for image, label in zip(images, labels.tolist()):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 1
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(vit(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (vit(images).argmax(-1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("name", [name for name in small_modules() if name.startswith("Conditional")])
def test_autocast(name):
    torch.manual_seed(0)
    options, inputs = small_modules()[name]
    layer, x = SUBCLASSES.get(name, getattr(weir, name))(**options), inputs()
    learns = [*layer.parameters(), *([x.requires_grad_()] if x.is_floating_point() else [])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in learns if t.grad is not None) and learns[-1].grad is not None
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.1)
