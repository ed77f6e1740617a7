# Needs: scores, verdicts, comparisons, what staging and encoding recorded. Gives: the report, as a
# page, Markdown, LaTeX and tables.


rule report:
    input:
        [score_file(*row) for row in rows()],
        [score_file(*row, ".per_query.tsv") for row in rows()],
        [run_file(*row) for row in rows()],
        f"{RESULTS}/verdicts.tsv",
        f"{RESULTS}/comparisons.json",
        ancient(lambda wildcards: recorded()),
        lambda wildcards: parity(),
        inputs=lambda wildcards: spec(f"inputs-{EXPERIMENT.name}", report_inputs()),
        facts=lambda wildcards: spec(
            f"experiment-{EXPERIMENT.name}", experiment_facts()
        ),
    output:
        report(
            f"{RESULTS}/report.html",
            caption="report/page.rst",
            category="Report",
            labels={"file": "page"},
        ),
        f"{RESULTS}/report.md",
        f"{RESULTS}/report.tex",
        report(
            f"{RESULTS}/metrics.tsv",
            caption="report/metrics.rst",
            category="Tables",
            labels={"file": "metrics"},
        ),
        report(
            f"{RESULTS}/speed.tsv",
            caption="report/speed.rst",
            category="Tables",
            labels={"file": "speed"},
        ),
        f"{RESULTS}/provenance.json",
    log:
        f"logs/report/{EXPERIMENT.name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        script=script("make_report"),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
    shell:
        "{params.script} --spec {input.facts:q}"
        " --inputs {input.inputs:q} --output-dir {params.folder:q} 2>&1 | tee {log:q}"


rule plan:
    # Prints what is cached and what is to do; computes nothing.
    input:
        spec=lambda wildcards: spec(f"plan-{EXPERIMENT.name}", plan()),
    log:
        f"logs/plan/{EXPERIMENT.name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        script=script("show_plan"),
    shell:
        "{params.script} --spec {input.spec:q} 2>&1 | tee {log:q}"
