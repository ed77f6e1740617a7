# What the target `plan` prints: every step, cached or to do; the rule is in report.smk.
from embedrepro.plan import BYTES_A_PARAMETER, encode_seconds


def plan():
    """Every step with its outputs, bytes to download and device seconds, for `show_plan.py`."""
    tflops = EXPERIMENT.config["plan"]["tflops"]
    datasets = EXPERIMENT.datasets.values()
    steps = []

    def add(step, what, outputs, size=0, seconds=0):
        value = {"step": step, "what": what, "outputs": outputs}
        steps.append(value | {"bytes": size, "seconds": seconds})

    for model in EXPERIMENT.models.values():
        if model.source_spec:
            size = model_bytes(model)
            add("download_model", model.id, [manifest(model)], size)
    for dataset in datasets:
        local = {"beir", "flagembedding"} & dataset.spec["source"].keys()
        unknown = None if dataset.size_mb is None else dataset.size_mb * 1e6
        size = 0 if local else unknown
        add("prepare_dataset", dataset.name, [prepared(dataset)], size)
    for model in EXPERIMENT.models.values():
        if model.kind != "dense":
            continue
        add("stage_model", model.id, [staged(model)])
        parameters = model.stage_spec["registry"].get("parameters")
        for dataset in datasets:
            what = f"{model.id} on {dataset.name}"
            seconds = encode_seconds(dataset.documents, parameters, tflops)
            shards = corpus_shards(model, dataset)
            add("encode_corpus", what, shards, 0, seconds)
            queries = [query_embeddings(model, dataset, s) for s in dataset.splits]
            add("encode_queries", what, queries)
            found = [h for s in dataset.splits for h in hits(model, dataset, s)]
            add("search_shard", what, found)
    add("run files", EXPERIMENT.name, [run_file(*row) for row in rows()])
    add("scores", EXPERIMENT.name, [score_file(*row) for row in rows()])
    add("report", EXPERIMENT.name, report_files())
    return {"tflops": tflops, "steps": steps}


def model_bytes(model):
    """Bytes to download; None where the registry doesn't know the model's size."""
    if {"path", "demo"} & model.source_spec["source"].keys():
        return 0
    parameters = model.stage_spec.get("registry", {}).get("parameters")
    return None if parameters is None else parameters * BYTES_A_PARAMETER
