"""Finished lines of a batch outlive their process, whole or not at all."""

from moulin.app.results import Results


def test_what_was_added_is_read_again_in_order(tmp_path):
    path = tmp_path / "results"
    first = Results(path)
    first.add(10, b'{"n": 10}\n', is_good=True)
    first.add(2, b'{"n": 2}\n', is_good=True)
    first.add(1, b'{"n": 1}\n', is_good=False)
    first.add(2, b'{"n": "again"}\n', is_good=False)
    first.close()
    second = Results(path)
    assert (second.completed, second.failed) == (2, 1)
    assert list(second.lines(is_good=True)) == [b'{"n": 2}\n', b'{"n": 10}\n']
    assert list(second.lines(is_good=False)) == [b'{"n": 1}\n']
    assert 10 in second
    assert 3 not in second
    second.drop()
    assert not path.exists()


def test_a_line_that_was_cut_is_done_again(tmp_path):
    path = tmp_path / "results"
    path.write_bytes(b'0 1 {"n": 0}\n1 1 {"n"')
    results = Results(path)
    assert (results.completed, 1 in results) == (1, False)
    results.add(1, b'{"n": 1}\n', is_good=True)
    assert list(results.lines(is_good=True)) == [b'{"n": 0}\n', b'{"n": 1}\n']
    results.close()
    results.close()
