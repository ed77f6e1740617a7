"""The report, made from a made-up experiment's files through its command line."""

import base64
import csv
import gzip
import hashlib
import html.parser
import io
import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import made_results
import numpy as np
import pytest
from embedrepro.report.explorer import BUDGET, cut, top_hits
from embedrepro.report.html import script_json
from embedrepro.report.latex import escape as tex
from embedrepro.report.markdown import code
from embedrepro.report.markdown import escape as md
from embedrepro.report.text import decimals, literal, one_line, quantity, source_label, web_address
from made_results import Made

ROOT = Path(__file__).parents[2]
FILES = (
    *("report.html", "report.md", "report.tex"),
    *("metrics.tsv", "speed.tsv", "provenance.json"),
)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"q\" 'a' & {{ 7 * 7 }} <!-- "
    "\x1b[31mred\x1b[0m \u2028 \u202egnp.exe | `code` [x](javascript:alert(3)) $\\input{x}$\n2nd\ta"
)


def report(made: Made, folder: Path | None = None) -> subprocess.CompletedProcess:
    arguments = [*made_results.make(made), "--output-dir", str(folder or made.folder / "out")]
    script = str(ROOT / "scripts" / "make_report.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Made, Path, str]:
    made = Made(tmp_path_factory.mktemp("small"), models=3, datasets=2, queries=150)
    done = report(made)
    assert done.returncode == 0, done.stderr
    return made, made.folder / "out", done.stdout


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, str]:
    made = Made(
        tmp_path_factory.mktemp("hostile"),
        ids={0: f"Org/{HOSTILE}"},
        query_text=HOSTILE,
        document_text=HOSTILE,
    )
    done = report(made)
    assert done.returncode == 0, done.stderr
    return made.folder / "out", done.stdout


