"""Write every output of the report."""

from pathlib import Path

from ..files import write_json, write_text
from .collect import collect
from .html import html
from .latex import latex
from .markdown import markdown
from .tables import metrics_tsv, provenance, speed_tsv
from .terminal import summary


def write_report(spec: Path, inputs: Path, folder: Path) -> str:
    """Write the report's files into `folder`; return a summary to be printed.

    Everything is rendered before the first file is written, so a mistake in the inputs leaves
    nothing behind. Raises UserError naming the file that can't be read.
    """
    report = collect(spec, inputs)
    texts = {
        "report.html": html(report),
        "report.md": markdown(report),
        "report.tex": latex(report),
        "metrics.tsv": metrics_tsv(report),
        "speed.tsv": speed_tsv(report),
    }
    facts = provenance(report)
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "provenance.json", facts)
    return summary(report, folder / "report.html")
