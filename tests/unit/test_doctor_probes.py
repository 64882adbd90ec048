"""How the doctor asks: the kernel's files, the compiler, the driver, and children that fail."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launch.doctor import child, hardware, probes, tools
from launch.doctor.driver import DriverError, read_gpus
from launch.doctor.sharing import try_sharing
from tests.unit.fake_drivers import CUDA, NVML, compile_library
from tokenfabric.cores import read_quota

X86 = "processor: 0\nmodel name: Made-Up 9000\nflags: fpu avx2 fma avx512f nonsense\n\nflags: fpu\n"
ARM = (
    "processor: 0\nBogoMIPS: 50\nFeatures: fp asimd bf16\nCPU implementer: 0x41\nCPU part: 0xd40\n"
)


def system(root: Path, cpuinfo: str, cgroup: str = "0::/\n") -> Path:
    """Make the files of a machine with 2 sockets, 4 cores and 4 NUMA nodes."""
    for core in range(4):
        folder = root / f"sys/devices/system/cpu/cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core // 2}\n")
        (root / f"sys/devices/system/node/node{core}").mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(cpuinfo)
    (root / "proc/meminfo").write_text("MemTotal: 2048 kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    return root


def test_x86(tmp_path: Path) -> None:
    """Only features that matter, by the kernel's names."""
    cpu = hardware.read_cpu(system(tmp_path, X86))
    assert (cpu.model, cpu.features) == ("Made-Up 9000", ("avx2", "fma", "avx512f"))
    assert (cpu.num_sockets, cpu.num_numa_nodes, cpu.quota_cores) == (2, 4, None)
    memory = hardware.read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes) == (2 << 20, 1 << 20)


def test_arm(tmp_path: Path) -> None:
    """A name made of numbers is one."""
    cpu = hardware.read_cpu(system(tmp_path, ARM))
    assert cpu.model == "CPU implementer 0x41, CPU part 0xd40"
    assert cpu.features == ("asimd", "bf16")


def test_tightest_group_decides(tmp_path: Path) -> None:
    """Own limit, or that of a group above."""
    system(tmp_path, X86, cgroup="0::/a/b\n")
    own = tmp_path / "sys/fs/cgroup/a/b"
    own.mkdir(parents=True)
    (own / "cpu.max").write_text("max 100000\n")
    assert read_quota(tmp_path) is None
    (own.parent / "cpu.max").write_text("150000 100000\n")
    assert read_quota(tmp_path) == 1.5
    (own / "cpu.max").write_text("50000 100000\n")
    assert read_quota(tmp_path) == 0.5


@pytest.mark.parametrize(("granted", "cores"), [("-1", None), ("200000", 2.0)])
def test_old_control_groups(tmp_path: Path, granted: str, cores: float | None) -> None:
    """Version 1 keeps the limit in two files."""
    system(tmp_path, X86, cgroup="4:memory:/x\n3:cpu,cpuacct:/\n")
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(granted)
    (folder / "cpu.cfs_period_us").write_text("100000")
    assert read_quota(tmp_path) == cores


def test_sharing_works_where_ranks_work() -> None:
    """Every step is taken, on the system that runs the other tests."""
    trials = try_sharing()
    assert len(trials) == 4
    assert [trial for trial in trials if trial.problem is not None] == []


