"""Made-up cores for the tests of placement, as plan_placement and as /sys sees them."""

from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from tokenfabric.placement import Core, format_cores


def machine(
    sockets: int = 1, nodes: int = 1, physical: int = 4, smt: int = 1, *, is_adjacent: bool = False
) -> tuple[Core, ...]:
    """Return so many sockets of so many nodes of so many physical cores of `smt` siblings.

    Siblings are numbered far apart, as firmware mostly does, or next to each other.
    """
    total = sockets * nodes * physical

    def index(place: int, sibling: int) -> int:
        return place * smt + sibling if is_adjacent else sibling * total + place

    return tuple(
        Core(
            index=index(place, sibling),
            node=place // physical,
            socket=place // (physical * nodes),
            physical=index(place, 0),
        )
        for place in range(total)
        for sibling in range(smt)
    )


@st.composite
def machines(draw: st.DrawFn) -> tuple[Core, ...]:
    """Draw a machine of which some cores are offline or not open to the process, in any order."""
    cores = machine(
        sockets=draw(st.integers(1, 3)),
        nodes=draw(st.integers(1, 3)),
        physical=draw(st.integers(1, 5)),
        smt=draw(st.sampled_from((1, 2, 4))),
        is_adjacent=draw(st.booleans()),
    )
    kept = draw(st.sets(st.sampled_from(cores), min_size=1)) if draw(st.booleans()) else cores
    return tuple(draw(st.permutations(sorted(kept, key=lambda core: core.index))))


def write_sys(root: Path, cores: Sequence[Core], num_nodes: int) -> Path:
    """Write the files of /sys that tell of these cores; nodes without cores have memory only."""
    system = root / "sys/devices/system"
    for node in range(num_nodes):
        own = sorted(core.index for core in cores if core.node == node)
        folder = system / f"node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{format_cores(own)}\n")
    for core in cores:
        siblings = sorted(other.index for other in cores if other.physical == core.physical)
        folder = system / f"cpu/cpu{core.index}/topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core.socket}\n")
        (folder / "thread_siblings_list").write_text(f"{format_cores(siblings)}\n")
    return root
