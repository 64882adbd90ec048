"""tokenweave for Hugging Face models: shard one over the ranks of a world, and undo it.

adapter.py says what a model family must bring, decoder.py what most share; docs/add_a_model.md.
"""

from tokenweave.integrations.loader import from_pretrained
from tokenweave.integrations.sharded_model import parallelize, restore

__all__ = ["from_pretrained", "parallelize", "restore"]
