"""The library's logger: one name, no handler of its own, the rank in front of every line."""

import logging

LOGGER_NAME = "tokenfabric"


def rank_logger(rank: int, size: int) -> "logging.LoggerAdapter[logging.Logger]":
    """Return the logger for a rank's messages; they begin with `[rank r/n]`."""
    return _RankAdapter(logging.getLogger(LOGGER_NAME), {"place": f"[rank {rank}/{size}]"})


class _RankAdapter(logging.LoggerAdapter):  # type: ignore[type-arg]
    def process(self, msg: object, kwargs: object) -> tuple[str, object]:  # type: ignore[override]
        assert self.extra is not None
        return f"{self.extra['place']} {msg}", kwargs
