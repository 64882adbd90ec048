"""tokenring for Hugging Face models: their attention over sequences sharded across ranks.

enable.py turns it on and off, inputs.py says what a call of the model means, attention.py is what
its layers call, generation.py decodes with a sharded cache.
"""

from tokenring.integrations.enable import disable, enable

__all__ = ["disable", "enable"]
