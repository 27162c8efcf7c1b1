# SPDX-License-Identifier: Apache-2.0
"""In a checkout the package is found without installation; an installed one, or one on PYTHONPATH, wins."""
import importlib.util
import pathlib
import sys

if importlib.util.find_spec("weir") is None:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))
