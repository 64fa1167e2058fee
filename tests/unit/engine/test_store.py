"""Activations are counted by the storage they keep alive, and go to disk and back without a change."""

import gc
import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from facts import raises

from roundwise.engine import store as memory
from roundwise.engine.store import ActivationStore, default_budget, held_bytes
from roundwise.errors import MemoryBudgetError

CPU = torch.device("cpu")
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The temporary folder for this test alone."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def values(dtype, *shape):
    return (10 * torch.randn(shape)).to(dtype)


# ------------------------------------------------------------------------------------------------------ counting


def test_a_tensor_counts_until_it_is_dropped():
    store = ActivationStore(1000, CPU)
    held = store.hold(torch.zeros(10))
    assert (store.in_memory, store.on_disk) == (40, 0)
    assert store.hold(held) is held
    assert store.in_memory == 40
    del held
    assert (store.in_memory, store.peak) == (0, 40)


def test_views_of_one_storage_count_once_and_as_long_as_the_last_of_them_lives():
    store = ActivationStore(1000, CPU)
    whole = store.hold(torch.zeros(4, 5))
    view = store.hold(whole.view(20))
    assert view.data_ptr() == whole.data_ptr()
    assert store.in_memory == held_bytes([whole, view]) == 80
    del whole
    assert store.in_memory == 80
    del view
    assert store.in_memory == 0


def test_a_part_of_a_tensor_is_copied_so_that_the_rest_can_go():
    store = ActivationStore(1000, CPU)
    whole = torch.zeros(100)
    part = store.hold(whole[:5])
    assert part.untyped_storage().nbytes() == store.in_memory == held_bytes([whole[:5]]) == 20


def test_an_expanded_tensor_counts_what_it_occupies():
    store = ActivationStore(1000, CPU)
    held = store.hold(torch.zeros(3, 1).expand(3, 1000))
    assert held.stride() == (1, 0)
    assert store.in_memory == held_bytes([held]) == 12


def test_a_slice_of_the_callers_tensor_is_adopted_and_not_counted():
    store = ActivationStore(0, CPU)
    part = store.adopt(torch.zeros(100)[:10])
    assert store.hold(part) is part
    assert store.in_memory == store.on_disk == store.peak == 0


def test_what_is_fetched_is_aligned_as_a_tensor_of_its_own_would_be():
    store = ActivationStore(0, CPU)
    part = store.adopt(torch.arange(100.0)[1:])
    fetched = store.fetch(part)
    assert fetched.data_ptr() % 64 == 0
    assert torch.equal(fetched, part)
    loose = torch.arange(100.0)[1:]
    assert store.fetch(loose) is loose


def test_the_default_budget_is_half_of_what_is_free(monkeypatch):
    free = namedtuple("free", "available")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: free(1000))
    assert default_budget(CPU) <= 500
    monkeypatch.setattr(Path, "read_text", lambda path: {"memory.max": "900", "memory.current": "300"}[path.name])
    assert default_budget(CPU) == 300
    monkeypatch.setattr(Path, "read_text", lambda path: "max")
    assert default_budget(CPU) == 500


def test_the_default_budget_on_a_gpu_is_half_of_its_own_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8000, 10000))
    assert default_budget(torch.device("cuda", 0)) == 4000


# ------------------------------------------------------------------------------------------------------ spilling


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_survives_the_disk(folder, dtype):
    with ActivationStore(0, CPU) as store:
        for tensor in (
            values(dtype, 3, 4),
            values(dtype, 2, 3, 4, 5).permute(0, 2, 3, 1),
            values(dtype, 7, 6)[1:3, ::2],
            values(dtype, 3, 1).expand(3, 9),
            values(dtype),
        ):
            held = store.hold(tensor)
            assert store.on_disk > 0
            assert store.in_memory == 0
            assert held.dtype == dtype
            assert torch.equal(held, tensor)
            assert store.fetch(held) is held
            if tensor.untyped_storage().nbytes() == tensor.nbytes:
                assert held.stride() == tensor.stride()
            del held
            assert store.on_disk == 0


def test_a_conjugate_view_is_resolved_on_its_way_to_disk(folder):
    tensor = torch.randn(5, dtype=torch.complex64).conj()
    with ActivationStore(0, CPU) as store:
        assert torch.equal(store.hold(tensor), tensor)


