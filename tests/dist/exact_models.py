"""What a model computes in fp64 throughout, where transformers' own modules go through fp32."""

import copy

from transformers import PreTrainedModel

from tokenweave.integrations.fp64_reference import compute_in_fp64


def in_fp64(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of `model` that computes in fp64."""
    model = copy.deepcopy(model)
    compute_in_fp64(model)
    return model
