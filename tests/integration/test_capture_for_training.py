"""A captured graph knows all that training needs: it can be trained as the model can, or says what it lacks."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from recipes import quantizing
from thirds import in_thirds
from torch import fx, nn

import roundwise as rw
from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends import TorchExport
from roundwise.graph.graph import bind
from roundwise.graph.training import RunningStatistics, TensorOrigin
from roundwise.graph.transforms.drop_dropout import DROPOUTS
from roundwise.graph.transforms.normalize import normalize

aten = torch.ops.aten


def capture(model, *inputs):
    return TorchExport().graph(model.eval(), inputs, {})


def dropouts(graph):
    return [(node.target, node.args[1]) for node in graph.operations.nodes if node.target in DROPOUTS]


class InTrainingMode(fx.Interpreter):
    """Runs a graph in normal form as the model would run in training mode, and updates copies of its tensors."""

    def __init__(self, graph):
        super().__init__(graph.module())
        self.state = {name: value.clone() for name, value in graph.constants.items()}
        self.statistics = graph.training.running_statistics
        self.batches = {entry.counter: entry.batches for entry in self.statistics.values()}

    def get_attr(self, target, args, kwargs):
        return self.state[target]

    def run_node(self, n):
        if n.target in DROPOUTS:
            x, probability, _ = self.map_nodes_to_values(n.args, n)
            return n.target(x, probability, True)
        if n.target is aten.batch_norm.default and (mean := bind(n)["running_mean"]) is not None:
            entry = self.statistics[mean.target]
            self.batches[entry.counter] += 1
            momentum = 1 / self.batches[entry.counter] if entry.momentum is None else entry.momentum
            arguments = self.map_nodes_to_values(n.args, n)
            return n.target(*arguments[:5], True, momentum, *arguments[7:])
        return super().run_node(n)


def check_training(model, *inputs, graph=None):
    """Two training steps of the graph give what two steps of the model give: outputs, statistics and counts."""
    running = InTrainingMode(normalize(graph or capture(model, *inputs)))
    original = copy.deepcopy(model).train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = original(*inputs)
        torch.manual_seed(seed)
        (found,) = running.run(*inputs, enable_io_processing=False)
        torch.testing.assert_close(found, expected)
    buffers = dict(original.named_buffers())
    assert {name for name in running.state if "running" in name} == {name for name in buffers if "running" in name}
    for name, buffer in buffers.items():
        if name in running.batches:
            assert running.batches[name] == buffer
        else:
            torch.testing.assert_close(running.state[name], buffer)


def images(*size):
    return torch.randn(6, 4, *size)


# ------------------------------------------------------------------------------------------------------------ dropout


class Functional(nn.Module):
    def __init__(self, inplace=False):
        super().__init__()
        self.conv, self.inplace = nn.Conv2d(4, 4, 1), inplace

    def forward(self, x):
        x = F.dropout(self.conv(x), 0.25, training=self.training, inplace=self.inplace)
        return F.dropout2d(
            x,
            0.375,
            training=self.training,
        )


class Classifier(nn.Module):
    """Ends as torchvision's classifiers do."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(4, 8, 3), nn.Dropout(0.25, inplace=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.drop(torch.flatten(F.relu_(self.conv(x)).mean((2, 3), keepdim=True), 1)))


class ReadAgain(nn.Module):
    """Reads what dropout was given once more."""

    def __init__(self, drop, then):
        super().__init__()
        self.conv, self.drop, self.then = nn.Conv2d(4, 4, 1), drop, then

    def forward(self, x):
        x = self.conv(x)
        y = self.drop(x)
        return self.then(x + 2 * y)


class ThroughAView(nn.Module):
    """Reads what dropout has overwritten, through a view."""

    def __init__(self, before):
        super().__init__()
        self.conv, self.drop, self.before = nn.Conv2d(4, 4, 1), nn.Dropout(0.5, inplace=True), before

    def forward(self, x):
        x = self.conv(x)
        view = x.flatten(1) if self.before else None
        y = self.drop(x[:, :2])
        return view if self.before else x + y.mean()


