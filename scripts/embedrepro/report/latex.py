"""`report.tex`: the leaderboard of the main measure as a booktabs table."""

from .collect import Report
from .text import number, one_line

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
WIDE = 8  # more columns than this are scaled to the line


def latex(report: Report) -> str:
    """A `table` float; needs booktabs, and graphicx when it is wide."""
    wide = len(report.columns) > WIDE
    columns = [escape(column.label) for column in report.columns]
    columns += ["Average"] if len(columns) > 1 else []
    lines = [
        r"% \usepackage{booktabs}" + (r", \usepackage{graphicx}" if wide else ""),
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption(report)}}}",
        r"\resizebox{\linewidth}{!}{%" if wide else r"\small",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        row(["Model", *columns]),
        r"\midrule",
        *body(report),
        r"\bottomrule",
        r"\end{tabular}" + ("}" if wide else ""),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def caption(report: Report) -> str:
    words = [f"{escape(report.main_metric)}; the best of each dataset in bold."]
    if report.comparisons:
        words.append(
            "Models of a column that share a letter do not differ significantly "
            r"(paired randomisation test, Holm-corrected, $\alpha = 0.05$)."
        )
    return " ".join(words)


def body(report: Report) -> list[str]:
    metric = report.main_metric
    best = [report.best(column, metric) for column in report.columns]
    lines = []
    for model in report.ranked(metric):
        cells = []
        for column, top in zip(report.columns, best, strict=True):
            score = report.score(column.key(model.slug), metric)
            text = number(score.value) if score else "--"
            text = rf"\textbf{{{text}}}" if score and score.value == top else text
            letters = report.letters(column.key(model.slug), metric)
            cells.append(text + (rf"\textsuperscript{{{letters}}}" if letters else ""))
        if len(report.columns) > 1:
            average = report.average(model.slug, metric)
            cells.append(number(average.value) if average else "--")
        lines.append(row([escape(model.label), *cells]))
    return lines


def row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape(text: object) -> str:
    """Text that TeX prints as it stands."""
    return "".join(SPECIAL.get(c, c) for c in one_line(text))
