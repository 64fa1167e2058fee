"""Refuse files that were exported in training mode: their outputs depend on chance and on the rest of the batch.

`eval()` switches a module. In an exported file the mode is fixed, in the arguments of two kinds of operations:

    dropout       drops values at random
    batch-norm    normalises by the mean and variance of the batch, although it holds those of training
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import fx
from torch.export import ExportedProgram

from roundwise.errors import ModelError
from roundwise.graph.graph import bind, is_random


def refuse_training_program(spec: str, program: ExportedProgram) -> None:
    """Make sure that a program of torch.export is one for evaluation.

    Raises:
        ModelError: it is not.
    """
    modules = [module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule)]
    nodes = [node for module in modules for node in module.graph.nodes if node.op == "call_function"]
    _refuse(spec, [str(node.target) for node in nodes if hasattr(node.target, "_schema") and _trains(node)])


def refuse_training_onnx(path: Path) -> None:
    """Make sure that an ONNX file is one for evaluation.

    Raises:
        ModelError: it is not.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)

    def value(tensor: Any) -> Any:
        """Its numbers; True where they lie in a file beside this one, which is not read: they could be that."""
        outside = onnx.external_data_helper.uses_external_data(tensor)
        return True if outside else onnx.numpy_helper.to_array(tensor)

    fixed = {tensor.name: value(tensor) for tensor in model.graph.initializer if not tensor.dims}
    found: list[str] = []
    for node in _nodes(model.graph):
        settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant" and "value" in settings:
            fixed[node.output[0]] = value(settings["value"])
        drops = node.op_type == "Dropout" and len(node.input) > 2 and bool(fixed.get(node.input[2], False))
        if drops or (node.op_type == "BatchNormalization" and settings.get("training_mode")):
            found.append(node.op_type)
    _refuse(str(path), found)


def _trains(node: fx.Node) -> bool:
    arguments = bind(node)
    if arguments.get("training") is True and arguments.get("running_mean") is not None:
        return True
    # Other operations may draw random numbers in evaluation too.
    return is_random(node) and bool({"train", "training", "dropout_p"} & arguments.keys())


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph, and of the branches and bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _refuse(spec: str, found: list[str]) -> None:
    if found:
        raise ModelError(
            f"{spec} was exported in training mode: it has {', '.join(dict.fromkeys(found))} as in training "
            f"({len(found)} operations), so its outputs depend on chance or on the other samples in a batch, and "
            "no measurement would hold. Export it again, after model.eval()."
        )
