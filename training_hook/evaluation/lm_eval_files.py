"""Our tasks as lm-evaluation-harness reads them, so that any model can be asked the same items.

For each combination of labels there is a task of its own, such as gristmill_phonebook_16: a YAML
file and the JSON Lines that it names.

    lm_eval --model hf --model_args pretrained=model --include_path DIR --tasks 'gristmill_*'

This module needs no lm_eval; `lm_eval_adapter` runs it over our own checkpoints.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.atomic import written
from training_hook.evaluation.exact_match import Item

TEMPLATES = Path(__file__).with_name("lm_eval_tasks")


def write_lm_eval_files(out: Path, task: str, items: Sequence[Item]) -> list[str]:
    """Writes the items of a task and returns the names of its lm-eval tasks.

    Args:
        out: folder, made if missing; files of the same names are replaced.
        task: phonebook, needle or arithmetic.
        items: what is asked.
    """
    template = (TEMPLATES / f"{task}.yaml").read_text("utf-8")
    rows: dict[str, list[Item]] = {}
    for item in items:
        name = "_".join(["gristmill", task, *map(str, item.labels.values())])
        rows.setdefault(name, []).append(item)
    for name, members in rows.items():
        data = out.absolute() / f"{name}.jsonl"
        with written(data) as temporary, temporary.open("w", encoding="utf-8") as file:
            for item in members:
                row = {"id": item.id, "prompt": item.prompt, "answer": item.answer, **item.labels}
                file.write(json.dumps(row) + "\n")
        described = template.replace("TASK_NAME", name).replace("DATA_FILE", json.dumps(str(data)))
        with written(out / f"{name}.yaml") as temporary:
            temporary.write_text(described, "utf-8")
    return list(rows)
