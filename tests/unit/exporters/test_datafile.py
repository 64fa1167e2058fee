"""An ONNX file and its data file change together: who reads them meanwhile finds a pair of one version."""

import threading

import pytest
from facts import raises

from roundwise.errors import ExportError
from roundwise.exporters.onnx import datafile
from roundwise.exporters.onnx.datafile import replacing_pair, seconds_to_read
from roundwise.workfolder import PREFIX, work_folder


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(datafile, "LEAST_SECONDS", 0.05)


def write(path, version, *, with_data=True):
    """Stands for an export: the file names its data file, as an ONNX file does."""
    with replacing_pair(path) as (file, data):
        file.write_text(f"{version} {data.name if with_data else ''}")
        if with_data:
            data.write_text(version)


def read(path):
    version, name = path.read_text().split(" ")
    assert (path.parent / name).read_text() == version
    return version


def names(folder):
    return sorted(it.name for it in folder.iterdir())


def test_a_pair_replaces_a_pair_and_leaves_nothing_of_it(tmp_path):
    path = tmp_path / "net.onnx"
    write(path, "old")
    before = names(tmp_path)
    write(path, "new")
    assert read(path) == "new"
    assert len(names(tmp_path)) == len(before) == 2
    assert names(tmp_path) != before
    write(path, "small", with_data=False)
    assert names(tmp_path) == ["net.onnx"]


def test_readers_find_a_pair_of_one_version_while_several_writers_replace_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datafile, "LEAST_SECONDS", 0.5)
    path = tmp_path / "net.onnx"
    write(path, "first")
    writers = [threading.Thread(target=lambda n=n: [write(path, f"{n}-{turn}") for turn in range(4)]) for n in range(3)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(read(path))
    write(path, "last")
    assert len(seen) > 3
    assert len(names(tmp_path)) == 2


def test_an_error_leaves_the_old_pair_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    write(path, "old")
    before = names(tmp_path)
    moved = []

    def fail_at_the_second(temporary, target):
        moved.append(target)
        if len(moved) == 2:
            raise OSError(5, "Input/output error")
        temporary.replace(target)

    monkeypatch.setattr(datafile, "move", fail_at_the_second)
    with raises(ExportError, path, "Input/output error"):
        write(path, "new")
    assert moved[0].name.endswith(".data")
    assert read(path) == "old"
    assert names(tmp_path) == before


def test_data_that_a_killed_export_left_is_removed_and_data_of_a_running_one_stays(tmp_path):
    path = tmp_path / "net.onnx"
    (tmp_path / f"net.onnx.{'0' * 16}.data").write_text("left by an export that was killed")
    (tmp_path / f"other.onnx.{'0' * 16}.data").write_text("of another network")
    (tmp_path / "net.onnx.data").write_text("by another program")
    with work_folder(tmp_path) as running:
        theirs = tmp_path / f"net.onnx.{running.name.removeprefix(PREFIX)}.data"
        theirs.write_text("of an export that has not come to its end")
        write(path, "mine")
        assert theirs.exists()
    assert not (tmp_path / f"net.onnx.{'0' * 16}.data").exists()
    assert (tmp_path / f"other.onnx.{'0' * 16}.data").exists()
    assert (tmp_path / "net.onnx.data").exists()
    write(path, "mine-again")
    assert not theirs.exists()
    assert read(path) == "mine-again"


def test_data_of_a_file_behind_a_link_in_another_folder_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.onnx").symlink_to("deep/net.onnx")
    with raises(ExportError, "link.onnx", "deep/net.onnx"):
        write(tmp_path / "link.onnx", "new")
    assert list((tmp_path / "deep").iterdir()) == []
    write(tmp_path / "link.onnx", "new", with_data=False)
    assert (tmp_path / "link.onnx").is_symlink()
    (tmp_path / "near.onnx").symlink_to("net.onnx")
    write(tmp_path / "near.onnx", "new")
    assert read(tmp_path / "near.onnx") == read(tmp_path / "net.onnx") == "new"


def test_large_data_stays_long_enough_for_a_slow_disk():
    assert seconds_to_read(0) == datafile.LEAST_SECONDS
    assert seconds_to_read(4 * datafile.READ_PER_SECOND) == 4
