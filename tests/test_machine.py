"""How much memory is left, on a machine and within a control group."""

import pytest

from espnet_hra.files import machine


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Files as Linux has them; 8 GiB are free."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:  8388608 kB\n")
    return write


def test_without_groups_it_is_what_the_machine_has(system):
    assert machine.available_memory() == 2**33


def test_a_group_of_version_2_leaves_less_and_gives_caches_back(system):
    system("proc/self/cgroup", "0::/jobs/mine\n")
    system("groups/jobs/mine/memory.max", "max\n")
    system("groups/jobs/mine/memory.current", "77\n")
    system("groups/jobs/memory.max", "5000\n")  # the limit of all jobs together
    system("groups/jobs/memory.current", "4000\n")
    system("groups/jobs/memory.stat", "anon 1\ninactive_file 300\n")
    assert machine.available_memory() == 1300


def test_a_group_of_version_1_whose_path_is_that_of_the_machine(system):
    system("proc/self/cgroup", "3:cpu:/x\n2:hugetlb,memory:/docker/abc\n")
    system("groups/memory/memory.limit_in_bytes", "9000\n")
    system("groups/memory/memory.usage_in_bytes", "2000\n")
    assert machine.available_memory() == 7000


def test_a_limit_above_the_machine_or_below_use_is_no_surprise(system):
    system("proc/self/cgroup", "0::/\n")
    system("groups/memory.max", str(2**62))
    system("groups/memory.current", "0")
    assert machine.available_memory() == 2**33
    system("groups/memory.max", "10")
    system("groups/memory.current", "20")
    assert machine.available_memory() == 1  # 0 would say that nobody knows


def test_a_system_that_does_not_tell(system, tmp_path):
    (tmp_path / "proc" / "meminfo").unlink()
    assert machine.available_memory() == 0
