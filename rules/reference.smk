# Needs: staged models, prepared datasets, our runs. Gives: FlagEmbedding's own evaluation of the same,
# on the devices of the config, and the parity of its numbers with ours. Its target is `reference`.

REFERENCE = EXPERIMENT.config["reference"]
REFERENCE_DATA = f"{STORE}/reference/data/{{dataset}}-{{key}}/{{split}}"
REFERENCE_RESULT = f"{STORE}/reference/{{dataset}}/{{model}}-{{key}}/{{split}}.json"
PARITY = f"{RESULTS}/parity.json"


def own_devices():
    """The config's devices, the GPUs counted from 0: the slot shows only those it gave."""
    gpus = sorted({d for d in REFERENCE["devices"] if d != "cpu"})
    return [d if d == "cpu" else f"cuda:{gpus.index(d)}" for d in REFERENCE["devices"]]


def reference_gpus():
    return len({device for device in REFERENCE["devices"] if device != "cpu"})


def reference_value(model, dataset, split):
    """What decides the evaluator's result, besides the staged model and the dataset."""
    return {
        "model_id": model.id,
        "dataset": dataset.name,
        "split": split,
        "facts": model.facts,
        "instruction": dataset.instruction,
        "devices": own_devices(),
        "batch_size": REFERENCE["batch_size"],
        "top_k": EXPERIMENT.top_k,
        "ignore_identical_ids": dataset.ignore_identical_ids,
    }


def reference_result(model, dataset, split):
    value = reference_value(model, dataset, split)
    key = digest([value, model.stage_key, dataset.key])
    return REFERENCE_RESULT.format(
        dataset=dataset.slug, model=model.slug, key=key, split=split
    )


def reference_spec(wildcards):
    value = reference_value(of_model(wildcards), of_dataset(wildcards), wildcards.split)
    value |= {"timeout_minutes": REFERENCE["timeout_minutes"]}
    return spec(f"reference-{wildcards.model}", value)


def reference_data(wildcards):
    dataset = of_dataset(wildcards)
    return REFERENCE_DATA.format(
        dataset=dataset.slug, key=dataset.key, split=wildcards.split
    )


def first_sidecar(wildcards):
    """It says in which precision our own vectors were computed."""
    shards = corpus_shards(of_model(wildcards), of_dataset(wildcards))
    return shards[0].removesuffix(".npy") + ".json"


def reference_rows():
    return [row for row in rows() if row[0].kind == "dense"]


def parity_rows():
    return [
        {
            "model_id": model.id,
            "model": model.slug,
            "dataset": dataset.name,
            "split": split,
            "ignore_identical_ids": dataset.ignore_identical_ids,
            "reference": reference_result(model, dataset, split),
            "run": run_file(model, dataset, split),
            "folder": str(Path(prepared(dataset)).parent),
        }
        for model, dataset, split in reference_rows()
    ]


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
        gpu_slot=(
            f"{script('gpu_slot')} {reference_gpus()} --" if reference_gpus() else ""
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
