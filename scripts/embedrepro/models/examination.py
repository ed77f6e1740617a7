"""The checks of a staged folder: what `preflight` asks for, here or in a process of its own.

Of a large model only the first layers are loaded; the finding `scope` says what that leaves
unproven.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import printable
from ..startup import import_transformers, uncollected
from .architectures import ENCODERS, dtype_name
from .facts_table import prompt_for
from .staged import lay_out_code, verify_code
from .tensors import shapes

Finding = dict[str, Any]  # {"check": name, "ok": bool, "detail": one line}
Prompts = Mapping[str, Sequence[str | None]]  # by role; None stands for that of stage.json
FULL_BYTES = 700 * 2**20  # weights above this are loaded only in part
LAYERS = 2
# Parts of a checkpoint that pooling never reads.
HEADS = re.compile(r"pooler|position_ids|lm_head|^cls\.|classifier|^score\.|predictions|rotary_emb")
HEADS_OF = {  # more of them, under names that mean something else elsewhere
    "modernbert": re.compile(r"^(head|decoder)\."),
    "distilbert": re.compile(r"^vocab_(transform|layer_norm|projector)\."),
    **dict.fromkeys(ENCODERS, re.compile(r"^decoder\.|^encoder\.embed_tokens")),
}
LAYER = re.compile(r"\.?(?:layers?|h|blocks?)\.(\d+)\.")
TEXTS = (
    "A lighthouse keeper counts the ships that pass at night.",
    "rust",
    "Zwei Züge, drei Brücken: 北京大学的图书馆在哪里? E = mc² (1905).",
    "the quick brown fox jumps over the lazy dog and then walks home along the river " * 3,
)
NEAR = 1e-4  # float32 states that should be equal, relative to the largest
LONG = 1024  # tokens of the longest text that is computed where nothing is bound to a place
LONG_TABLE = 4096  # … and where the model has a table of places, which may be too short
LONG_CUT = 8192  # tokens of the longest text that is only cut
LEARNED = re.compile(r"position_embed|wpe\.|embed_positions")  # such a table's name


def weight_bytes(record: dict[str, Any]) -> int:
    files = record["files"].items()
    return sum(file["size"] for name, file in files if name.endswith((".safetensors", ".bin")))


def finding(check: str, ok: bool, detail: str) -> Finding:
    return {"check": check, "ok": bool(ok), "detail": printable(detail, 500)}


def examine(
    staged: Path, put: Prompts | None = None, checks: bool = True, digest: bool = True
) -> dict[str, Any]:
    """{"findings": [...], "digest": sha256 of some vectors and all buffers}, what is asked for.

    `put`: the texts that will stand before queries and passages; without it those of stage.json.
    """
    import torch

    record = verify_code(staged)
    tokenizer, model, findings = load(staged, record)
    probe = Probe(staged, record, tokenizer, model, put)
    asked: list[Callable[[], Iterator[Finding]]] = [
        probe.code,
        probe.end_token,
        probe.tokenizer_file,
        probe.prompts,
        probe.padding_token,
        probe.finite,
        probe.buffers,
        probe.dimensions,
        probe.attention,
        probe.padding,
        probe.long,
    ]
    with torch.no_grad():
        for check in asked if checks else []:
            found = list(check())
            findings += found
            if check == probe.padding_token and not found[0]["ok"]:
                return {"findings": findings, "digest": ""}  # nothing below could be computed
        return {"findings": findings, "digest": probe.digest() if digest else ""}


@uncollected()
def load(staged: Path, record: dict[str, Any]) -> tuple[Any, Any, list[Finding]]:
    """Tokenizer, model in float32 and the findings about what was loaded.

    The model is built in poisoned memory: what loading doesn't write is NaN, not what a former
    tensor left there, and shows in the check `finite`.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lay_out_code(staged, record)
    trust = {"trust_remote_code": bool(record["code"]), "local_files_only": True}
    config = AutoConfig.from_pretrained(staged, **trust)
    layers, scope = truncate(config, record)
    tokenizer = AutoTokenizer.from_pretrained(staged, **trust)
    encoder = None if record["code"] else ENCODERS.get(record["architecture"])
    cls = getattr(transformers, encoder) if encoder else AutoModel
    with poisoned():
        loaded = cls.from_pretrained(
            staged,
            config=config,
            output_loading_info=True,
            **{dtype_name(): torch.float32},
            **trust,
        )
    # Code of a model's own may load in a way of its own, and say nothing of it.
    model, info = loaded if isinstance(loaded, tuple) else (loaded, loading_info(loaded, staged))
    heads = HEADS_OF.get(record["architecture"])
    return tokenizer, model.eval(), [scope, weights_finding(info, layers, heads)]


