"""The Prefect flows. Each wraps the plain function of the same name in flows.stages.

A task is a stage, never a document. Load them as `flows.orchestrate:curate`; the form
`flows/orchestrate.py:curate` works too.
"""

from typing import Any

from flows import prefect_settings

prefect_settings.apply()

from prefect import flow, task  # noqa: E402 - Prefect reads its settings when it is imported

from flows import stages  # noqa: E402
from flows.dates import dated  # noqa: E402
from flows.flywheel import flywheel as turn  # noqa: E402

curate = flow(name="curate")(dated(stages.curate))
takedown = flow(name="takedown")(dated(stages.takedown))
compact = flow(name="compact")(dated(stages.compact))
tokenize = flow(name="tokenize")(dated(stages.tokenize))
mask = flow(name="mask")(dated(stages.mask))
mix = flow(name="mix")(dated(stages.mix))
pretrain = flow(name="pretrain")(dated(stages.pretrain))
synth = flow(name="synth")(dated(stages.synth))
sft = flow(name="sft")(dated(stages.sft))
publish = flow(name="publish")(dated(stages.publish))


@flow(name="flywheel")
@dated
def flywheel(
    recipe: str,
    out: str,
    sources: tuple[str, ...] = (),
    workers: int = 0,
    memory: str = "8GiB",
) -> dict[str, Any]:
    """Turns the whole wheel; each stage is a task."""

    def run_as_task(name: str, **arguments: Any) -> dict[str, Any]:
        return task(name=name)(getattr(stages, name))(**arguments)

    return turn(recipe, out, sources, workers, memory, run_as_task)
