"""`python -m echofed.cli` is the `echofed` command, for services that name their own interpreter."""

from echofed.cli.main import main

main()
