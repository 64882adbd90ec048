"""A launcher's folder goes with it, or with the next launcher when it was killed."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from launch.interface import interface_of
from launch.job_folder import job_folder


def test_what_a_killed_launcher_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what belongs to one that lives, or that is about to lock it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("left", "locked", "young", "old")
    folders = {name: tmp_path / f"tokenfabric-job-{name}" for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        if name in ("left", "locked"):
            (folder / ".owner").touch()
    os.utime(folders["old"], (0, 0))
    with (folders["locked"] / ".owner").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        with job_folder() as mine:
            assert mine.stat().st_mode & 0o777 == 0o700
            with job_folder() as other:  # another launcher leaves this one's alone
                assert mine.is_dir()
                assert other != mine
            assert not other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        folders[name].name for name in ("locked", "young")
    )


def test_loopback_addresses_are_of_the_loopback_interface() -> None:
    """Also those that no interface names; an address of no interface is of none."""
    assert interface_of("127.0.0.3") == "lo"
    assert interface_of("::1") == "lo"
    assert interface_of("203.0.113.7") is None
