import pyarrow as pa
import pytest

from mixtures.keyed import derive_key, hash_ids, share_threshold


def test_derive_key_tells_labels_apart() -> None:
    keys = {
        int(derive_key(*arguments)) for arguments in ((0, "a"), (1, "a"), (0, "a", "b"), (0, "ab"))
    }
    assert len(keys) == 4


def test_hash_ids_of_a_slice_are_those_of_the_whole() -> None:
    ids = pa.array([f"{i:032x}" for i in range(40)])
    hashes = hash_ids(ids, derive_key(0, "test"))
    assert len(set(hashes.tolist())) == 40
    assert hash_ids(ids[7:21], derive_key(0, "test")).tolist() == hashes[7:21].tolist()
    assert hash_ids(ids, derive_key(1, "test")).tolist() != hashes.tolist()


def test_hash_ids_of_children_are_their_parents() -> None:
    ids = pa.array(["ab" * 16, "ab" * 16 + "#0", "ab" * 16 + "#17", "ab" * 15 + "a", "", "a", "\0"])
    hashes = hash_ids(ids, derive_key(0, "test")).tolist()
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes)) == 5


def test_hash_ids_takes_none_and_refuses_null() -> None:
    key = derive_key(0, "test")
    assert len(hash_ids(pa.array([], pa.string()), key)) == 0
    assert (
        hash_ids(pa.array(["", ""]), key).tolist()
        == hash_ids(pa.array(["", "x"]), key)[[0, 0]].tolist()
    )
    with pytest.raises(ValueError, match="1 of 2 document ids are null"):
        hash_ids(pa.array(["a", None]), key)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_share_threshold_holds_its_share(share: float) -> None:
    ids = pa.array([f"{i:032x}" for i in range(20_000)])
    below = (hash_ids(ids, derive_key(0, "test")) < share_threshold(share)).mean()
    assert below == pytest.approx(share, abs=4 * (share * (1 - share) / 20_000) ** 0.5)
