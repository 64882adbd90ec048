"""Any band as tiles that a kernel without offsets can do."""

import pytest
import torch
from torch import Tensor

from tokenring.tiles import split_band


def test_bands_are_split_into_tiles_once() -> None:
    """Every pair of any small band is in one tile, and each row of a tile is needed there."""
    bounds = (None, *range(-6, 7))
    for q_rows in (0, 1, 2, 5):
        for kv_rows in (0, 1, 3, 6):
            apart = torch.arange(kv_rows) - torch.arange(q_rows)[:, None]
            for lower in bounds:
                for upper in bounds:
                    check_tiles(apart, lower, upper)


@pytest.mark.parametrize("band", [(-50, 0), (-50, 49), (100, 163), (-700, -200), (-299, 600)])
def test_windows_of_many_tiles(band: tuple[int, int]) -> None:
    """The tiles of a window cover it once too, with little beside it."""
    apart = torch.arange(700) - torch.arange(500)[:, None]
    area = check_tiles(apart, *band)
    num_visible = int(((apart >= band[0]) & (apart <= band[1])).sum())
    assert area <= num_visible + 64 * apart.shape[0] + 0.3 * num_visible


def check_tiles(apart: Tensor, lower: int | None, upper: int | None) -> int:
    expected = torch.ones_like(apart)
    if lower is not None:
        expected *= apart >= lower
    if upper is not None:
        expected *= apart <= upper
    found, area = torch.zeros_like(apart), 0
    for tile in split_band(*apart.shape, lower, upper):
        rows, columns = tile.q_stop - tile.q_start, tile.kv_stop - tile.kv_start
        within = torch.arange(columns) - torch.arange(rows)[:, None]
        seen = torch.ones_like(within)
        if tile.kind == "causal":
            seen = within <= 0
        elif tile.kind == "reversed":
            seen = within.flip(0, 1) <= 0
        elif tile.kind == "masked":
            if tile.lower is not None:
                seen = seen * (within >= tile.lower)
            if tile.upper is not None:
                seen = seen * (within <= tile.upper)
        assert seen.any(dim=1).all(), tile
        assert seen.any(dim=0).all(), tile
        found[tile.q_start : tile.q_stop, tile.kv_start : tile.kv_stop] += seen
        area += rows * columns
    assert torch.equal(found, expected), (apart.shape, lower, upper)
    return area


def test_a_shifted_causal_block_is_two_calls() -> None:
    """An offset costs one more kernel call, never a mask."""
    assert [tile.kind for tile in split_band(4096, 8192, None, 4096)] == ["full", "causal"]
    assert [tile.kind for tile in split_band(4096, 4096, None, 0)] == ["causal"]
    assert [tile.kind for tile in split_band(4096, 4096, None, -1)] == ["causal"]
    assert [tile.kind for tile in split_band(4096, 4096, 0, None)] == ["reversed"]
