"""A file is replaced as a whole, under the name that was meant, or not at all, and an error says why."""

import os
import socket
import stat
import threading

import pytest
from facts import raises

from roundwise.errors import ExportError, FileFormatError
from roundwise.files import destination, lines, replacing

posix = pytest.mark.skipif(os.name != "posix", reason="devices, pipes, modes and links are those of POSIX systems")


def write(path, content="new"):
    with replacing(path, ExportError) as temporary:
        temporary.write_text(content)


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader, replacing(path, ExportError) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.name == path.name
    with path.open() as reader:
        write(path, "newer")
        assert reader.read() == "new"
    assert [it.name for it in tmp_path.iterdir()] == ["file"]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with raises(ExportError, path, "No space left"), replacing(path, ExportError) as temporary:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize("kind", ["device", "pipe", "socket", "link to a pipe", "folder", "link to a folder"])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, kind):
    path = tmp_path / "it"
    open_socket = socket.socket(socket.AF_UNIX)
    match kind:
        case "device":
            try:
                os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            except PermissionError:
                pytest.skip("only root makes devices")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            open_socket.bind(str(path))
        case "folder":
            path.mkdir()
        case "link to a pipe":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        case "link to a folder":
            (tmp_path / "folder").mkdir()
            path.symlink_to("folder")
    before = path.lstat()
    with raises(ExportError, path, "folder" if "folder" in kind else "device"):
        write(path)
    with raises(ExportError, path), lines(path, ExportError):
        pass
    open_socket.close()
    assert os.path.samestat(path.lstat(), before)


@posix
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_the_file_that_it_leads_to_is_written(tmp_path, exists):
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "file"
    if exists:
        file.write_text("old")
    (tmp_path / "deep" / "second").symlink_to("file")
    (tmp_path / "first").symlink_to("deep/second")
    write(tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "deep" / "second").is_symlink()
    assert file.read_text() == "new"
    assert {it.name for it in (tmp_path / "deep").iterdir()} == {"file", "second"}


@posix
def test_links_that_lead_nowhere_are_refused(tmp_path):
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "lost").symlink_to("no folder/file")
    with raises(ExportError, "round", "itself"):
        write(tmp_path / "round")
    with raises(ExportError, "lost", "no folder"):
        write(tmp_path / "lost")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_of_a_file_stays(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    before = os.umask(0o022)
    try:
        write(path)
        write(tmp_path / "new")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644


@posix
@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("a" * 300, (300, 255)),
        ("é" * 200, (400, 255)),
        ("a\0b", ("a\\x00b", "null")),
        ("\ud800", ("\\ud800",)),
        ("file/below", ("file",)),
        ("nowhere/below", ("nowhere",)),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name, facts):
    (tmp_path / "file").touch()
    with raises(ExportError, *facts):
        write(tmp_path / name)
    with raises(FileFormatError, *facts):
        destination(tmp_path / name, FileFormatError)
    assert [it.name for it in tmp_path.iterdir()] == ["file"]


def test_content_and_name_reach_the_disk(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, os.rename

    def note(file):
        order.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file")
        sync(file)

    def renamed(*names):
        order.append("rename")
        rename(*names)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", renamed)
    write(tmp_path / "file")
    assert order == ["file", "rename", "folder"]


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    contents = {letter * 100_000 for letter in "abcd"}
    threads = [threading.Thread(target=lambda c=c: [write(path, c) for _ in range(5)]) for c in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in contents
    assert path.read_text() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_lines_of_several_writers_stay_whole(tmp_path):
    path = tmp_path / "lines"

    def add(letter):
        for _ in range(20):
            with lines(path, ExportError) as file:
                file.write((letter * 20_000 + "\n").encode())

    threads = [threading.Thread(target=add, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = path.read_text().splitlines()
    assert sorted(written) == sorted(letter * 20_000 for letter in "abcd" for _ in range(20))
