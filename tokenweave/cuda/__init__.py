"""The collectives of tokenweave on GPUs: how a launch is chosen, prepared and made.

Importing does no work.
"""
