"""The one pass: what layers see, how often operations run, what is held meanwhile, and what is told about it."""

import functools
import gc
import re
import tempfile
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from facts import has, raises
from recipes import quantizing
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import roundwise as rw
from roundwise.artifacts.emit import emit
from roundwise.engine.rewriting import folded as rewrite
from roundwise.engine.store import ActivationStore
from roundwise.engine.stream import COMPENSATES, Stream
from roundwise.engine.tasks import tasks_of_layers
from roundwise.engine.unit import generator_for
from roundwise.events import LayerFinished, LayerStarted, Planned
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.operators import WEIGHTED
from roundwise.methods.interfaces import RangeEstimator, Rounding, RoundingSolver, Traits
from roundwise.statistics import Nothing, Statistic

aten = torch.ops.aten


class Chain(nn.Module):
    """`depth` layers of one width, with one operation before the first."""

    def __init__(self, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(depth))

    def forward(self, x):
        x = x.sigmoid()
        for layer in self.layers:
            x = layer(x).relu()
        return x


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        y = self.b(self.a(x).relu()) + x
        return self.c(y.relu()) + y


class Branches(nn.Module):
    """Three branches of one input, joined; a layer that is used twice; two outputs, one of them early."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 6, 1)
        self.left, self.right = nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.twice = nn.Conv2d(14, 14, 1)
        self.head = nn.Linear(14, 7)

    def forward(self, x):
        stem = self.stem(x)
        joined = torch.cat([self.left(stem), F.max_pool2d(stem, 3, 1, 1), self.right(stem)], 1)
        twice = self.twice(self.twice(joined).relu())
        first, second = twice.chunk(2, 1)
        return {"head": self.head(twice.mean((2, 3))), "early": stem.flatten(1), "parts": (first, second)}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return self.out(x + self.attention(x, x, x, need_weights=False)[0])


NETWORKS = {"chain": Chain, "residual": Residual, "branches": Branches, "attention": Attention}
SAMPLES = torch.randn(11, 4, 5, 5, generator=torch.Generator().manual_seed(1))
COARSE = rw.Weights(bits=3)


@functools.cache
def captured(name):
    torch.manual_seed(0)
    return rewrite(TorchExport().graph(NETWORKS[name]().eval(), (SAMPLES[:2],), {}))


def stream(graph, recipe, store, *, batch=4, progress=None, inputs=None):
    """A stream over samples that the store holds, as those of a loader are; `inputs` gets weak references to them."""
    batches = [[store.hold(part.clone())] for part in SAMPLES.split(batch)]
    if inputs is not None:
        inputs += [weakref.ref(leaf) for (leaf,) in batches]
    return Stream(
        graph,
        batches,
        len(SAMPLES),
        tasks_of_layers(graph, recipe.stage(rw.Quantize)),
        seed=recipe.seed,
        store=store,
        progress=progress,
    )


class Batches(Statistic):
    """Everything that a statistic is shown."""

    def __init__(self):
        self.shown = []

    @classmethod
    def empty(cls, layer, samples, generator):
        return cls()

    def add(self, inputs, targets, samples):
        self.shown.append((inputs, targets))


@dataclass(frozen=True)
class Recorder(RoundingSolver[Batches]):
    """Rounds up, which is far from nearest, and keeps copies of what it was given."""

    seen: dict = field(default_factory=dict, compare=False)
    traits: Traits = Traits()
    needs: ClassVar[type] = Batches

    def solve(self, problem, generator):
        self.seen[problem.name] = [(inputs.clone(), targets.clone()) for inputs, targets in problem.statistics.shown]
        return Rounding(problem.grid.clip(problem.grid.in_codes(problem.weight).ceil()).int())


@dataclass(frozen=True)
class Failing(RoundingSolver[Nothing]):
    """Does what it is told to, at the layer that it is told to."""

    layer: str
    act: object
    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem, generator):
        codes = problem.grid.quantize(problem.weight)
        return Rounding(self.act(codes) if problem.name == self.layer else codes)


class Values(fx.Interpreter):
    """Every value of a graph's run, by the name of its node."""

    def __init__(self, graph):
        super().__init__(graph.module())
        self.seen = {}

    def run_node(self, n):
        self.seen[n.name] = value = super().run_node(n)
        return value

    def call_function(self, target, args, kwargs):
        # Weights lie as in the stream: on some processors kernels for other layouts give other last digits.
        if target in WEIGHTED and args[1].dim() == 4:
            args = (args[0], args[1].contiguous(memory_format=torch.channels_last), *args[2:])
        if target is torch.ops.aten.view.default:
            target = torch.ops.aten.reshape.default
        return super().call_function(target, args, kwargs)


