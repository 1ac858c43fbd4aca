"""`python -m rearguard.interfaces.cli`: the command line without its script."""

from rearguard.interfaces.cli.main import main

main()
