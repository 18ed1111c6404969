"""``python -m wnconvert``, and the command ``wnconvert``: until all is loaded, a signal ends it in words."""

from __future__ import annotations

import os
import sys

__all__ = ["start"]


_SAID = "interrupted; nothing is left half written"
# As `wnconvert.cli.errors` prints it, which is not loaded yet.
_JSON = f'{{\n "error": {{\n  "what": "{_SAID}",\n  "where": "",\n  "fix": "",\n  "exit_code": 130\n }}\n}}\n'


def _ended(*_: object) -> None:
    """End at once: no file is open, and an import that is cut short would print a traceback."""
    os.write(2, f"{_SAID}\n".encode())
    if "--json" in sys.argv[1:]:
        os.write(1, _JSON.encode())
    os._exit(130)


def start() -> None:
    """Run the command line and exit."""
    try:
        from wnconvert.signals import on_endings

        on_endings(_ended)
    except KeyboardInterrupt:
        _ended()
    from wnconvert import cli

    cli.main()


if __name__ == "__main__":
    start()
