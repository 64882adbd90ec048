"""Ranks on CPUs: can they share memory, which row kernels do they take, can it be built. Pure."""

from collections.abc import Iterable

from launch.doctor.execution_path import ExecutionPath
from launch.doctor.machine import Machine
from launch.doctor.requirements import NEEDED, torch_problem

ROW_KERNELS = {
    "x86_64": {
        "avx512_bf16": (
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512_bf16",
            "avx512vbmi",
        ),
        "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
        "avx2": ("avx2", "fma", "f16c"),
        "scalar": (),
    },
    "aarch64": {"neon": ("asimd",), "scalar": ()},
}
"""Architecture -> body -> the features of a CPU that can run it, widest first."""

_TORCH_HINT = (
    f"install torch >= {NEEDED['torch']}; which build (CPU, CUDA) is your choice: "
    "https://pytorch.org/get-started"
)


def shared_memory(machine: Machine) -> ExecutionPath:
    """Return the path on which all others stand."""
    name = "CPU ranks over shared memory"
    lacks, advice = _what_basics_lack(machine)
    if lacks:
        return ExecutionPath(
            name=name, runs=False, why="; ".join(lacks), advice=tuple(advice), is_essential=True
        )
    cores = "" if machine.cpu is None else f" on {len(machine.cpu.usable_cores)} core(s)"
    assert machine.torch is not None, "it would be lacking"
    why = f"torch {machine.torch.version} and the native module{cores}"
    return ExecutionPath(name=name, runs=True, why=why, is_essential=True)


def _what_basics_lack(machine: Machine) -> tuple[list[str], list[str]]:
    """Return what ranks on this host need and do not find, and what to do."""
    lacks: list[str] = []
    advice: list[str] = []
    if machine.system != "Linux":
        lacks.append(f"the system is {machine.system}, not Linux")
        advice.append("use Linux 5.3 or newer on x86-64 or aarch64")
    else:
        broken = [trial for trial in machine.sharing or () if trial.problem is not None]
        lacks += [f"{trial.name} fails: {trial.problem}" for trial in broken]
        if machine.sharing is None:
            lacks.append("whether processes can share memory is not known")
        if broken:
            advice.append(
                "let the system or its sandbox (seccomp, gVisor) allow this; Linux 5.3 or newer"
            )
    without_torch = torch_problem(machine)
    if without_torch is not None:
        lacks.append(without_torch)
        advice.append(_TORCH_HINT)
    if machine.native is None:
        lacks.append("whether the native module loads is not known")
    elif machine.native.problem is not None:
        lacks.append(machine.native.problem)
        advice += build(machine).advice or ("build it where the source is: pip install -e .",)
    elif machine.isa != "auto" and machine.isa not in machine.native.row_kernels:
        usable = ", ".join(machine.native.row_kernels)
        lacks.append(f"TOKENFABRIC_ISA={machine.isa} cannot run here; usable: {usable}")
        advice.append("unset TOKENFABRIC_ISA, or set it to one of the usable ones")
    return lacks, advice


def row_kernels(machine: Machine) -> Iterable[ExecutionPath]:
    """Yield every body of the row kernels that this architecture could have."""
    architecture = "" if machine.cpu is None else machine.cpu.architecture
    known = ROW_KERNELS.get(architecture, {"scalar": ()})
    usable = () if machine.native is None else machine.native.row_kernels
    chosen = usable[0] if usable and machine.isa == "auto" else machine.isa
    for body in dict.fromkeys((*usable, *known)):
        name = f"row kernels: {body}"
        if body in usable:
            why = "usable"
            if body == chosen:
                why = f"taken (TOKENFABRIC_ISA={machine.isa})"
            yield ExecutionPath(name=name, runs=True, why=why)
        else:
            why = _why_not_usable(machine, known[body])
            yield ExecutionPath(name=name, runs=False, why=why)


def _why_not_usable(machine: Machine, needed: tuple[str, ...]) -> str:
    features = () if machine.cpu is None else machine.cpu.features
    missing = [feature for feature in needed if feature not in features]
    if machine.cpu is not None and missing:
        return f"this CPU has no {', '.join(missing)}"
    if machine.native is None or machine.native.problem is not None:
        return "the native module does not load"
    return "the native module was built without it"


def several_hosts(basic: ExecutionPath) -> ExecutionPath:
    """Return the path between hosts, whose network is not asked here."""
    why = (
        "shared memory within a host, gloo over TCP between hosts, the same number of ranks on "
        "each; whether they reach each other shows when they meet"
    )
    return ExecutionPath(name="several hosts", runs=True, why=why).after(basic)


def build(machine: Machine) -> ExecutionPath:
    """Return whether the native module can be compiled here; one that is there needs none of it."""
    name = "building the native module"
    compiler = machine.compiler
    if compiler is None:
        return ExecutionPath(name=name, runs=False, why="whether there is a compiler is not known")
    if compiler.problem is not None:
        advice = "install gcc 11 or newer (package g++ or gcc-c++), or set CXX to such a compiler"
        return ExecutionPath(name=name, runs=False, why=compiler.problem, advice=(advice,))
    cmake = None if machine.cmake is None else machine.cmake.version
    why = f"{compiler.version}; {cmake or 'cmake comes with pip install'}"
    return ExecutionPath(name=name, runs=True, why=why)
