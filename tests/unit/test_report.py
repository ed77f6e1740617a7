"""The report of a made-up experiment, and the view of it."""

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
from embedrepro.errors import UserError
from embedrepro.evaluation.verdicts import VERDICT_COLUMNS
from embedrepro.report.explorer import BUDGET, cut, top_hits
from embedrepro.report.html import script_json
from embedrepro.report.latex import escape as tex
from embedrepro.report.markdown import code
from embedrepro.report.markdown import escape as md
from embedrepro.report.text import decimals, literal, one_line, quantity, source_label, web_address
from embedrepro.report.write import show
from made_results import Made, report

ROOT = Path(__file__).parents[2]
FILES = (
    *("report.html", "report.md", "report.tex"),
    *("metrics.tsv", "speed.tsv", "verdicts.tsv", "comparisons.json", "provenance.json"),
)
HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"q\" 'a' & {{ 7 * 7 }} <!-- "
    "\x1b[31mred\x1b[0m \u2028 \u202egnp.exe | `code` [x](javascript:alert(3)) $\\input{x}$\n2nd\ta"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Made, Path, str]:
    made = Made(tmp_path_factory.mktemp("small"), models=3, datasets=2, queries=150)
    return made, made.folder / "out", report(made)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, str]:
    made = Made(
        tmp_path_factory.mktemp("hostile"),
        ids={0: f"Org/{HOSTILE}"},
        query_text=HOSTILE,
        document_text=HOSTILE,
    )
    return made.folder / "out", report(made)


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
    made, folder, printed = small
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "summary.txt"])
    assert printed.splitlines()[-1] == f"Report: {made.folder / 'results/made-up/report.html'}"
    assert "✓ reproduced" in printed


def test_the_same_inputs_give_the_same_bytes(small, tmp_path):
    made, folder, _ = small
    report(made, tmp_path / "again")
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_the_view_holds_the_report_and_its_rows_and_nothing_older(small):
    made, folder, _ = small
    view = made.folder / "results/made-up"
    (view / "runs/made__set-09/test").mkdir(parents=True)
    (view / "runs/made__set-09/test/gone.trec").touch()
    (view / "parity.json").write_text("[]")
    (view / "my-notes.txt").write_text("mine")
    spec = made_results.make(made)
    show(folder, spec["rows"], view)
    for name in FILES:
        assert (view / name).read_bytes() == (folder / name).read_bytes(), name
    assert not (view / "runs/made__set-09").exists() and not (view / "parity.json").exists()
    assert (view / "my-notes.txt").read_text() == "mine"
    for row in spec["rows"]:
        where = f"{row['dataset']}/{row['split']}/{row['model']}"
        assert (view / f"runs/{where}.trec").read_bytes() == Path(row["run"]).read_bytes()
        assert (view / f"scores/{where}.json").read_bytes() == Path(row["scores"]).read_bytes()
        table = view / f"scores/{where}.per_query.tsv"
        assert table.read_bytes() == Path(row["per_query"]).read_bytes()


def test_metrics_hold_every_score(small):
    made, folder, _ = small
    table = rows(folder / "metrics.tsv")
    header = "model_id model revision dataset split metric value ci_low ci_high rounding_low"
    assert list(table[0]) == [*header.split(), "rounding_high", "queries"]
    assert len(table) == made.models * made.datasets * len(made_results.METRICS)
    for row in table:
        place = f"made__set-{row['dataset'][-2:]}/{row['split']}/{row['model']}.json"
        scores = json.loads((made.folder / "results/made-up/scores" / place).read_text())
        entry = scores["protocols"]["mteb"][row["metric"]]
        assert float(row["value"]) == pytest.approx(entry["value"], rel=1e-5)
        for name in ("ci_low", "ci_high", "rounding_low", "rounding_high"):
            # A run of unknown precision has no rounding interval.
            expected = pytest.approx(entry[name], rel=1e-5) if name in entry else None
            assert (float(row[name]) if row[name] else None) == expected
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
        model = Path(cell["run"]).stem.rpartition("-")[0]
        assert cell["command"].endswith(f"--cores 2 -- score__{model}")


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
    tested = json.loads((folder / "comparisons.json").read_text())
    entry = next(t for t in tested if (t["dataset"], t["metric"]) == ("made__set-00", "nDCG@10"))
    shown = unpack(page(folder).data["explorer"][0])
    pair = entry["pairs"][0]
    numbers = [entry["models"].index(slug(made, n)) for n in range(made.models)]
    a, b = (numbers.index(entry["models"].index(pair[side])) for side in "ab")
    assert shown["holm"][a][b] == pytest.approx(pair["p_holm"], rel=0.01)
    assert f"<sup>{entry['letters'][slug(made, 0)]}</sup>" in (folder / "report.html").read_text()


