"""What an engine is: it runs stages over work units and decides global steps.

map and write are stages (pipelines.engines.stages), run by `each`; group and join are `decide`.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

from pipelines.engines.job import Job
from pipelines.progress import Bar


class Engine(Protocol):
    """Used as a context manager; a stage that has been done is not done again."""

    def __enter__(self) -> "Engine": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def warm_up(self, stage: Callable[[Job], None]) -> None:
        """Runs a stage once before all others."""
        ...

    def each(
        self,
        stage: Callable[..., Any],
        items: Sequence[tuple[Any, ...]],
        amounts: Sequence[int],
        bar: Bar,
    ) -> list[Any]:
        """Runs `stage(job, *item)` for every item and returns the results in order."""
        ...

    def decide(self, phase: int, num_keys: int) -> None:
        """Leaves the verdicts of the global step that ends a phase in `job.verdicts(phase)`."""
        ...
