# Needs: the config's datasets. Gives: for each a folder of validated Parquet: corpus, queries and
# judgements of every split, dataset.json.


rule prepare_dataset:
    input:
        spec=ancient(
            lambda wc: spec(f"dataset-{wc.dataset}", of_dataset(wc).spec, wc.key)
        ),
    output:
        update(f"{DATASET}/dataset.json"),
        update(f"{DATASET}/corpus.parquet"),
    log:
        "logs/prepare_dataset/{dataset}-{key}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=lambda wildcards, attempt: 240 * attempt,
        mem_mb=4000,
    params:
        script=script("prepare_dataset"),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
    shell:
        "{params.script} --spec {input.spec:q}"
        " --output {params.folder:q} 2>&1 | tee {log:q}"
