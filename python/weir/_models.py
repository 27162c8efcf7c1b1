# SPDX-License-Identifier: Apache-2.0
"""Language models on disk, and what generation takes."""
import json
import pathlib
import sys

import torch


def load_model(directory):
    """The language model in `directory`, a checkpoint of the program `weir` or what `save` wrote.

    Raises:
        ValueError: A file is not what it should be; the message names it.
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        config = json.loads(path.read_text())
        kind, options = config["kind"], config["options"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected an object with the keys `kind` and `options`") from error
    cls = getattr(sys.modules["weir"], torch.ops.weir._language_model_name(kind))
    model = cls(**options)
    model._cpp.load_weights(str(directory))
    return model


def generate_options():
    """The options of `LanguageModel.generate`: {name: (type, default, help)}."""
    rows = json.loads(torch.ops.weir._describe_generate())
    return {row["name"]: (row["type"], row["default"], row["help"]) for row in rows}
