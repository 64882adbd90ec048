"""What the packages above have settled once for calls of one shape, kept on the world."""

from collections.abc import Hashable
from typing import Any

# A server meets a few hundred shapes; more than this are not worth the memory of keeping them.
_MOST_PREPARED = 4096


class PreparedCalls(dict[Hashable, Any]):
    """Prepared calls by a key that says all they depend on. Look up as in any dict."""

    def remember(self, key: Hashable, call: object) -> None:
        """Keep a call. When there are too many, all others are forgotten, to be made again."""
        if len(self) >= _MOST_PREPARED:
            self.clear()
        self[key] = call