def test_an_empty_tensor_needs_no_file(folder):
    with ActivationStore(0, CPU) as store:
        assert store.hold(torch.zeros(0, 3)).shape == (0, 3)
        assert list(folder.iterdir()) == []


def test_only_what_exceeds_the_budget_goes_to_disk(folder):
    with ActivationStore(100, CPU) as store:
        first, second = store.hold(torch.zeros(20)), store.hold(torch.ones(20))
        assert (store.in_memory, store.on_disk, store.peak) == (80, 80, 160)
        del first
        third = store.hold(torch.zeros(20))
        assert (store.in_memory, store.on_disk, store.peak) == (80, 80, 160)
        assert second.sum() + third.sum() == 20


@pytest.mark.skipif(not memory.HAS_UNNAMED_FILES, reason="this system maps no files without a name")
def test_files_have_no_name_so_that_nothing_is_left_whatever_ends_the_process(folder):
    with ActivationStore(0, CPU) as store:
        held = store.hold(torch.ones(5))
        assert list(folder.iterdir()) == []
    assert held.sum() == 5


def test_where_files_need_a_name_they_lie_in_the_folder_that_tmpdir_names_and_go_with_the_store(folder, monkeypatch):
    monkeypatch.setattr(memory, "HAS_UNNAMED_FILES", False)
    with ActivationStore(0, CPU) as store:
        held = store.hold(torch.ones(5))
        (made,) = folder.iterdir()
        assert made.name.startswith("roundwise-")
        assert held.sum() == 5
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("unnamed", [True, False])
def test_nothing_is_left_in_the_folder_after_an_error(folder, monkeypatch, error, unnamed):
    monkeypatch.setattr(memory, "HAS_UNNAMED_FILES", unnamed and memory.HAS_UNNAMED_FILES)

    def interrupted():
        with ActivationStore(0, CPU) as store:
            store.hold(torch.ones(5))
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(folder.iterdir()) == []


def test_many_files_do_not_use_up_file_descriptors(folder):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list a process's open files")
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with ActivationStore(0, CPU) as store:
        held = [store.hold(torch.ones(5)) for _ in range(50)]
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
        assert len(held) == 50


def occupied():
    """Bytes of this process's memory, with the pages of files that it has mapped."""
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not given back")
def test_what_is_written_to_disk_and_read_again_does_not_stay_in_memory(folder):
    held, before = [], occupied()
    with ActivationStore(0, CPU) as store:
        for number in range(100):  # sizes that leave holes of a wrong size
            samples = torch.full((1 + number % 7, 3, 99 + number, 501), float(number))
            held.append(store.hold(samples))
        del samples
        written = occupied() - before
        assert store.on_disk > 300 << 20
        for _ in range(2):
            sums = [float(store.fetch(tensor).sum(dtype=torch.float64)) / tensor.numel() for tensor in held]
            assert sums == pytest.approx(range(100))
        read = occupied() - before
        assert max(written, read) < 128 << 20  # beside what other tests in this process leave and free
        del held[::2]  # whose memory may belong to others now
        assert [float(store.fetch(tensor)[0, 0, 0, 0]) for tensor in held] == list(range(1, 100, 2))


# ------------------------------------------------------------------------------------------------- a disk too small


def test_too_little_disk_space_is_an_error_that_says_what_to_do(folder, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    store = ActivationStore(500, CPU)
    store.check_disk(1000)
    with raises(MemoryBudgetError, "500 Bytes", "2.0 KiB", folder, "1000 Bytes", "TMPDIR"):
        store.check_disk(2048)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_an_error_and_not_a_crash(folder, monkeypatch):
    full = Path("/dev/full")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda prefix, buffering: full.open("wb", buffering))
    with (
        ActivationStore(0, CPU) as store,
        raises(MemoryBudgetError, "20 Bytes", "No space left on device", "TMPDIR"),
    ):
        store.hold(torch.ones(5))


def test_a_temporary_folder_that_cannot_be_made_is_an_error(monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with ActivationStore(0, CPU) as store, raises(MemoryBudgetError, "20 Bytes", "Permission denied", "TMPDIR"):
        store.hold(torch.ones(5))
