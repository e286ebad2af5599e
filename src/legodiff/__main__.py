"""``python -m legodiff``, so that launchers such as torchrun can start the commands."""

from legodiff.cli import main

if __name__ == "__main__":
    main()
