"""A network in its trainable form: it starts as the network, trains as the model would, and gives a network back."""

import copy

import pytest
import torch
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.artifacts.emit import emit
from roundwise.engine.trainable import Trainable
from roundwise.methods.training import LSQ, LSQPlus


class Block(nn.Module):
    """Convolutions with batch-norm, a shortcut, dropout and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9, momentum=0.2, eps=1e-3)
        self.conv2, self.bn2 = nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.BatchNorm2d(9)
        self.drop, self.fc = nn.Dropout(0.4), nn.Linear(9, 5)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)) + y)
        return self.fc(self.drop(y.mean((2, 3))))


def block():
    torch.manual_seed(0)
    model = Block()
    with torch.no_grad():
        for norm in (model.bn1, model.bn2):
            norm.weight.normal_()  # also negative ones
            norm.bias.normal_()
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        model.bn1.weight[3] = 0
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def made(model, images, *stages):
    return rw.trainable(model, images, stages)


def quantized(granularity=None, **activations):
    weights = rw.Weights(bits=4, granularity=granularity or rw.PerChannel())
    chosen = rw.Activations(**activations) if activations else None
    return rw.Quantize(weights, rw.rounding.Nearest(), activations=chosen)


def test_the_first_steps_do_not_undo_what_the_rounding_method_has_chosen(images):
    """`Ceil` chooses many codes that are not the nearest: each stays while weights move by less than a quarter."""
    stage = rw.Quantize(rw.Weights(bits=4), rw.rounding.Ceil())
    for weight in made(block(), images, stage).quantized_weights():
        chosen, matrix = weight.codes(), weight.matrix().detach()
        step = 0.2 * weight.map.to_weight(weight.quantizer.grid.scales(matrix.shape[-1]).expand_as(matrix))
        for direction in (1, -1):
            with torch.no_grad():
                weight.parameter.add_(direction * step)
                assert torch.equal(weight.codes(), chosen)
                weight.parameter.sub_(direction * step)


def run(network, images):
    graph = emit(network.graph, list(network.weights), network.quantizers)
    with torch.no_grad():
        return graph.module()(images)


@pytest.mark.parametrize(
    ("granularity", "bits", "quantization"),
    in_thirds(
        {"channel": rw.PerChannel(), "tensor": rw.PerTensor(), "group": rw.PerGroup(9)},
        {"float": None, "4 bits": 4},
        {"LSQ": LSQ(), "LSQ+": LSQPlus()},
    ),
)
def test_it_starts_and_ends_as_the_quantized_network(images, granularity, bits, quantization):
    recipe = quantized(granularity, **({} if bits is None else {"bits": bits}))
    module = rw.trainable(block(), images, (recipe, rw.Finetune(quantization=quantization))).eval()
    wanted = run(module.network, images)
    with torch.no_grad():
        torch.testing.assert_close(module(images), wanted)
    torch.testing.assert_close(run(module.to_network(), images), wanted)


def test_names_and_statistics_are_those_of_the_model(images):
    model = block()
    state, own = made(model, images, quantized(bits=8)).state_dict(), model.state_dict()
    assert set(own) - {"conv2.bias"} <= set(state)  # batch-norm takes the bias in
    for name in ("bn1.bias", "bn1.running_var", "bn2.running_var", "fc.bias", "bn1.num_batches_tracked"):
        torch.testing.assert_close(state[name], own[name])
    torch.testing.assert_close(state["bn2.weight"], own["bn2.weight"].abs())  # the weights take the sign in


def test_in_training_mode_it_computes_what_the_model_computes(images):
    model = block()
    module = Trainable(rw.capture(model, images), LSQPlus())
    reference = copy.deepcopy(model)
    for step in range(3):
        for one in (module.train(), reference.train()):
            torch.manual_seed(step)
            one.zero_grad()
            one(images).square().mean().backward()
        torch.manual_seed(step)
        wanted = reference(images)
        torch.manual_seed(step)
        torch.testing.assert_close(module(images), wanted)
    own = reference.state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, own[name], msg=name)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad, msg=name)


def test_batch_norm_that_was_folded_trains_as_before_it_was_folded(images):
    model = block()
    model.drop.p = 0.0
    stage = rw.Quantize(rw.Weights(bits=16), rw.rounding.Nearest(), activations=rw.Activations(bits=16))
    module, reference = made(model, images, stage), copy.deepcopy(model).train()
    for quantizer in module.quantizers:
        quantizer.forward = lambda values: values  # in float
    module.train()
    live = [channel for channel in range(9) if channel != 3]  # the weights of a channel with γ = 0 are lost
    for _ in range(2):
        torch.testing.assert_close(module(images), reference(images), rtol=1e-3, atol=1e-3)
    for name in ("bn1.running_mean", "bn1.running_var"):
        found, wanted = module.state_dict()[name][live], reference.state_dict()[name][live]
        assert "var" not in name or bool((found > 0).all())
        torch.testing.assert_close(found.abs(), wanted.abs(), rtol=1e-3, atol=1e-3)


def test_dropout_works_in_training_and_not_in_evaluation(images):
    module = made(block(), images, quantized())
    module.train()
    assert not torch.equal(module(images), module(images))
    module.eval()
    assert torch.equal(module(images), module(images))


def test_after_training_the_network_computes_what_the_module_computes(images):
    module = made(block(), images, quantized(bits=4))
    optimizer = torch.optim.Adam(module.parameter_groups(lr=0.01))
    module.train()
    for _ in range(5):
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()
    model = module.eval().finish()
    assert any("before" in note for note in model.report.notes)
    with torch.no_grad():
        torch.testing.assert_close(model(images), module(images), rtol=1e-4, atol=1e-4)


def test_a_batch_norm_whose_factor_turns_negative_is_folded(images):
    module = made(block(), images, quantized())
    with torch.no_grad():
        module.get_parameter("bn1.weight")[:2] *= -1
    found, wanted = run(module.to_network(), images), module.eval()(images)
    # A code of −8 has no counterpart and becomes 7: a step of one in eight.
    assert (found - wanted).norm() < 0.2 * wanted.norm()


def test_all_kinds_of_parameters_have_a_group_and_weights_alone_decay(images):
    module = made(block(), images, quantized(bits=8))
    groups = {group["name"]: group for group in module.parameter_groups(0.1, weight_decay=0.01, scales_lr=0.5)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "weights": (0.1, 0.01),
        "biases": (0.1, 0.0),
        "norms": (0.1, 0.0),
        "scales": (0.5, 0.0),
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(module.parameters()))


def test_a_state_dict_goes_on_where_it_was_saved(images):
    module, other = (made(block(), images, quantized(bits=4)) for _ in range(2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.eval()(images), module.eval()(images))


def test_frozen_parameters_stay_frozen(images):
    model = block()
    model.conv1.requires_grad_(False)
    model.bn2.requires_grad_(False)
    module = made(model, images, quantized())
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert {"conv1.weight", "bn2.weight", "bn2.bias"} <= frozen
    assert "bn1.weight" not in frozen
