import pytest
from hypothesis import given
from hypothesis import strategies as st

from localrank_cli.divide.share import Machine, available_cores, divide, is_several
from localrank_cli.errors import SettingsError, UsageError

GIB = 2**30
MACHINE = Machine(cores=8, memory=8 * GIB, gpus=0)
GPUS = Machine(cores=8, memory=8 * GIB, gpus=2)


@given(st.integers(1, 30), st.integers(1, 64))
def test_cores_and_memory_are_divided_and_not_given_twice(workers: int, cores: int) -> None:
    shares = divide(workers, "cpu", None, Machine(cores, 8 * GIB, 0), {})
    assert len(shares) == workers
    assert sum(share.threads for share in shares) == max(cores, workers)
    assert sum(share.memory or 0 for share in shares) <= 8 * GIB
    assert all(share.environment["OMP_NUM_THREADS"] == str(share.threads) for share in shares)


def test_memory_that_was_given_is_divided() -> None:
    assert [share.memory for share in divide(4, "cpu", 2 * GIB, MACHINE, {})] == [GIB // 2] * 4


def test_without_a_number_there_is_a_worker_for_each_core_or_gpu() -> None:
    assert len(divide(None, "auto", None, MACHINE, {})) == 8
    assert len(divide(None, "auto", None, GPUS, {})) == 2
    assert len(divide(None, "cpu", None, GPUS, {})) == 8
    assert len(divide(None, "cpu,cpu,cpu", None, GPUS, {})) == 3


def test_each_worker_sees_its_own_gpu_only() -> None:
    shares = divide(3, "all", None, GPUS, {})
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["0", "1", "0"]
    assert {share.device for share in shares} == {"cuda"}
    assert {share.memory for share in shares} == {None}
    shares = divide(3, "all", GIB, GPUS, {})  # two of them on one GPU
    assert [share.memory for share in shares] == [GIB // 2, GIB, GIB // 2]


def test_gpus_that_were_chosen_before_keep_their_names() -> None:
    shares = divide(None, "cuda:1,cuda:0", None, GPUS, {"CUDA_VISIBLE_DEVICES": "5, GPU-ab"})
    assert [share.environment["CUDA_VISIBLE_DEVICES"] for share in shares] == ["GPU-ab", "5"]


def test_gpus_that_are_not_there() -> None:
    with pytest.raises(SettingsError, match="there is no GPU"):
        divide(None, "all", None, MACHINE, {})
    with pytest.raises(SettingsError, match="there is no cuda:2 \\(2 GPUs found\\)"):
        divide(None, "cuda:0,cuda:2", None, GPUS, {})


def test_too_little_memory_for_so_many() -> None:
    with pytest.raises(UsageError, match="1 MiB for each is too little"):
        divide(64, "cpu", 64 * 2**20, MACHINE, {})


def test_threads_are_limited_as_the_user_said() -> None:
    assert available_cores({"OMP_NUM_THREADS": "1"}) == 1
    assert available_cores({"OMP_NUM_THREADS": "1,2"}) == 1
    assert available_cores({"OMP_NUM_THREADS": "999999"}) == available_cores({}) >= 1


@pytest.mark.parametrize(
    ("device", "several"), [("all", True), ("cuda:0,cuda:1", True), ("cuda:0", False)]
)
def test_several(device: str, several: bool) -> None:
    assert is_several(device) is several
