"""What the doctor concludes, on machines that are made up."""

import re
import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.doctor.cpu_paths import ROW_KERNELS
from launch.doctor.findings import Findings, find
from launch.doctor.machine import FailedProbe, Gpu, Machine
from launch.doctor.requirements import NEEDED, TOO_NEW
from launch.recipes.doctor import machine_table, paths_table, to_json
from tests.house.tree import ROOT
from tests.unit.made_up_machines import (
    COMPILER,
    CPU,
    GPU,
    MACHINE,
    NATIVE,
    NO_NATIVE,
    TORCH,
    with_broken,
    with_gpus,
    with_package,
)
from tokenfabric.cuda.kernels.backend import BackendFacts, choose_backend

BASIC = "CPU ranks over shared memory"
MULTICAST = "CUDA, NVLink multicast (multimem)"
PEER = "CUDA, peer to peer"
HF = "Hugging Face models (safetensors)"


def test_machine_that_has_everything() -> None:
    """All but what this version lacks runs."""
    findings = find(MACHINE)
    assert findings.is_well
    assert [path.name for path in findings.paths if not path.runs] == [
        "CUDA kernels",
        MULTICAST,
        PEER,
        "Ray",
    ]
    assert findings.hints == ()
    assert "taken" in findings.path("row kernels: avx512_bf16").why


BROKEN = {
    "no memfd": (with_broken("memfd_create", "OSError: not permitted"), "memfd_create fails: OSE"),
    "no pidfd": (with_broken("pidfd_open", "OSError: no such call"), "pidfd_open fails"),
    "sharing not asked": (replace(MACHINE, sharing=None), "share memory is not known"),
    "not Linux": (replace(MACHINE, system="Darwin", sharing=None), "the system is Darwin"),
    "no torch": (
        replace(MACHINE, torch=replace(TORCH, version=None, problem="not installed")),
        "torch: not installed",
    ),
    "old torch": (
        replace(MACHINE, torch=replace(TORCH, version="2.9.1")),
        "torch 2.9.1 is older than 2.11",
    ),
    "no gloo": (replace(MACHINE, torch=replace(TORCH, has_gloo=False)), "without .*gloo"),
    "torch crashed": (replace(MACHINE, torch=None), "whether torch works is not known"),
    "no native module": (replace(MACHINE, native=NO_NATIVE), "_C is not built"),
    "native module crashed": (replace(MACHINE, native=None), "module loads is not known"),
    "wrong ISA": (replace(MACHINE, isa="avx1024"), "TOKENFABRIC_ISA=avx1024 cannot run here"),
}


NO_ANSWER = {"sharing not asked", "torch crashed", "native module crashed"}


@pytest.mark.parametrize("name", BROKEN)
def test_without_the_essentials_nothing_runs(name: str) -> None:
    """The reason is named, and what stands on shared memory does not claim to run."""
    machine, reason = BROKEN[name]
    findings = find(machine)
    assert not findings.is_well
    assert re.search(reason, findings.path(BASIC).why)
    for other in ("several hosts", HF, "GGUF files", "demo model"):
        assert not findings.path(other).runs
        assert BASIC in findings.path(other).why


@pytest.mark.parametrize("name", sorted(BROKEN.keys() - NO_ANSWER))
def test_what_is_broken_can_be_mended(name: str) -> None:
    """What is known to be wrong comes with a step to take."""
    assert find(BROKEN[name][0]).path(BASIC).advice


def test_native_module_is_built_with_a_compiler() -> None:
    """First the compiler, where there is none."""
    machine = replace(MACHINE, native=NO_NATIVE)
    assert any("pip install -e" in step for step in find(machine).path(BASIC).advice)
    missing = replace(COMPILER, path=None, version=None, problem="c++ was not found")
    findings = find(replace(machine, compiler=missing))
    assert any("gcc 11" in step for step in findings.path(BASIC).advice)
    assert findings.path("building the native module").why == "c++ was not found"
    assert find(replace(MACHINE, compiler=missing)).is_well, "a built module needs no compiler"


