"""Between text and tokens: what goes into a model and what comes out of it, piece by piece."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launch.report import Reporter
from tokenfabric.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a tokenizer writes for bytes that are no character yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, chat: bool | None = None
) -> Tensor:
    """Return the token ids of a prompt, int64 [1, tokens].

    Args:
        tokenizer: the model's.
        prompt: what the user said.
        chat: wrap it in the model's chat template; None: if the model has one.

    Raises:
        ConfigError: a template is wanted and there is none, or the prompt has no tokens.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise ConfigError("the model has no chat template: leave --chat out")
    if has_template if chat is None else chat:
        message = {"role": "user", "content": prompt}
        text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        # The template has written the special tokens itself.
        ids = tokenizer.encode(str(text), add_special_tokens=False)
    else:
        ids = tokenizer.encode(prompt)
    if not ids:
        raise ConfigError("the prompt is empty: a model needs at least one token to go on from")
    return torch.tensor([ids], dtype=torch.int64)


class TextStream:
    """Turns tokens into text as they come: the `streamer` of a model's generate().

    Text that is certain is handed on at once; bytes of an unfinished character wait for the rest.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", reporter: Reporter) -> None:
        self._tokenizer = tokenizer
        self._reporter = reporter
        self._tokens: list[int] = []
        self._start = 0
        """Where decoding starts: the neighbourhood decides about spaces, so not at `_told`."""
        self._told = 0
        """Tokens before this one have been handed on."""
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Take the prompt (first call; not handed on) or the next tokens, [1] or [1, tokens]."""
        if not self._has_prompt:
            self._has_prompt = True
            return
        self._tokens += value.flatten().tolist()
        told = self._decode(self._tokens[self._start : self._told])
        text = self._decode(self._tokens[self._start :])
        if not text.endswith(_INCOMPLETE):
            self._reporter.text(text[len(told) :])
            self._start, self._told = self._told, len(self._tokens)

    def end(self) -> None:
        """Hand on what is left, whole or not, and end the line."""
        told = self._decode(self._tokens[self._start : self._told])
        text = self._decode(self._tokens[self._start :])
        self._reporter.text(text[len(told) :] + "\n")

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text
