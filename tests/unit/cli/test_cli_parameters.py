"""How the text of an option becomes a value."""

import click
import pytest
from commandline import failed, run
from facts import raises

from roundwise.cli.parameters import dimension, memory


def test_a_file_that_is_not_there_is_told_with_those_of_like_names(tmp_path, monkeypatch):
    (tmp_path / "model.rw").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "dangling.rw").symlink_to(tmp_path / "gone.rw")
    monkeypatch.chdir(tmp_path)
    said = {
        "modle.rw": ("'modle.rw'", "model.rw"),
        tmp_path / "modle.rw": (tmp_path / "model.rw",),
        "zzz": ("'zzz'", tmp_path),
        "no/zzz.rw": ("'no/zzz.rw'", "'no'"),
        "model.rw/zzz.rw": ("'model.rw/zzz.rw'", "'model.rw'"),
        "dangling.rw": ("'dangling.rw'", tmp_path / "gone.rw"),
        "models_": ("'models_'", "model.rw"),
        "": ("empty",),
        "danglin.rw": ("'danglin.rw'", tmp_path),
        "model.rw/": ("'model.rw/'", "model.rw"),
        "x" * 300: ("File name too long",),
        ".": ("directory",),
    }
    for name, facts in said.items():
        assert failed(run("inspect", name), 2, *facts)


def test_amounts_of_memory_have_units():
    assert [memory(text) for text in ("0", "12", "1KiB", "2 gb", "0.5 MiB")] == [0, 12, 1024, 2 * 10**9, 2**19]
    for text in ("", "GiB", "-1", "2 parsecs", "1e9"):
        with raises(click.BadParameter, f"'{text}'"):
            memory(text)


def test_a_dimension_of_an_input_has_a_name():
    assert dimension("x:2=height") == ("x", 2, "height")
    for text in ("x:0=batch", "x:2", "2=height", "x:2=the height", "x:-1=width", ""):
        with pytest.raises(click.BadParameter):
            dimension(text)
