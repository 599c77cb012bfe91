"""The search of the retention benchmark finds what is there, and nothing where nothing is."""

from benchmarks._retention_search import Search, plant

WORD = "canary0123456789abcdef"


def test_every_careless_way_to_keep_a_word_is_found(tmp_path):
    ways = plant(WORD, tmp_path / "planted")
    search = Search(WORD)
    search.look([tmp_path])
    missed = [name for name in ways if not any(name in place for place in search.places)]
    assert missed == []
    assert search.files == len(ways)


def test_a_long_value_is_found_in_its_column(tmp_path):
    plant(WORD, tmp_path / "planted")
    search = Search(WORD)
    search.look([tmp_path])
    assert any(place.endswith("rows.sqlite, kept.note") for place in search.places)


def test_the_name_of_a_file_is_a_place_too(tmp_path):
    (tmp_path / f"{WORD}.txt").write_text("nothing")
    search = Search(WORD)
    search.look([tmp_path])
    assert len(search.places) == 1


def test_another_word_is_nowhere(tmp_path):
    plant(WORD, tmp_path / "planted")
    search = Search("canaryfedcba9876543210")
    search.look([tmp_path])
    assert search.places == []
    assert search.unreadable == []
