"""What every engine does to a loaded model before it computes."""

from collections.abc import Iterable
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, printable
from ..models.facts_table import Role
from .facts import Facts

OWN_WAY = ("gemma3", "gemma4")  # model types whose masks read use_bidirectional_attention
TASKS: dict[Role, str] = {"query": "query", "passage": "document"}  # sentence-transformers' names
CHANGING_ROPE = ("dynamic", "longrope")  # frequencies that follow a batch's longest text


def round_parameters(model: torch.nn.Module, dtype: str) -> None:
    """Round all parameters to `dtype`; they keep the dtype that they compute in."""
    rounded = getattr(torch, dtype)
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 != rounded:
            parameter.data = parameter.data.to(rounded).float()


def cast(model: PreTrainedModel, dtype: str) -> bool:
    """Turn a model in float32 into the one that loading in `dtype` gives; False where it can't be.

    That is where some parameters stay in float32, or buffers don't: only rotary frequencies are
    known to, whatever the dtype.
    """
    wanted = getattr(torch, dtype)
    if wanted == torch.float32:
        return True
    buffers = [name for name, buffer in model.named_buffers() if buffer.is_floating_point()]
    kept = model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    if kept or not all(name.endswith("inv_freq") for name in buffers):
        return False
    for parameter in model.parameters():
        parameter.data = parameter.data.to(wanted)
    model.config.dtype = wanted
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True


def restore_direction(model: torch.nn.Module) -> None:
    """Let a model that has its own flag for attending both ways follow that flag alone.

    transformers takes `is_causal: false` for another request, with a wider sliding window.
    """
    config: Any = model.config
    flag = getattr(config, "use_bidirectional_attention", False)
    if flag and config.model_type.startswith(OWN_WAY):
        config.is_causal = True


def give_padding(tokenizer: Any) -> None:
    """A token to pad with, where there is none: whatever it is, it is masked out."""
    if isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token


def check_lengths(
    model: torch.nn.Module, facts: Facts, roles: Iterable[Role] = get_args(Role)
) -> None:
    """Refuse lengths that a model's positions don't reach, before a long text finds out."""
    longest = max(facts.max_length[role] for role in roles)
    limit = position_limit(model)
    if limit is not None and longest > limit:
        raise UserError(
            f"{printable(facts.model_id)}: max_length is {longest}, its table of positions holds "
            f"{limit}; set max_length: {limit} or less"
        )
    rope = getattr(model.config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for kind in kinds:
        largest: int = getattr(model.config, "max_position_embeddings", longest)
        start: int = kind.get("original_max_position_embeddings") or largest
        if kind.get("rope_type") in CHANGING_ROPE and longest > start:
            raise UserError(
                f"{printable(facts.model_id)}: its rotary positions ({kind['rope_type']}) beyond "
                f"{start} tokens depend on the other texts of a batch; set max_length: {start} or "
                "less"
            )


def check_routes(model: Any, facts: Facts) -> None:
    """`check_lengths` of a sentence-transformers model: of each role's own route, if it has any."""
    routes = dict(getattr(model[0], "sub_modules", {}).items())  # a Router's
    for role, task in TASKS.items():
        for module in routes.get(task, model).modules():
            if isinstance(module, PreTrainedModel):
                check_lengths(module, facts, [role])


def position_limit(model: torch.nn.Module) -> int | None:
    """How many tokens the smallest table of absolute positions holds; None without a table.

    RoBERTa and its kin count from the padding token's number + 1.
    """
    limits = []
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding):
            padding = getattr(module, "padding_idx", None)
            offset = padding + 1 if isinstance(padding, int) else 0
            limits.append(table.num_embeddings - offset)
    return min(limits, default=None)
