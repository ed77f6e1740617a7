"""What encoding needs to know about a model, each fact with its source and the reason.

Asked in this order: the user's config, the registry, the model's own sentence-transformers files,
FlagEmbedding's mapping under the model's original name, and what the checkpoint itself states.
Nothing is guessed: a fact that nobody states is an error that names the key to set.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError, printable
from ..files import read_json
from .architectures import flagembedding_mapping, native_attention, native_class

CHOICES = {
    "attention": ("causal", "bidirectional"),
    "padding_side": ("left", "right"),
    "pooling": ("mean", "cls", "last_token"),
    "normalize": (True, False),
    "dtype": ("auto", "float32", "bfloat16", "float16", "fp8"),
    "engine": ("auto", "packed", "flagembedding"),
}
# As sentence-transformers names them (Pooling module, 6.2), and its older one-flag-per-mode form.
ST_POOLING = {"cls": "cls", "mean": "mean", "lasttoken": "last_token"}
ST_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Position tables whose first rows are taken: RoBERTa counts from pad_token_id + 1.
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet"}
UNLIMITED = 10**6  # tokenizers say "no limit" with numbers like 1e30
Decision = dict[str, Any]


class Missing(Exception):
    """No source states the fact."""


def resolve(spec: dict[str, Any], snapshot: Path) -> tuple[dict[str, Any], list[Decision]]:
    """All facts of the model `spec` whose files are in `snapshot`, and how each was decided.

    Returns ({attention, end_token, padding_side, pooling, normalize, query_prompt, passage_prompt,
    max_length: {query, passage}, dtype, engine, dimensions}, [{fact, value, source, reason}]).
    Raises UserError for a fact nobody states, a value of the wrong kind, or a model that the
    project can't represent (a Dense module, say).
    """
    return Resolver(spec, snapshot).run()


class Resolver:
    def __init__(self, spec: dict[str, Any], snapshot: Path) -> None:
        self.spec, self.snapshot = spec, Path(snapshot)
        self.id = printable(spec["id"])
        self.config = json_object(self.snapshot / "config.json")
        self.tokenizer_config = json_object(self.snapshot / "tokenizer_config.json", {})
        self.decisions: list[Decision] = []
        self.registry = dict(spec.get("registry") or {})
        if self.registry.get("unsupported"):
            raise UserError(f"{self.id}: not supported: {self.registry['unsupported']}")
        self.sources = [
            ("config", "stated by the user", dict(spec.get("facts") or {})),
            ("registry", self.registry.get("source", "rules/registry/models.yaml"), self.registry),
        ]
        for name, _, facts in self.sources:
            check(facts, f"{self.id}, {name}")
        if (self.snapshot / "modules.json").exists():
            self.sources.append(("sentence-transformers", *sentence_transformers(self.snapshot)))
        if mapped := mapping(spec["id"]):
            self.sources.append(("FlagEmbedding", *mapped))

    def run(self) -> tuple[dict[str, Any], list[Decision]]:
        facts: dict[str, Any] = {}
        for fact in ("pooling", "normalize"):
            facts[fact] = self.required(fact)
        facts["attention"] = self.attention()
        facts["end_token"] = self.end_token(facts["pooling"])
        facts["padding_side"] = self.padding_side(facts["pooling"])
        facts["query_prompt"], facts["passage_prompt"] = self.prompts()
        facts["max_length"] = self.max_length()
        for fact, value, reason in (
            ("dtype", "auto", "chosen by the device"),
            ("engine", "auto", "chosen by the architecture"),
            ("dimensions", None, "all of them"),
        ):
            facts[fact] = self.stated(fact, value, reason)
        self.check_dimensions(facts["dimensions"])
        return facts, self.decisions

    def note(self, fact: str, value: Any, source: str, reason: str) -> Any:
        row = {"fact": fact, "value": value, "source": source, "reason": reason}
        self.decisions.append(row)
        return value

    def lookup(self, fact: str) -> tuple[Any, str, str]:
        for source, reason, facts in self.sources:
            if (value := self.statement(facts, fact)) is not None:
                return value, source, reason
        raise Missing

    def statement(self, facts: dict[str, Any], fact: str) -> Any:
        value = facts.get(fact)
        if isinstance(value, Refusal):
            raise UserError(f"{self.id}: {value}; set {fact}: under the model to say otherwise")
        return value

    def stated(self, fact: str, default: Any, reason: str, source: str = "default") -> Any:
        try:
            return self.note(fact, *self.lookup(fact))
        except Missing:
            return self.note(fact, default, source, reason)

    def required(self, fact: str) -> Any:
        try:
            return self.note(fact, *self.lookup(fact))
        except Missing:
            raise self.unknown(fact, "one of " + ", ".join(map(str, CHOICES[fact]))) from None

    def unknown(self, fact: str, values: str) -> UserError:
        return UserError(
            f"{self.id}: nothing says what its {fact} is (no registry, no sentence-transformers "
            f"files, not FlagEmbedding's mapping); set {fact}: under the model ({values})"
        )

    def attention(self) -> str:
        kind, flag = self.config.get("model_type"), self.config.get("is_causal")
        built = native_attention(kind) if native_class(kind or "") else None
        try:
            return self.note("attention", *self.lookup("attention"))
        except Missing:
            pass
        if self.config.get("use_bidirectional_attention"):
            reason = "use_bidirectional_attention: true"
            return self.note("attention", "bidirectional", "config.json", reason)
        if built == "causal" and flag is False and self.config.get("auto_map"):
            raise UserError(
                f"{self.id}: config.json says is_causal: false, but custom code came with it and "
                "may ignore that (gte-Qwen2's does); set attention: causal or bidirectional"
            )
        if isinstance(flag, bool) and built != "bidirectional":
            value = "causal" if flag else "bidirectional"
            return self.note("attention", value, "config.json", f"is_causal: {flag}".lower())
        if built:
            return self.note("attention", built, "transformers", f"how {kind} is built")
        raise self.unknown("attention", "causal or bidirectional")

    def end_token(self, pooling: str) -> str | None:
        """The token that must close every text, or None where that is left to the tokenizer."""
        try:
            value, source, reason = self.lookup("end_token")
            return self.note("end_token", value or None, source, reason)
        except Missing:
            pass
        if pooling != "last_token":
            reason = f"{pooling} pooling reads no end token; the tokenizer adds what it adds"
            return self.note("end_token", None, "pooling", reason)
        if token := template_end(json_object(self.snapshot / "tokenizer.json", {})):
            return self.note("end_token", token, "tokenizer.json", "its post-processor appends it")
        token = token_text(self.tokenizer_config.get("eos_token"))
        if self.tokenizer_config.get("add_eos_token") and token:
            return self.note("end_token", token, "tokenizer_config.json", "add_eos_token: true")
        raise UserError(
            f"{self.id}: last_token pooling, and nothing says which end token closes a text (the "
            'tokenizer appends none); set end_token: under the model ("" for none)'
        )

    def padding_side(self, pooling: str) -> str:
        try:
            return self.note("padding_side", *self.lookup("padding_side"))
        except Missing:
            pass
        if pooling == "last_token":
            return self.note("padding_side", "left", "pooling", "last_token reads the last column")
        side = self.tokenizer_config.get("padding_side", "right")
        if side not in CHOICES["padding_side"]:
            raise UserError(f"{self.id}: tokenizer_config.json: padding_side {side!r}")
        return self.note("padding_side", side, "tokenizer_config.json", "as shipped")

    def prompts(self) -> tuple[str | None, str | None]:
        """The texts put before a query and a passage; a source that states one states both.

        None where nobody does: encoding then asks for it, since a user's prompts come only there.
        """
        values = {}
        for fact, other in (("query_prompt", "passage_prompt"), ("passage_prompt", "query_prompt")):
            for source, reason, facts in self.sources:
                if (value := self.statement(facts, fact)) is not None:
                    values[fact] = self.note(fact, value, source, reason)
                    break
                if facts.get(other) is not None and source != "config":
                    values[fact] = self.note(fact, "", source, f"it states only the {other}")
                    break
            else:
                reason = 'state it under the model, "" for none'
                values[fact] = self.note(fact, None, "nobody", reason)
        self.check_prompt_pooling(values)
        return values["query_prompt"], values["passage_prompt"]

    def check_prompt_pooling(self, values: dict[str, str]) -> None:
        for _, _, facts in self.sources:
            if facts.get("include_prompt") is False and any(values.values()):
                raise UserError(
                    f"{self.id}: 1_Pooling says include_prompt: false (the mean leaves prompt "
                    'tokens out), which is not supported; set query_prompt and passage_prompt to ""'
                )

    def max_length(self) -> dict[str, int]:
        limit, where = self.position_limit()
        try:
            value, source, reason = self.lookup("max_length")
        except Missing:
            value = self.tokenizer_config.get("model_max_length")
            source, reason = "tokenizer_config.json", "model_max_length"
            if not isinstance(value, int) or value > UNLIMITED:
                value, source, reason = limit or 512, where, "the model's own limit"
            value = min(value, self.registry.get("max_tokens", value))
        lengths = value if isinstance(value, dict) else {"query": value, "passage": value}
        if set(lengths) != {"query", "passage"} and source == "config":
            lengths = self.fill_lengths(lengths)
        if limit and max(lengths.values()) > limit:
            lengths = {role: min(length, limit) for role, length in lengths.items()}
            reason = f"{reason}; cut to the {limit} positions of {where}"
        return self.note("max_length", lengths, source, reason)

    def fill_lengths(self, lengths: dict[str, int]) -> dict[str, int]:
        """The user stated one role only: the other role comes from the next source."""
        others = Resolver({**self.spec, "facts": {}}, self.snapshot).max_length()
        return others | lengths

    def position_limit(self) -> tuple[int | None, str]:
        positions = self.config.get("max_position_embeddings", self.config.get("n_positions"))
        if not isinstance(positions, int) or positions <= 0:
            return None, "default"
        if self.config.get("model_type") in OFFSET_POSITIONS:
            padding = self.config.get("pad_token_id")
            positions -= (padding if isinstance(padding, int) else 1) + 1
        return positions, "config.json"

    def check_dimensions(self, dimensions: int | None) -> None:
        size = hidden_size(self.config)
        if dimensions and size and dimensions > size:
            raise UserError(
                f"{self.id}: dimensions: {dimensions}, but its vectors have only {size}"
            )


class Refusal(str):
    """In place of a value: why this source's statement can't be followed."""


def check(facts: dict[str, Any], where: str) -> None:
    """Refuse values of the wrong kind."""
    for fact, choices in CHOICES.items():
        value = facts.get(fact)
        known = any(type(value) is type(choice) and value == choice for choice in choices)
        if value is not None and not known:
            options = ", ".join(map(str, choices))
            raise UserError(f"{where}: {fact}: {printable(value)} is none of {options}")
    for fact in ("query_prompt", "passage_prompt", "end_token"):
        if not isinstance(facts.get(fact), str | None):
            raise UserError(f"{where}: {fact}: {printable(facts[fact])} is not text")
    lengths = facts.get("max_length")
    lengths = list(lengths.values()) if isinstance(lengths, dict) else [lengths]
    for number in (facts.get("dimensions"), *lengths):
        if number is not None and (type(number) is not int or number < 1):
            raise UserError(f"{where}: {printable(number)} is not a positive whole number")


def sentence_transformers(snapshot: Path) -> tuple[str, dict[str, Any]]:
    """What the model's own sentence-transformers files state: (reason, facts)."""
    modules = list(module_kinds(snapshot))
    facts: dict[str, Any] = {}
    for kind, path in modules:
        if kind == "Pooling":
            facts |= st_pooling(json_object(snapshot / path / "config.json"))
    prompts = json_object(snapshot / "config_sentence_transformers.json", {})
    facts |= st_prompts(prompts)
    facts["normalize"] = st_normalize([kind for kind, _ in modules], prompts)
    transformer = json_object(snapshot / "sentence_bert_config.json", {})
    if length := transformer.get("max_seq_length"):
        facts["max_length"] = length
    plain = {fact: value for fact, value in facts.items() if not isinstance(value, Refusal)}
    check(plain, f"{snapshot}: sentence-transformers files")
    return "modules.json and the files it names", facts


