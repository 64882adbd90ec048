"""tokenweave for Hugging Face models: shard one over the ranks of a world, and undo it.

adapter.py says what a model family must bring, decoder.py what most share; docs/add_a_model.md.
Importing does no work: training reads checkpoints and needs no sharded model.
"""
