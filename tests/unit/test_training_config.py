"""Training's numbers: what is refused, and the rate of each step."""

import itertools

import pytest

from launch.training.config import TrainConfig
from tokenfabric.errors import ConfigError


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = TrainConfig(
        context=8, steps=12, warmup_steps=2, learning_rate=1.0, min_learning_rate=0.2
    )
    rates = [config.learning_rate_at(step) for step in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.6)  # half way between the peak and the lowest
    assert rates[12] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))


def test_sizes_follow_from_the_mesh() -> None:
    config = TrainConfig(context=16, steps=1, rows_per_step=6, dp=3, ring=4)
    assert (config.world_size, config.tokens_per_step) == (12, 96)
    assert [step for step in range(9) if config.is_due(3, step)] == [2, 5, 8]
    assert not any(config.is_due(0, step) for step in range(9))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, "steps is 0: pass at least 1"),
        ({"context": 1}, "pass 2"),
        ({"context": 3, "ring": 4}, "less than ring 4"),
        ({"rows_per_step": 3, "dp": 2}, "multiple of dp 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"dtype": "fp16"}, "dtype is 'fp16'"),
        ({"partition": "zig"}, "partition is 'zig'"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
        ({"recompute": "all"}, "choose one of nothing, all-but-attention, layers"),
    ],
)
def test_what_cannot_be_trained_is_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**{"context": 8, "steps": 2, **wrong})  # type: ignore[arg-type]
