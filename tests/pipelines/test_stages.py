import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.document import ORIGIN
from pipelines.engines.stages import UNIQUE, parquet_writer

SPANS = pa.list_(pa.struct([("start", pa.int64()), ("matched_id", pa.string())]))
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("origin", ORIGIN),
        ("spans", SPANS),
    ]
)


def test_parquet_has_dictionaries_of_all_but_unique_columns(tmp_path):
    row = {"id": "1", "text": "a text", "source": "s", "spans": [{"start": 1, "matched_id": "2"}]}
    row["origin"] = {"path": "p", "offset": 0, "length": 6, "content_hash": "ff"}
    with parquet_writer(tmp_path / "x.parquet", SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist([row], SCHEMA))
    group = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    plain = {column.path_in_schema for column in columns if not column.has_dictionary_page}
    assert plain == set(UNIQUE)
    assert len(columns) == 9
