"""Where the CUDA kernels come from: compiled in, or compiled by NVRTC when they are first needed.

Both are the same sources in csrc. The second way is for builds without nvcc: sources.py finds the
files, library.py has them compiled, store.py keeps the results on disk, launcher.py launches them
through CuPy. backend.py chooses between the ways and says why.
"""
