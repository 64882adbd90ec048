"""What one kernel launch asks of a device: the unit that simulators time. Pure.

    work(s) = max( waves(s) * tile_s + even_s / s + serial_s, memory_s )     on s SMs
    time    = start_s + work(s)

A tile runs on one SM, and as many at once as there are SMs, which is a wave: n tiles on s SMs need
ceil(n / s). Example: 300 tiles on 132 SMs are 3 waves.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One launch on one rank."""

    name: str
    start_s: float = 0.0
    """Launch, prologue and drain: no SM shortens it and nothing slows it."""
    tiles: int = 0
    tile_s: float = 0.0
    """Time of one tile on one SM."""
    even_s: float = 0.0
    """SM-seconds that divide evenly over the SMs."""
    serial_s: float = 0.0
    """What the number of SMs does not shorten: the longest single piece, a link's transfer."""
    memory_s: float = 0.0
    """Time that the device's memory needs for what is read and written."""
    held_sms: int = 0
    """SMs that it holds from start to end beside other kernels; 0: it runs on what is free."""

    def work_s(self, num_sms: int) -> float:
        """Return the time after the start on so many SMs, at least 1."""
        return max(
            num_waves(self.tiles, num_sms) * self.tile_s + self.even_s / num_sms + self.serial_s,
            self.memory_s,
        )

    def duration_s(self, num_sms: int) -> float:
        """Return start and work on so many SMs."""
        return self.start_s + self.work_s(num_sms)


def num_waves(tiles: int, num_sms: int) -> int:
    """Return how many tiles one SM runs, one after the other."""
    return -(-tiles // num_sms)
