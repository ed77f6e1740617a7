"""What encoding needs to know about a model, each fact with its source and the reason.

Asked in the order of the table of facts: the user's config, the registry, the model's own
sentence-transformers files, FlagEmbedding's mapping under the model's original name, and what the
checkpoint itself states. Nothing is guessed: a fact that nobody states is an error that names the
key to set.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..errors import UserError, printable
from .architectures import ENCODERS, flagembedding_mapping, native_attention, native_class
from .facts_table import ROLES, TABLE, Role, Source, check
from .native_config import native_type
from .st_files import Layout, Refusal, json_object, read
from .tensors import main_dtype

# Position tables whose first rows are taken: these count from pad_token_id + 1.
OFFSET_POSITIONS = {
    *("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "roberta-prelayernorm"),
    *("xlm-roberta-xl", "xmod", "longformer", "ibert", "luke", "mluke", "esm", "lilt", "markuplm"),
    *("layoutlmv3", "altclip"),
}
# Decoders whose positions are absolute (learned, added, or turned before a norm): padding before a
# text would move it.
LEARNED_POSITIONS = {
    *("gpt2", "gpt_neo", "opt", "biogpt", "gpt_bigcode", "openai-gpt", "ctrl", "xglm"),
    *("hunyuan_v1_dense", "hunyuan_v1_moe"),
}
UNLIMITED = 10**6  # tokenizers say "no limit" with numbers like 1e30
NO_LIMIT = 32_768  # tokens kept where nothing limits a text
HALF = {"BF16": "bfloat16", "bfloat16": "bfloat16"}
Decision = dict[str, Any]


class Missing(Exception):
    """No source states the fact."""


@dataclass
class Resolved:
    """All facts of a model as stage.json has them, how each was decided, and the layout."""

    facts: dict[str, Any]
    decisions: list[Decision]
    layout: Layout


def resolve(spec: Mapping[str, Any], snapshot: Path) -> Resolved:
    """All facts of the model `spec` whose files are in `snapshot`.

    Raises UserError for a fact nobody states or a value of the wrong kind.
    """
    return Resolver(spec, snapshot).run()


class Resolver:
    def __init__(self, spec: Mapping[str, Any], snapshot: Path) -> None:
        self.spec, self.snapshot = spec, Path(snapshot)
        self.id = printable(spec["id"])
        self.registry = dict(spec.get("registry") or {})
        if self.registry.get("unsupported"):
            raise UserError(f"{self.id}: not supported: {self.registry['unsupported']}")
        read_layout = read(self.snapshot, spec.get("kind") or "dense")
        self.layout = read_layout or Layout()
        base = self.snapshot / self.layout.base
        self.base = base
        self.config = json_object(base / "config.json", {}) | self.layout.config
        self.tokenizer_config = (
            json_object(base / "tokenizer_config.json", {}) | self.layout.tokenizer
        )
        self.decisions: list[Decision] = []
        reason = self.registry.get("source", "rules/registry/models.yaml")
        self.sources: list[tuple[Source, str, dict[str, Any]]] = [
            ("config", "stated by the user", dict(spec.get("facts") or {})),
            ("registry", reason, self.registry),
        ]
        for name, _, facts in self.sources:
            check(facts, f"{self.id}, {name}")
        if read_layout:
            stated = self.layout.facts
            plain = {fact: v for fact, v in stated.items() if not isinstance(v, Refusal)}
            plain = {fact: v for fact, v in plain.items() if v != "modules"}
            check(plain, f"{snapshot}: sentence-transformers files")
            reason = "modules.json and the files it names"
            self.sources.append(("sentence-transformers", reason, stated))
        if mapped := mapping(spec["id"]):
            self.sources.append(("FlagEmbedding", *mapped))

    def run(self) -> Resolved:
        facts: dict[str, Any] = {}
        for fact in ("pooling", "normalize"):
            facts[fact] = self.required(fact)
        facts["attention"] = self.attention()
        facts["end_token"] = self.end_token(facts["pooling"])
        facts["padding_side"] = self.padding_side(facts["pooling"], facts["attention"])
        facts["query_prompt"], facts["passage_prompt"] = self.prompts()
        facts["max_length"] = self.max_length()
        for fact, value, reason in (
            ("include_prompt", True, "the prompt's tokens are tokens like any other"),
            ("native", None, "chosen by what the folder holds"),
            ("dtype", "auto", "see fast_dtype"),
            ("engine", "auto", "chosen by the architecture"),
            ("dimensions", None, "all of them"),
        ):
            facts[fact] = self.stated(fact, value, reason)
        facts["fast_dtype"] = self.fast_dtype(facts["dtype"])
        return Resolved(facts, self.decisions, self.layout)

    def note(self, fact: str, value: Any, source: str, reason: str) -> Any:
        row = {"fact": fact, "value": value, "source": source, "reason": reason}
        self.decisions.append(row)
        return value

    def lookup(self, fact: str) -> tuple[Any, str, str]:
        for source, reason, facts in self.sources:
            value = self.statement(facts, fact) if source in TABLE[fact].stated_by else None
            if value is not None:
                return value, source, reason
        raise Missing

    def statement(self, facts: Mapping[str, Any], fact: str) -> Any:
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
            values = "one of " + ", ".join(map(str, TABLE[fact].choices))
            raise self.unknown(fact, values) from None

    def unknown(self, fact: str, values: str) -> UserError:
        return UserError(
            f"{self.id}: nothing says what its {fact} is (no registry, no sentence-transformers "
            f"files, not FlagEmbedding's mapping); set {fact}: under the model ({values})"
        )

    def attention(self) -> str:
        kind = native_type(self.config) if self.config.get("model_type") else None
        flag = self.config.get("is_causal")
        built = native_attention(kind) if kind and native_class(kind) else None
        try:
            return str(self.note("attention", *self.lookup("attention")))
        except Missing:
            pass
        if self.config.get("use_bidirectional_attention"):
            reason = "use_bidirectional_attention: true"
            return str(self.note("attention", "bidirectional", "config.json", reason))
        custom = self.config.get("auto_map") or {}
        if built == "causal" and (
            custom if flag is False else flag is None and "AutoModel" in custom
        ):
            says = "config.json says is_causal: false" if flag is False else f"{kind} is causal"
            raise UserError(
                f"{self.id}: {says}, but custom code came with it and may do otherwise "
                "(gte-Qwen2's does); set attention: causal or bidirectional"
            )
        if isinstance(flag, bool) and built != "bidirectional":
            value = "causal" if flag else "bidirectional"
            return str(self.note("attention", value, "config.json", f"is_causal: {flag}".lower()))
        if built or kind in ENCODERS:
            value = built or "bidirectional"
            reason = f"how {kind} is built"
            return str(self.note("attention", value, "transformers", reason))
        if self.layout.general:
            reason = f"its modules decide ({self.layout.general})"
            return str(self.note("attention", "bidirectional", "modules.json", reason))
        raise self.unknown("attention", "causal or bidirectional")

    def end_token(self, pooling: str) -> str | None:
        """The token that must close every text, or None where that is left to the tokenizer."""
        try:
            value, source, reason = self.lookup("end_token")
            return cast(str | None, self.note("end_token", value or None, source, reason))
        except Missing:
            pass
        tokenizer = json_object(self.base / "tokenizer.json", {})
        if pooling != "last_token":
            return self.closing_token(pooling, tokenizer)
        if token := template_end(tokenizer):
            reason = "its post-processor appends it"
            return str(self.note("end_token", token, "tokenizer.json", reason))
        token = token_text(self.tokenizer_config.get("eos_token"))
        if self.tokenizer_config.get("add_eos_token") and token:
            reason = "add_eos_token: true"
            return str(self.note("end_token", token, "tokenizer_config.json", reason))
        if not tokenizer and native_attention(str(self.config.get("model_type"))) != "causal":
            reason = "an encoder's own tokenizer closes its texts"
            return cast(None, self.note("end_token", None, "transformers", reason))
        raise UserError(
            f"{self.id}: last_token pooling, and nothing says which end token closes a text (the "
            'tokenizer appends none); set end_token: under the model ("" for none)'
        )

    def closing_token(self, pooling: str, tokenizer: dict[str, Any]) -> str | None:
        """An end token under a pooling that doesn't look for one, but reads it with the others.

        The tokenizer adds what it adds, unless its class is the model's own: that one isn't run.
        """
        adds = self.tokenizer_config.get("add_eos_token")
        own = self.tokenizer_config.get("auto_map") and not self.layout.general
        if not own or adds is False or template_end(tokenizer):
            reason = f"{pooling} pooling reads no end token; the tokenizer adds what it adds"
            return cast(None, self.note("end_token", None, "pooling", reason))
        token = token_text(self.tokenizer_config.get("eos_token"))
        if adds and token:
            reason = "add_eos_token: true, which its own class follows"
            return str(self.note("end_token", token, "tokenizer_config.json", reason))
        raise UserError(
            f"{self.id}: its tokenizer has a class of its own, which isn't run, and nothing says "
            'whether it closes a text; set end_token: under the model ("" for none)'
        )

    def padding_side(self, pooling: str, attention: str) -> str:
        try:
            side, source, reason = self.lookup("padding_side")
            if (side, pooling) == ("left", "cls"):
                raise UserError(
                    f"{self.id}: padding_side: left under {source}, and cls pooling, which reads "
                    "the first column; set padding_side: right"
                )
            return str(self.note("padding_side", side, source, reason))
        except Missing:
            pass
        kind = str(self.config.get("model_type"))
        moved = kind in LEARNED_POSITIONS or native_attention(kind) == "bidirectional"
        if pooling == "cls" or (pooling == "last_token" and moved):
            reason = "padding before a text would move it"
            return str(self.note("padding_side", "right", "pooling", reason))
        if pooling == "last_token":
            reason = "last_token reads the last column"
            return str(self.note("padding_side", "left", "pooling", reason))
        side = self.tokenizer_config.get("padding_side", "right")
        if side not in TABLE["padding_side"].choices:
            raise UserError(f"{self.id}: tokenizer_config.json: padding_side {side!r}")
        if side == "left" and moved:
            reason = "padding before a text would move it"
            return str(self.note("padding_side", "right", "transformers", reason))
        return str(self.note("padding_side", side, "tokenizer_config.json", "as shipped"))

    def prompts(self) -> tuple[Any, Any]:
        """The texts put before a query and a passage; a source that states one states both.

        None where nobody does: whoever encodes has to say it.
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
        return values["query_prompt"], values["passage_prompt"]

    def max_length(self) -> dict[Role, int]:
        """Tokens kept of each role's texts, never more than the model has positions for."""
        lengths: dict[Role, int] = {}
        sources, reasons = [], []
        for role in ROLES:
            length, source, reason = self.role_length(role)
            limit = None if role in self.layout.unbound else self.position_limit(role)
            if limit and length > limit:
                length, reason = limit, f"{reason}; cut to the {limit} positions of config.json"
            lengths[role] = length
            sources.append(source)
            reasons.append(reason)
        source, reason = sources[0], reasons[0]
        if (sources[1], reasons[1]) != (source, reason):
            source = f"query: {sources[0]}, passage: {sources[1]}"
            reason = f"query: {reasons[0]}; passage: {reasons[1]}"
        return cast(dict[Role, int], self.note("max_length", lengths, source, reason))

    def role_length(self, role: Role) -> tuple[int, str, str]:
        for source, reason, facts in self.sources:
            value = facts.get("max_length")
            value = value.get(role) if isinstance(value, Mapping) else value
            if value is not None:
                return value, source, reason
        if role in self.layout.unbound:
            return NO_LIMIT, "default", "nothing limits a text; longer ones are cut here"
        config, tokenizer = self.trunk(role)
        limit = config.get("max_position_embeddings", config.get("n_positions"))
        limit = limit if isinstance(limit, int) and limit > 0 and not unbounded(config) else None
        value = tokenizer.get("model_max_length")
        known = [n for n in (limit, value) if isinstance(n, int) and n < UNLIMITED]
        stated = self.registry.get("max_tokens")
        if stated and (not known or stated < min(known)):
            return stated, "registry", "max_tokens"
        if not known:
            return NO_LIMIT, "default", "nothing limits a text; longer ones are cut here"
        length = min(known)
        where = "config.json" if length == limit else "tokenizer_config.json"
        name = "max_position_embeddings" if length == limit else "model_max_length"
        return length, where, name

    def trunk(self, role: Role) -> tuple[dict[str, Any], dict[str, Any]]:
        """config.json and tokenizer_config.json of the transformer that reads a role's texts."""
        if role not in self.layout.trunks:
            return self.config, self.tokenizer_config
        folder = self.snapshot / self.layout.trunks[role]
        names = ("config.json", "tokenizer_config.json")
        config, tokenizer = (json_object(folder / name, {}) for name in names)
        return config, tokenizer

    def position_limit(self, role: Role = "passage") -> int | None:
        """The most tokens that the model has positions for, those of scaled ones included."""
        config, _ = self.trunk(role)
        positions = config.get("max_position_embeddings", config.get("n_positions"))
        if not isinstance(positions, int) or positions <= 0 or unbounded(config):
            return None
        table = config.get("position_embedding_type") or "absolute"
        if config.get("model_type") in OFFSET_POSITIONS and table == "absolute":
            padding = config.get("pad_token_id")
            return positions - (padding if isinstance(padding, int) else 1) - 1
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        factor = scaling.get("factor") if isinstance(scaling, dict) else None
        if isinstance(factor, int | float) and factor > 1:
            original = scaling.get("original_max_position_embeddings", positions)
            return max(positions, int(original * factor))
        return positions

    def fast_dtype(self, stated: str) -> str:
        """The precision of a fast pass: as stated, or the half that the weights are stored in."""
        if stated != "auto":
            return str(self.note("fast_dtype", stated, "dtype", "as dtype states"))
        stored = self.spec.get("stored") or main_dtype(self.base)
        where = "the weights" if stored else "config.json"
        stored = stored or str(self.config.get("dtype", self.config.get("torch_dtype")))
        value = HALF.get(stored, "float16")
        return str(self.note("fast_dtype", value, "checkpoint", f"{where}: {stored}"))


def unbounded(config: Mapping[str, Any]) -> bool:
    """Relative positions without a table: what config.json calls n_positions limits nothing."""
    return config.get("model_type") in ("t5", "mt5", "umt5", "longt5", "xlnet")


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


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """Length of a state, under the names that architectures give it in config.json."""
    values = (config.get(name) for name in ("hidden_size", "n_embd", "d_model", "dim", "emb_dim"))
    return next((value for value in values if isinstance(value, int)), None)


def template_end(tokenizer: Mapping[str, Any]) -> str | None:
    """The special token that a tokenizer.json's post-processor puts after a text, if any."""
    for step in reversed(list(processors(tokenizer))):
        if step.get("type") == "TemplateProcessing":
            last = step["single"][-1]
            return str(last["SpecialToken"]["id"]) if "SpecialToken" in last else None
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return str(step["sep"][0])
    return None


def processors(tokenizer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    pipeline = tokenizer.get("post_processor") or {}
    yield from pipeline.get("processors", [pipeline])


def token_text(token: Any) -> str | None:
    """A token of tokenizer_config.json: plain text or {"content": text, …}."""
    return token.get("content") if isinstance(token, dict) else token