def module_kinds(snapshot: Path) -> Iterator[tuple[str, str]]:
    """(class name, folder) of each module; one that would be left out is refused by name."""
    modules = read_json(snapshot / "modules.json")
    try:
        rows = [(str(row["type"]).rpartition(".")[2], str(row["path"])) for row in modules]
    except (TypeError, KeyError):
        raise UserError(f"{snapshot}/modules.json: not a list of modules") from None
    for kind, path in rows:
        if kind not in ("Transformer", "Pooling", "Normalize", "Dropout"):
            name = printable(f"{path} ({kind})")
            raise UserError(
                f"{snapshot}: its sentence-transformers module {name} is not supported, and "
                "without it the vectors would be others"
            )
        if kind == "Transformer" and path not in ("", "."):
            raise UserError(
                f"{snapshot}: the transformer lies in {printable(path)}, not at the top"
            )
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{snapshot}/modules.json: path {printable(path)} leaves the folder")
        yield kind, path


def st_pooling(config: dict[str, Any]) -> dict[str, Any]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in ST_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = modes if isinstance(modes, list) else [modes]
    facts: dict[str, Any] = {"include_prompt": config.get("include_prompt", True)}
    if len(modes) == 1 and modes[0] in ST_POOLING:
        return facts | {"pooling": ST_POOLING[modes[0]]}
    name = printable(" + ".join(map(str, modes)))
    return facts | {"pooling": Refusal(f"1_Pooling says {name}, which is not supported")}


