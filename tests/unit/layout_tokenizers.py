"""Small models under tokenizers of every kind: (name, how it is made, Layout's)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import layout_folders as make
from embedrepro.models.examination import TEXTS
from layout_folders import change, plain
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from traps import write

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = [
    *TEXTS,
    "ALL CAPITALS and then not",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z",
] * 20
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def bare(folder: Path, **given: Any) -> Path:
    """A folder without any file of a tokenizer."""
    plain(folder, **given)
    for path in [*folder.glob("*token*"), *folder.glob("vocab*")]:
        path.unlink()
    return folder


def around(rust: Tokenizer, start: str | None, end: str | None) -> Tokenizer:
    known = [t for t in (start, end) if t]
    rust.post_processor = processors.TemplateProcessing(
        single=" ".join(filter(None, [start, "$A", end])),
        special_tokens=[(t, rust.token_to_id(t)) for t in known],
    )
    return rust


def config(folder: Path, cls: str, bert: bool = False, **given: Any) -> Path:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names |= {"mask_token": "[MASK]"}
    if not bert:
        names = {
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "cls_token": "<s>",
            "sep_token": "</s>",
        }
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    write(folder / "tokenizer_config.json", {"tokenizer_class": cls} | names | given)
    return folder


def word_pieces(lower: bool) -> Tokenizer:
    rust = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=lower)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=BERT_SPECIAL, show_progress=False
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.decoder = decoders.WordPiece()
    return around(rust, "[CLS]", "[SEP]")


def wordpiece(folder: Path, lower: bool = True, cls: str = "BertTokenizer", **given: Any) -> Path:
    bare(folder)
    word_pieces(lower).save(str(folder / "tokenizer.json"))
    return config(folder, cls, True, do_lower_case=lower, **given)


def vocabulary_alone(folder: Path, cls: str, lower: bool = True, **given: Any) -> Path:
    """vocab.txt and no tokenizer.json."""
    bare(folder, **given)
    vocabulary = word_pieces(lower).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    return config(folder, cls, True, do_lower_case=lower)


def unigram(folder: Path, cls: str = "PreTrainedTokenizerFast", **given: Any) -> Path:
    bare(folder)
    rust = Tokenizer(models.Unigram())
    rust.normalizer = normalizers.NFKC()
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    rust.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=250, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    rust.decoder = decoders.Metaspace()
    around(rust, "<s>", "</s>").save(str(folder / "tokenizer.json"))
    return config(folder, cls, **given)


def pieces(folder: Path, kind: str, **given: Any) -> bytes:
    """A sentencepiece model of the texts."""
    import io

    import sentencepiece

    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=stream,
        vocab_size=200,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **given,
    )
    return stream.getvalue()


def sentencepiece_alone(
    folder: Path, file: str, cls: str, kind: str = "unigram", **model: Any
) -> Path:
    bare(folder, **model)
    (folder / file).write_bytes(pieces(folder, kind))
    return config(folder, cls)


def rebuilt(folder: Path, file: str, cls: str, **given: Any) -> Path:
    """tokenizer.json as transformers makes it of a sentencepiece model, which isn't kept."""
    from transformers import AutoTokenizer

    sentencepiece_alone(folder, file, cls, **given)
    made = AutoTokenizer.from_pretrained(folder)
    (folder / file).unlink()
    made.save_pretrained(folder)
    return folder


