# Needs: the config's models. Gives: for each a snapshot with a manifest of digests, then a staged
# folder whose name and files every library loads the same way.


rule write_spec:
    # What the config says, as a file: its strings reach no shell.
    output:
        f"{SPECS}/{{name}}.json",
    params:
        value=lambda wildcards: packed(VALUES[wildcards.name]),
        script=SCRIPTS,
    localrule: True
    shell:
        "{PYTHON} {params.script}/write_spec.py {params.value} {output:q}"


rule download_model:
    input:
        spec=ancient(
            lambda wc: spec(f"source-{wc.model}", of_model(wc).source_spec, wc.key)
        ),
    output:
        f"{SNAPSHOT}/manifest.json",
    params:
        script=SCRIPTS,
        folder=SNAPSHOT,
        cache=f"{STORE}/models/.cache",
    log:
        "logs/download_model/{model}-{key}.log",
    resources:
        runtime=lambda wildcards, attempt: 240 * attempt,
        mem_mb=4000,
    shell:
        "{PYTHON} {params.script}/download_model.py --spec {input.spec:q}"
        " --output {params.folder:q} --cache {params.cache:q} 2>&1 | tee {log:q}"


rule stage_model:
    input:
        spec=ancient(
            lambda wc: spec(f"stage-{wc.model}", of_model(wc).stage_spec, wc.key)
        ),
        manifest=ancient(lambda wc: manifest(of_model(wc))),
    output:
        f"{STAGED}/stage.json",
    params:
        script=SCRIPTS,
        folder=STAGED,
        snapshot=lambda wildcards, input: str(Path(input.manifest).parent),
        by_id=f"{STORE}/models",
    log:
        "logs/stage_model/{model}-{key}.log",
    resources:
        runtime=lambda wildcards, attempt: 60 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    shell:
        "{PYTHON} {params.script}/stage_model.py --spec {input.spec:q}"
        " --snapshot {params.snapshot:q} --output {params.folder:q}"
        " --by-id-root {params.by_id:q} 2>&1 | tee {log:q}"