DROPPING = {
    "beside pure operations": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.25), nn.ReLU()),
        [(aten.dropout.default, 0.25)],
    ),
    "beside operations that are made pure": (
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.25), nn.Hardtanh(inplace=True), nn.Dropout(0.5)),
        [(aten.dropout.default, 0.25), (aten.dropout.default, 0.5)],
    ),
    "of every kind": (
        nn.Sequential(nn.Dropout2d(0.25), nn.Conv2d(4, 4, 1), nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.125)),
        [
            (aten.feature_dropout.default, 0.25),
            (aten.alpha_dropout.default, 0.5),
            (aten.feature_alpha_dropout.default, 0.125),
        ],
    ),
    "in place": (Classifier(), [(aten.dropout.default, 0.25)]),
    "as functions": (Functional(), [(aten.dropout.default, 0.25), (aten.feature_dropout.default, 0.375)]),
    "as functions in place": (Functional(True), [(aten.dropout.default, 0.25), (aten.feature_dropout.default, 0.375)]),
    **{
        f"of a tensor that is read again, {drop}, {then}": (ReadAgain(drop, then), [(operation, 0.25)])
        for then in (nn.Identity(), nn.Hardtanh(inplace=True))
        for drop, operation in (
            (nn.Dropout(0.25), aten.dropout.default),
            (nn.Dropout(0.25, inplace=True), aten.dropout.default),
            (nn.Dropout2d(0.25), aten.feature_dropout.default),
            (nn.Dropout2d(0.25, inplace=True), aten.feature_dropout.default),
            (nn.AlphaDropout(0.25), aten.alpha_dropout.default),
            (nn.FeatureAlphaDropout(0.25), aten.feature_alpha_dropout.default),
        )
    },
    "with probability 0": (nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout(0.0)), [(aten.dropout.default, 0.0)]),
}


@functools.cache
def dropping(name):
    return capture(DROPPING[name][0], images(5, 5))


@pytest.mark.parametrize("name", in_thirds(list(DROPPING)))
def test_dropout_is_kept_with_its_probability_and_trains_as_in_the_model(name):
    (model, expected), graph = DROPPING[name], dropping(name)
    assert dropouts(graph) == dropouts(normalize(graph)) == expected
    assert graph.training.notes == ()
    check_training(model, images(5, 5), graph=graph)


@pytest.mark.parametrize("name", in_thirds(list(DROPPING)))
def test_no_dropout_is_left_for_inference(name):
    graph = dropping(name)
    folded = rewrite(graph)
    assert dropouts(folded) == []
    torch.testing.assert_close(folded.module()(images(5, 5) * 0 + 1), graph.module()(images(5, 5) * 0 + 1))


def test_a_module_that_is_called_twice_drops_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout(0.25)

        def forward(self, x):
            return self.drop(self.conv(self.drop(x)))

    assert len(dropouts(capture(Twice(), images(3, 3)))) == 2
    check_training(Twice(), images(3, 3))


def test_an_exported_program_keeps_dropout_and_says_that_more_may_be_missing():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None), nn.Dropout(0.25)).eval()
    program = torch.export.export(model, (images(3, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    graph = TorchExport().graph(program, (images(3, 3),), {})
    assert dropouts(graph) == [(aten.dropout.default, 0.25)]
    assert graph.training.running_statistics["1.running_mean"] == RunningStatistics(None, "1.num_batches_tracked", 0)
    assert "exported program" in "".join(graph.training.notes)


def test_dropout_whose_result_is_overwritten_is_lost_and_said_to_be():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.drop = nn.Conv2d(4, 4, 1), nn.Dropout2d()

        def forward(self, x):
            x = self.conv(x)
            y = self.drop(x)  # in evaluation the same tensor
            y.relu_()
            return x + y

    graph = capture(Overwrites(), images(3, 3))
    assert dropouts(graph) == []
    assert any("1 dropout operation could" in note for note in graph.training.notes)


@pytest.mark.parametrize("before", [True, False])
def test_dropout_that_overwrites_a_part_of_another_tensor_is_lost_and_said_to_be(before):
    graph = capture(ThroughAView(before), images(3, 3))
    assert dropouts(graph) == []
    assert any("'drop' (Dropout)" in note for note in graph.training.notes)


def test_a_weight_behind_dropout_is_a_layer_for_inference_and_no_constant_in_training():
    class DropConnect(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return x @ F.dropout(self.weight, 0.25, self.training)

    graph = capture(DropConnect(), torch.randn(6, 4))
    assert dropouts(normalize(graph)) == [(aten.dropout.default, 0.25)]
    assert [str(node.target) for node in rewrite(graph).operations.nodes][-2:] == ["aten.linear.default", "output"]
    check_training(DropConnect(), torch.randn(6, 4))


# --------------------------------------------------------------------------------------------------------- batch-norm

NORMS = {
    "1d": (nn.BatchNorm1d(4), (3,), 0.1),
    "2d, another momentum": (nn.BatchNorm2d(4, eps=0.25, momentum=0.01), (3, 3), 0.01),
    "2d, average over all batches": (nn.BatchNorm2d(4, momentum=None), (3, 3), None),
    "3d, no scale and shift": (nn.BatchNorm3d(4, affine=False, momentum=None), (2, 2, 2), None),
    "synchronized": (nn.SyncBatchNorm(4, momentum=0.5), (3, 3), 0.5),
}


@pytest.mark.parametrize(
    ("name", "beside"), in_thirds(list(NORMS), {"pure": nn.Tanh(), "made pure": nn.Hardtanh(inplace=True)})
)
def test_batch_norm_is_kept_with_its_settings_and_trains_as_in_the_model(name, beside):
    norm, size, momentum = NORMS[name]
    model = nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (4, *size)), copy.deepcopy(norm), beside)
    graph = capture(model, images(*size))
    assert dict(graph.training.running_statistics) == {
        "2.running_mean": RunningStatistics(momentum, "2.num_batches_tracked", 0)
    }
    (node,) = (node for node in normalize(graph).operations.nodes if node.target is aten.batch_norm.default)
    assert bind(node)["eps"] == norm.eps
    if not isinstance(norm, nn.SyncBatchNorm):  # trains on GPUs only
        check_training(model, images(*size), graph=graph)


def test_batch_norm_without_running_statistics_is_the_same_in_both_modes():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert not capture(model, images(3, 3)).training.running_statistics
    check_training(model, images(3, 3))


def test_batch_norm_that_has_counted_batches_goes_on_counting():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, momentum=None))
    for _ in range(3):
        model.train()(images(3, 3))
    assert capture(model, images(3, 3)).training.running_statistics["1.running_mean"].batches == 3
    check_training(model, images(3, 3))