def values_of(graph, inputs):
    interpreter = Values(graph)
    interpreter.run(inputs)
    return interpreter.seen


# ------------------------------------------------------------------------------------------------ what layers see


@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_sees_the_inputs_of_the_finished_model_and_the_float_networks_targets(name):
    graph, recorder = captured(name), Recorder()
    recipe = quantizing(COARSE, recorder)
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        result = stream(graph, recipe, store).run()
    quantized = emit(graph, result.weights)
    nodes = {node.name: node for node in quantized.operations.nodes}
    assert list(recorder.seen) == [weight.layer.name for weight in result.weights]
    for number, part in enumerate(SAMPLES.split(4)):
        floats, finals = values_of(graph, part), values_of(quantized, part)
        for weight in result.weights:
            layer = weight.layer
            inputs, targets = recorder.seen[layer.name][number]
            expected = finals[nodes[layer.node.name].args[0].name]
            assert torch.equal(inputs, expected), layer.name
            assert torch.equal(targets, floats[layer.node.name]), layer.name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_solver_that_asks_for_them_sees_the_float_networks_inputs(name):
    graph, recorder = captured(name), Recorder(traits=Traits(float_inputs=True))
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        result = stream(graph, quantizing(COARSE, recorder), store).run()
    for number, part in enumerate(SAMPLES.split(4)):
        floats = values_of(graph, part)
        for layer in (weight.layer for weight in result.weights):
            inputs, targets = recorder.seen[layer.name][number]
            assert torch.equal(inputs, floats[layer.input.name]), layer.name
            assert torch.equal(targets, floats[layer.node.name]), layer.name


def test_methods_of_one_layer_may_see_inputs_of_different_streams():
    # Both ask for one kind of statistic, but range estimation is shown the quantized network's inputs, always.
    graph, recorder = captured("chain"), Recorder(traits=Traits(float_inputs=True))
    shown = {}

    @dataclass(frozen=True)
    class Watching(RangeEstimator[Batches]):
        needs: ClassVar[type] = Batches

        def estimate(self, weight, codebook, granularity, statistics, layer):
            shown[layer] = torch.cat([inputs for inputs, _ in statistics.shown]).clone()
            return rw.ranges.MinMax().estimate(weight, codebook, granularity, Nothing(), layer)

    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        stream(graph, quantizing(rw.Weights(bits=3, ranges=Watching()), recorder), store).run()
    first, *later = shown
    for layer in shown:
        same = torch.equal(shown[layer], torch.cat([inputs for inputs, _ in recorder.seen[layer]]))
        assert same == (layer == first)
    assert later