class Page(html.parser.HTMLParser):
    """Elements, attributes and text as a browser's parser meets them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text.append(data)

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[1])


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def unpack(entry: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(entry)))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t"))


def test_every_file_is_written_and_the_summary_ends_with_the_page(small):
    _, folder, printed = small
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert printed.splitlines()[-1] == f"Report: {folder / 'report.html'}"
    assert "✓ reproduced" in printed


def test_the_same_inputs_give_the_same_bytes(small, tmp_path):
    made, folder, _ = small
    assert report(made, tmp_path).returncode == 0
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_metrics_hold_every_score(small):
    made, folder, _ = small
    table = rows(folder / "metrics.tsv")
    header = "model_id model revision dataset split metric value ci_low ci_high queries"
    assert list(table[0]) == header.split()
    assert len(table) == made.models * made.datasets * len(made_results.METRICS)
    for row in table:
        place = f"made__set-{row['dataset'][-2:]}/{row['split']}/{row['model']}.json"
        scores = json.loads((made.folder / "results/made-up/scores" / place).read_text())
        entry = scores["protocols"]["mteb"][row["metric"]]
        assert float(row["value"]) == pytest.approx(entry["value"], rel=1e-5)
        assert float(row["ci_low"]) == pytest.approx(entry["ci_low"], rel=1e-5)
        assert row["queries"] == str(made.queries)


def test_speed_has_a_row_for_each_array(small):
    made, folder, _ = small
    table = rows(folder / "speed.tsv")
    header = (
        "model dataset part shard docs tokens seconds docs_per_second tokens_per_second device "
        "peak_memory_mb"
    )
    assert list(table[0]) == header.split()
    assert len(table) == made.models * made.datasets * 3
    first = table[0]
    assert (first["part"], first["shard"], first["docs"]) == ("corpus", "0-of-2", "60")
    assert table[2]["part"] == "test-queries"
    rate = float(first["docs"]) / float(first["seconds"])
    assert float(first["docs_per_second"]) == pytest.approx(rate, rel=1e-5)


def test_provenance_names_digest_and_command_of_every_run(small):
    made, folder, _ = small
    facts = json.loads((folder / "provenance.json").read_text())
    assert len(facts["cells"]) == made.models * made.datasets
    assert facts["models"][0]["stage"]["files"]["model.safetensors"]["sha256"] == "ab" * 32
    for cell in facts["cells"]:
        assert cell["sha256"] == hashlib.sha256(Path(cell["run"]).read_bytes()).hexdigest()
        assert cell["command"].endswith(f"--cores 2 -- {cell['run']}")


def test_the_page_needs_nothing_beside_itself(small):
    _, folder, _ = small
    text = (folder / "report.html").read_text()
    found = page(folder)
    loads = [
        (tag, attributes)
        for tag, attributes in found.tags
        if tag in ("link", "img", "iframe", "object", "embed", "base")
        or "src" in attributes
        or (tag == "form" and attributes.get("method") not in ("dialog", None))
    ]
    assert loads == []
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for _, a in found.tags if a.get("href", "").startswith("#")}
    assert targets <= set(ids)


def test_the_security_policy_lets_exactly_the_pages_scripts_run(small):
    _, folder, _ = small
    found = page(folder)
    policy = next(a["content"] for tag, a in found.tags if "http-equiv" in a)
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    scripts = [found.scripts[0], found.scripts[2]]
    assert allowed == {
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    }


def test_the_best_of_a_column_is_bold_and_models_stand_by_average(small):
    made, folder, _ = small
    table = [r for r in rows(folder / "metrics.tsv") if r["metric"] == "nDCG@10"]
    averages = {}
    for row in table:
        averages.setdefault(row["model_id"], []).append(float(row["value"]))
    order = sorted(averages, key=lambda model: -np.mean(averages[model]))
    text = (folder / "report.md").read_text()
    board = text.split("## Leaderboard")[1].splitlines()[4 : 4 + made.models]
    assert [line.split("|")[1].strip() for line in board] == order
    best = max((r for r in table if r["dataset"] == "made/set-00"), key=lambda r: float(r["value"]))
    assert f"**{float(best['value']):.4f}**" in board[order.index(best["model_id"])]
    tex_board = (folder / "report.tex").read_text()
    assert rf"\textbf{{{float(best['value']):.4f}}}" in tex_board
    assert tex_board.index(order[0]) < tex_board.index(order[1]) < tex_board.index(order[2])


def test_the_explorer_shows_the_largest_differences_of_every_pair(small):
    made, folder, _ = small
    data = page(folder).data
    entry = unpack(data["explorer"][0])
    values = per_query(made, 0)
    names = [query for query, _ in entry["queries"]]
    for a, b in combinations(range(made.models), 2):
        for better, worse in ((a, b), (b, a)):
            expected = {q: values[better][q] - values[worse][q] for q in values[a]}
            largest = sorted((d for d in expected.values() if d > 0), reverse=True)
            shown = sorted((expected[q] for q in names), reverse=True)
            count = min(entry["rounds"], len(largest))
            assert shown[:count] == largest[:count]
            assert entry["wins"][better][worse] == len(largest)
    for query, hits, grades in zip(names, entry["hits"][1], entry["grades"], strict=True):
        found = [entry["documents"][place][0] for place in hits]
        assert found == run_of(made, 1)[query][:3]
        judged = {entry["documents"][int(place)][0]: grade for place, grade in grades.items()}
        number = int(query[1:])
        relevant = f"d{(7 * number + 3) % made.documents}"
        assert judged == ({relevant: 1 + number % 2} if relevant in judged else {})


def per_query(made: Made, dataset: int) -> list[dict[str, float]]:
    folder = made.folder / f"results/made-up/scores/made__set-{dataset:02d}/test"
    tables = [rows(folder / f"{slug(made, n)}.per_query.tsv") for n in range(made.models)]
    return [
        {row["query_id"]: float(row["value"]) for row in table if row["metric"] == "nDCG@10"}
        for table in tables
    ]


def run_of(made: Made, model: int) -> dict[str, list[str]]:
    path = made.folder / f"results/made-up/runs/made__set-00/test/{slug(made, model)}.trec"
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        found.setdefault(line.split()[0], []).append(line.split()[2])
    return found


def slug(made: Made, number: int) -> str:
    return made_results.model(made, number)["model"]


def test_letters_and_p_values_come_from_the_comparisons(small):
    made, folder, _ = small
    tested = json.loads((made.folder / "results/made-up/comparisons.json").read_text())
    entry = next(t for t in tested if (t["dataset"], t["metric"]) == ("made__set-00", "nDCG@10"))
    shown = unpack(page(folder).data["explorer"][0])
    pair = entry["pairs"][0]
    numbers = [entry["models"].index(slug(made, n)) for n in range(made.models)]
    a, b = (numbers.index(entry["models"].index(pair[side])) for side in "ab")
    assert shown["holm"][a][b] == pytest.approx(pair["p_holm"], rel=0.01)
    assert f"<sup>{entry['letters'][slug(made, 0)]}</sup>" in (folder / "report.html").read_text()


def test_a_measure_keeps_its_threshold_of_the_dataset(tmp_path):
    made = Made(tmp_path, models=2, datasets=1)
    arguments = made_results.make(made)
    for path in (tmp_path / "results").rglob("*"):
        if path.suffix in (".json", ".tsv"):
            path.write_text(path.read_text().replace('"R@100"', '"R(rel=2)@100"'))
            Path(f"{path}.sha256").unlink(missing_ok=True)  # the digest of what was replaced
    script = str(ROOT / "scripts" / "make_report.py")
    out = tmp_path / "out"
    subprocess.run([sys.executable, script, *arguments, "--output-dir", str(out)], check=True)
    assert {row["metric"] for row in rows(out / "metrics.tsv")} == {
        *("nDCG@10", "RR@10", "R(rel=2)@100")
    }
    board = (out / "report.md").read_text().split("## Leaderboard, R\\@100")[1].splitlines()[4]
    value = max(float(r["value"]) for r in rows(out / "metrics.tsv") if r["metric"][:2] == "R(")
    assert f"**{value:.4f}**" in board
    boards = (out / "report.html").read_text().split('role="tabpanel"')
    assert boards[3].count("<sup>") == 2


def test_a_model_without_a_result_has_a_gap_and_no_average(tmp_path):
    made = Made(tmp_path, models=2, datasets=2, missing=((0, 1),))
    assert report(made).returncode == 0
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith("| Made-Org/embedder-v0.5-small | –"))
    assert line.split("|")[4].strip() == "–"
    data = page(tmp_path / "out").data
    assert data["cells"][0][1] is None
    assert data["explorer"][1] is None  # one model alone has no rival there


def test_hostile_text_stays_text(hostile):
    folder, printed = hostile
    found = page(folder)
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert not [a for _, a in found.tags if any(name.startswith("on") for name in a)]
    assert "img" not in [tag for tag, _ in found.tags]
    assert "{{ 7 * 7 }}" in "".join(found.text)
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        assert "\x1b" not in text, name
        assert "\u202e" not in text or name == "provenance.json", name
    assert "\x1b" not in printed
    entry = unpack(found.data["explorer"][0])
    assert entry["queries"][0][1] == one_line(HOSTILE, 400)
    table = rows(folder / "metrics.tsv")
    assert len({len(row) for row in table}) == 1
    assert None not in table[0].values()


def test_hostile_text_in_markdown_and_tex(hostile):
    folder, _ = hostile
    text = (folder / "report.md").read_text()
    assert "<script" not in text
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(javascript:", text)
    verdicts = text.split("## Verdicts")[1].split("## ")[0].strip().splitlines()
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in verdicts}
    assert widths == {9}
    assert r"\input" not in (folder / "report.tex").read_text()


@pytest.mark.parametrize(
    ("text", "expected"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a``", "``` `a`` ```")]
)
def test_code_spans_hold_backticks(text, expected):
    assert code(text) == expected


@pytest.mark.parametrize("text", ["</script>", "<!--", "a\u2028b\u2029c", '"\\', "&lt;", "中文"])
def test_script_json_is_json_that_ends_no_script(text):
    made = str(script_json({"key": text}))
    assert json.loads(made) == {"key": text}
    assert not set("<>&\u2028\u2029") & set(made)


@pytest.mark.parametrize(
    ("source", "address", "label"),
    [
        (
            "castorini/pyserini@0a0be29 pyserini/2cr/beir.yaml condition x",
            "https://github.com/castorini/pyserini/blob/0a0be29/pyserini/2cr/beir.yaml",
            "pyserini: beir.yaml",
        ),
        ("https://example.org/a?b", "https://example.org/a?b", "example.org/a"),
        ("javascript:alert(1)", None, "javascript:alert(1)"),
        ("data:text/html,x", None, "data:text/html,x"),
        ("a paper, table 3", None, "a paper, table 3"),
        ("http://[bad", None, "http://[bad"),
    ],
)
def test_sources_become_links_only_where_it_is_safe(source, address, label):
    assert web_address(source) == address
    assert source_label(source) == label


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("causal", "causal"),
        ("", '""'),
        ("query: ", '"query: "'),
        ("a\nb", r'"a\nb"'),
        (None, "null"),
        (True, "true"),
        ({"query": 512}, '{"query": 512}'),
    ],
)
def test_settings_are_shown_without_losing_a_blank(value, shown):
    assert literal(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.416, "0.42"), (7.06, "7.06"), (38.04, "38.0"), (1204.4, "1,204"), (3, "3")],
)
def test_quantities_have_about_three_figures(value, shown):
    assert quantity(value) == shown


def test_escapes():
    assert md("a|b*c_d<e>[f](g)`h`@i") == r"a\|b\*c\_d&lt;e&gt;\[f\](g)\`h\`\@i"
    assert tex(r"50% of a_b & #1 {x} \y ~ ^") == (
        r"50\% of a\_b \& \#1 \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{}"
    )
    assert one_line("a\x1b[31m\r\n b\u202ec", 6) == "a [31…"
    assert cut("日本語テキスト", 10) == "日本語…"
    assert cut("short", 10) == "short"


def test_top_hits_read_ids_as_they_stand(tmp_path):
    run = tmp_path / "a.trec"
    run.write_text(
        '1 Q0 "x" 1 0.5 t\n1 Q0 007 2 0.4 t\n1 Q0 NA 3 0.3 t\n1 Q0 z 4 0.2 t\nnull Q0 é 1 1 t\n'
    )
    assert top_hits(run) == {"1": ['"x"', "007", "NA"], "null": ["é"]}


def test_parity_and_aliases_of_one_id(tmp_path):
    made = Made(tmp_path, models=2, datasets=1, ids={0: "Org/same", 1: "Org/same"})
    arguments = made_results.make(made)
    inputs = json.loads(Path(arguments[3]).read_text())
    row = {"model_id": "Org/same", "dataset": "made/set-00", "split": "test", "metric": "nDCG@10"}
    row |= {"ours": 0.5, "command": "python -m FlagEmbedding.evaluation.custom"}
    parity = [row | {"flagembedding": 0.50005, "delta": -0.00005}]
    parity.append(row | {"flagembedding": 0.49, "delta": 0.01})
    inputs["parity"] = made_results.write(tmp_path / "parity.json", parity)
    Path(arguments[3]).write_text(json.dumps(inputs))
    script = str(ROOT / "scripts" / "make_report.py")
    out = tmp_path / "out"
    subprocess.run([sys.executable, script, *arguments, "--output-dir", str(out)], check=True)
    text = "".join(page(out).text)
    assert "✓ same" in text
    assert "✗ differs" in text
    assert "| 0.50000 | 0.49000 | +0.01000 |" in (out / "report.md").read_text()
    names = [f"Org/same ({slug(made, n)})" for n in range(2)]
    assert [name for name, _ in page(out).data["models"]] == names
    cells = [a["data-cell"] for _, a in page(out).tags if "data-cell" in a]
    assert sorted(cells) == ["0,0", "1,0"]  # each verdict found its own row by its value


def test_one_dataset_without_verdicts_shows_its_scores(tmp_path):
    made = Made(tmp_path, models=2, datasets=1)
    arguments = made_results.make(made)
    table = tmp_path / "results/made-up/verdicts.tsv"
    table.write_text(table.read_text().splitlines()[0] + "\n")
    script = str(ROOT / "scripts" / "make_report.py")
    command = [sys.executable, script, *arguments, "--output-dir", str(tmp_path / "out")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    best = max(rows(tmp_path / "out/metrics.tsv")[::3], key=lambda row: float(row["value"]))
    lines = printed.splitlines()
    assert lines[0] == "nDCG@10 on made/set-00"
    assert lines[1] == f"  {float(best['value']):.5f}  {best['model_id']}"
    assert "no published numbers to compare with." in lines
    assert "average" not in (tmp_path / "out/report.md").read_text()
    assert "Average" not in (tmp_path / "out/report.tex").read_text()
    assert "verdict-table" not in [a.get("id") for _, a in page(tmp_path / "out").tags]


def test_a_broken_input_is_one_line_and_nothing_is_written(tmp_path):
    made = Made(tmp_path, models=2, datasets=1)
    made_results.make(made)
    scores = next((tmp_path / "results/made-up/scores").rglob("*.json"))
    scores.write_text("{")
    script = str(ROOT / "scripts" / "make_report.py")
    paths = ["--spec", tmp_path / "spec.json", "--inputs", tmp_path / "inputs.json"]
    command = [sys.executable, script, *paths, "--output-dir", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert scores.name in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_heavy_library_is_imported(small):
    made, _, _ = small
    program = (
        "import sys; import embedrepro.report.write as w; from pathlib import Path;"
        f"w.write_report(Path('{made.folder}/spec.json'), Path('{made.folder}/inputs.json'),"
        f" Path('{made.folder}/again'));"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "scripts")}
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_twenty_by_twenty_stays_small(tmp_path):
    made = Made(tmp_path, models=20, datasets=20, queries=200, documents=400)
    assert report(made).returncode == 0
    found = page(tmp_path / "out")
    assert (tmp_path / "out/report.html").stat().st_size < 3_000_000
    assert sum(map(len, found.data["explorer"])) <= BUDGET
    assert min(unpack(entry)["rounds"] for entry in found.data["explorer"]) >= 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [("4.8099e-06", "0.000005"), ("-0.00005", "-0.00005"), ("0.1234567", "0.123457"), ("", "")],
)
def test_small_differences_are_printed_in_decimals(text, shown):
    assert decimals(text) == shown
