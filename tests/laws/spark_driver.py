"""Runs commands one after the other in one process: Spark's JVM starts and warms up once.

A line of the input is a JSON list: the file for what the command prints, then its arguments. The
answer to it is the exit code on a line.
"""

import json
import os
import sys

from flows.cli import application


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    command = application()
    for line in sys.stdin:
        printed, *arguments = json.loads(line)
        code = None
        with open(printed, "wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        try:
            command(arguments)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        print(code, file=answers, flush=True)


if __name__ == "__main__":
    main()