def loading_info(model: Any, staged: Path) -> dict[str, Any]:
    """What transformers says of a load, found by comparing names and shapes with the checkpoint."""
    stored = shapes(staged)
    ours = {name: (tensor.data_ptr(), tensor) for name, tensor in model.state_dict().items()}
    read = {place for name, (place, _) in ours.items() if name in stored}  # of tied ones, one
    return {
        "missing_keys": [n for n, (at, _) in ours.items() if n not in stored and at not in read],
        "unexpected_keys": [name for name in stored if name not in ours],
        "mismatched_keys": [
            (name, shape, list(ours[name][1].shape))
            for name, shape in stored.items()
            if name in ours and shape != list(ours[name][1].shape)
        ],
    }


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what torch allocates with NaN (the largest number, of integers)."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    # The switch itself: torch.use_deterministic_algorithms imports a compiler, for two seconds.
    torch._C._set_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filling
        torch._C._set_deterministic_algorithms(before)


def truncate(config: Any, record: dict[str, Any]) -> tuple[int | None, Finding]:
    """Cut a large model's config to its first layers: (layers kept or None for all, finding)."""
    size = weight_bytes(record)
    layers = getattr(config, "num_hidden_layers", None)
    if size <= FULL_BYTES or not layers or layers <= LAYERS:
        return None, finding("scope", True, f"the whole model, {size / 1e6:.0f} MB, in float32")
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    detail = (
        f"the first {LAYERS} of {layers} layers in float32: what the checks prove holds for "
        f"them; the weights of layers {LAYERS} to {layers - 1} were not read"
    )
    return LAYERS, finding("scope", True, detail)


