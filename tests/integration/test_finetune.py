"""Training: it lowers the loss, keeps the best state, repeats, goes on after an interruption, and refuses bad input."""

import pytest
import torch
from facts import raises
from thirds import in_thirds
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw
from roundwise.engine import trainer as trainer_module
from roundwise.engine.checkpoint import FILE


class Net(nn.Module):
    """A small classifier with batch-norm and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Net().train()
    with torch.no_grad():
        model.fc.weight *= 20  # so that classes differ
        for _ in range(30):  # so that batch-norm's statistics are those of the images
            model(torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0))


QUANTIZE = rw.Quantize(rw.Weights(bits=2), rw.rounding.Nearest(), activations=rw.Activations(bits=4))


SGD = {"optimizer": "sgd", "freezing": 0.001, "dampening": 1.0, "weight_average": 0.9}


def trained(model, data, quantize=QUANTIZE, journal=None, progress=None, **settings):
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01} | settings
    return rw.finetune(model, data, (quantize, rw.Finetune(**settings)), journal=journal, progress=progress)


def epochs_of(result):
    return result.report.stages[-1].epochs


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == name2 and torch.equal(a, b) for (name, a), (name2, b) in pairs)


def test_training_lowers_the_held_out_loss_and_the_result_has_integer_codes(model):
    model.drop.p = 0.0  # the float network, from which it learns, has no dropout either
    images = torch.randn(600, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    two_bits = rw.Quantize(rw.Weights(bits=2), rw.rounding.Nearest(), activations=rw.Activations(bits=2))
    result = trained(model, images, two_bits, epochs=4, batch_size=32, learning_rate=0.003)
    epochs = epochs_of(result)
    assert min(epoch.held_out for epoch in epochs[1:]) < 0.8 * epochs[0].held_out
    assert result.weights["conv"].codes.unique().numel() <= 4
    assert {activation.bits for activation in result.report.activations} == {2}
    assert result(images[:5]).shape == (5, 4)


def test_training_makes_features_like_those_of_the_float_network(model, images):
    model.drop.p = 0.0
    without = epochs_of(trained(model, images, epochs=1))
    epochs = epochs_of(trained(model, images, epochs=8, features=("con*",), features_weight=1000.0))
    losses = [epoch.loss for epoch in epochs[1:]]
    assert losses[0] > 20 * without[1].loss  # nearly all of the loss is the difference of features
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("granularity", [rw.PerTensor(), rw.PerChannel()])
def test_codes_stay_as_they_are_where_weights_are_not_trained(model, images, granularity):
    quantize = rw.Quantize(rw.Weights(bits=2, granularity=granularity), rw.rounding.Nearest())
    before = rw.quantize(model, images, quantize)
    result = trained(model, images, quantize, only=("scales", "norms", "biases"), learning_rate=0.01)
    changed = 0
    for name, weight in before.weights.items():
        assert torch.equal(result.weights[name].codes, weight.codes)
        changed += not torch.equal(result.weights[name].scale, weight.scale)
    assert changed


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"only": ("scales",)}, True),
        ({"only": ("scales",), "batch_norm": "batch"}, False),
        ({"only": ("weights",)}, False),
        ({"only": ("weights",), "batch_norm": "running"}, True),
    ],
)
def test_running_statistics_stay_where_they_are_used_in_training(model, images, settings, kept):
    states = []
    load = trainer_module.Trainable.load_state_dict

    def remembering(self, state):
        states.append(state)
        return load(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.Trainable, "load_state_dict", remembering)
        patch.setattr(trainer_module.Trainer, "best_epoch", 3)
        patch.setattr(trainer_module.Trainer, "_measure", lambda self: (-float(len(self.epochs)), None))
        trained(model, images, **settings)
    assert torch.equal(states[-1]["bn.running_mean"], model.bn.running_mean) == kept


def test_features_are_refused_together_with_recomputation():
    with raises(rw.RecipeError, "features", "recompute"):
        rw.Finetune(features=("conv",), recompute=True)


def test_the_best_state_is_kept_and_that_may_be_the_one_before_training(model, images):
    before = rw.quantize(model, images, QUANTIZE)
    result = rw.finetune(
        model, images, (QUANTIZE, rw.Finetune(epochs=3, batch_size=16, learning_rate=50.0)), calibration=images
    )
    assert epochs_of(result)[0].held_out == min(epoch.held_out for epoch in epochs_of(result))
    with torch.no_grad():
        torch.testing.assert_close(result(images), before(images))
    assert any("before" in note for note in result.report.notes)


def test_the_same_seed_gives_the_same_bits(model, images):
    assert same(trained(model, images), trained(model, images))


@pytest.mark.parametrize(
    ("stop", "settings"), in_thirds({"1": 1, "4": 4, "9": 9}, {"Adam": {}, "SGD and the rest": SGD})
)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(model, images, tmp_path, monkeypatch, stop, settings):
    wanted = trained(model, images, **settings)
    monkeypatch.setattr(trainer_module, "BETWEEN_CHECKPOINTS", 0.0)
    step, count = trainer_module.Trainer._train_on, 0

    def interrupted(*args):
        nonlocal count
        if count == stop:
            raise KeyboardInterrupt
        count += 1
        step(*args)

    monkeypatch.setattr(trainer_module.Trainer, "_train_on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(model, images, journal=tmp_path / "run", **settings)
    monkeypatch.setattr(trainer_module.Trainer, "_train_on", step)
    found = trained(model, images, journal=tmp_path / "run", **settings)
    assert same(found, wanted)
    assert epochs_of(found) == epochs_of(wanted)


def test_a_journal_of_another_run_is_refused(model, images, tmp_path):
    trained(model, images, journal=tmp_path)
    with raises(rw.RecipeError, str(tmp_path / FILE)):
        trained(model, images, journal=tmp_path, epochs=4)


def test_a_damaged_journal_is_refused(model, images, tmp_path):
    trained(model, images, journal=tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with raises(rw.FileFormatError, str(tmp_path / FILE)):
        trained(model, images, journal=tmp_path)


@pytest.mark.parametrize("only", ["weights", "biases", "norms", "scales"])
def test_only_the_chosen_kinds_change(model, images, only):
    kinds = {
        "conv.weight": "weights",
        "fc.weight": "weights",
        "fc.bias": "biases",
        "bn.weight": "norms",
        "bn.bias": "norms",
        "conv.weight_quantizer.scale": "scales",
    }
    before = rw.trainable(model, images, QUANTIZE).state_dict()
    states = []
    load = trainer_module.Trainable.load_state_dict

    def remembering(self, state):
        states.append(state)
        return load(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.Trainable, "load_state_dict", remembering)
        trained(model, images, only=(only,), learning_rate=0.003)
    changed = {kind for name, kind in kinds.items() if not torch.equal(states[-1][name], before[name])}
    assert changed <= {only}


def test_labels_are_learned_from_where_the_loader_has_them(model, images):
    labels = torch.randint(0, 4, (96,), generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(images, labels), batch_size=16)
    result = trained(model, loader, labels=1.0, epochs=8, learning_rate=0.02)
    first, *_, last = epochs_of(result)
    assert first.accuracy is not None
    assert last.loss < epochs_of(result)[1].loss


def test_a_network_is_trained_in_float_too(model, images):
    labels = torch.randint(0, 4, (96,), generator=torch.Generator().manual_seed(1))
    result = rw.finetune(model, (images, labels), rw.Finetune(epochs=3, batch_size=16, labels=1.0))
    assert result.weights == {}
    assert len(epochs_of(result)) == 4


def test_labels_that_do_not_fit_are_refused(model, images):
    with raises(rw.CalibrationError, 7, [96, 4][1]):
        trained(model, (images, torch.full((96,), 7)), labels=1.0)


def test_a_loss_that_is_not_finite_ends_training(images):
    class Overflows(Net):
        def forward(self, x):
            return super().forward(x) * 1e38 * 1e3

    with pytest.raises(rw.RoundwiseError):
        trained(Overflows().eval(), images)


def test_a_frozen_network_is_refused(model, images):
    with raises(rw.ModelError, "weights"):
        trained(model.requires_grad_(False), images, only=("weights",))


def test_data_that_can_be_read_once_only_is_refused(model, images):
    with raises(rw.CalibrationError, "list"):
        trained(model, iter([images[:16], images[16:32]]))


def test_batches_from_any_iterable_are_trained_on_and_nothing_is_held_out(model, images):
    result = trained(model, list(images.split(16)))
    assert any("held out" in note for note in result.report.notes)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("labels", 1.5),
        ("weight_decay", -1.0),
        ("optimizer", "lion"),
        ("loss", "cosine"),
        ("only", ()),
        ("only", ("weight",)),
        ("freezing", 2.0),
        ("quantization", "lsq"),
        ("batch_norm_batches", -1),
        ("dampening", "much"),
        ("weight_average", 1.0),
        ("precision", "float16"),
        ("recompute", 1),
    ],
)
def test_settings_out_of_range_are_refused(setting, value):
    with raises(rw.RecipeError, setting):
        rw.Finetune(**{setting: value})


def test_a_recipe_with_training_survives_a_file(tmp_path):
    recipe = rw.Recipe((QUANTIZE, rw.Finetune(epochs=7, quantization=rw.training.LSQ(), only=("scales", "norms"))))
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe


def test_training_without_samples_is_refused(model):
    with raises(rw.RecipeError, "Finetune"):
        rw.quantize(model, rw.DataFree((3, 6, 6)), (*rw.Recipe.data_free().stages, rw.Finetune()))


def test_the_report_has_the_output_error_of_the_trained_network(model, images):
    settings = rw.Finetune(epochs=3, batch_size=16, learning_rate=0.01)
    result = rw.finetune(model, images, (QUANTIZE, settings), calibration=images)
    with torch.no_grad():
        wanted, found = model(images), result(images)
    error = float((found - wanted).square().sum() / wanted.square().sum())
    assert result.report.output_error == pytest.approx(error, rel=1e-3)
    assert result.report.output_error != result.report.stages[-2].output_error
    assert [output.name for output in result.report.outputs] == ["output"]


def test_the_average_of_weights_is_what_is_measured_and_kept(model, images):
    plain, averaged = trained(model, images), trained(model, images, weight_average=0.9)
    assert [epoch.loss for epoch in epochs_of(plain)] == [epoch.loss for epoch in epochs_of(averaged)]
    assert epochs_of(plain)[1].held_out != epochs_of(averaged)[1].held_out
    best = averaged.report.stages[-1].best_epoch
    assert best.held_out == min(epoch.held_out for epoch in epochs_of(averaged))


def test_with_less_memory_training_computes_the_same(model, images):
    found, wanted = trained(model, images, recompute=True), trained(model, images)
    assert same(found, wanted)
    assert epochs_of(found) == epochs_of(wanted)


def test_in_bfloat16_the_losses_are_nearly_the_same(model, images):
    model.drop.p = 0.0
    mild = {"quantize": rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest()), "learning_rate": 1e-4}
    found, wanted = (trained(model, images, precision=name, **mild) for name in ("bfloat16", "float32"))
    for one, other in zip(epochs_of(found)[1:], epochs_of(wanted)[1:], strict=True):
        assert one.loss != other.loss
        assert one.loss == pytest.approx(other.loss, rel=0.1)
    assert epochs_of(found)[0] == epochs_of(wanted)[0]  # what is evaluated is in float32
    assert found(images).dtype == torch.float32


def test_augmentation_changes_the_inputs_of_training_alone_and_repeats(model, images):
    seen = []

    def flip(batch):
        seen.append(len(batch))
        return batch.flip(-1) if torch.rand(()) < 0.5 else batch

    def run(augmentation):
        stages = (QUANTIZE, rw.Finetune(epochs=2, batch_size=16, learning_rate=0.01))
        return rw.finetune(model, images, stages, augmentation=augmentation)

    plain, flipped, again = run(None), run(flip), run(flip)
    assert sum(seen) == 2 * 2 * 2 * (96 - 10)  # two runs of two epochs, each for training and for the statistics
    assert epochs_of(plain)[0] == epochs_of(flipped)[0]
    assert epochs_of(plain)[1].loss != epochs_of(flipped)[1].loss
    assert epochs_of(flipped) == epochs_of(again)


def test_batch_norms_statistics_are_estimated_on_augmented_batches_as_they_were_in_float(model, images):
    """Estimated on the images as they are, they change a network that was trained on augmented ones."""
    with torch.no_grad():
        for _ in range(60):
            model.train()(5 * images)
    model.eval()
    settings = rw.Finetune(epochs=1, batch_size=16, learning_rate=1e-9)
    weights = rw.Quantize(rw.Weights(bits=4), rw.rounding.Nearest())
    result = rw.finetune(model, images, (weights, settings), augmentation=lambda batch: 5 * batch)
    before, after = epochs_of(result)
    assert after.held_out < 1.2 * before.held_out


def test_augmentation_that_changes_the_number_of_samples_is_refused(model, images):
    with raises(rw.CalibrationError, "augmentation", 16, 15):
        rw.finetune(model, images, (QUANTIZE, rw.Finetune(batch_size=16)), augmentation=lambda batch: batch[1:])


def test_a_trained_network_is_saved_and_exported(model, images, tmp_path):
    result = trained(model, images)
    result.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    assert torch.equal(loaded(images), result(images))
    assert loaded.report.stages[-1].epochs == epochs_of(result)
