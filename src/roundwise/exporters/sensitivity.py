"""How much the outputs of a network change if a runtime computes slightly differently: measured, not guessed.

Each operation runs with changes drawn at random, a few times, and the largest change of the outputs counts:

    Sums       every result of every operation times 1 ± 1e-6: sums in another order
    Kernels    what kernels of integers may do besides: a tenth of a step at each quantizer (sums and biases are
               rounded before the codes are); and where there are weights of 4 bits or no quantizers, the inputs of
               matrix products rounded to 8 bits
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from roundwise.artifacts import dialect
from roundwise.exporters.names import constant_inputs, input_names, output_leaves
from roundwise.graph.operators import MATRIX_INPUTS
from roundwise.runtimes.interface import Array

CHANGE = 1e-6
"""Relative size of the changes of sums. Larger changes give larger tolerances."""

STEPS = 0.1
"""Largest change at a quantizer, in steps of its scale. Half a step would be as much as quantization itself costs."""

INPUT_CODES = 127
"""Kernels that round the inputs of a matrix product do so to codes from −127 to 127."""

NARROW = 4
"""ONNX Runtime has kernels that round their inputs for weights of at most 4 bits."""

DRAWS = 3
"""How many times the network is run with changes. More runs find larger differences, and take longer."""


def changed_outputs(
    program: ExportedProgram, feeds: list[dict[str, Array]], *, kernels: bool
) -> list[list[list[Array]]]:
    """For each draw, the outputs for each set of inputs.

    Args:
        program: quantizers are operators in it (`dialect.with_operators`).
        feeds: inputs by their names.
        kernels: whether to change what kernels of integers may change besides.
    """
    module, names, constants = program.module(), input_names(program), constant_inputs(program)
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    assert program.call_spec.in_spec is not None
    products = kernels and (not quantizes_activations(program) or _has_narrow_weights(program))
    draws = []
    for seed in range(DRAWS):
        results = []
        for feed in feeds:
            leaves = [
                constant if name is None else torch.from_numpy(feed[name]).to(device)
                for name, constant in zip(names, constants, strict=True)
            ]
            args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
            with torch.no_grad(), _Changed(seed, steps=STEPS if kernels else 0.0, products=products):
                outputs = pytree.tree_leaves(module(*args, **kwargs))
            results.append([_array(outputs[leaf]) for leaf in output_leaves(program)])
        draws.append(results)
    return draws


def quantizes_activations(program: ExportedProgram) -> bool:
    """Whether anything but weights is quantized."""
    return any(node.target is dialect.operator_for(dialect.QUANTIZE) for node in program.graph.nodes)


def _has_narrow_weights(program: ExportedProgram) -> bool:
    """Whether some codes have `NARROW` bits or fewer."""
    operations = {dialect.operator_for(operation): operation for operation in dialect.DEQUANTIZERS}
    for node in program.graph.nodes:
        if node.target in operations:
            arguments = operations[node.target].arguments(node)
            if (arguments["qmax"] - arguments["qmin"]).bit_length() <= NARROW:
                return True
    return False


@final
class _Changed(TorchDispatchMode):
    """Every operation's results in floating point times 1 + a little, drawn for each number."""

    def __init__(self, seed: int, *, steps: float, products: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)
        self._steps, self._products, self._quantize = steps, products, dialect.operator_for(dialect.QUANTIZE)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._steps and func is self._quantize:
            args = (args[0] + self._uniform(args[0], 2 * self._steps * args[1]), *args[1:])
        elif self._products and func in MATRIX_INPUTS:
            place = MATRIX_INPUTS[func]
            step = args[place].abs().amax(-1, keepdim=True) / INPUT_CODES
            args = (*args[:place], args[place] + self._uniform(args[place], step), *args[place + 1 :])
        return pytree.tree_map_only(Tensor, self._change, func(*args, **(kwargs or {})))

    def _uniform(self, like: Tensor, width: Tensor | float) -> Tensor:
        """Random numbers from minus to plus half of a width."""
        return ((torch.rand(like.shape, generator=self._generator) - 0.5).to(like.device) * width).to(like)

    def _change(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        # Relative, and no less than neighbouring numbers of the dtype differ by.
        size = max(CHANGE, torch.finfo(value.dtype).eps) if value.dtype.itemsize < 4 else CHANGE
        return value * (1 + size * torch.randn(value.shape, generator=self._generator)).to(value)


def _array(value: Any) -> Array:
    array: Array = value.numpy(force=True) if isinstance(value, Tensor) else torch.as_tensor(value).numpy()
    return array
