"""What MODEL means on the command line, and where weights come from."""

import sys
import warnings

import pytest
import torch
from facts import has, missing, raises
from safetensors.torch import save_file
from torch import nn

from roundwise import FileFormatError, ModelError, RecipeError
from roundwise.data.preprocessing import ShorterSide
from roundwise.loading.models import load_model, load_program, stated_preprocessing
from roundwise.loading.vision import import_collection
from roundwise.loading.weights import FromFile, Pretrained, Random, load_weights

FILE = '''
"""A file with models."""
import torch
from torch import nn
from dataclasses import dataclass

@dataclass
class Settings:
    classes: int = 5

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(Settings().classes)).train()

class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 2))

ready = nn.Linear(3, 3)
number = 7

def needs(width):
    return nn.Linear(width, width)

def fails():
    raise ValueError("no such dataset")

def leaves():
    raise SystemExit("bye")

def other():
    return "a string"
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="session")
def torchvision():
    try:
        return import_collection("torchvision")
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def timm():
    try:
        return import_collection("timm")
    except ModelError as error:
        pytest.skip(str(error))


# ------------------------------------------------------------------------------------------------- file.py:function


def test_a_functions_model_is_loaded_in_eval_mode(file):
    loaded = load_model(f"{file}:build")
    assert isinstance(loaded.network, nn.Sequential)
    assert not loaded.network.training
    assert loaded.preprocessing is None


@pytest.mark.parametrize(("name", "kind"), [("Small", nn.Sequential), ("ready", nn.Linear)])
def test_a_class_and_a_finished_model_serve_as_well(file, name, kind):
    assert isinstance(load_model(f"{file}:{name}").network, kind)


def test_a_file_may_import_its_neighbours(file):
    (file.parent / "neighbour_of_nets.py").write_text("WIDTH = 3")
    file.write_text("import torch\nfrom neighbour_of_nets import WIDTH\ndef f(): return torch.nn.Linear(WIDTH, WIDTH)")
    assert isinstance(load_model(f"{file}:f").network, nn.Linear)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("biuld", ("build",)),
        ("needs", ("width",)),
        ("fails", (26, "ValueError: no such dataset")),
        ("leaves", (29, "SystemExit: bye")),
        ("other", ("str",)),
        ("number", ("int",)),
    ],
)
def test_a_function_that_gives_no_model_is_an_error(file, name, facts):
    with raises(ModelError, "nets.py", name, *facts):
        load_model(f"{file}:{name}")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("import no_such_package", (1, "ModuleNotFoundError: No module named 'no_such_package'")),
        ("x = 1\ndef f(:\n", (2, "SyntaxError")),
        ("raise SystemExit(3)", (1, "SystemExit: 3")),
    ],
)
def test_a_file_that_does_not_run_is_an_error_with_its_cause(file, content, facts):
    file.write_text(content)
    with raises(ModelError, "nets.py", *facts):
        load_model(f"{file}:build")


def test_a_missing_file_is_an_error(tmp_path):
    with raises(ModelError, "absent.py"):
        load_model(f"{tmp_path}/absent.py:f")


@pytest.mark.parametrize("source", [Pretrained(), Random()])
def test_only_named_models_have_pretrained_or_random_weights(file, source):
    with raises(RecipeError, "nets.py:build", "--pretrained", "--random-weights"):
        load_model(f"{file}:build", source)


def test_weights_can_be_put_into_a_functions_model(file, tmp_path):
    save_file({"weight": torch.eye(3), "bias": torch.ones(3)}, tmp_path / "w.safetensors")
    loaded = load_model(f"{file}:ready", FromFile(tmp_path / "w.safetensors"))
    assert isinstance(loaded.network, nn.Linear)
    assert torch.equal(loaded.network.weight, torch.eye(3))


# ----------------------------------------------------------------------------------------------- collections of models


def test_a_torchvision_model_brings_its_preprocessing(torchvision):
    loaded = load_model("torchvision:squeezenet1_1", Random(3))
    assert loaded.preprocessing is not None
    preprocessing, where = loaded.preprocessing
    assert preprocessing.crop == (224, 224)
    assert preprocessing.resize == ShorterSide(256)
    assert where == "torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1"
    (note,) = loaded.notes
    assert has(note, "random", 3)


def test_a_timm_model_brings_its_preprocessing(timm):
    loaded = load_model("timm:test_resnet", Random())
    assert loaded.preprocessing is not None
    assert loaded.preprocessing[0].crop == (160, 160)


def test_random_weights_depend_on_the_seed_alone(torchvision):
    before = torch.get_rng_state()
    first, again, other = (load_model("torchvision:squeezenet1_1", Random(seed)).network for seed in (0, 0, 1))
    name = "features.0.weight"
    assert torch.equal(first.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_number_of_classes_can_be_given(torchvision, timm):
    for spec in ("torchvision:squeezenet1_1", "timm:test_resnet"):
        network = load_model(spec, Random(), num_classes=3).network
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_name_alone_does_not_say_where_weights_come_from(torchvision):
    with raises(RecipeError, "torchvision:resnet18", "--weights", "--pretrained", "--random-weights"):
        load_model("torchvision:resnet18")


@pytest.mark.parametrize(
    ("spec", "facts"),
    [
        ("torchvision:resnet19", ("torchvision", "resnet19", "resnet18")),
        ("timm:mobilnetv2_100", ("timm", "mobilnetv2_100", "mobilenetv2_100")),
        ("timm:resnet50.nobody", ("timm", "resnet50.nobody", "resnet50.a1_in1k")),
    ],
)
def test_unknown_names_get_the_nearest_ones(torchvision, timm, spec, facts):
    with raises(ModelError, *facts):
        load_model(spec, Random())


def test_pretrained_weights_come_with_their_own_classes(torchvision):
    with raises(RecipeError, "--pretrained", "--num-classes"):
        load_model("torchvision:resnet18", Pretrained(), num_classes=3)


def test_a_failed_download_says_what_to_do(torchvision, monkeypatch):
    def fail(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision, "get_model", fail)
    with raises(ModelError, "squeezenet1_1", "OSError: Network is unreachable", "--weights"):
        load_model("torchvision:squeezenet1_1", Pretrained())


def test_a_backbone_is_not_downloaded_behind_the_users_back(torchvision, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    loaded = load_model("torchvision:lraspp_mobilenet_v3_large", Random())
    assert loaded.preprocessing is not None
    assert loaded.preprocessing[0].crop is None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_that_warn_about_their_initialisation_load_quietly(torchvision, monkeypatch, name):
    # Their real initialisation takes seconds; the warning is what matters here.
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        loaded = load_model(f"torchvision:{name}", Random())
    assert [str(warning.message) for warning in given] == []
    assert isinstance(loaded.network, nn.Module)


def test_preprocessing_can_be_asked_for_alone(torchvision, timm):
    assert stated_preprocessing("torchvision:mobilenet_v2")[0].resize == ShorterSide(232)
    assert stated_preprocessing("timm:mobilenetv2_100")[0].interpolation == "bicubic"
    with raises(ModelError, "torchvision:raft_small", "--size", "--mean", "--std"):
        stated_preprocessing("torchvision:raft_small")
    with raises(ModelError, "net.py:f", "torchvision:NAME", "timm:NAME"):
        stated_preprocessing("net.py:f")


def test_a_timm_model_out_of_a_file_brings_its_preprocessing_too(timm, file):
    file.write_text("import timm\ndef f(): return timm.create_model('test_resnet')")
    loaded = load_model(f"{file}:f")
    assert loaded.preprocessing is not None
    assert loaded.preprocessing[0].crop == (160, 160)


# ---------------------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(exported, path)
    return path


def test_a_program_is_loaded(program):
    loaded = load_model(str(program))
    assert isinstance(loaded.network, torch.export.ExportedProgram)
    assert loaded.network.module()(torch.zeros(5, 4)).shape == (5, 2)


def test_a_program_has_its_weights_inside(program):
    with raises(RecipeError, ".pt2", "--weights"):
        load_model(str(program), Random())


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_what_is_no_program_is_refused(tmp_path, content):
    path = tmp_path / "net.pt2"
    path.write_bytes(content)
    with raises(FileFormatError, "net.pt2", "torch.export"):
        load_program(path)


def test_a_missing_program_is_an_error(tmp_path):
    with raises(FileFormatError, "net.pt2"):
        load_program(tmp_path / "net.pt2")


def test_another_archive_is_no_program(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "net.pt2")
    with raises(FileFormatError, "net.pt2", "torch.export", "RuntimeError", torch.__version__):
        load_program(tmp_path / "net.pt2")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("resnet18", "torchvision:resnet18"),
        ("nonsense", "torchvision:NAME"),
        ("jax:resnet18", "torchvision:NAME"),
        ("weights.safetensors", "--weights weights.safetensors"),
        ("weights.pth", "--weights weights.pth"),
        ("done.rw", ".rw"),
    ],
)
def test_what_is_no_model_gets_a_hint(torchvision, timm, spec, hint):
    with raises(ModelError, f"'{spec}'", hint) as caught:
        load_model(spec)
    assert (".rw" in str(caught.value).replace(spec, "")) == (spec == "done.rw")


def test_a_file_without_a_function_gets_a_list_of_them(file):
    with raises(ModelError, "nets.py", "Settings", "build", "Small"):
        load_model(str(file))


def test_a_number_of_classes_is_for_named_models(file):
    with raises(RecipeError, "--num-classes", "nets.py:build", "torchvision:"):
        load_model(f"{file}:build", num_classes=3)


# ----------------------------------------------------------------------------------------------------------- weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return Net().state_dict()


def load_into_net(path):
    torch.manual_seed(2)
    model = Net()
    return model, load_weights(model, path)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_every_usual_kind_of_file_is_read(tmp_path, trained, suffix):
    path = tmp_path / f"weights{suffix}"
    save_file(trained, path) if suffix == ".safetensors" else torch.save(trained, path)
    model, notes = load_into_net(path)
    assert torch.equal(model.conv.weight, trained["conv.weight"])
    assert notes == ()


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_checkpoint_are_found_and_it_is_said(tmp_path, trained, wrapper):
    torch.save({wrapper: trained, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    model, notes = load_into_net(tmp_path / "w.pt")
    assert torch.equal(model.conv.weight, trained["conv.weight"])
    (note,) = notes
    assert has(note, f"'{wrapper}'", "epoch", "optimizer")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off_and_it_is_said(tmp_path, trained, prefix):
    torch.save({f"{prefix}{name}": tensor for name, tensor in trained.items()}, tmp_path / "w.pt")
    model, notes = load_into_net(tmp_path / "w.pt")
    assert torch.equal(model.conv.weight, trained["conv.weight"])
    for part in ("module.", "_orig_mod.", "model."):
        assert any(has(note, f"'{part}'") for note in notes) == (part in prefix)


def test_weights_in_half_precision_are_converted_and_it_is_said(tmp_path, trained):
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trained.items()}
    torch.save(halves, tmp_path / "w.pt")
    model, notes = load_into_net(tmp_path / "w.pt")
    assert model.conv.weight.dtype == torch.float32
    (note,) = notes
    assert has(note, "float16", "float32")


def test_files_from_before_batch_norm_counted_are_read(tmp_path, trained):
    del trained["norm.num_batches_tracked"]
    torch.save(trained, tmp_path / "w.pt")
    model, notes = load_into_net(tmp_path / "w.pt")
    assert torch.equal(model.conv.weight, trained["conv.weight"])
    assert torch.equal(model.norm.running_var, trained["norm.running_var"])
    assert notes == ()


def test_tied_weights_need_to_be_stored_once_only(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_file({"0.weight": torch.eye(3), "0.bias": torch.ones(3), "1.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    notes = load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[1].weight, torch.eye(3))
    (note,) = notes
    assert has(note, "1.weight")


class WithSecondHead(nn.Module):
    def __init__(self, built):
        super().__init__()
        self.classifier, self.aux_classifier = nn.Linear(2, 2), nn.Linear(2, 2) if built else None


def test_weights_of_a_head_for_training_are_passed_over_where_it_was_not_built_and_it_is_said(tmp_path):
    save_file(WithSecondHead(built=True).state_dict(), tmp_path / "w.safetensors")
    notes = load_weights(WithSecondHead(built=False), tmp_path / "w.safetensors")
    (note,) = notes
    assert has(note, 2, "aux_classifier")
    assert load_weights(WithSecondHead(built=True), tmp_path / "w.safetensors") == ()
    with raises(ModelError, 2, "aux_classifier.weight", "aux_classifier.bias"):
        load_weights(nn.ModuleDict({"classifier": nn.Linear(2, 2)}), tmp_path / "w.safetensors")


def test_weights_of_another_model_are_an_error_that_lists_what_differs(tmp_path, trained):
    del trained["conv.bias"]
    trained["head.weight"] = torch.zeros(2)
    trained["norm.weight"] = torch.zeros(7)
    trained["norm.bias"] = torch.zeros(4, dtype=torch.int8)
    torch.save(trained, tmp_path / "w.pt")
    differing = ("norm.weight", "float32 [7]", "norm.bias", "int8 [4]", "float32 [4]")
    with raises(ModelError, 1, "conv.bias", "head.weight", 2, *differing, "--num-classes") as caught:
        load_into_net(tmp_path / "w.pt")
    assert missing(caught.value, "conv.weight", "norm.running_mean") == ["conv.weight", "norm.running_mean"]


def test_a_model_is_left_alone_by_weights_that_do_not_fit(tmp_path, trained):
    del trained["conv.bias"]
    torch.save(trained, tmp_path / "w.pt")
    model = Net()
    before = model.conv.weight.clone()
    with pytest.raises(ModelError):
        load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model.conv.weight, before)


def test_only_the_first_of_many_names_are_listed(tmp_path):
    torch.save({f"layer{index}": torch.zeros(1) for index in range(20)}, tmp_path / "w.pt")
    with raises(ModelError, 20, "layer0", "layer4", 15) as caught:
        load_into_net(tmp_path / "w.pt")
    assert not has(caught.value, "layer5")


class Evil:
    def __reduce__(self):
        return print, ("code from a file ran",)


@pytest.mark.parametrize("content", [Evil(), {"state_dict": {"a": Evil()}}, nn.Linear(2, 2)])
def test_a_pickle_with_more_than_tensors_is_refused_and_does_not_run(tmp_path, capsys, content):
    torch.save(content, tmp_path / "w.pt")
    with raises(FileFormatError, "w.pt", "Linear" if isinstance(content, nn.Module) else "print", ".safetensors"):
        load_into_net(tmp_path / "w.pt")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_a_broken_file_of_weights_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with raises(FileFormatError, f"w{suffix}"):
        load_into_net(path)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (torch.zeros(3), ("Tensor",)),
        ({}, ("'state_dict'",)),
        ({"a": 1, "b": torch.zeros(1)}, ("'a'", "int", "'state_dict'")),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, facts):
    torch.save(content, tmp_path / "w.pt")
    with raises(FileFormatError, "w.pt", *facts):
        load_into_net(tmp_path / "w.pt")


def test_an_unknown_kind_of_weights_is_refused(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"")
    with raises(FileFormatError, "'.h5'", ".safetensors"):
        load_into_net(tmp_path / "w.h5")
