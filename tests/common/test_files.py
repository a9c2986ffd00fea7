from concurrent.futures import ThreadPoolExecutor

import pytest

from thesis_lib.common.files import content_hash, file_hash, write_whole


def test_a_hash_of_files_sees_content_and_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    hashes = []
    for text in ("1", "2", "1"):
        a.write_text(text)
        hashes.append(file_hash([a]))
    a.rename(b)
    hashes.append(file_hash([b]))
    assert hashes[0] == hashes[2]
    assert len({*hashes}) == 3
    b.write_bytes(b"abc")  # the example of FIPS 180-2
    assert content_hash(b).startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "a"
    write_whole(path, "first")
    with pytest.raises(TypeError):
        write_whole(path, 3)  # fails before, while or after opening: never half way
    assert path.read_text() == "first"
    write_whole(path, b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "second"


def test_two_threads_write_one_file_whole(tmp_path):
    texts = [letter * 10**6 for letter in "ab"]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: write_whole(tmp_path / "a", texts[n % 2]), range(20)))
    assert (tmp_path / "a").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "a", "x")
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
