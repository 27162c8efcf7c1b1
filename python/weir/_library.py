# SPDX-License-Identifier: Apache-2.0
"""Finds and loads libweir.so, built for the torch at hand."""
import json
import os
import pathlib

import torch

_HERE = pathlib.Path(__file__).resolve().parent


def _candidates():
    if "WEIR_LIBRARY" in os.environ:
        return [pathlib.Path(os.environ["WEIR_LIBRARY"])]
    return [_HERE / "libweir.so", _HERE.parent.parent / "build" / "release" / "libweir.so"]


def _minor(version):
    return ".".join(version.split("+")[0].split(".")[:2])


def _check_torch(library):
    """The library links torch's C++ interface, which changes with every minor version."""
    note = library.with_name("torch_version.txt")
    if not note.exists():
        return
    built = note.read_text().strip()
    if _minor(built) != _minor(torch.__version__):
        raise ImportError(
            f"weir was built for torch {_minor(built)}, but torch {torch.__version__} is installed; "
            f"build it again for this torch: pip install --no-build-isolation ."
        )


def load():
    """Loads the operators and classes into torch. Raises ImportError naming where it looked."""
    for library in _candidates():
        if library.exists():
            _check_torch(library)
            torch.ops.load_library(str(library))
            return library
    places = " or ".join(str(path) for path in _candidates())
    raise ImportError(f"libweir.so is not at {places}; run `make build`, or set WEIR_LIBRARY")


def describe(name):
    """What the C++ side says of a module: {"name", "doc", "options", "inputs", "outputs"}."""
    return json.loads(torch.ops.weir._describe_module(name))