def st_prompts(config: dict[str, Any]) -> dict[str, str | None]:
    """As `encode_query` and `encode_document` of sentence-transformers 6.2 choose them.

    No query prompt among prompts of other names is no statement: one of them may be meant.
    """
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UserError("config_sentence_transformers.json: prompts is not a table")
    prompts = {name: text for name, text in prompts.items() if text is not None}
    default = prompts.get(config.get("default_prompt_name") or "")
    passages = [prompts[name] for name in ("document", "passage", "corpus") if name in prompts]
    if default is None and not any(prompts.values()):
        default = ""
    passage = passages[0] if passages else default
    query = prompts.get("query", default)
    return {
        "query_prompt": query,
        "passage_prompt": "" if passage is None and query is not None else passage,
    }


def st_normalize(kinds: list[str], config: dict[str, Any]) -> bool | Refusal:
    """True with a Normalize module, or where the model's similarity is cosine (the default)."""
    if "Normalize" in kinds:
        return True
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity in ("cosine", "dot"):
        return similarity == "cosine"
    return Refusal(f"its similarity is {printable(similarity)}, search here is by dot product")


def mapping(model_id: str) -> tuple[str, dict[str, Any]] | None:
    """FlagEmbedding's statement under the original basename: (reason, facts)."""
    name = model_id.rpartition("/")[2]
    row = flagembedding_mapping().get(name)
    if row is None:
        return None
    facts = {"pooling": row["pooling"], "normalize": True, "passage_prompt": ""}
    text = row["format"]
    if row["class"] == "FlagICLModel":
        facts["query_prompt"] = Refusal("FlagICLModel closes a query with a response marker")
    elif text == "{}{}":
        facts["query_prompt"] = ""
    elif text.count("{}") == 2 and text.endswith("{}"):
        facts["query_prompt"] = text[:-2].replace("{}", "{task}")
    return f"model_mapping.py, {name}: {row['class']}", facts


def hidden_size(config: dict[str, Any]) -> int | None:
    """Length of a state, under the names that architectures give it in config.json."""
    values = (config.get(name) for name in ("hidden_size", "n_embd", "d_model", "dim"))
    return next((value for value in values if isinstance(value, int)), None)


def template_end(tokenizer: dict[str, Any]) -> str | None:
    """The special token that a tokenizer.json's post-processor puts after a text, if any."""
    pipeline = tokenizer.get("post_processor") or {}
    for step in reversed(pipeline.get("processors", [pipeline])):
        if step.get("type") == "TemplateProcessing":
            last = step["single"][-1]
            return last["SpecialToken"]["id"] if "SpecialToken" in last else None
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return step["sep"][0]
    return None


def token_text(token: Any) -> str | None:
    """A token of tokenizer_config.json: plain text or {"content": text, …}."""
    return token.get("content") if isinstance(token, dict) else token


def json_object(path: Path, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object from a file; `default` where there is no file."""
    if default is not None and not path.exists():
        return default
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value
