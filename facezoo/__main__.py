"""``python -m facezoo``: the command line."""

from facezoo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
