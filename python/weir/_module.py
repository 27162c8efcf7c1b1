# SPDX-License-Identifier: Apache-2.0
"""C++ modules as real `torch.nn.Module`s.

The parameters of a Python module are the C++ tensors themselves, so optimizers, `load_state_dict`, hooks on
gradients and dtype moves act on both sides at once. What replaces a parameter object (functional_call,
parametrize, assignment) would go unseen by C++: the next call refuses it.
"""
import copy
import json
from collections import namedtuple

import torch
from torch import nn

from . import _library, _signature


class _Tensors(nn.Module):
    """A node of the tree: holds parameters and buffers that C++ owns, moves them in place."""

    def _apply(self, fn, recurse=True):
        if recurse:
            for child in self.children():
                child._apply(fn)
        for name, tensor in [*self._parameters.items(), *self._buffers.items()]:
            if tensor is None:
                continue
            with torch.no_grad():
                moved = fn(tensor)
                grad = None if tensor.grad is None else fn(tensor.grad)
                try:
                    tensor.data = moved
                except RuntimeError as error:
                    raise RuntimeError(
                        f"{name}: cannot become a tensor on device {moved.device} in place; C++ holds this tensor"
                    ) from error
                if grad is not None:
                    tensor.grad = grad
        return self


class _TensorsList(_Tensors):
    """A node whose children are numbered, as in nn.ModuleList and nn.Sequential."""

    def __len__(self):
        return len(self._modules)

    def __iter__(self):
        return iter(self._modules.values())

    def __getitem__(self, index):
        return list(self._modules.values())[index]


class Module(_Tensors):
    """Base of all modules of Weir. The class attribute `_name` is the name of the C++ module."""

    _name = None
    Outputs = None
    """The named tuple of a module that returns several tensors."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        if self._name is None:
            raise TypeError("weir.Module is a base; construct one of the modules, see weir.modules()")
        try:
            bound = self._options_signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        self._build(json.dumps(bound.arguments, default=_plain))

    def _build(self, options):
        """Constructs the C++ module and the tree of its parameters."""
        cpp = torch.classes.weir.Module(self._name, options)
        self._own = []  # (node, name, tensor, is a parameter), to see later whether all is still in place
        for kind, tensors in (("parameter", cpp.parameters()), ("buffer", cpp.buffers())):
            for path, tensor in tensors.items():
                *parents, name = path.split(".")
                node = self
                for parent, child in zip(parents, [*parents[1:], name]):
                    if parent not in node._modules:
                        node.add_module(parent, _TensorsList() if child.isdecimal() else _Tensors())
                    node = node._modules[parent]
                if kind == "parameter":
                    tensor.__class__ = nn.Parameter
                    node.register_parameter(name, tensor)
                else:
                    node.register_buffer(name, tensor)
                self._own.append((node, name, tensor, kind == "parameter"))
        self._cpp = cpp  # last: from here on options are attributes, but where a child has the name

    @property
    def options(self):
        """All options, with those that were left at their defaults."""
        return json.loads(self._cpp.options())

    def __getattr__(self, name):
        """Options are attributes, as in the published packages: attention.heads."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_cpp" in self.__dict__ and name in self._options_signature.parameters:
                return self.options[name]
            raise

    def _check_in_place(self):
        for node, name, tensor, is_parameter in self._own:
            here = (node._parameters if is_parameter else node._buffers).get(name)
            if here is not tensor:
                raise RuntimeError(
                    f"{type(self).__name__}: `{name}` was replaced by another tensor, which the C++ module does not see. "
                    "Change parameters in place (copy_, .data, load_state_dict); functional_call, parametrize and "
                    "assignment are not supported"
                )

    @torch.compiler.disable
    def forward(self, *args, **kwargs):
        self._check_in_place()
        try:
            bound = self._inputs_signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        result = self._cpp.forward(dict(bound.arguments))
        return result if self.Outputs is None else self.Outputs(*result)

    def train(self, mode=True):
        super().train(mode)
        self._cpp.train(mode)
        return self

    def extra_repr(self):
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    # ---- copies: built anew from the options, then filled

    def __getstate__(self):
        own = {id(tensor) for _, _, tensor, _ in self._own}
        added = {}  # what a subclass or a user put beside our own
        for group in ("_parameters", "_buffers", "_modules"):
            members = getattr(self, group).items()
            added[group] = {k: v for k, v in members if id(v) not in own and not _is_own(v)}
        skip = {"_cpp", "_own", *added}
        return {
            "tensors": [(tensor.data.clone(), tensor.requires_grad) for _, _, tensor, _ in self._own],
            "added": added,
            "rest": {key: value for key, value in self.__dict__.items() if key not in skip},
        }

    def __setstate__(self, state):
        for (_, _, tensor, _), (data, requires_grad) in zip(self._own, state["tensors"]):
            tensor.data = data
            tensor.requires_grad_(requires_grad)
        self.__dict__.update(state["rest"])
        for group, members in state["added"].items():
            getattr(self, group).update(members)
        for node in self.modules():
            if _is_own(node):
                node.training = self.training
        self._cpp.train(self.training)

    def __reduce_ex__(self, protocol):
        return _rebuild, (type(self), self._cpp.options()), self.__getstate__()

    def __deepcopy__(self, memo):
        new = _rebuild(type(self), self._cpp.options())
        memo[id(self)] = new
        for (_, _, old, _), (_, _, own, _) in zip(self._own, new._own):
            memo[id(old)] = own  # an optimizer copied along refers to the copy's parameters
        state = self.__getstate__()
        for key in ("added", "rest"):
            state[key] = copy.deepcopy(state[key], memo)
        new.__setstate__(state)
        return new