def test_refused_call_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that need it fail, the others do not."""

    def refuse(*args: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.memfd_create", refuse)
    broken = [trial for trial in try_sharing() if trial.problem is not None]
    assert [trial.name.split()[0].strip(",") for trial in broken] == ["memfd_create", "passing"]
    assert all("PermissionError: [Errno 1] Operation not" in str(it.problem) for it in broken)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_compiler_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is there but does not know C++20 is no compiler for this."""
    found = tools.find_compiler()
    assert (found.name, found.problem) == ("c++", None)
    old = tmp_path / "old-c++"
    old.write_text("#!/bin/sh\necho \"unrecognized option '-std=c++20'\" >&2\nexit 1\n")
    old.chmod(0o700)
    monkeypatch.setenv("CXX", str(old))
    assert "does not compile C++20: unrecognized" in str(tools.find_compiler().problem)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert tools.find_compiler().problem == "no-such-compiler was not found"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A driver with two GPUs."""
    if shutil.which("c++") is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("driver")
    return compile_library(CUDA, folder / "cuda.so"), compile_library(NVML, folder / "nvml.so")


def test_gpus_are_asked(libraries: tuple[str, str]) -> None:
    """Numbers of devices are handles, not indices; links that are down do not count."""
    gpus = read_gpus(*libraries)
    assert (gpus.driver, gpus.problem) == ("13.1", None)
    first, second = gpus.devices
    assert (first.name, first.compute_capability, first.memory_bytes) == (
        "Fake 40",
        "9.0",
        141 << 30,
    )
    assert (first.has_multicast, first.peers, first.num_nvlinks) == (True, (1,), 3)
    assert second == replace(first, name="Fake 41", has_multicast=False, peers=(), num_nvlinks=0)


def test_gpus_without_their_management_library(libraries: tuple[str, str]) -> None:
    """Everything else is still known."""
    gpus = read_gpus(libraries[0], "libno-such-nvml.so")
    assert [gpu.num_nvlinks for gpu in gpus.devices] == [None, None]
    assert "the number of NVLinks is not known: no NVIDIA driver" in str(gpus.problem)


def test_driver_that_fails(libraries: tuple[str, str], tmp_path: Path) -> None:
    """With the driver's own name for it; or there is none."""
    failing = compile_library(CUDA, tmp_path / "cuda.so", result=100)
    with pytest.raises(DriverError, match=r"cuInit failed: CUDA_ERROR_NO_DEVICE \(100\)"):
        read_gpus(failing, libraries[1])
    with pytest.raises(DriverError, match=r"no NVIDIA driver: libno-such-cuda\.so"):
        read_gpus("libno-such-cuda.so", libraries[1])
    with pytest.raises(DriverError, match="this driver has no cuInit: it is too old"):
        read_gpus(libraries[1], libraries[1])


CHILDREN = {
    "import os; os.kill(os.getpid(), 4)": "killed by SIGILL: it said nothing",
    "import time; time.sleep(60)": r"no answer after 0\.5 s",
    "raise OSError('broken')": "OSError: broken",
}


@pytest.mark.parametrize("code", CHILDREN)
def test_child_that_gives_no_answer(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a hang, an error: each is a sentence."""
    monkeypatch.setattr(child, "_BOOT", code)
    with pytest.raises(child.NoAnswerError, match=CHILDREN[code]):
        child.ask("native", timeout_s=0.5 if "sleep" in code else 60.0)


def test_chatty_child_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a library writes to stdout while it is imported is not the answer."""
    monkeypatch.setattr(child, "_BOOT", "import sys\nsys.stdout.write('hello')\n" + child._BOOT)
    assert child.ask("package", "no-such-package") == {
        "name": "no-such-package",
        "version": None,
        "problem": "not installed",
    }


def test_every_probe_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is still described; every failure is in it with its reason."""

    def fail(*args: object) -> None:
        raise OSError("asked in vain")

    monkeypatch.setattr(child, "ask", fail)
    for module, name in (
        (hardware, "read_cpu"), (hardware, "read_memory"), (tools, "find_compiler"),
        (tools, "find_cmake"), (probes.sharing, "try_sharing"), (probes, "find_checkpoint"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, fail)
    machine = probes.look()
    assert (machine.cpu, machine.torch, machine.native, machine.packages) == (None, None, None, ())
    assert len(machine.failed_probes) == 3 + len(probes._PACKAGES) + 6
    assert {failed.reason for failed in machine.failed_probes} == {"OSError: asked in vain"}
