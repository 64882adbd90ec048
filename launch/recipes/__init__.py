"""The jobs of the `tokenfabric` command: `run(world, reporter, **args)`, collective."""