def test_a_shared_batch_norm_is_updated_by_every_call():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.BatchNorm2d(4, momentum=None)
            self.second, self.conv = self.first, nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.second(self.conv(self.first(x)))

    running = InTrainingMode(normalize(capture(Shared(), images(3, 3))))
    original, x = Shared().train(), images(3, 3)
    original.load_state_dict({**original.state_dict(), **running.state})
    (found,) = running.run(x, enable_io_processing=False)
    torch.testing.assert_close(found, original(x))
    torch.testing.assert_close(running.state["first.running_var"], original.second.running_var)
    assert running.batches == {"first.num_batches_tracked": 2}


# --------------------------------------------------------------------------------------------------------- parameters


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList([nn.Linear(4, 4)] * 2)
        self.register_buffer("shift", torch.randn(4))
        self.blocks[0].bias.requires_grad_(False)

    def forward(self, tokens):
        x = self.embed(tokens) + self.shift + torch.tensor([1.0, 2.0, 3.0, 4.0])
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_every_tensor_has_its_names_in_the_model_and_says_whether_it_is_trained():
    model = Tied()
    graph = capture(model, torch.randint(7, (6, 5)))
    origins = {frozenset(origin.names): origin for origin in graph.training.origins.values()}
    assert {names: (origin.kind, origin.trainable) for names, origin in origins.items()} == {
        frozenset({"embed.weight", "head.weight"}): ("parameter", True),
        frozenset({"head.bias"}): ("parameter", True),
        frozenset({"blocks.0.weight", "blocks.1.weight"}): ("parameter", True),
        frozenset({"blocks.0.bias", "blocks.1.bias"}): ("parameter", False),
        frozenset({"shift"}): ("buffer", False),
        frozenset(): ("constant", False),
    }
    assert graph.training.origins.keys() == graph.constants.keys()


def test_an_exported_program_knows_its_parameters_too():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    program = torch.export.export(model, (torch.randn(4, 3),))
    origins = TorchExport().graph(program, (torch.randn(4, 3),), {}).training.origins
    assert origins["0.weight"] == TensorOrigin(("0.weight",), "parameter", False)
    assert origins["1.weight"] == TensorOrigin(("1.weight",), "parameter", True)


def test_a_computed_weight_says_what_it_was_computed_from():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.BatchNorm1d(3))
    graph = rewrite(capture(model, torch.randn(6, 4)))
    sources = {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}
    origin = graph.training.origins["0.weight"]
    assert (set(origin.names), origin.kind, origin.trainable) == (sources, "computed", True)


# -------------------------------------------------------------------------------------- what the graph does not hold


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5))


class Head(nn.Module):
    """Runs in training only."""

    def __init__(self):
        super().__init__()
        self.conv, self.head, self.drop = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), nn.Dropout(0.25)

    def forward(self, x):
        x = self.conv(x)
        return (x, self.head(self.drop(x))) if self.training else x


class AttentionDropout(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


LOST = {
    "stochastic depth": (nn.Sequential(nn.Conv2d(4, 4, 1), DropPath(), DropPath()), (3, 3), ["'1' (DropPath) and 1 "]),
    "a head for training": (Head(), (3, 3), ["'head.weight'", "(Head)", "'drop' (Dropout)"]),
    "dropout of attention weights": (AttentionDropout(0.5), (4,), ["'attention' (MultiheadAttention)"]),
    "nothing": (AttentionDropout(0.0), (4,), []),
}


@pytest.mark.parametrize("name", LOST)
def test_what_only_training_does_is_noted(name):
    model, size, places = LOST[name]
    notes = capture(model, images(*size)).training.notes
    assert len(notes) == len(places)
    assert all(place in note for place, note in zip(places, notes, strict=True))


def test_a_network_that_was_captured_for_training_is_quantized_as_ever():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    without = nn.Sequential(*(part for part in model if not isinstance(part, nn.Dropout2d))).eval()
    samples = images(7, 7)
    recipe = quantizing(activations=rw.Activations())
    one, other = (rw.quantize(net, samples, recipe) for net in (model, without))
    assert torch.equal(one(samples), other(samples))