def weights_finding(
    info: dict[str, Any], layers: int | None, heads: re.Pattern[str] | None = None
) -> Finding:
    """Every parameter comes from the checkpoint, and no layer of the checkpoint is left over.

    `heads`: names of tensors that the architecture's vectors don't need, beside `HEADS`.
    """

    def head(name: str) -> bool:
        return bool(HEADS.search(name) or (heads and heads.search(name)))

    def cut_off(name: str) -> bool:
        number = LAYER.search(name)
        return layers is not None and number is not None and int(number[1]) >= layers

    missing = sorted(name for name in info["missing_keys"] if not head(name))
    mismatched = sorted(str(row[0]) for row in info["mismatched_keys"])
    left_over = sorted(
        name for name in info["unexpected_keys"] if not head(name) and not cut_off(name)
    )
    for names, what in (
        (missing, "not in the checkpoint and left random"),
        (mismatched, "of another shape in the checkpoint and left random"),
        (left_over, "in the checkpoint but not in the model: another architecture"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            return finding("weights", False, f"{what}: {', '.join(names[:3])}{more}")
    return finding("weights", True, "every parameter is in the checkpoint, no layer is left over")


class Probe:
    """The checks, each a generator of findings, on one loaded model."""

    def __init__(
        self,
        staged: Path,
        record: dict[str, Any],
        tokenizer: Any,
        model: Any,
        put: Prompts | None = None,
    ) -> None:
        self.staged, self.record, self.put = staged, record, put or {}
        self.tokenizer, self.model = tokenizer, model
        self.known: dict[str, Any] = {}

    def ids(self, text: str, **options: Any) -> list[int]:
        return list(self.tokenizer(text, **options)["input_ids"])

    def states(self, rows: list[list[int]]) -> tuple[Any, Any]:
        """Last hidden states [rows, length, d] and mask [rows, length] of padded token ids."""
        import torch

        key = repr(rows)
        if key not in self.known:
            batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            mask = batch["attention_mask"]
            output = self.model(input_ids=batch["input_ids"], attention_mask=mask, return_dict=True)
            self.known[key] = output.last_hidden_state.to(torch.float32), mask
        return self.known[key]

    def rows(self) -> list[list[int]]:
        """The ids of the texts, cut to what a large model computes in a moment."""
        return [self.ids(text, truncation=True, max_length=24) for text in TEXTS]

    def pool(self, states: Any, mask: Any) -> Any:
        """Pooled, normalised vectors [rows, d]."""
        import torch

        columns = torch.arange(mask.shape[1])
        pooling = self.record["pooling"]
        if pooling not in ("cls", "last_token"):
            weights = mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * weights).sum(1) / weights.sum(1)
        else:
            real = columns * mask if pooling == "last_token" else (len(columns) - columns) * mask
            vectors = states[torch.arange(len(states)), real.argmax(1)]
        return torch.nn.functional.normalize(vectors, dim=-1)

    def code(self) -> Iterator[Finding]:
        """The class that runs is the one in the staged folder."""
        kept = self.record["code"]
        if not kept:
            name = type(self.model).__name__
            native = type(self.model).__module__.startswith("transformers.models.")
            yield finding("code", native, f"{name} of {type(self.model).__module__}")
            return
        source = sys.modules[type(self.model).__module__].__file__
        assert source is not None  # code of its own is a file
        same = hashlib.sha256(Path(source).read_bytes()).hexdigest() in kept.values()
        detail = f"{type(self.model).__name__} runs from {'the staged' if same else 'other'} code"
        yield finding("code", same, detail)

    def end_token(self) -> Iterator[Finding]:
        """The end token closes a text, alone, in a batch, and when the text is cut."""
        token = self.record["end_token"]
        if token is None:
            yield finding("end_token", True, "none is asked for")
            return
        wanted = self.tokenizer.convert_tokens_to_ids(token)
        long = TEXTS[3]
        shapes = {
            "'a'": self.ids("a"),
            "'a' in a batch": self.tokenizer(["a", long])["input_ids"][0],
            "a text cut to 8 tokens": self.ids(long, truncation=True, max_length=8),
        }
        for name, ids in shapes.items():
            if not ids or ids[-1] != wanted:
                last = self.tokenizer.convert_ids_to_tokens(ids[-1:])
                detail = (
                    f"the last token of {name} is {last}, not {token}: the end token is dropped"
                )
                yield finding("end_token", False, detail)
                return
        yield finding("end_token", True, f"{token} closes every text")

    def tokenizer_file(self) -> Iterator[Finding]:
        """transformers' tokenizer gives the ids that tokenizer.json states; none is unknown."""
        from tokenizers import Tokenizer

        path = self.staged / "tokenizer.json"
        if not path.is_file():
            yield finding("tokenizer", True, "no tokenizer.json to compare with")
            return
        stated = Tokenizer.from_file(str(path))
        stated.no_truncation()
        stated.no_padding()
        for text in TEXTS:
            ours, theirs = self.ids(text), stated.encode(text).ids
            if ours != theirs:
                place = next(
                    (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                    min(len(ours), len(theirs)),
                )
                detail = (
                    f"{text[:30]!r} gives other tokens than tokenizer.json from token {place} on"
                )
                yield finding("tokenizer", False, detail)
                return
        yield finding("tokenizer", True, "gives what tokenizer.json states")

    def prompts(self) -> Iterator[Finding]:
        """A prompt reaches the tokens, before the text, which stays whole."""
        text = TEXTS[0]
        for role in ("query", "passage"):
            stated = prompt_for(self.record[f"{role}_prompt"])
            for put in self.put.get(role, [None]):
                prompt = stated if put is None else put
                if not prompt:
                    continue
                alone, both = self.ids(text), self.ids(prompt + text)
                what = f"the {role} prompt {prompt!r}"
                if len(both) <= len(alone):
                    yield finding("prompts", False, f"{what} adds no token")
                    return
                if self.tokenizer.unk_token_id in set(both) - set(alone):
                    yield finding("prompts", False, f"{what} is partly unknown")
                    return
        yield finding("prompts", True, "each prompt that is put reaches the tokens")

    def padding_token(self) -> Iterator[Finding]:
        token = self.tokenizer.pad_token
        yield finding("padding token", token is not None, f"{token} fills up short texts")

    def finite(self) -> Iterator[Finding]:
        """No NaN or infinity in a parameter, a buffer or an output."""
        for kind, tensors in (
            ("parameter", self.model.named_parameters()),
            ("buffer", self.model.named_buffers()),
        ):
            for name, tensor in tensors:
                # A sum is finite exactly where all is, and needs no second tensor of that size.
                if tensor.is_floating_point() and not tensor.sum().isfinite():
                    yield finding("finite", False, f"{kind} {name} holds NaN or infinity")
                    return
        states, mask = self.states(self.rows())
        bad = not states[mask.bool()].isfinite().all()
        yield finding("finite", not bad, "an output holds NaN or infinity" if bad else "no NaN")

    def buffers(self) -> Iterator[Finding]:
        """Custom code: buffers that are not in the checkpoint hold what their code computes.

        transformers 5 builds models without memory and forgets such buffers, if the code doesn't
        fill them again; what is then there need not be NaN.
        """
        if not self.record["code"]:
            yield finding("buffers", True, "native class: transformers fills them")
            return
        fresh = dict(type(self.model)(self.model.config).named_buffers())
        for name, buffer in self.model.named_buffers():
            if not buffer.equal(fresh[name].to(buffer.dtype)):
                detail = (
                    f"buffer {name} is not what the code computes: left uninitialised by loading"
                )
                yield finding("buffers", False, detail)
                return
        yield finding("buffers", True, "as the code computes them")

    def dimensions(self) -> Iterator[Finding]:
        states, _ = self.states(self.rows()[1:2])
        size, stated = states.shape[-1], self.record["hidden_size"]
        yield finding("dimensions", size == stated, f"states have {size}, stage.json says {stated}")

    def attention(self) -> Iterator[Finding]:
        """A later token changes an earlier state, or doesn't, as declared; alone and padded."""
        ids, _, _, long = self.rows()
        if len(long) <= len(ids):  # tokens as short as bytes: something has to be padded
            ids = ids[len(ids) // 2 :]
        place = len(ids) // 2 + 1
        changed = list(ids)
        changed[place] = ids[1] if ids[place] != ids[1] else ids[2]
        declared = self.record["attention"]
        for how, others in (("alone", []), ("in a padded batch", [long])):
            before, mask = self.states([ids, *others])
            after, _ = self.states([changed, *others])
            first = int(mask[0].argmax())
            moved = (before - after)[0, first : first + place].abs().max()
            scale = before[0].abs().max()
            seen = "bidirectional" if moved > NEAR * scale else "causal"
            if seen != declared:
                detail = f"{declared} is declared, but a text {how} is read as {seen}"
                yield finding("attention", False, detail)
                return
        yield finding("attention", True, f"{declared}, alone and in a padded batch")

    def padding(self) -> Iterator[Finding]:
        """A text's vector is the same alone and beside a longer one."""
        rows = self.rows()
        together = self.pool(*self.states(rows))
        for text, row, vector in zip(TEXTS, rows, together, strict=True):
            difference = float((self.pool(*self.states([row]))[0] - vector).abs().max())
            if not difference <= NEAR:
                detail = f"{text[:30]!r} alone and in a padded batch differ by {difference:.1e}"
                yield finding("padding", False, detail)
                return
        yield finding("padding", True, f"alone and padded agree within {NEAR:g}")

    def long(self) -> Iterator[Finding]:
        """A text beyond each limit is cut to it, end token and all, and one near it computes."""
        text = TEXTS[3] * (LONG_CUT // 16)
        for role, stated in self.record["max_length"].items():
            limit = min(stated, LONG_CUT)
            ids = self.ids(text, truncation=True, max_length=limit)
            if len(ids) != limit:
                detail = f"a {role} beyond {limit} tokens is cut to {len(ids)}"
                yield finding("long", False, detail)
                return
            table = any(LEARNED.search(name) for name, _ in self.model.named_parameters())
            ids = ids[: LONG_TABLE if table else LONG]
            try:
                states, _ = self.states([ids])
            except (IndexError, RuntimeError) as error:
                detail = f"a {role} of {len(ids)} tokens can't be computed: {error}"
                yield finding("long", False, f"{detail}; set max_length: lower")
                return
            if not states.isfinite().all():
                yield finding("long", False, f"a {role} of {len(ids)} tokens gives NaN or infinity")
                return
        yield finding("long", True, "texts beyond max_length are cut to it and computed")

    def digest(self) -> str:
        """sha256 over the vectors of the texts and all buffers."""
        total = hashlib.sha256()
        self.known.clear()  # computed again
        for row in self.rows():
            total.update(self.pool(*self.states([row])).numpy().tobytes())
        for _, buffer in sorted(self.model.named_buffers()):
            total.update(buffer.contiguous().numpy().tobytes())
        return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--staged", type=Path, required=True)
    parser.add_argument("--digest-only", action="store_true", help="load and run, no checks")
    parser.add_argument("--put", type=json.loads, default={}, help="prompts by role, as JSON")
    arguments = parser.parse_args()
    import_transformers()
    answer = examine(arguments.staged, arguments.put, checks=not arguments.digest_only)
    print()  # ends whatever custom code printed
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
