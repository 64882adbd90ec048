"""What a machine has and what of this library will run on it: the parts of `tokenfabric doctor`.

machine.py: the facts, as data. findings.py: what follows from them, a pure function. probes.py and
the others ask the machine. Nothing here imports torch or the native module into this process: what
could crash is asked in child processes (child.py).
"""