@pytest.mark.parametrize(
    ("features", "missing"),
    [
        ({"avx512_bf16"}, {"avx512_bf16": "avx512_bf16"}),
        (
            {"avx512bw", "avx512_bf16"},
            {"avx512_bf16": "avx512bw, avx512_bf16", "avx512": "avx512bw"},
        ),
        ({"fma"}, {"avx2": "fma"}),
    ],
)
def test_missing_feature_is_named(features: set[str], missing: dict[str, str]) -> None:
    """Of each body that the CPU cannot run, and "auto" takes the widest of the others."""
    cpu = replace(CPU, features=tuple(it for it in CPU.features if it not in features))
    usable = tuple(body for body in NATIVE.row_kernels if body not in missing)
    findings = find(replace(MACHINE, cpu=cpu, native=replace(NATIVE, row_kernels=usable)))
    for body, names in missing.items():
        assert findings.path(f"row kernels: {body}").why == f"this CPU has no {names}"
    assert "taken" in findings.path(f"row kernels: {usable[0]}").why
    assert findings.is_well


def test_body_that_was_not_compiled() -> None:
    """The CPU could, the module cannot: that is another reason."""
    scalar_only = replace(NATIVE, row_kernels=("scalar",))
    findings = find(replace(MACHINE, native=scalar_only, isa="scalar"))
    assert findings.path("row kernels: avx512").why == "the native module was built without it"
    assert findings.path("row kernels: scalar").why == "taken (TOKENFABRIC_ISA=scalar)"
    assert findings.is_well


def test_other_architectures_are_not_asked_for_avx() -> None:
    """Arm has bodies of its own."""
    cpu = replace(CPU, architecture="aarch64", features=("asimd",))
    findings = find(replace(MACHINE, cpu=cpu, native=replace(NATIVE, row_kernels=("scalar",))))
    bodies = [path.name for path in findings.paths if path.name.startswith("row kernels")]
    assert sorted(bodies) == [f"row kernels: {body}" for body in sorted(ROW_KERNELS["aarch64"])]


def _on_gpus(*devices: Gpu, **native: str | None) -> Machine:
    """Return a machine with GPUs that torch and the native module can use."""
    torch = replace(TORCH, version="2.13.0", build="CUDA 13.0", num_gpus=len(devices))
    return replace(with_gpus(*devices), torch=torch, native=replace(NATIVE, **native))


NOT_BUILT = choose_backend(
    BackendFacts(is_compiled=False, torch_cuda="13.0", cupy_problem="CuPy is not installed")
).reason
PAIR = (GPU, replace(GPU, peers=(0,)))
GPUS = {
    "none": (MACHINE, r"torch .* finds no usable GPU", r"torch .* finds no usable GPU"),
    "not asked": (
        replace(_on_gpus(*PAIR), gpus=None),
        "whether there is a GPU is not known",
        "whether there is a GPU is not known",
    ),
    "not built": (_on_gpus(*PAIR, cuda_problem=NOT_BUILT), "no CUDA kernels", "no CUDA kernels"),
    "one": (_on_gpus(replace(GPU, peers=())), "only 1 GPU", "only 1 GPU"),
    "no NVLink": (
        _on_gpus(*[replace(GPU, num_nvlinks=0, peers=(peer,)) for peer in (1, 0)]),
        "rank 0 .* has no multicast",
        None,
    ),
    "no multicast": (
        _on_gpus(GPU, replace(GPU, has_multicast=False, peers=())),
        "rank 1 .* cannot map the memory of rank 0's GPU",
        "rank 1 .* cannot map the memory of rank 0's GPU",
    ),
    "old": (
        _on_gpus(*[replace(it, compute_capability="7.0") for it in PAIR]),
        "compute capability 7.0",
        "compute capability 7.0",
    ),
    "all": (_on_gpus(*PAIR), None, None),
}


