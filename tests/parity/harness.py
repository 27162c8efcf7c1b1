# SPDX-License-Identifier: Apache-2.0
"""Compares a Weir module with the published one: state dict, outputs, gradients.

A Case says what to build on either side and what to feed it; `compare` builds both, moves the reference's parameters
off their initial values, copies the state dict over and back under unchanged names, and returns the deviation of every
output and of every gradient of a fixed random projection of the outputs.

The reference computes in float64, also where Weir computes in float32, from the same float32 weights and inputs: in
float32 the package's own error reaches 9e-5 (gradients of coor_descent at eps 0.03), Weir's 5e-6.
"""
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

torch.set_num_threads(1)  # the tensors are tiny

# Largest accepted deviation, relative to the largest entry of a tensor.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
# Tensors whose largest entry is below this are compared absolutely: in float32, what is left of larger terms.
SMALLEST_SCALE = {torch.float64: 1.0, torch.float32: 1e-2}


def same(name):
    return name


def nothing(module):
    pass


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table. `inputs` returns float64, integer and bool tensors; the floating ones get gradients."""

    name: str
    weir: Callable[[], nn.Module]
    reference: Callable[[], nn.Module]
    inputs: Callable[[], tuple]
    regime: str = "any"  # where the package is right, in words
    dtypes: tuple = (torch.float64, torch.float32)
    tolerances: dict = dataclasses.field(default_factory=lambda: TOLERANCES)
    weir_name: Callable[[str], str] = same  # the package's parameter name -> Weir's
    prepare: Callable[[nn.Module], None] = nothing  # more to do to the reference after the perturbation


class Function(nn.Module):
    """A function and its options as a module without parameters."""

    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *inputs):
        return self.function(*inputs, **self.options)


def tensors(result):
    """A tensor, or a (named) tuple of tensors and Nones, as a list."""
    return list(result) if isinstance(result, tuple) else [result]


def perturb(module, scale=0.1):
    """Adds N(0, scale) to every trainable parameter: zeros, ones and identities at initialisation hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)


def copy_over_and_back(case, reference, module):
    """Reference -> Weir -> reference, strictly, and nothing is lost on the way."""
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    module.load_state_dict({case.weir_name(name): tensor for name, tensor in state.items()}, strict=True)
    names = {case.weir_name(name): name for name in state}
    back = {names[name]: tensor.clone() for name, tensor in module.state_dict().items()}
    reference.load_state_dict(back, strict=True)
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{case.name}: {name} changed on its way through Weir's state dict"


def build(case, dtype):
    """(Weir module, reference module) with equal weights, in evaluation mode."""
    torch.manual_seed(0)
    reference = case.reference().to(dtype).eval()
    perturb(reference)
    case.prepare(reference)
    module = case.weir().to(dtype).eval()
    copy_over_and_back(case, reference, module)
    return module, reference


def cast(tensor, dtype):
    return tensor.detach().to(dtype, copy=True).requires_grad_() if tensor.is_floating_point() else tensor


def run(module, inputs, rename=same):
    """{name: tensor} of all outputs and of the gradients of their projection; what is not used has gradient 0."""
    outputs = tensors(module(*inputs))
    found = {f"output {i}": output for i, output in enumerate(outputs)}
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for output in outputs:
        if output is not None and output.is_floating_point():
            loss = loss + (output * torch.randn(output.shape, generator=generator).to(output)).sum()
    leaves = {f"d input {i}": tensor for i, tensor in enumerate(inputs) if tensor.requires_grad}
    leaves |= {f"d {rename(name)}": p for name, p in module.named_parameters() if p.requires_grad and p.numel() > 0}
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        for (name, leaf), grad in zip(leaves.items(), grads):
            found[name] = torch.zeros_like(leaf) if grad is None else grad
    return found


def deviation(got, want, dtype):
    """max |got - want| relative to the largest |want|, or to SMALLEST_SCALE; inf where the kind of result differs."""
    if got is None or want is None:
        return 0.0 if got is want else float("inf")
    if got.shape != want.shape or got.dtype != (dtype if want.is_floating_point() else want.dtype):
        return float("inf")
    if want.numel() == 0 or not want.is_floating_point():
        return 0.0 if torch.equal(got, want) else float("inf")
    error = (got.detach().double() - want.detach()).abs().max().item()
    scale = max(SMALLEST_SCALE[dtype], want.detach().abs().max().item())
    return error / scale if error == error else float("inf")


def compare(case, dtype):
    """{name: deviation} of all outputs and gradients of one case."""
    module, reference = build(case, dtype)
    inputs = [cast(tensor, dtype) for tensor in case.inputs()]
    got = run(module, inputs)
    want = run(reference.double(), [cast(tensor, torch.float64) for tensor in inputs], case.weir_name)
    assert got.keys() == want.keys(), f"{case.name}: {sorted(got.keys() ^ want.keys())} on one side only"
    assert all(t is None or not t.is_floating_point() or t.isfinite().all() for t in want.values()), case.name
    gradients = [tensor for name, tensor in want.items() if name.startswith("d ")]
    assert not gradients or any(tensor.any() for tensor in gradients), f"{case.name}: all gradients are 0"
    return {name: deviation(got[name], want[name], dtype) for name in want}


def check(case, dtype):
    """Fails with the names that deviate; returns the largest deviation."""
    found = compare(case, dtype)
    wrong = {name: value for name, value in found.items() if not value <= case.tolerances[dtype]}
    assert not wrong, f"{case.name} in {dtype}: beyond {case.tolerances[dtype]:g}: {wrong}"
    return max(found.values())
