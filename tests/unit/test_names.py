"""Names: fixed vectors, hostile ids, and the properties that the rest of the project relies on."""

import re

import pytest
from embedrepro.errors import UserError
from embedrepro.names import (
    MAX_SLUG,
    check_entries,
    check_id,
    collisions,
    examine,
    link_path,
    mistaken_code,
    names_table,
    slug,
    what_would_break,
)
from hypothesis import example, given
from hypothesis import strategies as st

VECTORS = {
    "Alibaba-NLP/gte-Qwen2-1.5B-instruct": "Alibaba-NLP__gte-Qwen2-1_5B-instruct",
    "gte-Qwen2-1.5B-instruct": "gte-Qwen2-1_5B-instruct",
    "ERNIE-4.5-VL-28B-A3B-Thinking": "ERNIE-4_5-VL-28B-A3B-Thinking",
    "HunyuanVideo-1.5": "HunyuanVideo-1_5",
    "GOT-OCR-2.0-hf": "GOT-OCR-2_0-hf",
    "BAAI/bge-large-en-v1.5": "BAAI__bge-large-en-v1_5",
    "bge-large-en-v1.5": "bge-large-en-v1_5",
    "Kimi-K2-Thinking": "Kimi-K2-Thinking",
    "MiniMax-M2": "MiniMax-M2",
    "MiniCPM-V-4_5": "MiniCPM-V-4_5",
    "Spark-Formalizer-7B": "Spark-Formalizer-7B",
    "xquad/en": "xquad__en",
}

HOSTILE = [  # id, what it is staged as, or the words of its refusal
    ("", "not empty"),
    (None, "must be text"),
    (15, "must be text"),
    (1.5, "must be text"),
    (" ", "begins or ends with a space"),
    ("org/name ", "begins or ends with a space"),
    (".", "'.' and '..' are no names"),
    ("..", "'.' and '..' are no names"),
    ("../../etc", "'.' and '..' are no names"),
    ("org/..", "'.' and '..' are no names"),
    ("./model-1.5", "'.' and '..' are no names"),
    ("/etc/passwd", "is a path"),
    ("~/models/a", "is a path"),
    ("org//name", "has an empty part"),
    ("org/", "has an empty part"),
    ("https://huggingface.co/org/name", "has an empty part"),
    ("org/name/tree", "has 3 parts"),
    ("a\nb", "U+000A"),
    ("a\tb", "U+0009"),
    ("a\0b", "U+0000"),
    ("\x1b[2Jred", "U+001B"),
    ("evil\u202egpj", "U+202E"),
    ("zero\u200bwidth", "U+200B"),
    ("a\u2028b", "U+2028"),
    ("lone\ud800half", "U+D800"),
    (".hidden", "_hidden"),
    ("..hidden", "__hidden"),
    ("model.", "model_"),
    ("p.q", "p_q"),
    ("v1.0/model", "v1_0__model"),
    ("模型-1.5", "__-1_5"),
    ("org/naïve", "org__na_ve"),
    ("two words", "two_words"),
    ("a+b@c~d", "a_b_c_d"),
    ("7B-first", "7B-first"),
    ("class", "class"),
    ("-rf", "-rf"),
    ("$(touch x);`id`", "__touch_x___id_"),
    ("a|b>c&d*?", "a_b_c_d__"),
    ("{{model}}", "__model__"),
    ("C:\\models\\a", "C__models_a"),
    ("'quoted\"", "_quoted_"),
    ("org--name", "org--name"),
    ("%2e%2e", "_2e_2e"),
    ("x" * 200, "x" * 167 + "_aa20c23e3201"),
    ("Org/" + "型" * 196, "Org__" + "_" * 162 + "_ac306d80ee78"),
]


@pytest.mark.parametrize(("name", "expected"), VECTORS.items())
def test_known_names(name, expected):
    assert slug(check_id(name)) == expected


@pytest.mark.parametrize(("name", "expected"), HOSTILE, ids=[ascii(n)[:30] for n, _ in HOSTILE])
def test_hostile_ids_are_staged_or_refused_in_one_line(name, expected):
    try:
        got = slug(check_id(name))
    except UserError as error:
        assert expected in str(error)
        assert str(error).isprintable()
    else:
        assert got == expected


def test_a_dataset_may_have_more_parts():
    assert (
        slug(check_id("beir/cqadupstack/android", most_parts=None)) == "beir__cqadupstack__android"
    )
    with pytest.raises(UserError, match="empty part"):
        check_id("beir//android", most_parts=None)


