"""Text is split into words as the GGUF file says, not as transformers assumes."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from tokenweave.integrations.gguf import restore_pre_tokenizer


def words(name: str, text: str) -> tuple[list[str], list[str]]:
    """Return how a tokenizer splits after it was restored, and the warnings."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    warnings = restore_pre_tokenizer(fast, name)
    split = fast.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [word.replace("\u0120", "_") for word, _ in split], warnings


def test_smollm_splits_digits_first() -> None:
    """Two spaces before a digit stay one word: GPT-2 would give one of them to the digit."""
    assert words("smollm", "a  12") == (["a", "__", "1", "2"], [])
    assert words("gpt-2", "a  12") == (["a", "_", "_12"], [])


@pytest.mark.parametrize("name", ["", "default", "gpt-2"])
def test_gpt2_is_left_alone(name: str) -> None:
    """What transformers assumes is right here."""
    assert words(name, "it's 12")[1] == []


def test_unknown_pre_tokenizer_is_said() -> None:
    """Never silently other tokens than the model was trained on."""
    [warning] = words("llama-bpe", "x")[1]
    assert "'llama-bpe'" in warning
