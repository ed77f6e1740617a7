# Needs: staged models, prepared datasets, our runs. Gives: FlagEmbedding's own evaluation of the same,
# on the devices of the config, and the parity of its numbers with ours. Its target is `reference`.


rule export_reference:
    input:
        ancient(lambda wc: prepared(of_dataset(wc))),
    output:
        directory(REFERENCE_DATA),
    log:
        "logs/export_reference/{dataset}-{key}/{split}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=60,
        mem_mb=4000,
    params:
        script=script("export_reference"),
        dataset=lambda wildcards, input: str(Path(input[0]).parent),
    shell:
        "{params.script} --dataset {params.dataset:q}"
        " --split {wildcards.split} --output {output:q} 2>&1 | tee {log:q}"


rule run_reference:
    input:
        stage=ancient(lambda wc: staged(of_model(wc))),
        data=ancient(reference_data),
        embeddings=ancient(first_sidecar),
        spec=ancient(reference_spec),
    output:
        REFERENCE_RESULT,
    log:
        "logs/run_reference/{dataset}/{model}-{key}/{split}.log",
    conda:
        "../envs/encode.yaml"
    threads: 2 * len(REFERENCE["devices"])
    resources:
        gpu=reference_gpus(),
        runtime=int(REFERENCE["timeout_minutes"]) + 10,
        mem_mb=8000 * len(REFERENCE["devices"]),
    params:
        script=script("run_reference"),
        staged=lambda wildcards, input: str(Path(input.stage).parent),
        gpu_slot=lambda wildcards, input: (
            f"{command('gpu_slot')} {reference_gpus()} --" if reference_gpus() else ""
        ),
    shell:
        "{params.gpu_slot} {params.script}"
        " --staged {params.staged:q} --data {input.data:q} --spec {input.spec:q}"
        " --embeddings {input.embeddings:q} --output {output:q} 2>&1 | tee {log:q}"


rule compare_reference:
    input:
        [reference_result(*row) for row in reference_rows()],
        [run_file(*row) for row in reference_rows()],
        [ancient(prepared(row[1])) for row in reference_rows()],
        spec=lambda wildcards: spec(f"parity-{EXPERIMENT.name}", parity_rows()),
    output:
        PARITY,
    log:
        f"logs/compare_reference/{EXPERIMENT.name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        script=script("compare_reference"),
    shell:
        "{params.script} --spec {input.spec:q}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule reference:
    input:
        PARITY,
        f"{RESULTS}/report.html",
    localrule: True
