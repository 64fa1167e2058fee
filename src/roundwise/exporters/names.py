"""The names of a program's inputs and outputs in an exported file."""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from roundwise.graph.leaves import leaf_paths, output_name


def input_names(program: ExportedProgram) -> tuple[str | None, ...]:
    """The file's input for each leaf of the model's arguments, in order; None where the leaf is not a tensor."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    return tuple(spec.arg.name if isinstance(spec.arg, TensorArgument) else None for spec in specs)


def constant_inputs(program: ExportedProgram) -> tuple[Any, ...]:
    """For each leaf of the model's arguments, the value that was fixed at capture; None where the leaf is a tensor."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    return tuple(spec.arg.value if isinstance(spec.arg, ConstantArgument) else None for spec in specs)


def output_leaves(program: ExportedProgram) -> tuple[int, ...]:
    """Which leaves of the model's result are outputs of the file: all but constants such as None."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    return tuple(i for i, spec in enumerate(specs) if not isinstance(spec.arg, ConstantArgument))


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """A name for each output of the file: its place in the model's result.

    A single tensor is `output`, the third of a tuple `output_2`, `{"logits": …}` is `logits`.
    """
    spec = program.call_spec.out_spec
    assert spec is not None
    paths = leaf_paths(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    taken = set(input_names(program))
    names: list[str] = []
    for leaf in output_leaves(program):
        name = output_name(paths[leaf])
        while name in taken:
            name += "_output"
        taken.add(name)
        names.append(name)
    return tuple(names)
