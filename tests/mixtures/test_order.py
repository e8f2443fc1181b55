import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.keyed import derive_key
from mixtures.order import permute, unpermute

quiet = settings(max_examples=100)


@quiet
@given(count=st.integers(1, 700), seed=st.integers(0, 1 << 40))
def test_permute_is_a_permutation_and_unpermute_undoes_it(count: int, seed: int) -> None:
    key = derive_key(seed, "test")
    images = [permute(index, count, key) for index in range(count)]
    assert sorted(images) == list(range(count))
    assert [unpermute(image, count, key) for image in images] == list(range(count))


@quiet
@given(count=st.integers(1, 1 << 50), share=st.floats(0, 1, exclude_max=True))
def test_permute_large_counts_come_back(count: int, share: float) -> None:
    key = derive_key(1, "test")
    index = int(share * count)
    image = permute(index, count, key)
    assert 0 <= image < count
    assert unpermute(image, count, key) == index


def test_permute_sends_indices_everywhere_equally_often() -> None:
    count, num_keys = 50, 20_000
    seven, eight = np.empty((2, num_keys), np.int64)
    for number in range(num_keys):
        key = derive_key(number, "test")
        seven[number], eight[number] = permute(7, count, key), permute(8, count, key)
    steps = np.bincount((eight - seven) % count, minlength=count)
    assert steps[0] == 0
    # 49 and 48 degrees of freedom: above 100 once in 40,000 times, and the keys are fixed
    for found in (np.bincount(seven, minlength=count), steps[1:]):
        wanted = num_keys / len(found)
        assert ((found - wanted) ** 2 / wanted).sum() < 100
