"""The real vLLM over a checkpoint of ours: one server for all tests, killed and started again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from aiohttp import web
from transformers import NemotronHForCausalLM

from mixtures.chat_template import render
from mixtures.vocabulary import Vocabulary, load_vocabulary
from mixtures.vocabulary_training import train_vocabulary
from pipelines.dataset import Dataset, file_entry, write_json
from synth.chain_sum import ChainSum
from synth.engine import generate
from synth.journal import Journal
from synth.probe import check_server
from synth.problem_documents import problem_documents
from synth.prompt_layout import ChatLayout, PlainLayout
from synth.recipe import SynthRecipe
from synth.sampling import Request, Sampling
from synth.served_model import find_model
from synth.server import RunningServer, ServerSettings, serving
from synth.synthesize import JOURNAL
from synth.vllm_environment import vllm_python
from tests.synth.conftest import Loopback
from training_hook.config import HybridConfig
from training_hook.export import export
from training_hook.model import HybridModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

SIZE = 512
CONFIG = HybridConfig(
    hybrid_override_pattern="M-M*-M",
    vocab_size=SIZE,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    mamba_num_heads=4,
    mamba_head_dim=32,
    n_groups=2,
    ssm_state_size=16,
    chunk_size=16,
    max_position_embeddings=1024,
)
TOLERANCE = 1e-3
CONCURRENCY = 8
RECIPE = SynthRecipe(
    "killed",
    (ChainSum(),),
    num_problems=40,
    num_samples=6,
    sampling=Sampling(1.0, max_tokens=96),
    min_accepted=0,
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    packages = sorted(Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA"))[:20]
    texts = [path.read_bytes().decode(errors="replace") for path in packages]
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "dataset" / "data").mkdir(parents=True)
    path = folder / "dataset" / "data" / "00000.parquet"
    ids = [f"{number:032x}" for number in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), path)
    entries = [file_entry(folder / "dataset", path, len(texts))]
    manifest = {"recipe": {"fingerprint": "problems"}, "files": entries}
    write_json(folder / "dataset" / "manifest.json", manifest)
    train_vocabulary([folder / "dataset"], folder / "tokenizer", size=SIZE)
    return load_vocabulary(folder / "tokenizer")


@pytest.fixture(scope="module")
def model() -> HybridModel:
    """Random, but with layers that add as much as the embeddings and logits that are not flat."""
    model = HybridModel(CONFIG)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(8 if "embeddings" not in name else 20)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, vocabulary) -> Path:
    prompts = [ids.tolist() for ids in vocabulary.encode_batch(["Question:", "The", "1 + 1 = "])]
    return export(model, CONFIG, vocabulary, tmp_path_factory.mktemp("model") / "hf", prompts)


class Servers:
    """The one server, and another in its place once it was killed."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        self._stack = ExitStack()
        self.current = self._started()

    def _started(self) -> RunningServer:
        return self._stack.enter_context(serving(self._folder, ServerSettings(log=self._log)))

    def restart(self) -> None:
        self.close()
        self.current = self._started()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory, folder) -> Iterator[Servers]:
    try:
        vllm_python()
    except (RuntimeError, OSError) as error:
        pytest.skip(f"vLLM's environment cannot be set up: {error}")
    servers = Servers(folder, tmp_path_factory.mktemp("log") / "vllm.log")
    yield servers
    servers.close()


def test_served_tokens_are_our_argmax_and_that_of_transformers(
    servers, model, folder, vocabulary, tmp_path
):
    generator = np.random.default_rng(0)
    texts = [row["text"][: 20 + 3 * n] for n, row in enumerate(problem_documents(16, 1))]
    prompts = [ids.tolist() for ids in vocabulary.encode_batch(texts)]
    prompts += [generator.integers(32, SIZE, 1 + 24 * n).tolist() for n in range(16)]
    asked = [{"prompt": ids} for ids in prompts]
    compared = compare(servers.current, PlainLayout(), asked, prompts, model, folder, tmp_path)
    assert compared > 300


def test_served_chat_is_our_argmax_on_the_prompt_that_we_train_on(
    servers, model, folder, vocabulary, tmp_path
):
    layout = ChatLayout()
    asked = [
        layout.prompt(row["text"].partition("\n")[0].removeprefix("Question: "))
        for row in problem_documents(8, 1)
    ]
    prompts = [
        np.concatenate(
            [
                vocabulary.encode_batch([segment.text])[0]
                if segment.token is None
                else [segment.token]
                for segment in render(body["messages"], add_generation_prompt=True)
            ]
        ).tolist()
        for body in asked
    ]
    assert compare(servers.current, layout, asked, prompts, model, folder, tmp_path) > 100


def compare(server, layout, asked, prompts, model, folder, tmp_path) -> int:
    """Holds every token that a server gives to our model and to transformers; counts them."""
    sampling = Sampling(0.0, max_tokens=32, stop=())
    wanted = [
        Request(str(n), layout.path, body, layout.options(), server.revision, sampling, 0)
        for n, body in enumerate(asked)
    ]
    theirs = NemotronHForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    compared = 0
    with Journal(tmp_path / "journal") as journal:
        assert generate(wanted, layout, server, journal) == len(prompts) == len(asked)
        for request, prompt in zip(wanted, prompts, strict=True):
            answer = journal[request.identity]
            assert 1 <= len(answer.token_ids) <= 32
            tokens = torch.tensor([[*prompt, *answer.token_ids]])
            with torch.no_grad():
                both = {"ours": model(tokens), "transformers": theirs(tokens).logits}
            for name, logits in both.items():
                found = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                chosen = found.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
                said = torch.tensor(answer.log_probabilities)
                assert (found.max(-1).values - chosen).max() <= TOLERANCE, name
                assert (said - chosen).abs().max() <= TOLERANCE, name
            compared += len(answer.token_ids)
    return compared