def test_a_measure_keeps_its_threshold_of_the_dataset(tmp_path):
    made = Made(tmp_path, models=2, datasets=1)

    def rename(spec: dict) -> None:
        for row in spec["rows"]:
            for name in ("scores", "per_query"):
                text = Path(row[name]).read_text()
                Path(row[name]).write_text(text.replace("R@100", "R(rel=2)@100"))

    report(made, change=rename)
    out = tmp_path / "out"
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
    report(made)
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
    row = {"model_id": "Org/same", "dataset": "made/set-00", "split": "test", "metric": "nDCG@10"}
    row |= {"ours": 0.5, "command": "python -m FlagEmbedding.evaluation.custom"}
    parity = [row | {"flagembedding": 0.50005, "delta": -0.00005}]
    parity.append(row | {"flagembedding": 0.49, "delta": 0.01})
    path = made_results.write(tmp_path / "parity.json", parity)
    report(made, change=lambda spec: spec.update(parity=path))
    out = tmp_path / "out"
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
    table = tmp_path / "verdicts.tsv"
    header = "\t".join(VERDICT_COLUMNS)
    printed = report(made, change=lambda spec: table.write_text(f"{header}\n"))
    best = max(rows(tmp_path / "out/metrics.tsv")[::3], key=lambda row: float(row["value"]))
    lines = printed.splitlines()
    assert lines[0] == "nDCG@10 on made/set-00"
    assert lines[1] == f"  {float(best['value']):.5f}  {best['model_id']}"
    assert "no published numbers to compare with." in lines
    assert "average" not in (tmp_path / "out/report.md").read_text()
    assert "Average" not in (tmp_path / "out/report.tex").read_text()
    assert "verdict-table" not in [a.get("id") for _, a in page(tmp_path / "out").tags]


def test_a_broken_input_is_named_and_nothing_is_written(tmp_path):
    made = Made(tmp_path, models=2, datasets=1)
    broken = []

    def damage(spec: dict) -> None:
        broken.append(Path(spec["rows"][0]["scores"]))
        broken[0].write_text("{")

    with pytest.raises(UserError) as caught:
        report(made, change=damage)
    assert broken[0].name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_was_not_made_stands_in_the_report_with_its_reason(tmp_path):
    made = Made(tmp_path, models=2, datasets=2, missing=((0, 1),))
    hole = {"model": slug(made, 0), "dataset": "made__set-01", "split": "test"}
    hole |= {"reason": f"the hub has no <such> {HOSTILE}"}
    printed = report(made, change=lambda spec: spec.update(holes=[hole]))
    place = f"{hole['model']} on made__set-01 test"
    assert f"not made: {place}: the hub has no <such>" in printed and "\x1b" not in printed
    shown = page(tmp_path / "out")
    assert f"{place}: the hub has no <such>" in "".join(shown.text)
    assert [tag for tag, _ in shown.tags].count("script") == 3
    text = (tmp_path / "out/report.md").read_text()
    section = text.split("## Not made")[1].split("\n## ")[0]
    assert md(hole["model"]) in section and "the hub has no &lt;such&gt;" in section
    assert "## Not made" not in text.replace("## Not made", "", 1)


def test_a_whole_report_has_no_section_of_holes(small):
    _, folder, printed = small
    assert "Not made" not in (folder / "report.md").read_text()
    assert "holes" not in [a.get("id") for _, a in page(folder).tags]
    assert "not made" not in printed


def test_reproduced_within_rounding_counts_as_reproduced_and_says_so(tmp_path):
    made = Made(tmp_path, models=1, datasets=2)
    table = tmp_path / "verdicts.tsv"

    def within(spec: dict) -> None:
        first, *lines = table.read_text().splitlines()
        cells = [line.split("\t") for line in lines]
        for row, verdict in zip(cells, ("reproduced", "reproduced within rounding"), strict=True):
            row[VERDICT_COLUMNS.index("verdict")] = verdict
        table.write_text("\n".join([first, *map("\t".join, cells)]) + "\n")

    printed = report(made, change=within)
    assert "≈ reproduced within rounding" in printed
    assert "1 of them within rounding" in printed
    assert "2 of 2" in printed
    text = (tmp_path / "out/report.md").read_text()
    assert "≈ reproduced within rounding" in text and "1 of them within rounding" in text
    classes = [a.get("class") or "" for _, a in page(tmp_path / "out").tags]
    assert any("v-reproduced-within-rounding" in name for name in classes)


def test_no_heavy_library_is_imported(small, tmp_path):
    made, _, _ = small
    spec = made_results.write(tmp_path / "spec.json", made_results.make(made))
    program = (
        "import sys, json; import embedrepro.report.write as w; from pathlib import Path;"
        f"spec = json.load(open({str(spec)!r}));"
        f"judged = Path({str(made.folder / 'verdicts.tsv')!r}).read_text();"
        f"w.render(spec, judged, [], Path({str(tmp_path / 'again')!r}));"
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
    report(made)
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
