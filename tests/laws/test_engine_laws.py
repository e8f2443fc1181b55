"""Laws 2, 3, 4, 6 and 7 for the local engine, on real processes through the command line."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.laws.harness import RECIPES, ROOT, command, digest, run, write_corpus


def curate(recipe: str, arguments: list[str], out: Path, *more: str) -> subprocess.CompletedProcess:
    return run("curate", f"{RECIPES}:{recipe}", *arguments, "--out", str(out), *more)


RUNS = pytest.mark.parametrize(
    ("recipe", "undisturbed"), [("small", "reference"), ("spans", "spans_reference")]
)


@RUNS
@pytest.mark.parametrize("setting", [("--workers", "4"), ("--memory", "1GiB")], ids=" ".join)
def test_more_workers_and_less_memory_give_the_same_bytes(
    corpus, recipe, undisturbed, setting, tmp_path, request
):
    reference = request.getfixturevalue(undisturbed)
    result = curate(recipe, corpus, tmp_path / "out", *setting)
    assert result.returncode == 0, result.stderr
    assert digest(tmp_path / "out") == digest(reference)


def test_spans_are_cut_by_both_steps_and_name_documents(spans_reference):
    ledger = pq.read_table(sorted((spans_reference / "ledger").glob("*.parquet"))).to_pylist()
    ids = {row["id"] for row in ledger}
    for name in ("duplicate_line", "duplicate_substring"):
        spans = [span for row in ledger for span in row[f"{name}_spans"] or ()]
        assert len(spans) > 100
        assert {span["matched_id"] for span in spans} <= ids
        assert all(span["start"] < span["end"] for span in spans)
    emptied = [row for row in ledger if row["dropped_by"] == "no_text" and not row["error"]]
    assert any(row["n_duplicate_line_spans"] for row in emptied)


def test_documents_are_conserved_and_have_one_ledger_row_each(corpus, reference):
    manifest = json.loads((reference / "manifest.json").read_text())
    ids = [set(), set(), set()]
    rows = [0, 0, 0]
    for place, kind in enumerate(("ledger", "data", "dropped")):
        for path in sorted((reference / kind).glob("*.parquet")):
            column = pq.read_table(path, columns=["id"]).column("id").to_pylist()
            ids[place].update(column)
            rows[place] += len(column)
    ledger, kept, dropped = ids
    assert rows == [len(ledger), len(kept), len(dropped)]
    assert ledger == kept | dropped
    assert not kept & dropped
    assert manifest["documents_in"] == rows[0] == 6 * 1500
    assert (manifest["kept"], manifest["dropped"]) == (rows[1], rows[2])
    assert sum(rule["dropped"] for rule in manifest["rules"]) == rows[2]
    names = {rule["name"]: rule["dropped"] for rule in manifest["rules"]}
    for rule in ("error_invalid_utf8", "too_few_words", "exact_duplicate", "near_duplicate"):
        assert names[rule] > 0, names


def test_dropped_duplicates_name_a_document_that_was_kept(reference):
    ledger = pq.read_table(sorted((reference / "ledger").glob("*.parquet")))
    kept = set()
    for path in (reference / "data").glob("*.parquet"):
        kept.update(pq.read_table(path, columns=["id"]).column("id").to_pylist())
    rows = [row for row in ledger.to_pylist() if row["dropped_by"] == "exact_duplicate"]
    assert rows
    assert all(row["matched_id"] in kept and row["similarity"] == 1.0 for row in rows)


def outputs(out: Path, arrays: bool = False) -> int:
    """How many stage outputs are finished, or begun if arrays count."""
    files = [
        Path(folder) / name
        for folder, _, names in os.walk(out / ".work")  # unlike rglob it bears vanishing folders
        for name in names
    ]
    kinds = (".arrow", ".json", *([".npy"] if arrays else []))
    return sum(file.suffix in kinds for file in files)


def committed(out: Path) -> dict[str, str]:
    """The digest without `.work`, which is removed last."""
    return {name: value for name, value in digest(out).items() if not name.startswith(".work/")}


@RUNS
@pytest.mark.slow
def test_kill_at_twenty_moments_of_the_work_gives_the_same_bytes(
    corpus, recipe, undisturbed, tmp_path, request
):
    rng = random.Random(7)
    want = digest(request.getfixturevalue(undisturbed))
    arrays = recipe == "spans"  # its stages write arrays between their batches
    kills, rounds, moments = 0, 0, []
    while kills < 20:
        out = tmp_path / f"round-{rounds}"
        rounds += 1
        while True:
            process = subprocess.Popen(
                command(
                    *("curate", f"{RECIPES}:{recipe}", *corpus),
                    *("--out", str(out), "--workers", "2"),
                ),
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            goal = outputs(out, arrays) + rng.randint(0, 60 if arrays else 12)
            while process.poll() is None and kills < 20 and outputs(out, arrays) < goal:
                time.sleep(0.002)
            time.sleep(rng.random() * 0.15)
            if process.poll() is None and kills < 20:
                if rng.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()  # only the parent: workers must end by themselves
                process.communicate()
                kills += 1
                moments.append(outputs(out, arrays))
                assert not (out / "manifest.json").exists() or committed(out) == want
            else:
                _, errors = process.communicate(timeout=300)
                assert process.returncode == 0, errors
                break
        assert digest(out) == want
        shutil.rmtree(out)
    assert len(set(moments)) >= 6, f"all kills hit the same few moments: {moments}"


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(corpus, tmp_path):
    arguments = command("curate", f"{RECIPES}:small", *corpus, "--out", str(tmp_path / "out"))
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while outputs(tmp_path / "out") < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = parent.children(recursive=True)
    assert children
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


@pytest.mark.slow
def test_interrupt_says_how_to_go_on_and_the_second_run_finishes(corpus, reference, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("curate", f"{RECIPES}:small", *corpus, "--out", str(out)),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell starts its background jobs with the interrupt ignored, and so would we
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while outputs(out) < 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert not (out / "manifest.json").exists()
    assert curate("small", corpus, out).returncode == 0
    assert digest(out) == digest(reference)


def test_a_finished_dataset_is_reused_and_another_recipe_refused(corpus, tmp_path):
    out = tmp_path / "out"
    assert curate("no_dedup", corpus[:2], out).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = curate("no_dedup", corpus[:2], out)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    refused = curate("other", corpus[:2], out)
    assert refused.returncode == 2
    assert "Give another --out" in refused.stderr


def test_a_changed_input_is_redone_and_an_unchanged_one_is_not(tmp_path):
    arguments = write_corpus(tmp_path / "in", sources=2, documents=60)
    out = tmp_path / "out"
    (tmp_path / "in" / "s1.jsonl").rename(tmp_path / "kept")
    (tmp_path / "in" / "s1.jsonl").mkdir()  # a folder without files: planning fails after nothing
    assert curate("small", arguments, out).returncode == 2
    (tmp_path / "in" / "s1.jsonl").rmdir()
    (tmp_path / "kept").rename(tmp_path / "in" / "s1.jsonl")
    assert curate("small", arguments, out).returncode == 0
    with (tmp_path / "in" / "s1.jsonl").open("a") as stream:
        stream.write('{"text": "one more document"}\n')
    changed = curate("small", arguments, out)
    assert changed.returncode == 2
    assert "inputs have changed" in changed.stderr


def test_verify_notices_other_bytes_of_the_same_size(tmp_path):
    arguments = write_corpus(tmp_path / "in", sources=1, documents=60)
    out, path = tmp_path / "out", tmp_path / "in" / "s0.jsonl"
    assert curate("small", arguments, out).returncode == 0
    path.write_bytes(path.read_bytes().replace(b"river", b"RIVER"))
    assert curate("small", arguments, out).returncode == 0
    verified = curate("small", arguments, out, "--verify")
    assert verified.returncode == 2
    assert "other bytes" in verified.stderr


@pytest.mark.slow
@pytest.mark.parametrize("change", ["bytes", "size"])
def test_an_input_that_changes_while_its_run_is_killed_in_the_last_stage(change, tmp_path):
    arguments = write_corpus(tmp_path / "in", sources=6, documents=400)
    out, path = tmp_path / "out", tmp_path / "in" / "s0.jsonl"
    curating = command(
        "curate", f"{RECIPES}:small", *arguments, "--out", str(out), "--workers", "1"
    )
    process = subprocess.Popen(curating, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    while len(list((out / "data").glob("*.parquet"))) < 3:  # those units need no documents now
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists()
    if change == "bytes":
        path.write_bytes(path.read_bytes().replace(b"river", b"RIVER"))
    else:
        path.write_bytes(path.read_bytes() + b'{"text": "one more document"}\n')
    again = curate("small", arguments, out, "--verify")
    assert again.returncode == 0, again.stderr
    assert curate("small", arguments, tmp_path / "fresh").returncode == 0
    assert committed(out) == committed(tmp_path / "fresh")


def tree_pss(process: psutil.Process) -> int:
    """Proportional set size of a process and all its descendants, read from outside."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            with open(f"/proc/{member.pid}/smaps_rollup") as rollup:
                total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError, PermissionError, StopIteration):
            continue  # it ended between listing and reading
    return total << 10


