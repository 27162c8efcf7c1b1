# SPDX-License-Identifier: Apache-2.0
"""What PyTorch code expects of a `torch.nn.Module`, for every module of the package."""
import copy
import io
import pickle
import time

import pytest
import torch
import weir
from torch import nn

from small_modules import WITHOUT_PARAMETERS, small_modules


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def loss_of(module, x):
    return module(x).square().mean()


def test_all_modules_are_tested():
    assert sorted([*small_modules(), *WITHOUT_PARAMETERS]) == sorted(weir.modules())


def test_01_parameters_are_parameters(module):
    assert isinstance(module, nn.Module)
    names = [name for name, _ in module.named_parameters()]
    assert names and all(type(p) is nn.Parameter and p.is_leaf for p in module.parameters())
    assert all(p.requires_grad == (p.numel() > 0) for p in module.parameters())
    assert len(set(names)) == len(names)


def test_02_state_dict(module):
    assert set(module.state_dict()) == {n for n, _ in module.named_parameters()} | {n for n, _ in module.named_buffers()}


def test_03_state_dict_of_a_container(module):
    keys = nn.Sequential(nn.Identity(), module).state_dict().keys()
    assert set(keys) == {f"1.{name}" for name in module.state_dict()}


def test_04_load_state_dict_reaches_the_module(case, x):
    cls, options, _ = case
    a, b = cls(**options), cls(**options)
    assert not torch.equal(a(x), b(x))
    b.load_state_dict(a.state_dict())
    close(a(x), b(x))


def test_04b_load_state_dict_is_strict(module):
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({})


def test_05_apply(module, x):
    visited = []
    assert module.apply(visited.append) is module
    paths = {name[: i] for name in module.state_dict() for i, character in enumerate(name) if character == "."}
    assert module in visited and len(visited) == len(list(module.modules())) == 1 + len(paths)

    @torch.no_grad()
    def fill(part):
        for parameter in part.parameters(recurse=False):
            parameter.zero_()

    module.apply(fill)
    assert module(x).abs().max() <= 1  # all weights 0


def test_06_to(module, x):
    before = module(x)
    assert module.to("cpu") is module
    close(module(x), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_07_dtype(module, x, dtype):
    expected = module(x)
    parameters = list(module.parameters())
    expected.sum().backward()
    module.to(dtype)
    assert all(p.grad is None or p.grad.dtype == dtype for p in parameters)
    assert all(a is b for a, b in zip(parameters, module.parameters()))
    out = module(x.to(dtype) if x.is_floating_point() else x)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.15
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)


def test_08_gradients_and_optimizers(module, x):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    first = loss_of(module, x)
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters() if p.numel() > 0)
    for _ in range(5):
        optimizer.step()
        module.zero_grad(set_to_none=True)
        loss_of(module, x).backward()
    assert loss_of(module, x) < first


def test_08b_frozen_parameters(module, x):
    module.requires_grad_(False)
    assert not module(x).requires_grad
    last = list(module.parameters())[-1].requires_grad_(True)
    loss_of(module, x).backward()
    assert last.grad is not None and sum(p.grad is not None for p in module.parameters()) == 1


def test_09_deepcopy(module, x):
    list(module.parameters())[0].requires_grad_(False)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    module.note = {"kept": 1}
    twin = copy.deepcopy(module.eval())
    close(twin(x), module(x))
    assert len(calls) == 2 and not twin.training and twin.note == {"kept": 1} and twin.note is not module.note
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in module.parameters()]
    with torch.no_grad():
        list(twin.parameters())[-1].add_(1)
    assert not torch.equal(twin(x), module(x))


def test_09b_deepcopy_with_its_optimizer(module, x):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    twin, twin_optimizer = copy.deepcopy((module, optimizer))
    ours = twin_optimizer.param_groups[0]["params"]
    assert all(a is b for a, b in zip(ours, twin.parameters()))


def test_10_pickle(module, x):
    module.to(torch.float64).eval()
    x = x.double() if x.is_floating_point() else x
    twin = pickle.loads(pickle.dumps(module))
    assert type(twin) is type(module) and not twin.training
    close(twin(x), module(x))


def test_10b_torch_save(module, x):
    file = io.BytesIO()
    torch.save(nn.Sequential(module), file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(x), module(x))


def test_11_get_parameter(module):
    for name, parameter in module.named_parameters():
        assert module.get_parameter(name) is parameter


def test_12_train_and_eval_chain(module):
    assert module.eval() is module and not module.training
    assert module.train() is module and all(part.training for part in module.modules())


def test_13_keywords(module, case, x):
    first = next(iter(case[0]._inputs_signature.parameters))
    close(module(**{first: x}), module(x))
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        module(x, nonsense=1)
    with pytest.raises(TypeError, match="missing"):
        module()


def test_14_functional_call_is_refused(module, x):
    swapped = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    with pytest.raises(RuntimeError, match="functional_call, parametrize and assignment are not supported"):
        torch.func.functional_call(module, swapped, (x,))
    module(x)  # as before


def test_14b_parametrize_is_refused(module, x):
    path, _, name = list(module.state_dict())[-1].rpartition(".")
    nn.utils.parametrize.register_parametrization(module.get_submodule(path), name, nn.Identity())
    with pytest.raises(RuntimeError, match="was replaced by another tensor"):
        module(x)


def test_15_attributes(module):
    module.gate = nn.Parameter(torch.ones(3))
    assert "gate" in dict(module.named_parameters()) and "gate" in module.state_dict()


@pytest.fixture(scope="session")
def process_group(tmp_path_factory):
    """One group for all tests, destroyed when its thread is idle: torch 2.13 destroys a gloo group with the interpreter
    lock held while the group's thread, which holds a mutex of the group, may wait for that lock to free its last work."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    time.sleep(0.5)
    torch.distributed.destroy_process_group()


def test_16_data_parallel(module, x, process_group):
    for wrapped in (module, nn.Sequential(module)):
        parallel = nn.parallel.DistributedDataParallel(wrapped)
        loss_of(parallel, x).backward()
        assert all(p.grad is not None for p in module.parameters() if p.numel() > 0)
        module.zero_grad()


def test_hooks(module, x):
    seen = []
    module.register_forward_pre_hook(lambda *_: seen.append("before"))
    module.register_forward_hook(lambda *_: seen.append("after"))
    module(x)
    list(module.parameters())[-1].register_hook(lambda _: seen.append("backward"))
    loss_of(module, x).backward()
    assert seen == ["before", "after", "before", "after", "backward"]


def test_compile_breaks_the_graph_and_agrees(module, x):
    expected = module(x)
    torch._dynamo.reset()
    compiled = torch.compile(nn.Sequential(module, nn.Tanh()), backend="eager")
    torch.testing.assert_close(compiled(x), expected.tanh())


def test_meta_is_refused(module, x):
    before = module(x)
    with pytest.raises(RuntimeError, match="cannot become a tensor on device meta"):
        module.to("meta")
    close(module(x), before)


def test_subclasses(case, x):
    cls, options, _ = case

    class Doubled(cls):
        def __init__(self):
            super().__init__(**options)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return super().forward(x) * self.scale

    module = Doubled()
    assert "scale" in module.state_dict()
    twin = copy.deepcopy(module)
    close(twin(x), module(x))
    assert twin.scale is not module.scale
