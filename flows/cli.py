"""The command line. Each verb calls the plain function of the same name in flows.stages.

Results go to stdout, everything else to stderr. Exit code 0 done, 1 failed, 2 wrong usage.
"""

from flows.verbs import data, loop, training  # each adds its verbs to the application
from flows.verbs.app import app

__all__ = ["app", "data", "loop", "main", "training"]


def main() -> None:
    """Entry point of the `gristmill` command."""
    app()


if __name__ == "__main__":
    main()
