"""A network that returns tensors inside it: the same outputs, and the tensors that the names mean."""

import torch
from facts import raises
from torch import nn

import roundwise as rw
from roundwise.engine.features import WatchedNetwork, feature_names


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bn, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x, *, scale):
        inner = torch.relu(self.bn(self.first(x * scale)))
        return {"logits": self.second(inner.mean((2, 3))), "inner": [inner]}


def network():
    torch.manual_seed(0)
    model = Net().eval()
    inputs = {"x": torch.randn(6, 3, 5, 5), "scale": torch.ones(6, 1, 1, 1)}
    return model, rw.capture(model, inputs), inputs


def watched(graph, names):
    nodes = {node.name: node for node in graph.operations.nodes}
    return WatchedNetwork(graph.module(), graph.operations, graph.structure, [nodes[name] for name in names])


def test_outputs_are_those_of_the_network_and_features_are_the_tensors_inside():
    model, captured, inputs = network()
    names = feature_names(captured.graph, ("relu",))
    outputs, features = watched(captured.graph, names)(inputs["x"], scale=inputs["scale"])
    expected = model(**inputs)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(features, expected["inner"])


def test_a_name_means_an_operation_or_a_layer_and_a_glob_means_several():
    _, captured, _ = network()
    assert feature_names(captured.graph, ("first",)) == [
        call.name for call in captured.graph.operations.nodes if "conv2d" in str(call.target)
    ]
    assert len(feature_names(captured.graph, ("first", "second"))) == 2
    assert len(feature_names(captured.graph, ("*",))) > 4
    with raises(rw.RecipeError, "third", "first"):
        feature_names(captured.graph, ("first", "third"))


def test_a_trainable_network_gives_the_value_behind_batch_norm_and_quantizer():
    _, captured, inputs = network()
    quantize = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest(), rw.Activations(bits=4))
    module = rw.trainable(captured, inputs, quantize)
    (name,) = feature_names(module.network.graph, ("relu",))
    module.eval()
    outputs, (feature,) = module.watched([name])(**inputs)
    torch.testing.assert_close(outputs, module(**inputs))
    torch.testing.assert_close(feature, module(**inputs)["inner"][0])
    assert feature.unique().numel() <= 16
