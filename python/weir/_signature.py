# SPDX-License-Identifier: Apache-2.0
"""Signatures and docstrings from the tables of the C++ side."""
import inspect

_TYPES = {
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "string": "str",
    "integer or none": "int | None",
    "integer or two integers": "int | tuple[int, int]",
    "integer or tensor": "int | torch.Tensor",
    "integer, tensor or none": "int | torch.Tensor | None",
    "number or none": "float | None",
    "list of integers": "list[int]",
    "list of strings": "list[str]",
    "table": "dict",
    "tensor": "torch.Tensor",
    "tensor or none": "torch.Tensor | None",
}


def signature(rows, method=False):
    """Required rows first, in their order: Python wants it so, and so do the published packages."""
    parameters = [
        inspect.Parameter(
            row["name"],
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=row.get("default", inspect.Parameter.empty),
            annotation=_TYPES[row["type"]],
        )
        for row in rows
    ]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)] if method else []
    return inspect.Signature([*own, *parameters])


def arguments(rows):
    """An `Args:` section."""
    lines = ["Args:"]
    for row in rows:
        default = f" Default {row['default']!r}." if "default" in row else ""
        lines.append(f"    {row['name']} ({_TYPES[row['type']]}): {row['help'].rstrip('.')}.{default}")
    return "\n".join(lines)