class Sums(nn.Module):
    """Shortcuts of all kinds: float, quantized, computed after the layer, quantized after the layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f, self.g = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(7))

    def forward(self, x):
        x = x.sigmoid()
        y = (self.a(x) + x).relu()  # no quantized layer before it
        z = self.b(y)
        z = (z + y * 0.5).relu()  # after `b` in the program, but it waits for nothing
        z = (self.c(z) + self.d(z)).relu()  # `d` comes after `c`
        z += self.e(z)
        z = self.f(z) + self.a(z)  # `a` is quantized already; a layer that is used twice makes up for nothing
        return self.g(z) * 2 + z


@pytest.mark.parametrize("batch", [4, 11])
def test_a_solver_that_is_addition_aware_sees_targets_that_make_up_for_what_is_added(batch):
    graph = rewrite(TorchExport().graph(Sums().eval(), (SAMPLES[:2],), {}))
    recorder = Recorder(traits=Traits(addition_aware=True))
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        result = stream(graph, quantizing(COARSE, recorder), store, batch=batch).run()
    quantized = emit(graph, result.weights)
    floats, finals = values_of(graph, SAMPLES), values_of(quantized, SAMPLES)
    nodes = {node.name: node for node in quantized.operations.nodes}
    conv = aten.conv2d.default
    making_up = {"b": aten.mul.Tensor, "d": conv, "e": aten.relu.default, "f": conv}
    for layer in (weight.layer for weight in result.weights):
        expected = floats[layer.node.name]
        if layer.name in making_up:
            other = layer.addend.name
            assert nodes[other].target == making_up[layer.name]
            assert not torch.equal(floats[other], finals[other])
            expected = expected + floats[other] - finals[other]
        seen = torch.cat([targets for _, targets in recorder.seen[layer.name]])
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    assert {report.name for report in result.reports if COMPENSATES in report.note} == making_up.keys()


def test_a_layer_that_makes_up_for_a_shortcut_brings_the_sum_nearer_to_the_float_networks():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.coarse, self.fine = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.coarse(x)
            return self.fine(y) + y

    torch.manual_seed(0)
    model, errors = Shortcut().eval(), {}
    for aware in (False, True):
        solver = rw.rounding.GramAdaRound(any_code=True, fit_scale=False, addition_aware=aware)
        recipe = quantizing(rw.Weights(bits=2), solver, overrides={"fine": rw.Weights(bits=8)})
        errors[aware] = rw.quantize(model, SAMPLES, recipe).report.output_error
    assert errors[True] < errors[False]


@pytest.mark.parametrize("low", [float("-inf"), torch.finfo(torch.float32).min, -1e4])
def test_nothing_is_made_up_for_a_mask(low):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.value = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            mask = torch.where(self.gate(x) > 0, 0.0, low)
            return (self.value(x) + mask).sigmoid()

    torch.manual_seed(0)
    recipe = quantizing(rw.Weights(bits=2), rw.rounding.GramAdaRound(addition_aware=True))
    report = rw.quantize(Gate().eval(), SAMPLES.flatten(0, 2), recipe).report
    assert not any(COMPENSATES in layer.note for layer in report.layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_reported_errors_are_those_of_the_finished_model(name):
    graph = captured(name)
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        result = stream(graph, quantizing(COARSE, Recorder()), store).run()
    quantized = emit(graph, result.weights)
    floats, finals = values_of(graph, SAMPLES), values_of(quantized, SAMPLES)

    def relative(name):
        return float((floats[name] - finals[name]).square().sum() / floats[name].square().sum())

    for weight, report in zip(result.weights, result.reports, strict=True):
        assert report.error == pytest.approx(relative(weight.layer.node.name), rel=1e-3)
        assert report.flips > 0.1
    assert result.reports[0].error > 2 * result.reports[0].error_nearest
    outputs = next(node for node in graph.operations.nodes if node.op == "output").all_input_nodes
    errors = [relative(node.name) for node in outputs]
    assert [output.error for output in result.outputs] == pytest.approx(errors, rel=1e-3)
    assert result.output_error == max(output.error for output in result.outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_of_nearest_rounding_is_that_of_all_outputs_in_slices_of_any_size(name, monkeypatch):
    errors = []
    for size in (1, 300, 1 << 22):
        monkeypatch.setattr("roundwise.engine.distance_by_items.OUTPUT_SLICE", size)
        with ActivationStore(1 << 30, torch.device("cpu")) as store:
            result = stream(captured(name), quantizing(COARSE, rw.rounding.Ceil()), store).run()
        errors.append([report.error_nearest for report in result.reports])
    assert errors[0] == pytest.approx(errors[2], rel=1e-4)
    assert errors[1] == pytest.approx(errors[2], rel=1e-4)
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        nearest = stream(captured(name), quantizing(COARSE, rw.rounding.Nearest()), store).run()
    assert errors[2][0] == pytest.approx(nearest.reports[0].error, rel=1e-4)  # the first layer's inputs are the same


@pytest.mark.parametrize("name", NETWORKS)
def test_of_many_samples_nearest_rounding_is_compared_on_some(name, monkeypatch):
    graph, batches = captured(name), SAMPLES.split(2)
    monkeypatch.setattr("roundwise.engine.stream.SIMPLER_SAMPLES", len(SAMPLES) // 3)  # on every third batch
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        first = stream(graph, quantizing(COARSE, rw.rounding.Ceil()), store, batch=2).run().reports[0]
        nearest = stream(graph, quantizing(COARSE, rw.rounding.Nearest()), store).run()
        ceil = stream(graph, quantizing(COARSE, rw.rounding.Ceil()), store).run()
    node = ceil.weights[0].layer.node.name
    floats = [values_of(graph, batch)[node] for batch in batches[::3]]

    def distance(result):
        quantized = emit(graph, result.weights)
        pairs = zip(batches[::3], floats, strict=True)
        return sum(float((values_of(quantized, batch)[node] - y).square().sum()) for batch, y in pairs)

    assert first.error == pytest.approx(ceil.reports[0].error, rel=1e-4)
    assert first.error_nearest / first.error == pytest.approx(distance(nearest) / distance(ceil), rel=1e-3)
    assert first.error_nearest != pytest.approx(nearest.reports[0].error, rel=1e-4)


def test_with_nearest_rounding_both_errors_are_one_and_nothing_flips():
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        for layer in stream(captured("residual"), quantizing(COARSE, rw.rounding.Nearest()), store).run().reports:
            assert layer.error == layer.error_nearest > 0
            assert layer.flips == 0


def test_a_layer_that_stays_in_float_computes_on_what_the_quantized_layers_before_it_give():
    graph = captured("chain")
    recipe = quantizing(COARSE, rw.rounding.Ceil(), overrides={"layers.1": None})
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        result = stream(graph, recipe, store).run()
    assert [layer.name for layer in result.reports] == ["layers.0", "layers.2"]
    expected = emit(graph, result.weights).module()(SAMPLES)
    error = float((expected - graph.module()(SAMPLES)).square().sum() / graph.module()(SAMPLES).square().sum())
    assert result.output_error == pytest.approx(error, rel=1e-3)


def test_infinite_outputs_that_both_networks_agree_on_are_no_error():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 6)

        def forward(self, x):
            return self.linear(x).masked_fill(torch.arange(6) > 3, float("-inf"))

    model = rw.quantize(Masked().eval(), SAMPLES[:, :, 0, 0], quantizing(rounding=rw.rounding.Nearest()))
    assert 0 < model.report.output_error < 0.1


# ------------------------------------------------------------------------------------------------ what runs how often


class Calls(TorchDispatchMode):
    """Counts operations as they reach the kernels."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize(("rounding", "measurements"), [(rw.rounding.Nearest(), 0), (rw.rounding.Ceil(), 1)])