@pytest.mark.parametrize("name", GPUS)
def test_what_gpus_do_together_is_what_their_ranks_would_agree_on(name: str) -> None:
    """What runs says how, what does not says which rank stands in the way; nothing is essential."""
    machine, *reasons = GPUS[name]
    findings = find(machine)
    for path, reason in zip((MULTICAST, PEER), reasons, strict=True):
        found = findings.path(path)
        assert found.runs == (reason is None)
        assert re.search(reason or r"over 2 GPU\(s\).*no measurement", found.why)
    assert findings.is_well
    assert findings.path("CUDA kernels").runs == (name in ("one", "no NVLink", "no multicast",
                                                           "old", "all"))  # fmt: skip


def test_kernels_that_were_not_built_come_with_a_step() -> None:
    """Where nvcc is they can be, and elsewhere compiled when first needed."""
    advice = find(_on_gpus(*PAIR, cuda_problem=NOT_BUILT)).path("CUDA kernels").advice
    assert "TOKEN_CUDA=on" in advice[0]
    assert "'tokenfabric[cuda13]'" in advice[1]


def test_where_kernels_come_from_is_said() -> None:
    """The reason of the choice is that of the path."""
    machine = _on_gpus(*PAIR, cuda_kernels="kernels are compiled by NVRTC 13.1")
    assert find(machine).path("CUDA kernels").why == "kernels are compiled by NVRTC 13.1"


@pytest.mark.parametrize(
    ("version", "problem", "reason"),
    [
        (None, "not installed", "transformers: not installed"),
        ("5.24.0", "does not import: ImportError: x", "transformers: does not import"),
        ("5.23.9", None, "transformers 5.23.9 is older than 5.24"),
        ("6.0.1", None, "transformers 6.0.1 is not older than 6"),
    ],
)
def test_models_need_their_packages(version: str | None, problem: str | None, reason: str) -> None:
    """The ranks run without them; what stands on them does not."""
    findings = find(with_package("transformers", version, problem))
    assert findings.is_well
    assert reason in findings.path(HF).why
    assert findings.path(HF).advice == ("pip install 'tokenfabric[hf]'",)
    assert HF in findings.path("GGUF files").why
    assert not findings.path("demo model").runs


def test_hints() -> None:
    """What slows ranks down is said; it does not make a machine unwell."""
    cpu = replace(CPU, quota_cores=1.5, num_numa_nodes=2)
    findings = find(replace(MACHINE, cpu=cpu, torch=replace(TORCH, num_gpus=1)))
    assert findings.is_well
    assert [words in hint for words, hint in zip(
        ("at most 1 rank(s)", "2 NUMA nodes", "models run on CPUs"),
        findings.hints, strict=True)] == [True] * 3  # fmt: skip
    assert "one core" in find(replace(MACHINE, cpu=replace(CPU, usable_cores=(3,)))).hints[0]


def _machines() -> st.SearchStrategy[Machine]:
    """Return machines of which any part may have given no answer."""
    parts = ("cpu", "memory", "sharing", "gpus", "compiler", "cmake", "torch", "native", "packages")
    failed = st.sets(st.sampled_from(parts))
    return failed.map(
        lambda names: replace(
            MACHINE,
            failed_probes=tuple(FailedProbe(probe=it, reason=f"{it} broke") for it in names),
            **dict.fromkeys(names),
        )
    )


@given(_machines())
def test_probes_may_fail_in_any_combination(machine: Machine) -> None:
    """There is always an answer, in both forms, and every failed probe's reason is in it."""
    findings: Findings = find(machine)
    essential = {"sharing", "torch", "native"}
    assert findings.is_well == (not essential & {it.probe for it in machine.failed_probes})
    shown = (machine_table(machine), paths_table(findings))
    for failed in machine.failed_probes:
        assert f"{failed.probe}: {failed.reason}" in shown[0].notes
        assert failed.reason in to_json(machine, findings)


def test_versions_are_those_of_the_package() -> None:
    """pyproject.toml and the doctor ask for the same."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in extras["optional-dependencies"].values() for line in extra]
    for name, version in NEEDED.items():
        if name != "torch":
            upper = f",<{TOO_NEW[name]}" if name in TOO_NEW else ""
            assert f"{name}>={version}{upper}" in lines
    assert f"torch >= {NEEDED['torch']}" in (ROOT / "tokenfabric" / "lazy.py").read_text()
