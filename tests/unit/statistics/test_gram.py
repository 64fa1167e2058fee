"""Second moments: what is summed, which positions, which samples are held out."""

import dataclasses
import itertools

import pytest
import torch
from thirds import in_thirds

from roundwise.graph.matrix import LinearMap
from roundwise.numerics import moments as sums
from roundwise.numerics.moments import Moments
from roundwise.statistics import Addend, Gram, Statistic
from roundwise.statistics import gram as gram_module
from roundwise.testing import cases

CASES = pytest.mark.parametrize("case", cases(), ids=str)
CONV = next(case for case in cases() if case.layer.dims == 2)


def whole(gram):
    return gram.fit.merge(gram.held_out)


def gram_of(layer, inputs, targets, batches=(1,), seed=0):
    samples = len(inputs)
    gram = Gram.empty(layer, samples, torch.Generator().manual_seed(seed))
    size = samples // len(batches)
    for part in range(len(batches)):
        some = slice(part * size, (part + 1) * size)
        gram.add(inputs[some], targets[some], size)
    return gram


def chunks_of(layer, inputs, targets):
    gram = gram_of(layer, inputs, targets, batches=range(8))
    return [chunk for part in (gram._fit, gram._held_out) for chunk in gram._flush(part).chunks]


@CASES
def test_they_are_the_sums_over_all_positions_where_there_are_few(case):
    moments = whole(case.statistic(Gram))
    columns = case.layer.unfold(case.inputs.float())
    targets = case.layer.fold_outputs(case.targets.float())
    assert moments.count == columns.shape[-1]
    close = torch.testing.assert_close
    close(moments.second, columns @ columns.mT, rtol=1e-4, atol=1e-3)
    close(moments.cross, targets @ columns.mT, rtol=1e-4, atol=1e-3)
    close(moments.inputs, columns.sum(-1), rtol=1e-4, atol=1e-3)
    close(moments.targets, targets.sum(-1), rtol=1e-4, atol=1e-3)
    close(moments.energy, targets.square().sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("strip", [5, 192])
def test_wide_matrices_are_summed_in_strips(strip, monkeypatch):
    monkeypatch.setattr(sums, "STRIP", strip)
    columns, targets = torch.randn(3, 50, 13), torch.randn(3, 50, 2)
    moments = Moments.zeros((3, 2, 13), torch.device("cpu"))
    moments.add(sums.Pairs(columns, targets))
    torch.testing.assert_close(moments.second, columns.mT @ columns)


@CASES
def test_every_eighth_sample_is_held_out(case):
    gram = case.statistic(Gram)
    per_sample = whole(gram).count // case.samples
    assert gram.held_out.count == case.samples // 8 * per_sample
    held_out = case.layer.fold_outputs(case.targets[7::8].float()).sum(-1)
    torch.testing.assert_close(gram.held_out.targets, held_out, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("samples", "held_out"), [(1, 0), (2, 1), (3, 1), (7, 1), (8, 1), (17, 2)])
def test_of_few_samples_one_is_held_out_and_of_one_none(samples, held_out):
    layer = LinearMap((2, 3), None, torch.device("cpu"))
    gram = gram_of(layer, torch.randn(samples, 3), torch.randn(samples, 2))
    assert (gram.fit.count, gram.held_out.count) == (samples - held_out, held_out)


@CASES
def test_the_same_positions_can_be_seen_again(case):
    gram = case.statistic(Gram)
    for split, moments in (("fit", gram.fit), ("held-out", gram.held_out)):
        again = Moments.zeros(case.layer.matrix_shape, case.layer.device)
        for pairs in gram.positions(split):
            again.add(pairs)
        assert again.count == moments.count
        assert torch.equal(again.second, moments.second)
        assert torch.equal(again.cross, moments.cross)


@CASES
@pytest.mark.parametrize("keep", [0, 1 << 26])
def test_of_a_sum_the_target_makes_up_for_what_is_added(case, keep, monkeypatch):
    monkeypatch.setattr(gram_module, "KEEP", keep)
    added, lacking = (torch.randn(case.targets.shape) for _ in range(2))
    for method in (Gram.add_sum, Statistic.add_sum):
        gram = Gram.empty(case.layer, case.samples, torch.Generator().manual_seed(0))
        method(gram, case.inputs, case.targets, case.samples, Addend(added, lacking))
        changed = dataclasses.replace(case, targets=case.targets + added - lacking)
        for one, other in zip(
            gram.positions("all"), changed.statistic(Gram, [case.samples]).positions("all"), strict=True
        ):
            assert torch.equal(one.columns, other.columns)
            torch.testing.assert_close(one.targets, other.targets)
        torch.testing.assert_close(whole(gram).cross, whole(changed.statistic(Gram)).cross, rtol=1e-4, atol=1e-3)


@CASES
def test_what_is_not_kept_is_unfolded_again(case, monkeypatch):
    kept = list(case.statistic(Gram).positions("fit"))
    monkeypatch.setattr(gram_module, "KEEP", 0)
    unfolded = list(case.statistic(Gram).positions("fit"))
    for one, other in zip(kept, unfolded, strict=True):
        assert torch.equal(one.columns, other.columns)
        assert torch.equal(one.targets, other.targets)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_so_much_is_kept_as_the_plan_says(share, monkeypatch):
    layer, inputs, targets = large()
    monkeypatch.setattr(gram_module, "CHUNK", 1 << 14)
    numbers = sum(pairs.columns.numel() + pairs.targets.numel() for pairs in chunks_of(layer, inputs, targets))
    monkeypatch.setattr(gram_module, "KEEP", 0)
    without = Gram.bytes_needed(layer, 64, 400)
    room = int(share * numbers)
    monkeypatch.setattr(gram_module, "KEEP", room)
    assert Gram.bytes_needed(layer, 64, 400) - without == 4 * min(room, numbers)
    kept = [chunk for chunk in chunks_of(layer, inputs, targets) if isinstance(chunk, sums.Pairs)]
    assert sum(pairs.columns.numel() + pairs.targets.numel() for pairs in kept) <= min(room, numbers)
    assert bool(kept) == bool(share)


@pytest.mark.parametrize("keep", [0, 1 << 25])
def test_chunks_are_as_large_as_they_may_be_however_small_the_batches(keep, monkeypatch):
    monkeypatch.setattr(gram_module, "KEEP", keep)
    monkeypatch.setattr(gram_module, "CHUNK", 27 * 1000)  # 1,000 positions of 27 columns
    layer, inputs, targets = large()
    gram = gram_of(layer, inputs, targets, batches=range(64))  # 64 positions each, 3,584 of them in `fit`
    assert [pairs.columns.shape[1] for pairs in gram.positions("fit")] == [1000, 1000, 1000, 584]
    assert gram.fit.count == 3584


@pytest.mark.parametrize("keep", [0, 40_000, 1 << 25])
def test_chunks_and_minibatches_do_not_depend_on_the_batches(keep, monkeypatch):
    monkeypatch.setattr(gram_module, "KEEP", keep)
    monkeypatch.setattr(gram_module, "CHUNK", 27 * 700)
    layer, inputs, targets = large()
    grams = [gram_of(layer, inputs, targets, batches=range(number)) for number in (1, 4, 64)]
    for of_batches in zip(*(itertools.islice(gram.minibatches(256), 40) for gram in grams), strict=True):
        for pairs in of_batches[1:]:
            assert torch.equal(pairs.columns, of_batches[0].columns)
            assert torch.equal(pairs.targets, of_batches[0].targets)
    for gram in grams[1:]:
        for one, other in ((gram.fit, grams[0].fit), (gram.held_out, grams[0].held_out)):
            assert torch.equal(one.second, other.second)
            assert torch.equal(one.cross, other.cross)


@pytest.mark.parametrize(("size", "keep"), in_thirds([1, 50, 256, 1000, 10**6], [0, 40_000, 1 << 25]))
def test_minibatches_see_every_position_equally_often(size, keep, monkeypatch):
    monkeypatch.setattr(gram_module, "KEEP", keep)
    layer, inputs, targets = large()
    gram = Gram.empty(layer, len(inputs), torch.Generator().manual_seed(0))
    for some in (slice(0, 40), slice(40, 61), slice(61, 64)):  # of unequal length
        gram.add(inputs[some], targets[some], some.stop - some.start)
    seen = Moments.zeros(layer.matrix_shape, layer.device)
    for pairs in gram.minibatches(size):
        assert pairs.columns.shape[1] >= min(size, gram.fit.count)
        assert pairs.columns.shape[1] == pairs.targets.shape[1]
        seen.add(pairs)
        if seen.count >= 5 * gram.fit.count:
            break
    share = seen.count / gram.fit.count  # five times, and what a minibatch may have taken of the sixth
    assert 5 <= share < 6
    spread = (seen.second / seen.count - gram.fit.second / gram.fit.count).abs().max()
    assert spread < (1e-4 if share == 5 else 0.05)


def large():
    """A layer with 400 positions a sample, of which 64 are taken."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    layer = LinearMap((4, 3, 3, 3), None, torch.device("cpu"), (1, 1), (1, 1), (1, 1), (0, 0))
    inputs = torch.randn(64, 3, 20, 20, generator=generator)
    return layer, inputs, layer.apply(weight, inputs)


def test_of_many_positions_some_are_taken_at_random_and_the_means_hardly_change():
    layer, inputs, targets = large()
    gram = gram_of(layer, inputs, targets)
    moments = whole(gram)
    assert moments.count == 64 * 64
    columns = layer.unfold(inputs)
    exact = columns @ columns.mT / columns.shape[-1]
    assert (moments.second / moments.count - exact).abs().max() < 0.15  # a standard error is 1/64 off the diagonal


def test_which_positions_depends_on_the_generator_and_not_on_the_batches():
    layer, inputs, targets = large()
    one, two = gram_of(layer, inputs, targets), gram_of(layer, inputs, targets, batches=(1, 2, 3, 4))
    other = gram_of(layer, inputs, targets, seed=1)
    torch.testing.assert_close(whole(one).second, whole(two).second, rtol=1e-4, atol=1e-2)
    assert (whole(one).second - whole(other).second).abs().max() > 1


def test_a_wide_matrix_gets_more_positions_than_a_narrow_one(monkeypatch):
    layer, inputs, targets = large()
    monkeypatch.setattr(gram_module, "POSITIONS_PER_COLUMN", 512)
    assert whole(gram_of(layer, inputs, targets)).count == 64 * 512 * 27 // 64


@pytest.mark.parametrize("chunk", [200, 1 << 22])
def test_they_are_the_same_however_little_is_unfolded_at_a_time(chunk, monkeypatch):
    layer, inputs, targets = large()
    reference = whole(gram_of(layer, inputs, targets))
    monkeypatch.setattr(gram_module, "CHUNK", chunk)
    moments = whole(gram_of(layer, inputs, targets))
    assert moments.count == reference.count
    torch.testing.assert_close(moments.second, reference.second, rtol=1e-4, atol=1e-2)


@CASES
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_chosen_places_are_what_unfolding_everything_gives_there(case, layout):
    layer, inputs, targets = case.layer, case.inputs.float(), case.targets.float()
    if layout == "channels last" and layer.dims == 2:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = targets.contiguous(memory_format=torch.channels_last)
    per_row = layer.positions(targets)
    places = torch.randint(layer.as_rows(targets).shape[0] * per_row, (50,), generator=torch.Generator().manual_seed(0))
    columns, outputs = layer.pairs_at(inputs, targets, places // per_row, places % per_row)
    assert torch.equal(columns, layer.unfold(inputs)[..., places].mT)
    assert torch.equal(outputs, layer.fold_outputs(targets)[..., places].mT)


@CASES
def test_outputs_at_chosen_places_lie_in_memory_as_the_targets_do_however_the_batches_fall(case, monkeypatch):
    monkeypatch.setattr(gram_module, "CHUNK", 1)  # 256 places to a chunk: some are of one batch, some of several
    layer, bias = case.layer, case.layer.bias.reshape(case.weight.shape[:2])
    depthwise = layer.dims > 0 and case.inputs.shape[1] == layer.groups
    gram = gram_of(layer, case.inputs.float(), layer.apply_matrix(case.weight, case.inputs.float()), batches=range(8))
    minibatches = itertools.islice(gram.minibatches(64), 20)
    for pairs in itertools.chain(gram.positions("all"), minibatches):
        outputs = pairs.outputs(case.weight, bias)
        torch.testing.assert_close(outputs, pairs.targets, rtol=1e-4, atol=1e-4)
        assert outputs.mT.is_contiguous() or not depthwise
        assert pairs.columns.mT.is_contiguous() or not depthwise


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_chosen_places_with_padding_given_in_words(padding):
    layer = LinearMap((4, 3, 2, 3), None, torch.device("cpu"), (1, 1), padding, (2, 1), (0, 0))
    inputs = torch.randn(2, 3, 7, 6)
    outputs = layer.apply(torch.randn(4, 3, 2, 3), inputs)
    places = torch.arange(2 * layer.positions(outputs))
    columns, _ = layer.pairs_at(inputs, outputs, places // layer.positions(outputs), places % layer.positions(outputs))
    assert torch.equal(columns, layer.unfold(inputs).mT)
