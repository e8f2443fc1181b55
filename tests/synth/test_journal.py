import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.journal import Answer, Journal

answers = st.builds(
    Answer,
    identity=st.uuids().map(lambda found: found.hex),
    text=st.text(max_size=30),
    finish_reason=st.sampled_from(["stop", "length"]),
    token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple),
    log_probabilities=st.lists(st.floats(-100, 0), max_size=5).map(tuple),
)
different = st.lists(answers, min_size=1, max_size=6, unique_by=lambda answer: answer.identity)


def answer(number: int) -> Answer:
    return Answer(f"{number:032x}", f"text {number}", "stop", (1, 2), (-0.1, -0.2))


@given(different, st.data())
def test_journal_cut_anywhere_keeps_exactly_the_whole_lines(found, data):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with Journal(path) as journal:
            ends = [0]
            for each in found:
                journal.append([each])
                ends.append(path.stat().st_size)
        size = data.draw(st.integers(0, ends[-1]))
        path.write_bytes(path.read_bytes()[:size])
        whole = [each for each, end in zip(found, ends[1:], strict=True) if end <= size]
        with Journal(path) as journal:
            assert len(journal) == len(whole)
            assert [journal[each.identity] for each in whole] == whole
            lost = [each for each in found if each not in whole]
            assert not any(each.identity in journal for each in lost)
            journal.append(lost)
        with Journal(path) as journal:
            assert [journal[each.identity] for each in found] == found


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_journal_damaged_before_its_end_is_refused(place, change):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with Journal(path) as journal:
            journal.append([answer(0)])
            first = path.stat().st_size
            journal.append([answer(1)])
        data = bytearray(path.read_bytes())
        data[place % first] ^= change
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"line 1 is damaged\. A killed run leaves at most"):
            Journal(path)
        assert path.read_bytes() == data


def test_journal_refuses_a_second_answer(tmp_path):
    with Journal(tmp_path / "j") as journal:
        journal.append([answer(0)])
        with pytest.raises(ValueError, match="is answered already"):
            journal.append([answer(1), answer(0)])
        with pytest.raises(ValueError, match="is answered already"):
            journal.append([answer(2), answer(2)])
        journal.append([answer(3)])
        assert journal[answer(3).identity] == answer(3)
    with Journal(tmp_path / "j") as journal:
        assert len(journal) == 2


def test_journal_has_one_writer(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(ValueError, match="another process is writing"):
        Journal(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        journal.append([answer(0)])


def test_journal_of_a_killed_writer_has_all_that_append_returned_for(tmp_path):
    script = (
        "import sys; from pathlib import Path; from synth.journal import Answer, Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(1000000):\n"
        "    journal.append([Answer(f'{n:032x}', 'x' * n, 'stop', (), ())]); print(n, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "j")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(50)]
        writer.kill()
        said += [int(line) for line in writer.stdout.read().splitlines() if line.isdigit()]
    with Journal(tmp_path / "j") as journal:
        assert len(said) <= len(journal) <= len(said) + 1
        assert all(journal[f"{n:032x}"].text == "x" * n for n in said)