def _is_own(node):
    return isinstance(node, _Tensors) and not isinstance(node, Module)


def _plain(value):
    """Numbers of numpy and torch as JSON takes them."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, (set, range)):
        return list(value)
    raise TypeError(f"expected a number, a string, a bool, None or a list, but got {type(value).__name__}")


def _rebuild(cls, options):
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    module._build(options)
    return module


class LanguageModel(Module):
    """What language models add: generation with a key/value cache, and the files of the program `weir`."""

    def generate(self, prompts, **options):
        """Continues prompts; see `weir.generate_options()` for the options.

        Args:
            prompts (list[list[int]] | torch.Tensor): Tokens, rows of any lengths but 0.

        Returns:
            list[list[int]]: The new tokens of each row.
        """
        self._check_in_place()
        if isinstance(prompts, torch.Tensor):
            prompts = prompts.tolist()
        return self._cpp.generate(prompts, json.dumps(options, default=_plain))

    def save(self, directory):
        """Writes config.json and model.safetensors, which `weir generate`, `weir eval` and `weir.load_model` read."""
        self._check_in_place()
        self._cpp.save(str(directory))

    @property
    def max_length(self):
        """Longest sequence, in tokens."""
        options = self.options
        return options["max_seq_len"] if "max_seq_len" in options else options["seq_len"]


def _outputs(module, names):
    """The named tuple of these names, as a class inside that of the module; None for a single tensor."""
    if not names:
        return None
    outputs = namedtuple("Outputs", names, module="weir")
    outputs.__qualname__ = f"{module}.Outputs"
    return outputs


def make_class(name):
    """The Python class of the C++ module `name`."""
    description = _library.describe(name)
    inputs, options = description["inputs"], description["options"]
    options_signature, inputs_signature = _signature.signature(options), _signature.signature(inputs)
    base = LanguageModel if inputs[0]["name"] == "tokens" else Module

    def forward(self, *args, **kwargs):
        return Module.forward(self, *args, **kwargs)

    forward.__signature__ = _signature.signature(inputs, method=True)
    forward.__doc__ = f"{description['doc']}\n\n{_signature.arguments(inputs)}"
    body = {
        "__doc__": f"{description['doc']}\n\n{_signature.arguments(options)}",
        "__module__": "weir",
        "__signature__": options_signature,
        "_name": name,
        "_options_signature": options_signature,
        "_inputs_signature": inputs_signature,
        "forward": forward,
        "Outputs": _outputs(name, description["outputs"]),
    }
    return type(name, (base,), body)
