"""``python -m efficientat_plugin.cli``: the command line without its script."""

from efficientat_plugin.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
