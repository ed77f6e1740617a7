# Needs: runs, judgements, the table of published numbers. Gives: metrics per query and mean,
# verdicts on published numbers, significance of the differences between models.


rule score_run:
    input:
        run=f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
        dataset=ancient(lambda wc: prepared(of_dataset(wc))),
        spec=lambda wc: score_spec(wc),
    output:
        scores=f"{RESULTS}/scores/{{dataset}}/{{split}}/{{model}}.json",
        per_query=f"{RESULTS}/scores/{{dataset}}/{{split}}/{{model}}.per_query.tsv",
    params:
        script=SCRIPTS,
        dataset=lambda wildcards, input: str(Path(input.dataset).parent),
    log:
        f"logs/score_run/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    resources:
        runtime=30,
        mem_mb=4000,
    shell:
        "{PYTHON} {params.script}/score_run.py --run {input.run:q}"
        " --dataset {params.dataset:q} --split {wildcards.split} --spec {input.spec:q}"
        " --output {output.scores:q} --per-query {output.per_query:q} 2>&1 | tee {log:q}"


rule compare_published:
    input:
        scores=[score_file(*row) for row in rows()],
        published=REPOSITORY / "rules" / "registry" / "published.tsv",
    output:
        report(
            f"{RESULTS}/verdicts.tsv",
            caption="report/verdicts.rst",
            category="Tables",
            labels={"file": "verdicts"},
        ),
    params:
        script=SCRIPTS,
    log:
        f"logs/compare_published/{EXPERIMENT.name}.log",
    localrule: True
    shell:
        "{PYTHON} {params.script}/compare_published.py --scores {input.scores:q}"
        " --published {input.published:q} --output {output:q} 2>&1 | tee {log:q}"


rule compare_models:
    input:
        [score_file(*row, ".per_query.tsv") for row in rows()],
    output:
        f"{RESULTS}/comparisons.json",
    params:
        script=SCRIPTS,
    log:
        f"logs/compare_models/{EXPERIMENT.name}.log",
    resources:
        runtime=60,
        mem_mb=4000,
    shell:
        "{PYTHON} {params.script}/compare_models.py --per-query {input:q}"
        " --output {output:q} 2>&1 | tee {log:q}"
