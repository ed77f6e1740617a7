# Needs: embeddings. Gives: the best hits of every shard, and of all shards one TREC run. Baselines
# and fusions make their runs here too.


rule search_shard:
    input:
        queries=ancient(
            lambda wc: query_embeddings(of_model(wc), of_dataset(wc), wc.split)
        ),
        shard=ancient(
            lambda wc: corpus_shards(of_model(wc), of_dataset(wc))[int(wc.shard)]
        ),
        ids=ancient(lambda wc: prepared(of_dataset(wc), "corpus.parquet")),
    output:
        f"{HITS}/{{split}}-{{shard}}-of-{{shards}}.parquet",
    params:
        script=SCRIPTS,
        top_k=EXPERIMENT.top_k + 1,  # one more: a protocol may drop the query's own document
        gpu_slot=GPU_SLOT,
    log:
        "logs/search_shard/{dataset}/{model}-{key}/{split}-{shard}-of-{shards}.log",
    threads: 2
    resources:
        gpu=1,
        runtime=lambda wildcards, attempt: 120 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    shell:
        "{params.gpu_slot} {resources.gpu} -- {PYTHON} {params.script}/search_shard.py"
        " --queries {input.queries:q} --corpus {input.shard:q} --ids {input.ids:q}"
        " --top-k {params.top_k} --output {output:q} 2>&1 | tee {log:q}"


rule merge_hits:
    input:
        hits=lambda wc: hits(of_model(wc), of_dataset(wc), wc.split),
        corpus=ancient(lambda wc: prepared(of_dataset(wc), "corpus.parquet")),
    output:
        f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
    params:
        script=SCRIPTS,
        top_k=EXPERIMENT.top_k,
        queries=lambda wc: prepared(of_dataset(wc), f"{wc.split}/queries.parquet"),
    log:
        f"logs/merge_hits/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    resources:
        runtime=lambda wildcards, attempt: 60 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    shell:
        "{PYTHON} {params.script}/merge_hits.py --hits {input.hits:q}"
        " --corpus {input.corpus:q} --queries {params.queries:q} --top-k {params.top_k}"
        " --tag {wildcards.model} --output {output:q} 2>&1 | tee {log:q}"
