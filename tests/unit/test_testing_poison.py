"""poison.py: a missed write, a write too far and a written input are each noticed."""

import pytest
import torch

from tokenfabric.testing.poison import Guarded, assert_overwritten, poison, unchanged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_poison_is_nan_and_is_found_until_overwritten(dtype: torch.dtype) -> None:
    """Every float format reads the poison as NaN; one element left over is named."""
    tensor = poison(torch.zeros(3, 5, dtype=dtype))
    assert tensor.isnan().all()
    tensor.fill_(1.0)
    assert_overwritten(tensor)
    poison(tensor[2:, 3:4])
    with pytest.raises(AssertionError, match=r"normed: 1 of 15 elements .* first at \[2, 3\]"):
        assert_overwritten(tensor, what="normed")


def test_a_computed_nan_counts_as_written() -> None:
    """NaN that arithmetic makes differs from the poison."""
    tensor = poison(torch.zeros(4))
    tensor.copy_(torch.zeros(4) / torch.zeros(4))
    assert_overwritten(tensor)


def test_poison_of_integers_scalars_and_empty_tensors() -> None:
    """Any dtype and shape can be poisoned and checked."""
    assert poison(torch.zeros(2, dtype=torch.int32)).tolist() == [-1, -1]
    with pytest.raises(AssertionError, match=r"1 of 1 elements were never written, first at \[\]"):
        assert_overwritten(poison(torch.zeros(())))
    assert_overwritten(poison(torch.zeros(0, 3)))


@pytest.mark.parametrize("misalignment_bytes", [0, 2, 6, 62])
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 7)])
def test_guarded_memory_starts_where_asked_and_notices_one_byte(
    shape: tuple[int, int], misalignment_bytes: int
) -> None:
    """The tensor itself may be written everywhere; one byte beyond either end is reported."""
    guarded = Guarded(*shape, dtype=torch.bfloat16, misalignment_bytes=misalignment_bytes)
    assert guarded.tensor.shape == shape
    assert guarded.tensor.isnan().all()
    if guarded.tensor.numel():
        assert guarded.tensor.data_ptr() % 64 == misalignment_bytes
    guarded.tensor.fill_(1.0)
    guarded.check()
    end = guarded.tensor.storage_offset() * 2 + guarded.tensor.numel() * 2
    memory = guarded.tensor.untyped_storage()
    for position, message in ((end, "after it .* 1 bytes away"), (end + 99, "after.* 100 bytes")):
        saved, memory[position] = memory[position], 0
        with pytest.raises(AssertionError, match=f"normed: 1 guard bytes {message}"):
            guarded.check(what="normed")
        memory[position] = saved
    memory[guarded.tensor.storage_offset() * 2 - 1] = 0
    with pytest.raises(AssertionError, match="before it"):
        guarded.check()


def test_unchanged_names_the_tensor_that_was_written() -> None:
    """Only a change of bits counts; NaN inputs compare equal to themselves."""
    x, y = poison(torch.zeros(4)), torch.zeros(4)
    with unchanged(x=x, y=y, bias=None):
        pass
    with pytest.raises(AssertionError, match="y was written to"), unchanged(x=x, y=y):
        y[2] = -0.0
