# SPDX-License-Identifier: Apache-2.0
"""The package from its user's side: names, signatures, messages, published snippets, files."""
import inspect
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy
import pytest
import torch
import weir
import weir.coordinate_descent_attention


def test_signature_and_help_come_from_the_options():
    signature = inspect.signature(weir.CoordinateDescentAttention)
    assert list(signature.parameters)[:3] == ["dim", "dim_head", "heads"]
    assert signature.parameters["dim"].default is inspect.Parameter.empty
    assert signature.parameters["coor_descent_eps_init"].default == 4.0
    assert "dim_head (int): Feature size of one head. Default 64." in weir.CoordinateDescentAttention.__doc__
    assert list(inspect.signature(weir.CoordinateDescentAttention.forward).parameters) == ["self", "x", "mask"]


def test_options_by_position_and_as_numpy_numbers():
    module = weir.CoordinateDescentAttention(16, numpy.int64(8), heads=2, coor_descent_eps=numpy.float32(0.5))
    assert module.options["dim_head"] == 8 and module.options["coor_descent_eps"] == 0.5
    assert "coor_descent_eps=0.5" in repr(module)


def test_parts_and_options_are_attributes():
    model = weir.CoordinateDescentTransformer(num_tokens=19, dim=16, seq_len=12, depth=2, dim_head=8, heads=2)
    assert (model.seq_len, model.max_length, model.heads) == (12, 12, 2)
    assert len(model.layers) == 2 and model.layers[1][0].to_qkv.weight.shape == (48, 16)
    assert [len(layer) for layer in model.layers] == [2, 2]
    with pytest.raises(AttributeError, match="no attribute 'sequence_length'"):
        model.sequence_length


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(), TypeError, "missing a required argument: 'dim'"),
        (dict(dim=16, headz=1), TypeError, "unexpected keyword argument 'headz'"),
        (dict(dim=16, heads=2.5), ValueError, "`heads`: expected an integer, but got 2.5"),
        (dict(dim=0), ValueError, "expected `dim` to be at least 1, but got 0"),
        (dict(dim=16, heads=object()), TypeError, "but got object"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        weir.CoordinateDescentAttention(**options)


def test_wrong_inputs():
    module = weir.CoordinateDescentAttention(dim=16)
    with pytest.raises(ValueError, match=r"expected `x` to have shape \[batch, n, 16\]"):
        module(torch.randn(2, 3, 15))
    with pytest.raises(TypeError, match="expected `mask` to be bool"):
        module(torch.randn(2, 3, 16), mask=torch.ones(2, 3))


def test_base_class_is_not_constructed():
    with pytest.raises(TypeError, match="one of the modules"):
        weir.Module()


def test_published_readme():
    # The README of coordinate-descent-attention with only the import changed, at a smaller size; no .cuda() here.
    from weir.coordinate_descent_attention import Transformer

    model = Transformer(
        num_tokens=256,
        dim=64,
        depth=2,
        seq_len=256,
        dim_head=64,
        heads=8,
        attn_use_coor_descent=True,  # set to True to switch from softmax to coordinate descent on qk similarity matrix
    )

    x = torch.randint(0, 256, (1, 256))

    logits = model(x)
    assert logits.shape == (1, 256, 256)


@pytest.mark.parametrize("learned", [False, True])
def test_one_training_step_and_generation(learned):
    from weir.coordinate_descent_attention import AutoregressiveWrapper, Transformer

    torch.manual_seed(0)
    model = AutoregressiveWrapper(
        Transformer(num_tokens=256, dim=32, depth=1, seq_len=64, dim_head=16, heads=2, attn_use_coor_descent=True,
                    ff_use_coor_descent=True, learned_sparsity_k=learned)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x = torch.randint(0, 256, (2, 65))
    first = model(x)
    first.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    assert model(x) < first
    sampled = model.generate(x[:, :10], 70)  # longer than seq_len
    assert sampled.shape == (2, 70) and sampled.min() >= 0 and sampled.max() < 256
    assert torch.equal(model.generate(x[:, :10], 5, temperature=0), model.generate(x[:, :10], 5, temperature=0))


def test_wrapper_of_any_net():
    from weir.coordinate_descent_attention import AutoregressiveWrapper

    net = torch.nn.Embedding(5, 5)
    with pytest.raises(ValueError, match="seq_len"):
        AutoregressiveWrapper(net)
    model = AutoregressiveWrapper(net, seq_len=8)
    prompt = torch.zeros(3, 1, dtype=torch.long)
    # 5 tokens and filter_thres 0.9: one token is kept, the likeliest.
    assert torch.equal(model.generate(prompt, 12), model.generate(prompt, 12, temperature=0))


def test_generate_is_what_stepping_gives():
    torch.manual_seed(0)
    model = weir.CoordinateDescentTransformer(num_tokens=19, dim=16, seq_len=12, depth=2, dim_head=8, heads=2).eval()
    row = [3, 1, 4]
    for _ in range(6):
        row.append(model(torch.tensor([row]))[0, -1].argmax().item())
    assert model.generate([[3, 1, 4]], max_new_tokens=6, temperature=0) == [row[3:]]
    assert set(weir.generate_options()) >= {"max_new_tokens", "temperature", "top_k", "top_p", "seed"}
    with pytest.raises(ValueError, match="did you mean `temperature`"):
        model.generate([[1]], temprature=0)


def test_files_of_models(tmp_path):
    torch.manual_seed(0)
    model = weir.CoordinateDescentTransformer(num_tokens=19, dim=16, seq_len=12, depth=1, dim_head=8, heads=2)
    model.save(tmp_path / "model")
    loaded = weir.load_model(tmp_path / "model")
    assert loaded.options == model.options
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="model.safetensors"):
        weir.load_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="config.json"):
        weir.load_model(tmp_path / "model")


