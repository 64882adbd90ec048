"""Numbers that stand for words on their way into the native module mean the same on both sides."""

from typing import get_args

import torch

from tokenfabric import native
from tokenweave import native_call
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Output
from tokenweave.quantized_output import QuantizedFormat


def test_every_word_has_its_native_value() -> None:
    """The tables of native_call.py against the module's constants; none is left out."""
    weave = native.weave
    assert {
        torch.float32: weave.FLOAT32,
        torch.bfloat16: weave.BFLOAT16,
        torch.float16: weave.FLOAT16,
    } == native_call.NATIVE_DTYPE
    assert [native_call.NATIVE_OUTPUT[word] for word in get_args(Output)] == [
        weave.OUTPUT_PRIVATE, weave.OUTPUT_OWN_ROWS, weave.OUTPUT_SHARED
    ]  # fmt: skip
    assert [native_call.NATIVE_NORM[word] for word in get_args(NormKind)] == [
        weave.RMS_NORM, weave.LAYER_NORM
    ]  # fmt: skip
    assert [native_call.NATIVE_NUMERICS[word] for word in get_args(Numerics)] == [
        weave.FUSED, weave.DROP_IN
    ]  # fmt: skip
    assert [native_call.NATIVE_FORMAT[word] for word in get_args(QuantizedFormat)] == [
        weave.FP8_E4M3, weave.INT8
    ]  # fmt: skip
    assert weave.NOT_QUANTIZED not in native_call.NATIVE_FORMAT.values()
