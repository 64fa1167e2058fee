"""How much the output feels a layer: against the network's whole derivative, computed by autograd."""

import pytest
import torch
from torch import nn

from roundwise.engine.calibration import Signature, read_calibration
from roundwise.engine.sensitivity import FLOOR, output_metrics
from roundwise.engine.store import ActivationStore
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.normalize import normalize

CPU = torch.device("cpu")


def metrics_of(model, images, repeats):
    graph = normalize(TorchExport().graph(model.eval(), (images[:2],), {}))
    layers = find_layers(graph)
    calibration = read_calibration(
        images.repeat(repeats, *[1] * (images.dim() - 1)), Signature(("x",), ("x",)), 32, ActivationStore(1 << 30, CPU)
    )
    return output_metrics(graph, layers, calibration, CPU, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alike", [0.0, 1.5])
def test_the_metric_is_the_mean_of_the_squared_derivative(alike):
    torch.manual_seed(0)
    first, rest = nn.Conv2d(2, 3, 3, padding=1), nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))
    images = torch.randn(2, 2, 4, 4) + alike * torch.tensor([-1.0, 1.0])[:, None, None, None]
    found = metrics_of(nn.Sequential(first, *rest), images, repeats=128)["0"]
    outputs = first(images).detach().flatten(2)
    outputs = outputs - outputs.mean((0, 2), keepdim=True)
    pairs = torch.einsum("ncp,ncq->pq", outputs, outputs)  # of positions of the same image
    correlation = max(0.0, float((pairs.sum() - pairs.trace()) / (15 * pairs.trace())))
    assert (correlation > 0.2) == (alike > 0)
    wanted, energy = torch.zeros(3, 3), 0.0
    for image in images:
        inner = first(image.unsqueeze(0)).detach()
        derivative = torch.autograd.functional.jacobian(rest, inner).reshape(4, 3, 16)
        wanted += (1 - correlation) * torch.einsum("kcp,kdp->cd", derivative, derivative)
        wanted += correlation * torch.einsum("kcp,kdq->cd", derivative, derivative)
        energy += float(rest(inner).detach().square().sum())
    wanted /= energy
    wanted += FLOOR * wanted.diagonal().mean() * torch.eye(3)
    assert (found.float() - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize(("outputs", "positions"), [("alike", 36), ("independent", 1)])
def test_errors_add_up_where_the_network_averages_over_positions(outputs, positions):
    torch.manual_seed(0)
    images = torch.randn(64, 4, 1, 1).expand(64, 4, 6, 6) if outputs == "alike" else torch.randn(64, 4, 6, 6)
    layer, tail = nn.Conv2d(4, 4, 1, bias=False), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    metric = metrics_of(nn.Sequential(layer, *tail), images.contiguous(), repeats=1)["0"]
    output = layer(images).detach()
    error = torch.randn_like(output[..., :1, :1]).expand_as(output) if positions > 1 else torch.randn_like(output)
    real = tail(error).square().sum() / tail(output).square().sum()
    second = torch.einsum("nchw,ndhw->cd", error, error) / (64 * 36)
    assert float((metric * second).sum()) == pytest.approx(float(real), rel=0.2)


def test_a_layer_that_the_output_does_not_depend_on_has_a_metric_too():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x) + 0 * self.idle(x).round()

    found = metrics_of(Idle(), torch.randn(8, 4), repeats=1)
    assert torch.linalg.eigvalsh(found["idle"]).min() > 0
    assert found["used"].trace() > found["idle"].trace()


def test_outputs_of_whole_numbers_give_metrics_that_can_be_used():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).argmax(1)

    found = metrics_of(Classes(), torch.randn(8, 4), repeats=1)
    assert torch.linalg.eigvalsh(found["layer"]).min() > 0


def test_infinite_outputs_count_for_nothing():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).masked_fill(torch.arange(4) > 1, -torch.inf)

    found = metrics_of(Masked(), torch.randn(8, 4), repeats=1)["layer"]
    assert found.isfinite().all()
    assert found[0, 0] > 10 * found[3, 3]


@pytest.mark.parametrize("share", [0.5])
def test_the_metric_is_about_relative_errors(share):
    torch.manual_seed(1)
    images = torch.randn(8, 4)
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.load_state_dict({"weight": one.weight.detach() * share})
    small, large = (metrics_of(nn.Sequential(layer), images, repeats=1)["0"] for layer in (other, one))
    torch.testing.assert_close(small * share**2, large)
