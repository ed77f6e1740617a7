"""What the terminal shows at the end of a run."""

from ..errors import printable
from .collect import Report
from .markdown import SIGNS, headline
from .text import decimals, number

COLUMNS = ("model_id", "dataset", "metric", "published", "measured", "delta")
ROWS = 40  # of verdicts, the worst first


def summary(report: Report) -> str:
    """The verdicts (without any, the scores), then what is missing and why; safe to print."""
    shown = report.worst_first()[:ROWS]
    rows = [[printable(decimals(row[name]), 48) for name in COLUMNS] for row in shown]
    table = [["model", *COLUMNS[1:]], *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    verdicts = ["verdict"] + [verdict(row["verdict"]) for row in shown]
    lines = []
    if rows:
        for row, text in zip(table, verdicts, strict=True):
            cells = [
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join([*cells, text]))
        if len(report.verdicts) > len(shown):
            lines.append(f"… and {len(report.verdicts) - len(shown)} more in verdicts.tsv")
        lines.append("")
    else:
        lines += [*scores(report), ""]
    lines.append(f"{headline(report)}.")
    lines += [f"not made: {hole(row)}" for row in report.holes]
    return "\n".join(lines) + "\n"


def hole(row: dict[str, str]) -> str:
    place = f"{row['model']} on {row['dataset']} {row['split']}"
    return printable(f"{place}: {row['reason']}", 1000)


def scores(report: Report) -> list[str]:
    """The main measure of every model, best first."""
    lines = []
    for column in report.columns:
        lines.append(f"{report.main_metric} on {printable(column.label, 60)}")
        for model in report.ranked(report.main_metric)[:ROWS]:
            score = report.score(column.key(model.slug), report.main_metric)
            lines.append(
                f"  {number(score.value if score else None, 5):>7}  {printable(model.label)}"
            )
    return lines


def verdict(text: str) -> str:
    return f"{SIGNS.get(text, '○')} {printable(text, 80)}"
