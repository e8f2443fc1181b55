import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.plan import make_plan, parse_source
from pipelines.readers.reader import SPLIT_BYTES, Reader, SourceFile
from pipelines.recipe import Source


class AnyReader(Reader):
    def claims(self, path: str) -> bool:
        return True

    def schema(self, file: SourceFile) -> pa.Schema:
        return pa.schema([])


def packs(files: dict[str, int]) -> list[tuple[str, ...]]:
    from pipelines.plan import _pack

    listed = [SourceFile("s", path, path, size, "0") for path, size in sorted(files.items())]
    return [tuple(span.file.path for span in spans) for spans in _pack(AnyReader(), listed)]


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=6), st.integers(0, SPLIT_BYTES), max_size=60
    ),
    st.text("abcdef", min_size=1, max_size=6),
    st.integers(0, SPLIT_BYTES - 1),
)
@settings(max_examples=100)
def test_an_added_file_changes_one_pack(files, path, size):
    before, after = set(packs(files)), set(packs({**files, path: size}))
    if path not in files:
        # its own pack changes, or falls apart in two where the new file ends it
        assert len(before - after) <= 1
        assert len(after - before) <= 2


def test_every_file_is_in_exactly_one_pack_in_order():
    files = {f"d/{i:04d}": 1_000_000 for i in range(700)}
    listed = [path for pack in packs(files) for path in pack]
    assert listed == sorted(files)
    assert 12 <= len(packs(files)) <= 40  # 700 MB in packs of 32 on average


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("crawl=/data/x", "crawl"),
        ("/data/cc/", "cc"),
        ("s3://bucket/part.warc.gz", "part"),
        ("hf://datasets/a/b", "b"),
        ("/data/a=b/c", "c"),
    ],
)
def test_source_names_default_to_the_last_part(text, name):
    assert parse_source(text).name == name


def test_two_sources_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    source = Source("one", str(tmp_path))
    with pytest.raises(ValueError, match="two sources are called 'one'"):
        make_plan((AnyReader(),), (source, source))
