# What the target `reference` asks for, as tables; the rules are in reference.smk.

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