def byte_fallback(folder: Path, end: str | None = "</s>", **given: Any) -> Path:
    """Llama's: BPE over ▁ words, bytes for what is unknown."""
    plain(folder, family="Llama", pooling="lasttoken")
    for path in folder.glob("*token*"):
        path.unlink()
    rust = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    letters = sorted({letter for text in CORPUS for letter in text if letter != " "})[:30]
    rust.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    known = [*SPECIAL, *(f"<0x{n:02X}>" for n in range(256)), "▁", *letters]
    rust.model = models.BPE(
        vocab={t: i for i, t in enumerate(known)},
        merges=[],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    rust.add_special_tokens(SPECIAL)
    around(rust, "<s>", end).save(str(folder / "tokenizer.json"))
    return config(folder, "PreTrainedTokenizerFast", **given)


def byte_files(folder: Path, cls: str, **model: Any) -> Path:
    """vocab.json and merges.txt alone."""
    bare(folder, **model)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = ["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "he"]
    write(folder / "vocab.json", {t: i for i, t in enumerate(known)})
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nh e\n")
    return config(folder, cls)


def whole_words(folder: Path) -> Path:
    bare(folder)
    rust = Tokenizer(
        models.WordLevel(
            {
                t: i
                for i, t in enumerate([*SPECIAL, *sorted({w for t in CORPUS for w in t.split()})])
            },
            unk_token="<unk>",
        )
    )
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around(rust, "<s>", "</s>").save(str(folder / "tokenizer.json"))
    return config(folder, "PreTrainedTokenizerFast")


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """The plain folder with something else in tokenizer.json."""
    plain(folder)
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    edit(found)
    write(path, found)
    return folder


def named(**given: Any) -> Callable[[Path], Path]:
    return lambda f: change(plain(f), "tokenizer_config.json", **given)


def decoder(ends: str = "end", pad: bool = True, **given: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        plain(folder, family="Qwen3", pooling="lasttoken")
        make.tokenizer(folder, ends, pad, **given)
        return folder

    return made


def own_class(folder: Path) -> Path:
    """A class of the folder's own around the same tokenizer.json."""
    plain(folder)
    code = "from transformers import PreTrainedTokenizerFast as Fast\n\n\n"
    code += "class Own(Fast):\n    pass\n"
    (folder / "tokenization_own.py").write_text(code)
    return change(
        folder,
        "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": [None, "tokenization_own.Own"]},
    )


def closed(peer: Any) -> None:
    """transformers 5 leaves out the end token that add_eos_token asks for."""
    around(peer.tokenizer.backend_tokenizer, None, "</s>")


def padded(peer: Any) -> None:
    """sentence-transformers asks for a padding token even where nothing is padded."""
    peer.tokenizer.pad_token = "</s>"


def lowered(folder: Path) -> Path:
    return change(wordpiece(folder, False), "sentence_bert_config.json", do_lower_case=True)


P = "packed"
TRUNCATION = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None}
PADDING |= {"pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"}
TOKENIZERS: list[tuple[str, Callable[[Path], Path], dict[str, Any]]] = [
    ("WordPiece, uncased", wordpiece, {"engine": P}),
    ("WordPiece, cased", partial(wordpiece, lower=False), {"engine": P}),
    ("WordPiece, cased, do_lower_case", lowered, {"engine": P}),
    ("WordPiece, MPNet's class", partial(wordpiece, cls="MPNetTokenizer"), {"engine": P}),
    ("WordPiece, DistilBERT's class", partial(wordpiece, cls="DistilBertTokenizer"), {"engine": P}),
    ("WordPiece, fast class by name", partial(wordpiece, cls="BertTokenizerFast"), {"engine": P}),
    ("WordPiece, generic class", partial(wordpiece, cls="PreTrainedTokenizerFast"), {"engine": P}),
    (
        "WordPiece, class of transformers 5",
        partial(wordpiece, cls="TokenizersBackend"),
        {"engine": P},
    ),
    ("vocab.txt alone", partial(vocabulary_alone, cls="BertTokenizer"), {"engine": P}),
    (
        "vocab.txt alone, cased",
        partial(vocabulary_alone, cls="BertTokenizer", lower=False),
        {"engine": P},
    ),
    (
        "vocab.txt alone, DistilBERT",
        partial(vocabulary_alone, cls="DistilBertTokenizer", family="DistilBert"),
        {"engine": P},
    ),
    (
        "vocab.txt alone, Electra",
        partial(vocabulary_alone, cls="ElectraTokenizer", family="Electra"),
        {"engine": P},
    ),
    (
        "vocab.txt alone, MPNet",
        partial(vocabulary_alone, cls="MPNetTokenizer", family="MPNet"),
        {"engine": P},
    ),
    ("Unigram", unigram, {"engine": P}),
    (
        "Unigram under a class that normalizes otherwise",
        partial(unigram, cls="XLMRobertaTokenizer"),
        {"refused": "other tokens than tokenizer.json"},
    ),
    (
        "Unigram, XLM-R's class",
        partial(rebuilt, file="sentencepiece.bpe.model", cls="XLMRobertaTokenizer"),
        {"engine": P},
    ),
    (
        "Unigram, T5's class",
        partial(rebuilt, file="spiece.model", cls="T5Tokenizer"),
        {"engine": P},
    ),
    (
        "Unigram, ALBERT's class",
        partial(rebuilt, file="spiece.model", cls="AlbertTokenizer"),
        {"engine": P},
    ),
    (
        "Unigram, DeBERTa's class",
        partial(rebuilt, file="spm.model", cls="DebertaV2Tokenizer"),
        {"engine": P},
    ),
    (
        "BPE pieces, Llama's class",
        partial(rebuilt, file="tokenizer.model", cls="LlamaTokenizer", kind="bpe", family="Llama"),
        {"engine": P},
    ),
    (
        "BPE pieces, Gemma's class",
        partial(rebuilt, file="tokenizer.model", cls="GemmaTokenizer", kind="bpe", family="Llama"),
        {"engine": P},
    ),
    (
        "sentencepiece.bpe.model alone",
        partial(
            sentencepiece_alone,
            file="sentencepiece.bpe.model",
            cls="XLMRobertaTokenizer",
            family="XLMRoberta",
        ),
        {"engine": P},
    ),
    (
        "spiece.model alone",
        partial(sentencepiece_alone, file="spiece.model", cls="T5Tokenizer"),
        {"engine": P},
    ),
    (
        "tokenizer.model alone",
        partial(
            sentencepiece_alone,
            file="tokenizer.model",
            cls="LlamaTokenizer",
            kind="bpe",
            family="Llama",
        ),
        {"engine": P},
    ),
    ("byte fallback, an end token", byte_fallback, {"engine": P}),
    (
        "byte fallback, no end token",
        partial(byte_fallback, end=None),
        {"refused": "nothing says which end token"},
    ),
    (
        "byte fallback, no end token, as stated",
        partial(byte_fallback, end=None),
        {"engine": P, "facts": {"end_token": ""}},
    ),
    (
        "vocab.json, merges.txt alone",
        partial(byte_files, cls="RobertaTokenizer", family="Roberta"),
        {"engine": P},
    ),
    (
        "vocab.json, merges.txt alone, GPT-2's",
        partial(byte_files, cls="GPT2Tokenizer"),
        {"engine": P},
    ),
    (
        "vocab.json, merges.txt alone, Qwen2's",
        partial(byte_files, cls="Qwen2Tokenizer", family="Qwen2"),
        {"engine": P},
    ),
    ("whole words", whole_words, {"engine": P}),
    ("a class of its own", own_class, {"engine": P}),
    (
        "tokenizer.json that cuts",
        partial(edited, edit=lambda t: t.update(truncation=TRUNCATION)),
        {"engine": P},
    ),
    (
        "tokenizer.json that pads",
        partial(edited, edit=lambda t: t.update(padding=PADDING)),
        {"engine": P},
    ),
    (
        "tokenizer.json that lower-cases",
        partial(edited, edit=lambda t: t.update(normalizer={"type": "Lowercase"})),
        {"engine": P},
    ),
    (
        "no post-processor",
        partial(edited, edit=lambda t: t.update(post_processor=None)),
        {"engine": P},
    ),
    ("model_max_length 30", named(model_max_length=30), {"engine": P}),
    ("model_max_length 1e30", named(model_max_length=10**30), {"engine": P}),
    ("texts cut on the left", named(truncation_side="left"), {"engine": P}),
    ("padded on the left", named(padding_side="left"), {"engine": P}),
    (
        "token types",
        named(model_input_names=["input_ids", "token_type_ids", "attention_mask"]),
        {"engine": P},
    ),
    ("no tokenizer", bare, {"refused": "no tokenizer"}),
    (
        "a broken tokenizer.json",
        partial(edited, edit=lambda t: t.pop("model")),
        {"refused": "not a tokenizer"},
    ),
    ("decoder, `$A </s>`", decoder(), {"engine": P}),
    ("decoder, `<s> $A </s>`", decoder("both"), {"engine": P}),
    ("decoder, add_eos_token", decoder("none", add_eos_token=True), {"engine": P, "mend": closed}),
    ("decoder, no end token", decoder("none"), {"refused": "nothing says which end token"}),
    ("decoder, no padding token", decoder(pad=False), {"engine": P, "mend": padded}),
    ("decoder, padded on the right", decoder(padding_side="right"), {"engine": P}),
    (
        "decoder, an end token as stated",
        decoder("none", add_eos_token=True),
        {"engine": P, "facts": {"end_token": "</s>"}, "mend": closed},
    ),
    (
        "decoder, an unknown end token",
        decoder(),
        {"facts": {"end_token": "<|none|>"}, "refused": "is not in its vocabulary"},
    ),
]
