"""A corpus read in columns: the same bytes as line by line, or nothing at all."""

import json
import sys

import pytest
from embedrepro.datasets import columns, prepare, tables
from embedrepro.datasets.columns import SPACE, Unusual
from embedrepro.datasets.folder import Beir
from embedrepro.datasets.records import FORBIDDEN_IN_ID, Flaws
from hypothesis import given, settings
from hypothesis import strategies as st

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", " ", "\u2028a\x1c", "a\u3000", "\x85", "é ☕\n", "\ufeffx"]
)


def written(folder, mode, in_columns):
    """The bytes of corpus.parquet, its counts, and which ids are left; None where unusual."""
    missing = {"d1", "nowhere"}
    source, path = Beir({"beir": str(folder)}), folder / "corpus.parquet"
    with pytest.MonkeyPatch.context() as patch:
        if not in_columns:
            patch.setattr(prepare, "copy_passages", unusual)
            counts = prepare.write_passages(source, path, mode, missing, Flaws())
        else:
            try:
                counts = prepare.copy_passages(source, path, mode, missing)
            except Unusual:
                assert missing == {"d1", "nowhere"}
                return None
    return path.read_bytes(), counts, missing


def unusual(*_):
    raise Unusual


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=30),
    st.sampled_from(["join", "drop"]),
    st.booleans(),
)
def test_the_bytes_are_those_of_the_reader_by_lines(tmp_path_factory, rows, mode, ascii_):
    folder = tmp_path_factory.mktemp("columns")
    with open(folder / "corpus.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for i, (title, text) in enumerate(rows):
            record = {"text": text, "_id": f"d{i}", "more": [i, None], "title": title or None}
            file.write(json.dumps(record, ensure_ascii=ascii_) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", 7)
        patch.setattr(tables, "GROUP_CHARS", 60)
        found = written(folder, mode, True)
        assert found and found == written(folder, mode, False)


def test_many_blocks_and_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "BLOCK", 4096)
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    lines = [
        json.dumps({"_id": f"d{i}", "title": "", "text": "x" * (i % 90 + 1)}) for i in range(999)
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    found = written(tmp_path, "join", True)
    assert found and found == written(tmp_path, "join", False)
    assert found[1][0] == 999 and found[2] == {"nowhere"}


GOOD = '{"_id": "a", "title": "t", "text": "x"}\n'


@pytest.mark.parametrize(
    "content",
    [
        GOOD + "\n",
        GOOD + "\n" + GOOD.replace('"a"', '"b"'),
        GOOD.strip() + GOOD.replace('"a"', '"b"'),
        GOOD.replace(", ", ",\n"),
        GOOD.replace('"a"', "4"),
        GOOD.replace('"a"', "null"),
        GOOD.replace('"a"', '""'),
        GOOD.replace('"a"', '"a b"'),
        GOOD.replace('"a"', '"a\\u3000b"'),
        GOOD.replace('"a"', '"a\\u0000b"'),
        GOOD.replace('"_id"', '"id"'),
        GOOD.replace('"x"', "null"),
        GOOD.replace('"x"', "7"),
        GOOD.replace('"x"', '"\\ud83d"'),
        GOOD.replace('"x"', '" "').replace('"t"', '"\\u2003"'),
        GOOD.replace("}", ""),
        GOOD.replace("}", "} junk"),
        GOOD.replace('"t"', '["t"]'),
        "",
    ],
)
def test_what_is_unusual_is_left_to_the_reader_by_lines(tmp_path, content):
    (tmp_path / "corpus.jsonl").write_text(content)
    assert written(tmp_path, "join", True) is None


def test_bytes_that_are_no_utf8_are_unusual(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(GOOD.encode().replace(b"x", b"\xe9"))
    assert written(tmp_path, "join", True) is None


def test_white_space_is_pythons():
    every = [chr(i) for i in range(sys.maxunicode + 1)]
    assert set(SPACE) == {c for c in every if c.isspace()}
    import re

    wide = columns.FORBIDDEN.replace(r"\x{", r"\u").replace("}", "")
    assert {c for c in every if re.search(wide, c)} == {
        c for c in every if FORBIDDEN_IN_ID.search(c)
    }
