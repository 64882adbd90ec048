"""`python -m launch`: the `tokenfabric` command, also below torchrun (`torchrun -m launch`)."""

from launch.cli import main

if __name__ == "__main__":
    main()
