"""What a job may be, and how many threads its ranks get. No process is started."""

import json

import pytest

from launch.job import JobSpec, threads_per_rank


def test_recipe_names_module_and_function() -> None:
    """The two halves are what a rank imports."""
    spec = JobSpec(recipe="launch.recipes.generate:run", ranks=2)
    assert (spec.module, spec.function) == ("launch.recipes.generate", "run")


@pytest.mark.parametrize(
    "recipe",
    ["", "run", "pkg.mod", "pkg.mod:", ":run", "pkg mod:run", "pkg..mod:run", "a:b:c", "a:1"],
)
def test_malformed_recipe_is_refused(recipe: str) -> None:
    """A name that no import could satisfy fails before a rank starts."""
    with pytest.raises(ValueError, match=r"recipe must be 'package\.module:function'"):
        JobSpec(recipe=recipe, ranks=1)


@pytest.mark.parametrize("ranks", [0, -1])
def test_no_ranks_is_refused(ranks: int) -> None:
    """A job has at least one rank."""
    with pytest.raises(ValueError, match=f"ranks must be at least 1, got {ranks}"):
        JobSpec(recipe="a:b", ranks=ranks)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_timeout_must_be_positive(timeout_s: float) -> None:
    """A wait without a deadline does not exist."""
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        JobSpec(recipe="a:b", ranks=1, timeout_s=timeout_s)


@pytest.mark.parametrize("threads", [0, -3])
def test_no_threads_is_refused(threads: int) -> None:
    """A rank computes with at least one."""
    with pytest.raises(ValueError, match=f"num_threads must be at least 1, got {threads}"):
        JobSpec(recipe="a:b", ranks=1, num_threads=threads)


def test_negative_restarts_are_refused() -> None:
    with pytest.raises(ValueError, match="max_restarts must be at least 0, got -1"):
        JobSpec(recipe="a:b", ranks=1, max_restarts=-1)


@pytest.mark.parametrize(
    ("nodes", "mesh", "says"),
    [
        (1, {"ring": 2, "tp": 3}, "ring 2 x tp 3 is 6 ranks, but there are 4"),
        (1, {"pp": 4}, "mesh has axes dp, ring, tp, got 'pp'"),
        (1, {"ring": -2, "tp": -2}, "mesh axis ring must be at least 1, got -2"),
        (2, {"tp": 4}, r"tp 4 must lie inside a node, whose 2 rank\(s\)"),
    ],
)
def test_a_mesh_that_the_ranks_are_not_is_refused(
    nodes: int, mesh: dict[str, int], says: str
) -> None:
    """Before a rank starts; a ring may span nodes."""
    with pytest.raises(ValueError, match=says):
        JobSpec(recipe="a:b", ranks=4, nodes=nodes, mesh=mesh)
    assert JobSpec(recipe="a:b", ranks=4, nodes=2, mesh={"ring": 2, "tp": 2}).ranks_per_node == 2


def test_arguments_are_plain_data() -> None:
    """What a spec carries survives the way to another process."""
    spec = JobSpec(recipe="a:b", ranks=3, args={"prompt": "$$ ${x}", "seeds": [1, None, 2.5]})
    assert json.loads(json.dumps(spec.args)) == spec.args


@pytest.mark.parametrize("value", [object(), {"a": 1}, [1, b"x"], print])
def test_other_arguments_are_refused(value: object) -> None:
    """The name of the argument is in the message."""
    with pytest.raises(ValueError, match=r"args\['thing'\] must be plain data"):
        JobSpec(recipe="a:b", ranks=1, args={"thing": value})


def test_argument_names_are_identifiers() -> None:
    """They become keyword arguments."""
    with pytest.raises(ValueError, match="'max-tokens'"):
        JobSpec(recipe="a:b", ranks=1, args={"max-tokens": 1})


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"), [(2, 2, 1), (8, 3, 2), (2, 4, 1), (64, 1, 64), (7, 7, 1)]
)
def test_threads_share_the_cores(cores: int, ranks: int, threads: int) -> None:
    """Never more threads than cores, never none."""
    assert threads_per_rank(cores, ranks) == threads
