# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import weir

from small_modules import SUBCLASSES, small_modules


@pytest.fixture(params=sorted(small_modules()))
def case(request):
    """(class, options, inputs) of one module."""
    torch.manual_seed(0)
    options, inputs = small_modules()[request.param]
    return SUBCLASSES.get(request.param, getattr(weir, request.param)), options, inputs


@pytest.fixture
def module(case):
    cls, options, _ = case
    return cls(**options)


@pytest.fixture
def x(case):
    return case[2]()