@given(st.text(min_size=1, max_size=300))
@example("模型-1.5/" + "x" * 200)
@example("\ud800" * 200)
def test_slug_is_a_safe_file_name_and_stays_itself(name):
    got = slug(name)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,180}", got)
    assert slug(got) == got


@given(st.text("ab.-_/A", min_size=1, max_size=6), st.text("ab.-_/A", min_size=1, max_size=6))
def test_two_names_collide_exactly_when_their_slugs_are_equal_but_for_case(one, other):
    assert bool(collisions([one, other])) == (slug(one).casefold() == slug(other).casefold())


@given(st.text("aé型.", min_size=MAX_SLUG + 1, max_size=MAX_SLUG + 60), st.sampled_from("bü名"))
def test_long_names_that_differ_at_their_end_stay_apart(name, last):
    assert slug(name) != slug(name[:-1] + last)


@given(st.text(min_size=1, max_size=40))
def test_no_id_is_accepted_that_could_lead_elsewhere(name):
    try:
        check_id(name, most_parts=None)
    except UserError:
        return
    assert not link_path(name).is_absolute()
    assert not {"", ".", ".."} & set(name.split("/"))
    assert "\n" not in name
    assert "\0" not in name


def test_a_collision_names_both_and_the_remedy():
    (line,) = collisions(["org/a.b", "c", "Org/a_b"])
    assert (
        line
        == "'org/a.b' and 'Org/a_b' would share the name 'Org__a_b'; give one of them an `alias:`"
    )
    assert "two entries 'a'" in collisions(["a", "a"])[0]


def test_an_alias_resolves_a_collision_and_can_make_one():
    entries = [{"id": "a.b"}, {"id": "a_b", "alias": "other.name"}]
    assert check_entries(entries) == ["a_b", "other_name"]
    with pytest.raises(UserError, match="'other_name' would share"):
        check_entries([*entries, "other_name"])
    with pytest.raises(UserError, match="'..' are no names"):
        check_entries([{"id": "a", "alias": ".."}])
    with pytest.raises(UserError, match="must be text"):
        check_entries([{"id": "a", "alias": 7}])


def test_examine_goes_on_after_a_refusal():
    rows = examine(["a.b", "a_b", "../x", "c"])
    assert [bool(row.refused) for row in rows] == [False, True, True, False]
    assert [row.staged for row in rows] == ["a_b", "", "", "c"]


# notes of what was measured: the module's name up to the first dot is what Python looks for
@pytest.mark.parametrize(
    ("name", "errors"),
    [
        (
            "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
            ["transformers_modules.Alibaba-NLP.gte-Qwen2-1", "transformers_modules.gte-Qwen2-1"],
        ),
        ("ERNIE-4.5-VL-28B-A3B-Thinking", ["transformers_modules.ERNIE-4"] * 2),
        ("model.", ["transformers_modules.model"] * 2),
        ("v1.0/model", ["transformers_modules.v1"]),  # a dotted parent folder does no harm
        ("MiniCPM-V-4_5", []),
        ("7B first class", []),
        ("模型", []),
    ],
)
def test_only_dots_break(name, errors):
    broken = what_would_break(name)
    assert [b.error for b in broken] == [f"No module named '{error}'" for error in errors]
    assert {b.transformers for b in broken} <= {"4.44.2 … 4.56.2"}


def test_names_that_newer_transformers_mistakes_for_each_other():
    assert mistaken_code(["p.q", "p_dot_q", "other"]) == [("p.q", "p_dot_q")]
    assert mistaken_code(["one/model", "two/model"]) == [("one/model", "two/model")]
    assert mistaken_code(["p.q", "p_q"]) == []


def test_a_link_path_fits_a_file_system():
    assert str(link_path("Org/Name-1.5B")) == "Org/Name-1.5B"
    long = link_path("Org/" + "型" * 196)
    assert all(len(part.encode()) <= 255 for part in long.parts)


def test_names_table():
    rows = [("a/b.c", "0" * 40, "a__b_c", "store/models/staged/a__b_c-1"), ("d", "x", "d", "p")]
    lines = names_table(rows).splitlines()
    assert lines[0].split("\t") == ["id", "revision", "model", "path", "has_dot"]
    assert lines[1].split("\t")[-1] == "yes"
    assert lines[2].split("\t") == ["d", "x", "d", "p", "no"]
