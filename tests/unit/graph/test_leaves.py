"""Names of outputs, by their places in the result."""

from collections import OrderedDict

from torch.utils import _pytree as pytree

from roundwise.graph.leaves import leaf_paths, output_name


class Nameless(OrderedDict):
    """A container whose type is registered with PyTorch without names for its parts."""


pytree.register_pytree_node(
    Nameless, lambda one: (list(one.values()), list(one)), lambda values, keys: Nameless(zip(keys, values, strict=True))
)


def test_outputs_are_named_by_their_places():
    assert [output_name(path) for path in leaf_paths(1)] == ["output"]
    assert [output_name(path) for path in leaf_paths((1, {"a": 2}))] == ["output_0", "output_1_a"]
    assert [output_name(path) for path in leaf_paths({"logits": 1, "hidden": [2, 3]})] == [
        *("logits", "hidden_0", "hidden_1"),
    ]


def test_parts_of_a_container_without_names_are_numbered():
    assert [output_name(path) for path in leaf_paths(Nameless(a=1, b=2))] == ["output_0", "output_1"]
