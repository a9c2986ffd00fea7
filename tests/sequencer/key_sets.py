"""Key sets by transaction: what each locks, and which of them conflict."""

from thesis_lib.sequencer.core.trace import KeySets


def requests(keys, i):
    """{key: whether it is exclusive} of transaction i."""
    rows = slice(keys.offsets[i], keys.offsets[i + 1])
    return dict(
        zip(keys.keys[rows].tolist(), keys.exclusive[rows].tolist(), strict=True)
    )


def conflict(keys, i, j):
    """Whether i and j share a key that one of them writes."""
    a, b = requests(keys, i), requests(keys, j)
    return any(a[k] or b[k] for k in a.keys() & b.keys())


def no_keys(n):
    """Key sets of n transactions that lock nothing."""
    return KeySets.from_lists([[]] * n, [[]] * n)


def random_key_sets(random, n, n_keys, fewest=0):
    """Key sets of n transactions with `fewest` to 3 of `n_keys` keys each."""
    shared, exclusive = [], []
    for _ in range(n):
        touched = random.permutation(n_keys)[: random.integers(fewest, 4)].tolist()
        cut = random.integers(0, len(touched) + 1)
        shared.append(touched[:cut])
        exclusive.append(touched[cut:])
    return KeySets.from_lists(shared, exclusive)
