"""`report.md`: the report as it stands in a pull request."""

import re

from .collect import VERDICTS, Report, Score
from .cost import costs
from .text import decimals, number, one_line, quantity, web_address

SIGNS = dict(zip(VERDICTS, ("✓", "≈", "▲", "▼", "○"), strict=True))


def markdown(report: Report) -> str:
    """GitHub-flavoured Markdown: verdicts first, then leaderboard, cost and provenance."""
    parts = [
        f"# {escape(report.spec['experiment'])}: {headline(report)}",
        *section("Verdicts", verdict_table(report)),
    ]
    for metric in report.metrics:
        parts += section(f"Leaderboard, {escape(metric)}", leaderboard(report, metric))
    parts += section("Not made", hole_list(report))
    parts += section("Parity with FlagEmbedding", parity_table(report))
    parts += section("Cost", cost_table(report))
    parts += section("Provenance", provenance_list(report))
    return "\n\n".join(parts) + "\n"


def headline(report: Report) -> str:
    """`3 of 4 published numbers reproduced, 1 lower, 2 not comparable`."""
    counts = report.verdict_counts()
    comparable = sum(counts.values()) - counts["not comparable"]
    if not sum(counts.values()):
        return "no published numbers to compare with"
    within = counts["reproduced within rounding"]
    good = counts["reproduced"] + within
    rest = [f"{n} {name}" for name, n in counts.items() if n and not name.startswith("reproduced")]
    some = [f"{within} of them within rounding"] if within else []
    return ", ".join([f"{good} of {comparable} published numbers reproduced", *some, *rest])


def section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def table(header: list[str], rows: list[list[str]], right: int) -> str:
    """Cells must be escaped already; the columns from `right` on are right-aligned."""
    if not rows:
        return ""
    rule = ["---" if i < right else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def escape(text: object) -> str:
    """Text that Markdown, HTML and tables leave alone, on one line."""
    line = one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$@!])", r"\\\1", line)


def code(text: object) -> str:
    """A code span, fenced with more backticks than `text` has in a row."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def verdict_table(report: Report) -> str:
    header = ["verdict", "model", "dataset", "metric", "published", "measured", "Δ", "tolerance"]
    rows = []
    for row in report.verdicts:
        verdict, link = row["verdict"], web_address(row["source"])
        rows.append(
            [
                f"{SIGNS.get(verdict, '○')} {escape(verdict)}" + reason(row),
                *(escape(row[name]) for name in ("model_id", "dataset", "metric")),
                f"[{escape(row['published'])}](<{link}>)" if link else escape(row["published"]),
                *(escape(decimals(row[name])) for name in ("measured", "delta", "tolerance")),
            ]
        )
    return table(header, rows, right=4)


def reason(row: dict[str, str]) -> str:
    return f": {escape(row['reason'])}" if row["reason"] and row["verdict"] != "reproduced" else ""


def leaderboard(report: Report, metric: str) -> str:
    """Best first; the best of each column in bold. One dataset alone has no average."""
    several = len(report.columns) > 1
    best = {column: report.best(column, metric) for column in report.columns}
    rows = []
    for model in report.ranked(metric):
        cells = [cell(report.average(model.slug, metric), None)] if several else []
        for column in report.columns:
            cells.append(cell(report.score(column.key(model.slug), metric), best[column]))
        rows.append([escape(model.label), *cells])
    header = [
        "model",
        *(["average"] if several else []),
        *(escape(column.label) for column in report.columns),
    ]
    return table(header, rows, right=1)


def cell(score: Score | None, best: float | None) -> str:
    text = number(score.value if score else None)
    return f"**{text}**" if score and score.value == best else text


def hole_list(report: Report) -> str:
    """Rows that couldn't be made, each with its reason."""
    return "\n".join(
        f"- {escape(row['model'])} on {escape(row['dataset'])} {escape(row['split'])}: "
        f"{escape(row['reason'])}"
        for row in report.holes
    )


def parity_table(report: Report) -> str:
    rows = [
        [
            *(escape(row[name]) for name in ("model_id", "dataset", "metric")),
            *(number(row["ours"], 5), number(row["flagembedding"], 5), f"{row['delta']:+.5f}"),
        ]
        for row in report.parity
    ]
    header = ["model", "dataset", "metric", "embed-repro", "FlagEmbedding", "Δ"]
    return table(header, rows, right=3)


def cost_table(report: Report) -> str:
    header = ["model", "device", "texts", "seconds", "texts/s", "tokens/s", "peak MB"]
    rows = [
        [
            *(escape(cost.model.label), escape(cost.device), f"{cost.docs:,}"),
            *map(quantity, (cost.seconds, cost.docs_per_second, cost.tokens_per_second)),
            quantity(cost.peak_memory_mb),
        ]
        for cost in costs(report)
    ]
    return table(header, rows, right=2)


def provenance_list(report: Report) -> str:
    spec = report.spec
    commit = spec.get("git_commit") or "unknown"
    lines = [
        f"- command: {code(spec['command'])}",
        f"- commit: {escape(commit)}{' with uncommitted changes' if spec.get('dirty') else ''}",
        "- versions: " + ", ".join(f"{escape(k)} {escape(v)}" for k, v in spec["versions"].items()),
    ]
    for model in report.models:
        revision = f" at {code(model.revision)}" if model.revision else ""
        pinned = "" if model.pinned else ", not pinned: a server's model can change"
        lines.append(f"- {escape(model.label)}{revision}{pinned}")
    return "\n".join(lines)
