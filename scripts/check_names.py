"""Tell under which names models are staged, and what would break on several devices without it.

Exit status 0 when all can be staged (dots are fine), 2 when one is refused.
"""

import argparse
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where Python is told not to

from embedrepro.errors import UserError, printable, run_cli
from embedrepro.models.local_models import model_folders, rename_dotted, restore_dotted
from embedrepro.names import Examined, examine, mistaken_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="model ids")
    parser.add_argument("--config", type=Path, help="config file, whose models are checked")
    parser.add_argument("--folder", type=Path, help="folder of local models, which are checked")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--fix",
        action="store_true",
        help="rename dotted model folders, leave links under the old names",
    )
    change.add_argument("--undo", action="store_true", help="take the renaming back")
    args = parser.parse_args()
    if (args.fix or args.undo) and args.folder is None:
        raise UserError("--fix and --undo need --folder")
    if args.fix or args.undo:
        rename = rename_dotted if args.fix else restore_dotted
        try:
            pairs = rename(args.folder)
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; run this again") from None
        for old, new in pairs:
            before, after = (old, new) if args.fix else (new, old)
            print(f"{printable(before)} → {printable(after)}")
        print(f"{len(pairs)} folders renamed")
        return
    entries = [*args.ids, *config_models(args.config), *folder_models(args.folder)]
    if not entries:
        raise UserError("nothing to check; give ids, --config or --folder")
    report(examine(entries))


def config_models(path: Path | None) -> list:
    """The `models` entries of a config file: ids, or mappings with an id."""
    if path is None:
        return []
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read as YAML ({printable(error)})") from None
    models = config.get("models") if isinstance(config, dict) else None
    if not isinstance(models, list):
        raise UserError(f"{path}: has no list `models:`")
    for entry in models:
        if not isinstance(entry, str) and not (isinstance(entry, dict) and "id" in entry):
            raise UserError(f"{path}: the model {printable(entry)} has no `id`")
    return models


def folder_models(folder: Path | None) -> list[str]:
    if folder is None:
        return []
    return [path.relative_to(folder).as_posix() for path in model_folders(folder)]


def breakage(row: Examined) -> str:
    """What would happen to a model with custom code under its own name; equal errors in one."""
    errors: dict[tuple[str, str], list[str]] = {}
    for found in row.breaks:
        errors.setdefault((found.transformers, found.error), []).append(found.used_as)
    texts = [f"{e} (transformers {v}, {' or '.join(used)})" for (v, e), used in errors.items()]
    return "; ".join(texts) or "nothing"


def report(rows: list[Examined]) -> None:
    """Print the table; `UserError` if an id is refused."""
    table = [("id", "staged as", "dot", "what its custom code would have met on several devices")]
    for row in rows:
        cells = (row.staged, "yes" if row.has_dot else "no", breakage(row))
        table.append((printable(row.name), *(("refused", "", "") if row.refused else cells)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    for one, other in mistaken_code(row.name for row in rows if not row.refused):
        print(
            f"note: transformers 4.57.1 … before 5.23 can run the code of '{one}' as that of "
            f"'{other}'; staged, they are apart"
        )
    refused = [row.refused for row in rows if row.refused]
    for reason in refused:
        print(f"refused: {printable(reason, 500)}")
    if refused:
        raise UserError(f"{len(refused)} of {len(rows)} can't be staged: {refused[0]}")
    print(f"all {len(rows)} can be staged")


if __name__ == "__main__":
    run_cli(main)
