"""Ids put together from words, against the tokenizer asked for each whole text."""

import random

import numpy as np
import pytest
from embedrepro.encode import token_ids
from embedrepro.encode.token_ids import TokenIds, splits_at_spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

PIECES = ["a", "b", "e", "n", "1", ",", "!", "ab", "##a", "##b", "##e", "##1", "ban", "##ana", "é"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LIMIT = 12
SIDES = ["left", "right"]  # that truncation cuts off
# What tells tokenizers apart: kinds of spaces, controls, accents apart from and in letters, marks
# after a space, Chinese, special tokens within words, what case changes the length of, long words.
ALPHABET = "abeén1,! \t\n\u00a0\u3000\u200b\u200d\x00\x1c\x85\u0301\u0323\ufe0f中文İßΣ’"
INSERTS = [*SPECIAL, "<m>", "Ban", "banana", " ", "  ", "\u2028", "ab" * 60]


def bert(normalizer, splitter=None, *, closed=True, mask=None, model=models.WordPiece):
    vocabulary = {token: i for i, token in enumerate(SPECIAL + PIECES)}
    made = Tokenizer(model(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizer
    made.pre_tokenizer = splitter or pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if mask:
        made.add_special_tokens([mask])
    if closed:
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


TOKENIZERS = {
    "uncased": bert(normalizers.BertNormalizer()),
    "cased": bert(normalizers.BertNormalizer(lowercase=False)),
    "accents kept": bert(normalizers.BertNormalizer(strip_accents=False)),
    "not closed": bert(normalizers.BertNormalizer(), closed=False),
    "mask takes spaces": bert(
        normalizers.BertNormalizer(), mask=AddedToken("<m>", lstrip=True, rstrip=True)
    ),
    "mask as a word": bert(normalizers.BertNormalizer(), mask=AddedToken("<m>", single_word=True)),
    "mask in normalized text": bert(
        normalizers.BertNormalizer(), mask=AddedToken("ban", normalized=True)
    ),
    "sequences": bert(
        normalizers.Sequence(
            [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
        ),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
    ),
    "composed": bert(normalizers.NFC(), pre_tokenizers.Whitespace()),
    "compatible": bert(normalizers.NFKC(), pre_tokenizers.WhitespaceSplit()),
    "whole words": bert(None, pre_tokenizers.Whitespace(), model=models.WordLevel),
}
texts = st.lists(
    st.lists(st.sampled_from([*ALPHABET, *INSERTS]) | st.characters(exclude_categories=["Cs"]))
    .map("".join)
    .filter(lambda text: len(text) < 400),
    min_size=1,
    max_size=8,
)


def asked(tokenizer, whole, side="right"):
    """Of each text by itself: ids, and whether some were cut off."""
    tokenizer.enable_truncation(LIMIT, direction=side)
    found = [tokenizer.encode(text) for text in whole]
    return [one.ids for one in found], [bool(one.overflowing) for one in found]


def check(found, expected):
    (ids, lengths, truncated), (lists, cut) = found, expected
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]] == lists
    assert truncated.tolist() == cut
    assert (ids.dtype, lengths.dtype, truncated.dtype) == (np.int32, np.int64, bool)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=25, deadline=None)
@given(texts, st.sampled_from(["", "e: ", "a", " ", "[SEP] b"]), st.sampled_from(SIDES))
@example(
    [" \u0301a", "a \u0301", "a\x00 b", "a\x1cb a\x85b", "", " ", "a  b ", "a" * 500], "", "left"
)
@example(
    ["[SEP] [SEP]a <m> b<m>", "ban ban1 Ban", "1 " * 40, "\u2028a b", "İ ß Σ ΑΣ Α"], "a", "right"
)
def test_words_give_the_ids_of_the_whole_text(name, some, prompt, side):
    tokenizer = TOKENIZERS[name]
    made = TokenIds(tokenizer)
    assert made.words
    for _ in range(2):  # with words that are new, then known
        found = made(prompt, LIMIT, side, some)
        check(found, asked(tokenizer, [prompt + text for text in some], side))


def test_a_tokenizer_that_looks_across_spaces_is_asked_for_whole_texts():
    spaced = AddedToken("a b", special=True)
    across = [
        bert(normalizers.BertNormalizer(), mask=spaced),
        bert(normalizers.Replace("a b", "ab")),
        bert(normalizers.BertNormalizer(), pre_tokenizers.Metaspace()),
        bert(normalizers.BertNormalizer(), pre_tokenizers.ByteLevel()),
        bert(
            normalizers.BertNormalizer(),
            pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()]),
        ),
        bert(normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
    ]
    for tokenizer in across:
        assert not splits_at_spaces(tokenizer)
        made = TokenIds(tokenizer)
        assert not made.words
        some = ["a b", " a  b ", "ban", "ab " * 20]
        check(made("", LIMIT, "right", some), asked(tokenizer, some))


def test_words_are_forgotten_before_they_are_too_many(monkeypatch):
    tokenizer = TOKENIZERS["uncased"]
    monkeypatch.setattr(token_ids, "MOST_CHARACTERS", 40)
    made, draw = TokenIds(tokenizer), random.Random(3)
    for _ in range(20):
        some = ["".join(draw.choices("abe1 ", k=30)) for _ in range(3)]
        check(made("", LIMIT, "right", some), asked(tokenizer, some))
        assert made.words.held <= 40 + 90
    assert sum(map(len, made.words.numbers)) == made.words.held


def test_texts_whose_words_are_all_new_go_to_the_tokenizer_whole(monkeypatch):
    """… and once words come back they are put together again."""
    tokenizer, draw = TOKENIZERS["uncased"], random.Random(4)
    monkeypatch.setattr(token_ids, "TRIAL", 4)
    monkeypatch.setattr(token_ids, "REST", 8)
    made, put_together = TokenIds(tokenizer), []
    tokenise = made.words.tokenise

    def counted(texts, *how):
        put_together[-1] = True
        return tokenise(texts, *how)

    monkeypatch.setattr(made.words, "tokenise", counted)
    for new in [True] * 12 + [False] * 12:
        some = ["".join(draw.choices("abe1", k=30)) if new else "a ban banana" for _ in range(3)]
        put_together.append(False)
        check(made("", LIMIT, "right", some), asked(tokenizer, some))
    assert put_together == [True] * 4 + [False] * 8 + [True] * 12