def test_operators_with_published_signatures():
    torch.manual_seed(0)
    s = torch.randn(3, 9, requires_grad=True)
    mask = torch.rand(3, 9) < 0.8
    y = weir.ops.coor_descent(s, n_iters=20, k=2, eps=0.1, eps_init=4.0, eps_decay=0.7, mask=mask)
    assert torch.equal(y, weir.ops.coordinate_descent(s, 2, mask, 20, 0.1, 4.0, 0.7))
    assert y.shape == s.shape and (y[~mask] == 0).all()
    values, indices, weights, gates = weir.ops.topk(s, 2)
    assert torch.equal(indices, s.topk(2).indices) and (gates == 1).all() and weights.shape == (3, 2)
    values.sum().backward()
    assert s.grad.abs().sum() > 0
    plain = weir.ops.topk(s, 2, mask=mask, non_differentiable=True)
    assert weir.colt5_attention.topk is weir.ops.topk and weir.colt5_attention.coor_descent is weir.ops.coor_descent
    assert plain.gates is None and mask.gather(1, plain.indices).all()


def test_other_threads_run_during_a_call():
    module = weir.CoordinateDescentFeedForward(dim=256, use_coor_descent=True)
    x, done, ticks = torch.randn(2000, 256), threading.Event(), 0

    def work():
        with torch.no_grad():
            module(x)
        done.set()

    module(x)  # torch's threads are started
    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.0005)
    thread.join()
    assert ticks >= 3  # the call takes tens of milliseconds; with the lock held this thread would see the end at once


def test_operators_compile_into_one_graph():
    def f(s):
        return weir.ops.coordinate_descent(s, 2.0, eps=0.3) + weir.ops.topk(s, 3).values.sum()

    torch._dynamo.reset()
    s = torch.randn(4, 9, requires_grad=True)
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(s), f(s))


def run(code, **environment):
    package = str(pathlib.Path(weir.__file__).resolve().parent.parent)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": package, **environment},
        capture_output=True,
        text=True,
    )


def test_a_missing_library_is_named():
    result = run("import weir", WEIR_LIBRARY="/nowhere/libweir.so")
    assert "ImportError: libweir.so is not at /nowhere/libweir.so; run `make build`" in result.stderr


def test_another_torch_is_refused(tmp_path):
    (tmp_path / "libweir.so").symlink_to(weir.library)
    (tmp_path / "torch_version.txt").write_text("1.4.0\n")
    result = run("import weir", WEIR_LIBRARY=str(tmp_path / "libweir.so"))
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("ImportError: weir was built for torch 1.4, but torch ")
