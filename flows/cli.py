"""The command line. Each verb calls the plain function of the same name in flows.stages.

Results go to stdout, everything else to stderr. Exit code 0 done, 1 failed, 2 wrong usage.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def application() -> "typer.Typer":
    """Returns the application with all its verbs.

    It is imported here, because every worker process imports the main module again.
    """
    from flows.verbs import data, loop, training  # noqa: F401 (each adds its verbs)
    from flows.verbs.app import app

    return app


def main() -> None:
    """Entry point of the `gristmill` command."""
    application()()


if __name__ == "__main__":
    main()
