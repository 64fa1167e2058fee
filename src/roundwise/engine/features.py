"""Tensors inside two networks, which training makes alike: "features" in the literature on distillation.

The float network and the network in training have operations of the same names, so a feature is named by its operation.
In the network in training it is the value that later operations read: after batch-norm and quantizer.

Reference:
    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec

from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.graph import CallStructure, Graph


class Watched(NamedTuple):
    """The result of a network whose features are watched.

    Attributes:
        outputs: as the network gives them.
        features: one tensor for each name, in the order of the names.
    """

    outputs: Any
    features: list[Tensor]


@final
class WatchedNetwork:
    """A network that returns its features beside its outputs.

    Args:
        module: has the parameters, buffers and modules that the operations use.
        operations: from the inputs to the output; they stay as they are.
        structure: of the inputs and outputs.
        features: the operations whose results are returned too.
    """

    def __init__(
        self, module: nn.Module, operations: fx.Graph, structure: CallStructure, features: Sequence[fx.Node]
    ) -> None:
        self._module, self._structure = module, structure
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        leaves, nesting = pytree.tree_flatten(graph.graph_copy(operations, copies))
        self._nesting = nesting if structure.out_spec is None else structure.out_spec
        graph.output((tuple(leaves), tuple(copies[node] for node in features)))
        self._run = type(fx.GraphModule(module, graph)).forward

    def __call__(self, *args: Any, **kwargs: Any) -> Watched:
        leaves, features = self._run(self._module, *input_leaves(self._structure, args, kwargs))
        return Watched(pytree.tree_unflatten(list(leaves), self._nesting), list(features))


def input_leaves(structure: CallStructure, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The inputs of a call without their nesting, in the order of the graph's inputs."""
    names, spec = structure.arguments, structure.in_spec
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    positional = spec.child(0).num_children
    nested = tuple(given[name] for name in names[:positional]), {name: given[name] for name in names[positional:]}
    return tree_flatten_spec(nested, spec)


def feature_names(graph: Graph, patterns: Sequence[str]) -> list[str]:
    """The operations that some names or globs mean, in the order of the graph.

    Args:
        graph: the float network.
        patterns: names of operations, as the report calls activations; or of layers, which mean their outputs.

    Raises:
        RecipeError: a pattern fits none of them.
    """
    of_layers: dict[str, str] = {call.name: layer.name for layer in find_layers(graph) for call in layer.calls}
    names = [
        node.name
        for node in graph.operations.nodes
        if node.op == "call_function"
        and isinstance(value := node.meta.get("val"), Tensor)
        and value.is_floating_point()
    ]
    known: Mapping[str, set[str]] = {name: {name, of_layers.get(name, name)} for name in names}
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(word, pattern) for words in known.values() for word in words):
            some = ", ".join(dict.fromkeys([*of_layers.values(), *names][:8]))
            raise RecipeError(
                f"Finetune: features has '{pattern}', and no layer or tensor has such a name. Give names or globs such "
                f"as {some}, …; the report calls activations by these names."
            )
    return [
        name
        for name, words in known.items()
        if any(fnmatch.fnmatchcase(word, pattern) for word in words for pattern in patterns)
    ]