def test_server_says_the_revision_of_its_folder_and_agrees_with_the_probe(servers, folder):
    assert find_model(servers.current.url).name == servers.current.name
    agreement = check_server(servers.current, folder, "float32")
    assert agreement.tokens == 3 * 16
    assert agreement.largest_difference < 1e-3


@pytest.mark.parametrize("change", ["token", "log-probability"])
def test_server_that_does_not_agree_with_the_probe_is_refused(change, servers, folder, tmp_path):
    probe = json.loads((folder / "probe.json").read_text())
    if change == "token":
        probe["probes"][1]["greedy_ids"][5] ^= 1
    else:
        probe["probes"][1]["log_probabilities"][5] += 0.01
    shutil.copytree(folder, tmp_path / "hf")
    (tmp_path / "hf" / "probe.json").write_text(json.dumps(probe))
    with pytest.raises(RuntimeError, match=r"does not compute what the model computes\. Probe 1"):
        check_server(servers.current, tmp_path / "hf", "float32")
    (tmp_path / "hf" / "probe.json").write_text(json.dumps(probe | {"probes": []}))
    with pytest.raises(ValueError, match="has no probes"):
        check_server(servers.current, tmp_path / "hf", "float32")


def test_same_seed_gives_the_same_answer_and_another_seed_another(servers, tmp_path):
    layout, sampling = PlainLayout(), Sampling(1.0, max_tokens=24)
    prompt = layout.prompt("What is 1 + 1?")
    texts = []
    for name in ("a", "b"):
        wanted = [
            Request(
                "p",
                layout.path,
                prompt,
                layout.options(),
                servers.current.revision,
                sampling,
                2**47 + n,
            )
            for n in range(6)
        ]
        with Journal(tmp_path / name) as journal:
            generate(wanted, layout, servers.current, journal)
            texts.append([journal[request.identity].text for request in wanted])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 6


CLIENT = """
import sys
from synth.engine import ClientSettings
from synth.synthesize import synthesize
from tests.synth.test_vllm import CONCURRENCY, RECIPE
synthesize(RECIPE, sys.argv[1], sys.argv[2], ClientSettings(concurrency=CONCURRENCY))
"""


def test_killed_engine_and_client_go_on_without_asking_anything_twice(servers, tmp_path):
    recorder = Recorder(servers)
    requests = RECIPE.requests(RECIPE.problems(), servers.current.revision)
    keys = {request.identity: (request.prompt["prompt"], request.seed) for request in requests}
    out = tmp_path / "out"
    command = [sys.executable, "-c", CLIENT, recorder.url, str(out)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as client:
        wait_for(lambda: len(whole_lines(out)) >= 40, client)
        client.send_signal(signal.SIGKILL)
    first = journalled(out, keys)
    asked_before = len(recorder.keys)
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as client:
        wait_for(lambda: len(whole_lines(out)) >= len(first) + 40, client)
        pids = group_of(servers.current)
        os.kill(next(pid for pid in pids if "EngineCore" in name_of(pid)), signal.SIGKILL)
        second = journalled(out, keys)
        asked_at_kill = len(recorder.keys)
        servers.current.process.wait(120)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        with pytest.raises(RuntimeError, match="vLLM ended by itself"):
            servers.current.check()
        assert client.poll() is None
        servers.restart()
        assert client.wait(300) == 0
    recorder.close()

    total = RECIPE.num_problems * RECIPE.num_samples
    assert 40 <= len(first) < len(second) < total
    assert not first & set(recorder.keys[asked_before:])
    assert not second & set(recorder.keys[asked_at_kill:])
    assert len(set(recorder.keys)) == total
    assert asked_before < asked_at_kill < len(recorder.keys)
    repeats = [key for key in set(recorder.keys) if recorder.keys.count(key) > 1]
    assert len(repeats) <= 2 * CONCURRENCY
    ledger = Dataset(out).table("ledger").to_pylist()
    made_by = {
        (row["prompt_hash"], row["temperature"], row["top_p"], row["max_tokens"], row["seed"])
        for row in ledger
    }
    assert len(ledger) == len(made_by) == total
    assert {row["model_revision"] for row in ledger} == {servers.current.revision}


class Recorder(Loopback):
    """Stands before the server and writes down what is asked for the first time or again."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self.keys: list[tuple[str, int]] = []
        super().__init__(lambda body: None)
        self.name = servers.current.name

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        # tries while there is no server reach none
        if self._servers.current.process.poll() is None:
            self.keys.append((body["prompt"], body["seed"]))
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"{self._servers.current.url}/v1/completions", json=body) as answer,
            ):
                return web.json_response(await answer.json(), status=answer.status)
        except aiohttp.ClientError:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()


def wait_for(condition: Callable[[], bool], client: subprocess.Popen[bytes]) -> None:
    while not condition():
        assert client.poll() is None
        time.sleep(0.02)


def whole_lines(out: Path) -> list[bytes]:
    path = out / JOURNAL
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def journalled(out: Path, keys: dict[str, tuple[str, int]]) -> set[tuple[str, int]]:
    """Returns prompt and seed of each answer in the journal."""
    return {keys[json.loads(line[9:])["identity"]] for line in whole_lines(out)}


def group_of(server: RunningServer) -> list[int]:
    """Returns the processes of vLLM: the group of the supervisor's child."""
    stats = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, parent, group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        stats[int(path.parent.name)] = (int(parent), int(group))
    child = next(pid for pid, (parent, _) in stats.items() if parent == server.process.pid)
    return [pid for pid, (_, group) in stats.items() if group == child]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