@pytest.mark.slow
@pytest.mark.parametrize("documents", [10_000, 40_000])
def test_memory_stays_under_the_limit_on_four_times_the_input(documents, tmp_path):
    arguments = write_corpus(tmp_path / "in", sources=2, documents=documents, words=300)
    limit = 1280 << 20
    process = psutil.Popen(
        command(
            "curate",
            f"{RECIPES}:small",
            *arguments,
            "--out",
            str(tmp_path / "out"),
            "--workers",
            "2",
            "--memory",
            "1280MiB",
        ),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, tree_pss(process))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate(timeout=300)
    watcher.join()
    assert process.returncode == 0, errors
    assert 0 < peak <= limit, f"{peak >> 20} MiB of {limit >> 20} MiB"


def test_too_little_memory_is_refused(corpus, tmp_path):
    result = curate("small", corpus, tmp_path / "out", "--memory", "100MiB")
    assert result.returncode == 2
    assert "Give at least --memory" in result.stderr


def test_a_sample_is_drawn_by_id_and_is_part_of_the_identity(corpus, tmp_path):
    out = tmp_path / "out"
    result = curate("no_dedup", corpus, out, "--sample", "0.2", "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert 0.15 < manifest["documents_in"] / 9000 < 0.25
    assert manifest["records"]["not_sampled"] + manifest["documents_in"] == 9000
    assert curate("no_dedup", corpus, out).returncode == 2


@pytest.mark.parametrize(("keep", "share"), [("all", 1.0), ("sample", 0.05), ("origin", 0.0)])
def test_dropped_texts_are_kept_as_asked(corpus, tmp_path, keep, share):
    out = tmp_path / "out"
    assert curate("no_dedup", corpus[:4], out, "--keep-dropped", keep).returncode == 0
    dropped = pq.read_table(sorted((out / "dropped").glob("*.parquet")))
    with_text = sum(
        text is not None
        for text, rule in zip(
            dropped["text"].to_pylist(), dropped["dropped_by"].to_pylist(), strict=True
        )
        if not rule.startswith("error_")
    )
    assert with_text <= share * dropped.num_rows
    assert with_text > 0 or share < 1


def test_empty_source_and_missing_path_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for source, words in (
        (tmp_path / "empty", "matches no file"),
        (tmp_path / "absent", "nothing exists at"),
    ):
        result = curate("small", ["--source", str(source)], tmp_path / "out")
        assert result.returncode == 2
        assert words in result.stderr
        assert str(source) in result.stderr
        assert not (tmp_path / "out").exists()


def test_files_that_no_reader_claims_are_refused_alone_and_listed_among_others(tmp_path):
    arguments = write_corpus(tmp_path / "in", sources=1, documents=60)
    (tmp_path / "in" / "image.bin").write_bytes(b"\0")
    alone = curate("no_dedup", ["--source", str(tmp_path / "in" / "image.bin")], tmp_path / "a")
    assert alone.returncode == 2
    assert "of a kind that the recipe reads (JsonlReader)" in alone.stderr
    assert arguments
    among = curate("no_dedup", ["--source", str(tmp_path / "in")], tmp_path / "b", "--json")
    assert json.loads(among.stdout)["unread_examples"] == ["image.bin"]


@pytest.mark.parametrize("recipe", ["no_dedup", "small", "spans"])
def test_a_file_without_documents_stops_the_run(recipe, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n\n")
    result = curate(recipe, ["--source", str(tmp_path / "blank.jsonl")], tmp_path / "out")
    assert result.returncode == 1
    assert "no documents at all" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_dropping_everything_stops_the_run_and_shows_examples(tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "too short a text"}\n' * 20)
    result = curate("no_dedup", ["--source", str(tmp_path / "short.jsonl")], tmp_path / "out")
    assert result.returncode == 1
    assert "all 20 documents were dropped: too_few_words 20" in result.stderr
    assert "too short a text" in result.stderr


def test_a_rule_that_wipes_out_a_source_stops_before_commit(tmp_path):
    good = json.dumps({"text": "the data of the river and the tree have light"})
    lines = ['{"text": "short"}'] * 1990 + [good] * 20
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    result = curate("no_dedup", ["--source", str(tmp_path / "in.jsonl")], tmp_path / "out")
    assert result.returncode == 1
    assert "would drop 1990 of 2010" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_column_is_named_before_any_data_moves(corpus, tmp_path):
    result = curate("missing_column", corpus, tmp_path / "out")
    assert result.returncode == 2
    assert "ExactDedup reads 'perplexity'; columns here:" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_huge_line_becomes_a_row_and_not_a_crash(tmp_path):
    path = tmp_path / "huge.jsonl"
    good = json.dumps({"text": "the data of the river and the tree have light"})
    with path.open("w") as stream:
        stream.write(good + "\n" + '{"text": "')
        for _ in range(200):
            stream.write("x" * 1_000_000)
        stream.write('"}\n' + good + "\n")
    result = curate("no_dedup", ["--source", str(path)], tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    manifest = json.loads(result.stdout)
    assert manifest["documents_in"] == 3
    assert manifest["kept"] == 2
    assert {r["name"]: r["dropped"] for r in manifest["rules"]}["error_too_large"] == 1


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_next_run_goes_on(corpus, reference, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)])
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        result = curate("small", corpus, small / "out", "--workers", "1")
        assert result.returncode == 1
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (small / "out" / "manifest.json").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        again = curate("small", corpus, small / "out", "--workers", "1")
        assert again.returncode == 0, again.stderr
        assert digest(small / "out") == digest(reference)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_second_run_into_a_folder_is_refused_while_the_first_holds_it(corpus, tmp_path):
    work = tmp_path / "out" / ".work"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = curate("small", corpus, tmp_path / "out")
    assert result.returncode == 2
    assert "another run is writing" in result.stderr
    assert curate("small", corpus, tmp_path / "out").returncode == 0
