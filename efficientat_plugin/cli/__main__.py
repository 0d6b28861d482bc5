"""Runs the command line as ``python -m efficientat_plugin.cli``."""

from efficientat_plugin.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
