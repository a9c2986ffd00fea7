"""Key sets by transaction: what each locks, and which of them conflict."""


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
