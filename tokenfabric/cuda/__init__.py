"""GPUs under a world: what the ranks agree to use, memory that all of them map, failures.

Importing does no work: no driver is loaded, no CUDA context made.
"""
