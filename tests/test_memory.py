import pytest

from inference import memory

MIB = 2**20


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system that says what a test writes; nothing at first."""
    for name in ("_MEMINFO", "_GROUP", "_GROUPS"):
        monkeypatch.setattr(memory, name, tmp_path / name)
    (tmp_path / "_GROUPS" / "jobs" / "job 7").mkdir(parents=True)

    def limit(group, *, most, taken, files):
        place = tmp_path / "_GROUPS" / group
        (place / "memory.max").write_text(f"{most}\n")
        (place / "memory.current").write_text(f"{taken}\n")
        (place / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 3\n")

    (tmp_path / "_MEMINFO").write_text("MemTotal:  9 kB\nMemAvailable:    4096000 kB\nBuffers: 1 kB\n")
    (tmp_path / "_GROUP").write_text("1:cpu:/old\n0::/jobs/job 7\n")
    return limit


def test_the_machine_alone(system):
    assert memory.available_memory() == 4000 * MIB


def test_the_tightest_limit_of_all_groups(system):
    system("jobs/job 7", most=900 * MIB, taken=300 * MIB, files=100 * MIB)
    assert memory.available_memory() == 700 * MIB
    system("jobs", most=500 * MIB, taken=400 * MIB, files=0)
    assert memory.available_memory() == 100 * MIB
    system("jobs", most="max", taken=400 * MIB, files=0)
    assert memory.available_memory() == 700 * MIB
    system("jobs", most=500 * MIB, taken=600 * MIB, files=0)
    assert memory.available_memory() == 0


def test_other_systems(system, tmp_path, monkeypatch):
    """Where the kernel does not tell, all memory there is; where nothing tells, nothing."""
    for name in ("_MEMINFO", "_GROUP"):
        (tmp_path / name).unlink()
    pages = {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__)
    assert memory.available_memory() == 4096000

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert memory.available_memory() is None


def test_sizes_in_words():
    words = {0: "0 bytes", 2**20: "1.0 MiB", 3 * 2**29: "1.5 GiB", 2**41: "2.0 TiB"}
    assert {size: memory.in_words(size) for size in words} == words
