# SPDX-License-Identifier: Apache-2.0
"""The rows A of docs/differences.md on modules: what CoLT5-attention does, and that Weir does the right thing."""
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

pytest.importorskip("coordinate_descent_attention", reason="tests/parity/requirements.txt is not installed")

import colt5_attention as published
from colt5_attention import ConditionalRoutedAttention as PublishedAttention
from colt5_attention import ConditionalRoutedFeedForward as PublishedFeedForward
from colt5_attention import CoordinateDescentRouter as Published

from cases import normal
from harness import TOLERANCES
from local_attention_cases import padding

DIM = 16


def routers(dtype=torch.float64, **options):
    """(package, Weir) with the same routing tokens."""
    options = dict(dim=DIM, eps=1.0) | options
    torch.manual_seed(0)
    theirs, ours = Published(**options).to(dtype), CoordinateDescentRouter(**options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def entry(result, index):
    return [None if tensor is None else tensor[index] for tensor in result]


def assert_same(got, want, tolerance=TOLERANCES[torch.float64]):
    """Entries of a batch: the same tokens, whatever their order."""
    order = [result[0].sort(dim=-1) for result in (got, want)]
    assert torch.equal(order[0].values, order[1].values)
    for a, b in zip(got[1:], want[1:]):
        if b is not None:
            a, b = (t.gather(-1, o.indices) if t.dim() == o.indices.dim() else take(t, o.indices)
                    for t, o in zip((a, b), order))  # fmt: skip
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def take(tokens, order):
    return tokens.gather(-2, order[..., None].expand_as(tokens))


# -- A1: routes of a batch ---------------------------------------------------------------------------------------------


def test_a1_routes_take_tokens_of_their_own_entry():
    theirs, ours = routers(num_routing_tokens=2, straight_through=False)
    x, mask = normal(3, 12, DIM, scale=0.3).requires_grad_(), padding(3, 12)
    wrong, right = (router(x, num_tokens=4, mask=mask) for router in (theirs, ours))
    for b in range(3):
        rows = wrong.indices[b].flatten()
        assert torch.equal(wrong.routed_tokens[b].flatten(0, 1), x[b // 2 if b else 0][rows]), "entry b // routes"
        alone = theirs(x[b : b + 1], num_tokens=4, mask=mask[b : b + 1])  # of a batch of one the package is right
        assert_same(entry(right, b), entry(alone, 0))
    (leak,) = torch.autograd.grad(wrong.routed_tokens[1].sum(), x, retain_graph=True)
    (none,) = torch.autograd.grad(right.routed_tokens[1].sum() + right.scores[1].sum(), x)
    assert leak[0].any(), "the output of entry 1 depends on entry 0"
    assert none[1].any() and not none[0].any() and not none[2].any()


# -- A3: blocks ---------------------------------------------------------------------------------------------------------


def in_blocks(router, x, num_tokens, size, mask=None, **more):
    """What routing from blocks means: the package's router on one block after another, without options for it."""
    blocks = [slice(begin, min(begin + size, x.shape[1])) for begin in range(0, x.shape[1], size)]
    parts = []
    for block in blocks:
        own = None if mask is None else mask[:, block]
        part = router(x[:, block], num_tokens=-(-num_tokens // len(blocks)), mask=own, **more)
        assert part.indices is not None, "a block of no more tokens than its share"
        parts.append((part.indices + block.start, *part[1:]))
    return [None if tensors[0] is None else torch.cat(tensors, dim) for tensors, dim in zip(zip(*parts), (-1, -1, -2, -1))]


@pytest.mark.parametrize("length,size,error", ((12, 4, IndexError), (3, 4, ZeroDivisionError)))
def test_a3_blocks_crash(length, size, error):
    theirs, ours = routers(route_block_size=size, straight_through=False)
    x = normal(2, length, DIM, scale=0.3)
    with pytest.raises(error):
        theirs(x, num_tokens=2)
    unblocked = routers(straight_through=False)[0]
    assert_same(ours(x, num_tokens=2), in_blocks(unblocked, x, 2, size))


@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("length", (8, 11, 13))
def test_a3_blocks(length, masked):
    ours = routers(route_block_size=5, straight_through=False)[1]
    unblocked = routers(straight_through=False)[0]
    x, mask = normal(2, length, DIM, scale=0.3), torch.ones(2, length, dtype=torch.bool)
    mask[:, 1] = not masked
    found = ours(x, num_tokens=3, mask=mask if masked else None)
    if length == 11:  # the tail is one token, which its share takes
        assert (found.indices == 10).any(-1).all()
    else:
        assert_same(found, in_blocks(unblocked, x, 3, 5, mask if masked else None))


def test_a3_a_tail_is_lost():
    theirs, ours = routers(route_block_size=8)
    x = normal(1, 9, DIM, scale=0.3)
    x[0, 8] = 2 * theirs.routing_token[0].detach()  # the best token of all
    assert 8 not in theirs(x, num_tokens=3).indices
    assert 8 in ours(x, num_tokens=3).indices


def test_a3_blocks_with_external_routing_tokens():
    options = dict(learned_routing_tokens=True, straight_through=False)
    theirs, ours = routers(route_block_size=4, **options)
    x, tokens = normal(3, 12, DIM, scale=0.3), normal(3, DIM, seed=1)
    with pytest.raises(RuntimeError, match="size|subscript|broadcast"):
        theirs(x, num_tokens=6, routing_tokens=tokens)
    unblocked = routers(**options)[0]
    found = ours(x, num_tokens=6, routing_tokens=tokens)
    assert_same(found, in_blocks(unblocked, x, 6, 4, routing_tokens=tokens))


# -- A6: saturated scores -----------------------------------------------------------------------------------------------


def test_a6_saturated_scores():
    """The default eps and tokens that are not normalised: hundreds of scores are exactly 1."""
    theirs, ours = routers(torch.float32, dim=512, eps=0.03)
    x = normal(1, 4096, 512).float()
    best = set((x[0] @ ours.routing_token[0]).topk(256).indices.tolist())
    wrong, right = (router(x, num_tokens=256) for router in (theirs, ours))
    assert len(best & set(wrong.indices[0].tolist())) < 160, "chosen among ties"
    assert set(right.indices[0].tolist()) == best
    for router, result in ((theirs, wrong), (ours, right)):  # no score can grow: either learns nothing
        (gradient,) = torch.autograd.grad(result.scores.sum(), router.routing_token)
        assert not gradient.any()
    cosine = CoordinateDescentRouter(512, cosine_sim_routing=True)
    (gradient,) = torch.autograd.grad(cosine(x, num_tokens=256).scores.sum(), cosine.routing_token)
    assert gradient.abs().max() > 1e-3


# -- A8, A9: random routes, masks ---------------------------------------------------------------------------------------


def test_a8_random_routes_without_a_mask():
    theirs, ours = routers()
    x = normal(2, 12, DIM)
    with pytest.raises(TypeError):
        theirs(x, num_tokens=4, random_route=True)
    torch.manual_seed(0)
    first = ours(x, num_tokens=4, random_route=True)
    torch.manual_seed(0)
    assert torch.equal(ours(x, num_tokens=4, random_route=True).indices, first.indices)
    assert (first.scores == 1).all() and not torch.equal(first.indices, ours(x, num_tokens=4).indices)


def test_a9_masked_tokens_before_valid_ones():
    """A valid token far below the best has a score of 0, as a masked one has."""
    theirs, ours = routers(torch.float32, dim=1, eps=0.03)
    with torch.no_grad():
        theirs.routing_token.fill_(1)
        ours.routing_token.fill_(1)
    x = torch.tensor([0.0] * 6 + [100.0, 0.0, -100.0, -200.0])[None, :, None]
    mask = torch.arange(10)[None] >= 6
    wrong, right = (router(x, num_tokens=4, mask=mask) for router in (theirs, ours))
    assert not wrong.routed_mask.all(), "fewer than the four valid tokens"
    assert right.indices.tolist() == [[6, 7, 8, 9]] and right.routed_mask.all() and (right.scores == 1).all()


# -- A12: 16 bits -------------------------------------------------------------------------------------------------------


def test_a12_routers_in_half_precision():
    theirs, ours = routers(torch.bfloat16, dim=64, eps=0.3, straight_through=False)
    x = normal(2, 300, 64).bfloat16()
    right = Published(dim=64, eps=0.3, straight_through=False).double()
    right.load_state_dict({"routing_token": ours.routing_token.double()})
    want = right(x.double(), num_tokens=40)
    wrong, got = (router(x, num_tokens=40) for router in (theirs, ours))
    assert got.scores.dtype == torch.bfloat16
    torch.testing.assert_close(got.scores.double(), want.scores, rtol=0, atol=3.91e-3)
    assert (wrong.scores.double() - want.scores).abs().max() > 0.1


def test_a12_autocast():
    """Heavy branches give 16 bits under autocast, which the indexed write of the package refuses."""
    theirs, ours = routers(torch.float32)
    x, layer = normal(2, 12, DIM).float(), torch.nn.Linear(DIM, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for router in (theirs, ours):
            indices, _, tokens, _ = router(x, num_tokens=4)
            heavy = layer(tokens)
            assert heavy.dtype == torch.bfloat16
            if router is theirs:
                with pytest.raises(RuntimeError, match="dtype"):
                    router.route_back(torch.zeros_like(x), heavy, indices)
            else:
                out = router.route_back(torch.zeros_like(x), heavy, indices)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.gather(1, indices[..., None].expand_as(heavy)), heavy.float(), rtol=0, atol=0)


def test_a12_autocast_of_the_feed_forward():
    options = dict(dim=DIM, num_heavy_tokens=4, router_kwargs=dict(eps=1.0))
    theirs, ours = PublishedFeedForward(**options), ConditionalRoutedFeedForward(**options)
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, 12, DIM).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype"):
            theirs(x)
        out = ours(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, theirs(x), rtol=0, atol=0.05)


def test_a3_blocks_of_the_feed_forward():
    options = dict(dim=DIM, num_heavy_tokens=4, router_kwargs=dict(eps=1.0, route_block_size=5))
    theirs, ours = PublishedFeedForward(**options).double(), ConditionalRoutedFeedForward(**options).double()
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, 13, DIM, scale=0.3)
    with pytest.raises(IndexError):
        theirs(x)
    routed = ours.router.routing_token[0]
    heavy = (ours(x) - theirs.light_ff(x)).abs().amax(-1) > 1e-12  # rows that the heavy branch reached
    for begin, end in ((0, 5), (5, 10), (10, 13)):  # two of each block
        best = (x[:, begin:end] @ routed).topk(2).indices.sort(-1).values
        assert torch.equal(heavy[:, begin:end].nonzero()[:, 1].view(2, 2), best)


def test_route_back_leaves_its_input():
    """By choice: the package writes into `src` and returns it."""
    theirs, ours = routers()
    src, tokens, indices = normal(2, 6, DIM), normal(2, 3, DIM, seed=1), torch.tensor([[4, 0, 2], [5, 1, 3]])
    kept = src.clone()
    got = ours.route_back(src, tokens, indices)
    assert torch.equal(src, kept) and torch.equal(got, route_back(src, tokens, indices))
    assert torch.equal(theirs.route_back(src, tokens, indices), got) and not torch.equal(src, kept)


def test_published_arguments():
    options = dict(use_triton=False, triton_checkpoint_segments=2)
    assert CoordinateDescentRouter(DIM, **options).options == weir.CoordinateDescentRouter(DIM).options


# -- ConditionalRoutedAttention: A1, A10, A12, A14, A15 -------------------------------------------------------------------


def attentions(dtype=torch.float64, **options):
    """(package, Weir) with the same parameters."""
    sizes = dict(dim=DIM, num_heavy_tokens_q=5, num_heavy_tokens_kv=4, light_dim_head=8, light_heads=2, light_window_size=4)
    sizes |= dict(heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0)) | options
    torch.manual_seed(0)
    theirs, ours = PublishedAttention(**sizes).to(dtype), ConditionalRoutedAttention(**sizes).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_a1_attention_with_several_routes():
    theirs, ours = attentions(num_routed_kv=3)
    x = normal(2, 16, DIM, scale=0.3).requires_grad_()
    for module, mixes in ((theirs, True), (ours, False)):
        (gradient,) = torch.autograd.grad(module(x)[1].square().sum(), x)
        assert gradient[0].any().item() is mixes
    alone = torch.cat([theirs(x[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(ours(x), alone, rtol=0, atol=1e-9)


def test_a10_padding_of_the_light_branch():
    theirs, ours = attentions()
    x, mask = normal(2, 15, DIM, scale=0.3), torch.ones(2, 15, dtype=torch.bool)  # 15: not whole half windows
    right = theirs(x, mask=mask)
    assert (theirs(x) - right).abs().max() > 1e-3
    torch.testing.assert_close(ours(x), right, rtol=0, atol=1e-9)


def test_a12_autocast_of_the_attention():
    theirs, ours = attentions(torch.float32)
    x = normal(2, 16, DIM, scale=0.3).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype"):
            theirs(x)
        out = ours(x)
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(out.float(), ours(x), rtol=0, atol=0.1)


def test_a14_heads_that_routes_do_not_divide():
    sizes = dict(dim=DIM, num_heavy_tokens_q=5, num_heavy_tokens_kv=4, heavy_heads=6, num_routed_kv=4)
    theirs = PublishedAttention(**sizes)
    with pytest.raises(AssertionError):
        theirs(normal(1, 16, DIM).float())
    with pytest.raises(ValueError, match="expected `num_routed_kv` to divide `heavy_heads`, 6, but got 4"):
        ConditionalRoutedAttention(**sizes)


def test_a15_positions_of_the_light_branch():
    """Without rotary embedding, tokens of a window may change places."""
    x = normal(1, 8, DIM, scale=0.3)
    swapped = x[:, [0, 1, 2, 4, 3, 5, 6, 7]]
    for light_rotary in (False, True):
        torch.manual_seed(0)
        layer = ConditionalRoutedAttention(DIM, 8, 8, light_window_size=16, light_rotary=light_rotary).double()
        same = torch.allclose(layer(x)[:, 0], layer(swapped)[:, 0], rtol=0, atol=1e-9)
        assert same is not light_rotary


# -- A2, A3, A13: cross attention ---------------------------------------------------------------------------------------

CROSS = dict(dim=DIM, num_tokens_q=5, num_tokens_kv=4, dim_head=8, heads=6, router_kwargs=dict(eps=1.0))


def pair(name, sizes, dtype=torch.float64, **ours_only):
    """(package, Weir) with the same weights."""
    torch.manual_seed(0)
    theirs = getattr(published, name)(**sizes).to(dtype)
    ours = globals()[name](**sizes, **ours_only).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def routed_by_hand(theirs, x, context, mask=None, context_mask=None):
    """What cross attention means, from the package's own parts."""
    indices, scores, tokens, _ = theirs.q_router(x, num_tokens=theirs.num_tokens_q, mask=mask)
    _, kv_scores, kv_tokens, kv_mask = theirs.kv_router(context, num_tokens=theirs.num_tokens_kv, mask=context_mask)
    out = theirs.heavy_attn(tokens, mask=kv_mask, context=kv_tokens, normalized_scores_kv=kv_scores) * scores[..., None]
    return theirs.q_router.route_back(theirs.null_q_token.expand_as(x).clone(), out, indices)


@pytest.mark.parametrize("routes,batch", ((1, 3), (3, 1)))  # where the package's router is right (A1)
def test_a2_cross_attention(routes, batch):
    theirs, ours = pair("ConditionalRoutedCrossAttention", CROSS | dict(kv_routing_tokens=routes))
    x, context = normal(batch, 16, DIM, scale=0.3), normal(batch, 21, DIM, scale=0.3, seed=1)
    for masks in ({}, dict(mask=padding(batch, 16), context_mask=padding(batch, 21))):
        with pytest.raises(NameError, match="should_route_queries"):
            theirs(x, context, **masks)
        want = routed_by_hand(theirs, x, context, **masks)
        torch.testing.assert_close(ours(x, context, **masks), want, rtol=0, atol=TOLERANCES[torch.float64])


def test_a2_cross_attention_that_is_not_routed():
    theirs, ours = pair("ConditionalRoutedCrossAttention", CROSS | dict(kv_routing_tokens=3))
    x, context, mask = normal(2, 5, DIM), normal(2, 4, DIM, seed=1), torch.tensor([[True] * 4, [True, False] * 2])
    want = theirs.heavy_attn(x, context=context, mask=mask)
    torch.testing.assert_close(ours(x, context, context_mask=mask), want, rtol=0, atol=TOLERANCES[torch.float64])


def test_a3_cross_attention_in_blocks():
    theirs, ours = pair("ConditionalRoutedCrossAttention", CROSS | dict(route_block_size=8))
    x, context = normal(2, 16, DIM, scale=0.3), normal(2, 24, DIM, scale=0.3, seed=1)
    with pytest.raises(IndexError):
        theirs(x, context)
    unblocked = Published(dim=DIM, eps=1.0).double()
    unblocked.load_state_dict(theirs.kv_router.state_dict())
    _, kv_scores, kv_tokens, _ = in_blocks(unblocked, context, 4, 8)
    indices, scores, tokens, _ = theirs.q_router(x, num_tokens=5)
    out = theirs.heavy_attn(tokens, context=kv_tokens, normalized_scores_kv=kv_scores) * scores[..., None]
    want = theirs.q_router.route_back(theirs.null_q_token.expand_as(x).clone(), out, indices)
    torch.testing.assert_close(ours(x, context), want, rtol=0, atol=TOLERANCES[torch.float64])


def test_a13_sets_of_the_cross_attention():
    theirs, ours = pair("ConditionalRoutedCrossAttention", CROSS | dict(num_sets_kv=3))
    assert theirs.kv_router.routing_token.shape == ours.kv_router.routing_token.shape == (1, DIM)
    assert "num_sets_kv" not in ours.options
    with pytest.raises(TypeError, match="num_sets_kv"):
        weir.ConditionalRoutedCrossAttention(**CROSS, num_sets_kv=3)


# -- A4: images ---------------------------------------------------------------------------------------------------------

IMAGE = dict(dim=DIM, num_heavy_tokens_q=5, num_heavy_tokens_kv=4, light_dim_head=8, light_heads=2, light_window_size=4,
             heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0))  # fmt: skip


def test_a4_images_are_routed_by_window():
    theirs, ours = pair("ConditionalRoutedImageAttention", IMAGE)
    x = normal(1, 8, 8, DIM, scale=0.3)
    others = theirs(x)[0, 4:]
    changed = x.clone()
    changed[0, :4, :4] += 1  # the first window
    assert torch.equal(theirs(changed)[0, 4:], others)
    assert not torch.allclose(ours(changed)[0, 4:], ours(x)[0, 4:])
    ours.load_state_dict({name: 0 * value if name == "light_attn.to_out.weight" else value
                          for name, value in ours.state_dict().items()})  # fmt: skip
    attending = (ours(x) - ours.null_q_token).abs().amax(-1) > 1e-12
    assert attending.sum() == 5, "of the map, not of each window"


def test_a4_windows_of_no_more_places_than_are_routed():
    sizes = IMAGE | dict(num_heavy_tokens_q=16)
    theirs, ours = pair("ConditionalRoutedImageAttention", sizes, routing="window")
    x = normal(2, 8, 8, DIM, scale=0.3)
    with pytest.raises((TypeError, IndexError, RuntimeError)):
        theirs(x)
    windows = [(b, i, j) for b in range(2) for i in (0, 4) for j in (0, 4)]
    for b, i, j in windows:  # of a single window the package is right
        alone = x[b : b + 1, i : i + 4, j : j + 4]
        torch.testing.assert_close(ours(x)[b : b + 1, i : i + 4, j : j + 4], theirs(alone), rtol=0, atol=1e-9)


def test_a4_masks_of_images():
    theirs, ours = pair("ConditionalRoutedImageAttention", IMAGE)
    x, mask = normal(2, 8, 8, DIM, scale=0.3), torch.ones(2, 8, 8, dtype=torch.bool)
    mask[1, :, 5:] = False
    with pytest.raises(RuntimeError):
        theirs(x, mask=mask)
    changed = torch.where(mask[..., None], x, x + 1)
    torch.testing.assert_close(ours(changed, mask=mask)[mask], ours(x, mask=mask)[mask], rtol=0, atol=0)
    by_window = torch.ones(8, 16, dtype=torch.bool)  # what the package takes; its light branch has no mask
    by_window[7, 10:] = False
    changed = x.clone()
    changed[1, 7, 7] += 1
    assert not torch.allclose(theirs(changed, mask=by_window)[1, 4, 4], theirs(x, mask=by_window)[1, 4, 4])


def test_a4_the_vit_of_the_readme():
    sizes = dict(image_size=64, patch_size=8, num_classes=7, dim=DIM, depth=2, attn_num_heavy_tokens_q=16)
    sizes |= dict(attn_num_heavy_tokens_kv=16, attn_heavy_dim_head=8, attn_heavy_heads=2, attn_light_dim_head=4)
    sizes |= dict(attn_light_heads=3, attn_light_window_size=4, ff_num_heavy_tokens=16, ff_heavy_mult=4, ff_light_mult=2)
    theirs, ours = pair("ConditionalRoutedViT", sizes, torch.float32)
    images = normal(1, 3, 64, 64).float()
    with pytest.raises((TypeError, IndexError, RuntimeError)):
        theirs(images)
    assert ours(images).isfinite().all()


def test_a_vit_of_single_values():
    sizes = dict(image_size=8, patch_size=1, channels=1, num_classes=7, dim=DIM, depth=1, attn_num_heavy_tokens_q=2)
    sizes |= dict(attn_num_heavy_tokens_kv=2, attn_heavy_dim_head=8, attn_heavy_heads=2, attn_light_dim_head=4)
    sizes |= dict(attn_light_heads=3, attn_light_window_size=4, ff_num_heavy_tokens=5, ff_heavy_mult=4, ff_light_mult=2)
    theirs = published.ConditionalRoutedViT(**sizes)
    assert torch.equal(theirs(torch.randn(1, 1, 8, 8)), theirs(torch.randn(1, 1, 8, 8)))
    with pytest.raises(ValueError, match="expected patches of more than one value"):
        ConditionalRoutedViT(**sizes)


def test_a15_positions_of_the_block():
    sizes = dict(dim=DIM, num_heavy_attn_tokens_q=8, num_heavy_attn_tokens_kv=8, num_heavy_ff_tokens=8)
    with pytest.raises(TypeError):
        published.ConditionalRoutedTransformerBlock(**sizes, rotary_emb=True)
    x = normal(1, 8, DIM, scale=0.3)
    swapped = x[:, [0, 1, 2, 4, 3, 5, 6, 7]]
    for knows in (dict(), dict(rotary_emb=True), dict(light_rotary=True)):
        torch.manual_seed(0)
        block = ConditionalRoutedTransformerBlock(**sizes, **knows).double()
        assert torch.allclose(block(x)[:, 0], block(swapped)[:, 0], rtol=0, atol=1e-9) is not bool(knows)
