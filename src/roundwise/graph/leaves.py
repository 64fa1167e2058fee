"""Names for the tensors in a nested result, by their places in it."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree


def leaf_paths(tree: Any) -> list[tuple[str, ...]]:
    """The keys and positions that lead to each leaf, as text. A tree that is a leaf itself has the empty path.

    Leaves are numbered if a container's type was registered with PyTorch without names for its parts.

    Example:
        >>> leaf_paths({"head": (1, 2)})
        [('head', '0'), ('head', '1')]
    """
    try:
        paths = pytree.tree_flatten_with_path(tree)[0]
    except ValueError:
        return [(str(number),) for number in range(len(pytree.tree_leaves(tree)))]
    return [
        tuple(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in p) for p, _ in paths
    ]


def output_name(path: tuple[str, ...]) -> str:
    """The name of an output: `output` alone, `output_2` in a tuple, `logits` in a dict.

    Example:
        >>> [output_name(path) for path in ((), ("2",), ("head", "0"))]
        ['output', 'output_2', 'head_0']
    """
    return "_".join(path if path and not path[0].isdigit() else ("output", *path))
