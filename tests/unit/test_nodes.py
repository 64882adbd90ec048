"""Which node this host is, and that options of one launcher are refused for the other."""

from typing import Any

import pytest

from launch.dispatch import Launcher, choose_launcher, require_ray
from launch.nodes import NodePlace, place_of
from tokenfabric.errors import ConfigError


@pytest.mark.parametrize(
    ("rendezvous", "host", "port"),
    [("10.0.0.1:29500", "10.0.0.1", 29500), ("[fd00::1]:1", "fd00::1", 1), ("a.b:7", "a.b", 7)],
)
def test_a_rendezvous_is_host_and_port(rendezvous: str, host: str, port: int) -> None:
    assert place_of(2, 1, rendezvous) == NodePlace(node_rank=1, host=host, port=port)


@pytest.mark.parametrize(
    ("nodes", "node_rank", "rendezvous", "says"),
    [
        (1, 0, None, "go with --nodes of 2 or more"),
        (1, None, "a:1", "go with --nodes of 2 or more"),
        (2, None, "a:1", r"run this command on each of them, with its --node-rank \(0 to 1\)"),
        (2, 0, None, "--rendezvous host:port, an address of node 0"),
        (2, 2, "a:1", "--node-rank 2 is not from 0 to 1"),
        (2, 0, "a", "must be host:port, such as 10.0.0.1:29500, got 'a'"),
        (2, 0, ":7", "must be host:port"),
        (2, 0, "a:70000", "from 1 to 65535, got 70000"),
    ],
)
def test_a_place_that_is_none_is_refused(
    nodes: int, node_rank: int | None, rendezvous: str | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        place_of(nodes, node_rank, rendezvous)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"launcher": Launcher.RAY, "pin": True}, "--pin is for processes of this host"),
        ({"launcher": Launcher.RAY, "node_rank": 0}, "do not go with --launcher ray"),
        ({"address": "auto"}, "--address needs --launcher ray"),
    ],
)
def test_options_of_the_other_launcher_are_refused(options: dict[str, Any], says: str) -> None:
    given = {
        "launcher": Launcher.TORCHRUN, "address": None, "nodes": 1, "node_rank": None,
        "rendezvous": None, "pin": None,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=says):
        choose_launcher(**{**given, **options})


def test_an_old_ray_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before a cluster is started or asked."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.49.1")
    with pytest.raises(ConfigError, match=r"needs Ray 2\.50 or later, but 2\.49\.1") as raised:
        require_ray()
    assert "pip install 'tokenfabric[ray]'" in str(raised.value)
