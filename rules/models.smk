# Needs: the config's models. Gives: for each a snapshot with a manifest of digests, then a staged
# folder whose name and files every library loads the same way.
#
# update() on all that is in the store: Snakemake would delete it before the job, also when another
# workflow on the same store has just made it and reads it. The scripts replace it whole.


rule write_spec:
    # What the config says, as a file: its strings reach no shell.
    output:
        update(f"{SPECS}/{{name}}.json"),
    log:
        "logs/write_spec/{name}.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        value=lambda wildcards: pack(VALUES[wildcards.name]),
        script=script("write_spec"),
    shell:
        "{params.script} {params.value} {output:q} 2> {log:q}"


rule download_model:
    input:
        spec=ancient(
            lambda wc: spec(f"source-{wc.model}", of_model(wc).source_spec, wc.key)
        ),
    output:
        update(MANIFEST),
    log:
        "logs/download_model/{model}-{key}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=lambda wildcards, attempt: 240 * attempt,
        mem_mb=4000,
    params:
        script=script("download_model"),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        cache=str(DIGESTS),
    shell:
        "{params.script} --spec {input.spec:q}"
        " --output {params.folder:q} --cache {params.cache:q} 2>&1 | tee {log:q}"


rule stage_model:
    input:
        spec=ancient(
            lambda wc: spec(f"stage-{wc.model}", of_model(wc).stage_spec, wc.key)
        ),
        manifest=ancient(lambda wc: manifest(of_model(wc))),
    output:
        update(STAGE),
    log:
        "logs/stage_model/{model}-{key}.log",
    conda:
        "../envs/encode.yaml"
    resources:
        runtime=lambda wildcards, attempt: 60 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    params:
        script=script("stage_model"),
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        snapshot=lambda wildcards, input: str(Path(input.manifest).parent),
        names=lambda wildcards, output: str(Path(output[0]).parents[2]),
    shell:
        "{params.script} --spec {input.spec:q}"
        " --snapshot {params.snapshot:q} --output {params.folder:q}"
        " --by-id-root {params.names:q} 2>&1 | tee {log:q}"
