# Needs: runs, judgements, the table of published numbers. Gives: metrics per query and mean,
# verdicts on published numbers, significance of the differences between models.


rule score_run:
    input:
        run=f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
        dataset=ancient(lambda wc: prepared(of_dataset(wc))),
        spec=lambda wc: score_spec(wc),
        encoded=ancient(lambda wc: encoded(wc)),
    output:
        scores=f"{RESULTS}/scores/{{dataset}}/{{split}}/{{model}}.json",
        per_query=f"{RESULTS}/scores/{{dataset}}/{{split}}/{{model}}.per_query.tsv",
    log:
        f"logs/score_run/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=30,
        mem_mb=4000,
    params:
        script=script("score_run"),
        dataset=lambda wildcards, input: str(Path(input.dataset).parent),
        encoded=lambda wc, input: ["--encoded", *input.encoded] if input.encoded else [],
    shell:
        "{params.script} --run {input.run:q}"
        " --dataset {params.dataset:q} --split {wildcards.split} --spec {input.spec:q}"
        " --output {output.scores:q} --per-query {output.per_query:q} {params.encoded:q} 2>&1 | tee {log:q}"


rule compare_published:
    input:
        scores=[score_file(*row) for row in rows()],
        published=local(str(REPOSITORY / "rules" / "registry" / "published.tsv")),
    output:
        report(
            f"{RESULTS}/verdicts.tsv",
            caption="report/verdicts.rst",
            category="Tables",
            labels={"file": "verdicts"},
        ),
    log:
        f"logs/compare_published/{EXPERIMENT.name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        script=script("compare_published"),
    shell:
        "{params.script} --scores {input.scores:q}"
        " --published {input.published:q} --output {output:q} 2>&1 | tee {log:q}"


rule compare_models:
    input:
        [score_file(*row, ".per_query.tsv") for row in rows()],
    output:
        f"{RESULTS}/comparisons.json",
    log:
        f"logs/compare_models/{EXPERIMENT.name}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=60,
        mem_mb=4000,
    params:
        script=script("compare_models"),
    shell:
        "{params.script} --per-query {input:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule reproduce:
    # Fails where a published number that can be compared was not reproduced.
    input:
        report_files(),
        verdicts=f"{RESULTS}/verdicts.tsv",
    log:
        f"logs/reproduce/{EXPERIMENT.name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        script=script("compare_published"),
    shell:
        "{params.script} --require {input.verdicts:q} 2>&1 | tee {log:q}"
