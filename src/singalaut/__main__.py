"""`python -m singalaut` is the command `singalaut`."""

from __future__ import annotations

from singalaut.cli.main import main

if __name__ == "__main__":
    main()
