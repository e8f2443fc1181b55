"""Do transformers and vLLM, too, answer by the chat template, with reasoning on and off?

    python -m benchmarks.sft_template --parts PART ... --data FOLDER --work DIR --out FILE.json
        [--number 20] [--only transformers vllm]

Takes the model that `sft_gpu` left in parts and asks it the first held-out problems of each family
greedily, through the chat template of the exported folder: transformers in this process, vLLM as
`gristmill serve` starts it. Recorded are the shares of right answers and of those that obey (see
`sft_gpu`), and whether transformers fills the template in with the ids that we train on.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.machine import about
from benchmarks.sft_gpu import LAYOUTS, MAX_TOKENS, is_exact, obeys, summary
from benchmarks.trial_parts import add
from synth.served_model import call
from synth.server import RunningServer, serving

AT_ONCE = 16


def row(question: dict[str, Any], kind: str, text: str, ended: bool) -> dict[str, Any]:
    answer = LAYOUTS[kind].read(text).answer
    return {
        "family": question["family"],
        "question": question["question"],
        "expected": question["expected"],
        "text": text,
        "right": is_exact(question["expected"], answer),
        "obeys": obeys(text, kind == "on", ended),
    }


def messages(question: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": question["question"]}]


@torch.no_grad()
def by_transformers(folder: Path, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Asks transformers; prompts of one length together, since a state cannot skip padding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {}
    for kind in ("on", "off"):
        prompts = [
            tokenizer.apply_chat_template(
                messages(question),
                add_generation_prompt=True,
                enable_thinking=kind == "on",
                return_dict=False,
            )
            for question in questions
        ]
        same = [list(p) == q["ids"][kind] for p, q in zip(prompts, questions, strict=True)]
        rows: list[Any] = [None] * len(questions)
        for length in sorted({len(prompt) for prompt in prompts}):
            of = [n for n, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.tensor([prompts[n] for n in of])
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
            )
            ends = model.generation_config.eos_token_id
            for n, tokens in zip(of, made[:, length:].tolist(), strict=True):
                stop = next((i for i, token in enumerate(tokens) if token in ends), None)
                text = tokenizer.decode(tokens[:stop], skip_special_tokens=False)
                rows[n] = row(questions[n], kind, text, stop is not None)
        found[kind] = summary(rows, kind) | {"prompts_as_trained": sum(same)}
    return found


def by_vllm(folder: Path, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Asks vLLM over its HTTP interface."""
    found = {}
    with serving(folder) as server, ThreadPoolExecutor(AT_ONCE) as pool:
        for kind in ("on", "off"):
            rows = pool.map(lambda question, kind=kind: _served(server, question, kind), questions)
            found[kind] = summary(list(rows), kind)
    return found


def _served(server: RunningServer, question: dict[str, Any], kind: str) -> dict[str, Any]:
    answer = call(
        server.url,
        "/v1/chat/completions",
        {
            "model": server.name,
            "messages": messages(question),
            "temperature": 0.0,
            "max_tokens": MAX_TOKENS,
            "skip_special_tokens": False,
            "chat_template_kwargs": {"enable_thinking": kind == "on"},
        },
    )
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    return row(question, kind, text, choice["finish_reason"] == "stop")


BY = {"transformers": by_transformers, "vllm": by_vllm}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=Path, nargs="*", default=[], help="of the model")
    parser.add_argument("--data", type=Path, required=True, help="folder of trial_data")
    parser.add_argument("--work", type=Path, required=True, help="where the model is unpacked")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--number", type=int, default=20, help="questions of each family")
    parser.add_argument("--only", nargs="+", choices=tuple(BY), default=tuple(BY))
    options = parser.parse_args()
    for part in options.parts:
        add(part, options.work)
    folder = options.work / "model"
    families: dict[str, list[dict[str, Any]]] = {}
    for question in json.loads((options.data / "questions.json").read_text()):
        families.setdefault(question["family"], []).append(question)
    questions = [q for of in families.values() for q in of[: options.number]]
    result: dict[str, Any] = {
        "what": "chat template with reasoning on and off, greedy, on a CPU",
        "questions": len(questions),
        "machine": about(["gristmill", "torch", "transformers"]),
    }
    for name in options.only:
        result[name] = BY[name](folder, questions)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
        shares = {k: v["obeys"]["accuracy"] for k, v in result[name].items()}
        print(f"{name}: obeys {shares}", flush=True)


if __name__ == "__main__":
    main()