def test_each_operation_runs_once_per_stream_and_batch_however_deep_the_network(depth, rounding, measurements):
    graph = rewrite(TorchExport().graph(Chain(depth).eval(), (SAMPLES[:2],), {}))
    batches, rehearsal = 3, 1
    with ActivationStore(1 << 30, torch.device("cpu")) as store, Calls() as calls:
        stream(graph, quantizing(COARSE, rounding), store).run()
    # Before the first layer the streams are one; nearest rounding is measured where it is not the answer.
    assert calls.counts["sigmoid"] == batches + rehearsal
    assert calls.counts["convolution"] == depth * ((2 + measurements) * batches + rehearsal)
    assert calls.counts["relu"] == depth * (2 * batches + rehearsal)


# ------------------------------------------------------------------------------------------------------ what is held


@pytest.fixture
def _only_new_objects():
    """Garbage is looked for among a test's own objects only: among all of a long run's, it takes seconds each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [4, 11])
def test_the_plan_is_the_most_that_is_ever_held(name, batch):
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        run = stream(captured(name), quantizing(COARSE, Recorder()), store, batch=batch)
        plan = run.plan
        run.run()
        assert plan.widest_layer in plan.layers
        # Per batch nothing is held that was not planned; the last batch is smaller than the one that was rehearsed.
        assert 0.5 * plan.widest_bytes < store.peak <= plan.widest_bytes


@pytest.mark.usefixtures("_only_new_objects")
def test_everything_is_dropped_after_its_last_use():
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        inputs = []
        run = stream(captured("branches"), quantizing(COARSE, rw.rounding.Ceil()), store, inputs=inputs)
        assert all(ref() is not None for ref in inputs)
        result = run.run()
        gc.collect()
        assert [ref() for ref in inputs] == [None] * len(inputs)
        assert (store.in_memory, store.on_disk) == (0, 0)
        assert result.weights


def test_what_is_held_does_not_grow_with_depth():
    peaks = []
    for depth in (2, 6):
        graph = rewrite(TorchExport().graph(Chain(depth).eval(), (SAMPLES[:2],), {}))
        with ActivationStore(1 << 30, torch.device("cpu")) as store:
            stream(graph, quantizing(COARSE, rw.rounding.Nearest()), store).run()
            peaks.append(store.peak)
    assert peaks[0] == peaks[1]


@pytest.mark.usefixtures("_only_new_objects")
def test_weights_of_a_layer_that_is_called_again_are_dropped_after_its_last_call():
    def held():
        gc.collect()
        objects = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        return sum(tensor.is_floating_point() and tensor.shape == (14, 14, 1, 1) for tensor in objects)

    graph = captured("branches")
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        during = []
        run = stream(graph, quantizing(COARSE, rw.rounding.Nearest()), store, progress=lambda _: during.append(held()))
        before = held()
        (twice,) = [layer for layer in run.run().reports if layer.name == "twice"]
        assert has(twice.note, 2)
        assert held() == before < max(during)


# --------------------------------------------------------------------------------------------------- what is told


def test_the_plan_stands_before_the_run_and_says_what_comes():
    recipe = quantizing(COARSE, rw.rounding.AdaRound(iterations=5), memory_budget=1000)
    with ActivationStore(1000, torch.device("cpu")) as store:
        plan = stream(captured("residual"), recipe, store).plan
    assert plan.layers == ("a", "b", "c")
    assert plan.samples == 11
    sample = SAMPLES[0].nbytes
    # At b, and again at c: its input and output, and what the shortcut needs, each in both streams.
    assert plan.widest_bytes == 11 * 6 * sample
    assert plan.spilled_bytes == plan.widest_bytes - 1000
    assert 0 < plan.seconds < 60
    assert has(plan, 3, 11, "25.8 KiB", "24.8 KiB", "9.4 KiB")


def test_the_plan_counts_the_solvers_work():
    seconds = []
    for iterations in (1, 10_000):
        with ActivationStore(1 << 30, torch.device("cpu")) as store:
            recipe = quantizing(COARSE, rw.rounding.AdaRound(iterations=iterations))
            seconds.append(stream(captured("chain"), recipe, store).plan.seconds)
    assert seconds[1] > 20 * seconds[0]


def test_events_come_in_order_with_the_time_left():
    events = []
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        run = stream(captured("residual"), quantizing(COARSE, rw.rounding.Nearest()), store, progress=events.append)
        assert events == []
        result = run.run()
    assert isinstance(events[0], Planned)
    assert events[0].plan is run.plan
    assert [type(event) for event in events[1:]] == [LayerStarted, LayerFinished] * 3
    assert [(event.name, event.index, event.total) for event in events[1::2]] == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
    assert [event.report for event in events[2::2]] == result.reports
    assert all(event.seconds_left >= 0 for event in events[2::2])
    assert set(result.seconds) == {"forward", "ranges", "rounding"}
    assert all(seconds > 0 for seconds in result.seconds.values())


def test_print_will_do_as_progress(capsys):
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        stream(captured("residual"), quantizing(COARSE, rw.rounding.Ceil()), store, progress=print).run()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert has(lines[0], 3, 11)
    assert has(lines[1], "[1/3] layer 'a'")
    assert has(lines[2], "[1/3] layer 'a'")
    assert re.search(r"\d", lines[2].removeprefix("[1/3] layer 'a'"))


# -------------------------------------------------------------------------------------------- when something goes wrong


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=["an error", "ctrl-c"])
def test_an_error_in_a_solver_comes_through_and_leaves_no_files(error, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail(codes):
        raise error

    model, loader = Chain(2).eval(), list(SAMPLES.split(4))
    recipe = quantizing(COARSE, Failing("layers.1", fail), memory_budget=0)
    with pytest.raises(type(error)) as caught:
        rw.quantize(model, loader, recipe)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("act", "found"),
    [(lambda codes: codes + 8, (4, 11)), (lambda codes: codes[:, :2], ("[1, 2, 36]",))],
    ids=["beyond the grid", "of another shape"],
)
def test_a_solver_that_answers_with_no_codes_of_the_grid_is_named(act, found):
    with (
        ActivationStore(1 << 30, torch.device("cpu")) as store,
        raises(rw.RecipeError, "Failing", "'a'", *found, "[1, 4, 36]", -4, 3),
    ):
        stream(captured("residual"), quantizing(COARSE, Failing("a", act)), store).run()


def test_a_layers_randomness_depends_on_its_name_and_the_seed_alone():
    def draw(seed, name):
        return torch.rand(4, generator=generator_for(seed, name)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, name)) for seed in (0, 1) for name in ("a", "b")}) == 4
    state = torch.get_rng_state()
    draw(3, "c")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["chain", "branches"])
def test_with_no_budget_at_all_everything_between_layers_is_on_disk(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk = []

    def watch(event):
        assert store.in_memory == 0
        on_disk.append(store.on_disk)

    with ActivationStore(0, torch.device("cpu")) as store:
        result = stream(captured(name), quantizing(COARSE, rw.rounding.Ceil()), store, progress=watch).run()
    assert max(on_disk) > 0
    assert list(tmp_path.iterdir()) == []
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        expected = stream(captured(name), quantizing(COARSE, rw.rounding.Ceil()), store).run()
    assert result.output_error == expected.output_error
    assert [layer.error for layer in result.reports] == [layer.error for layer in expected.reports]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("outputs", [1, 3, 40_000])
def test_the_error_of_more_outputs_than_are_compared_at_a_time_is_that_of_all(outputs, dtype):
    torch.manual_seed(0)
    model, samples = nn.Linear(4, outputs).eval().to(dtype), torch.randn(32, 4, dtype=dtype)
    quantized = rw.quantize(model, samples, quantizing(COARSE, rw.rounding.Nearest(), batch_size=32))
    with torch.no_grad():
        wanted, given = model(samples).double(), quantized(samples).double()
    error = (wanted - given).square().sum() / wanted.square().sum()
    assert quantized.report.layers[0].error == pytest.approx(float(error), rel=1e-2 if dtype == torch.float16 else 1e-4)
