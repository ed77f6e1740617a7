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
    log:
        "logs/search_shard/{dataset}/{model}-{key}/{split}-{shard}-of-{shards}.log",
    conda:
        "../envs/encode.yaml"
    threads: 2
    resources:
        gpu=1,
        runtime=lambda wildcards, attempt: 120 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    params:
        script=script("search_shard"),
        top_k=EXPERIMENT.top_k + 1,  # one more: a protocol may drop the query's own document
        gpu_slot=script("gpu_slot"),
    shell:
        "{params.gpu_slot} {resources.gpu} -- {params.script}"
        " --queries {input.queries:q} --corpus {input.shard:q} --ids {input.ids:q}"
        " --top-k {params.top_k} --output {output:q} 2>&1 | tee {log:q}"


rule merge_hits:
    input:
        hits=lambda wc: hits(of_model(wc), of_dataset(wc), wc.split),
        corpus=ancient(lambda wc: prepared(of_dataset(wc), "corpus.parquet")),
    output:
        f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
    log:
        f"logs/merge_hits/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    conda:
        "../envs/data.yaml"
    resources:
        runtime=lambda wildcards, attempt: 60 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    params:
        script=script("merge_hits"),
        top_k=EXPERIMENT.top_k,
        queries=lambda wc: prepared(of_dataset(wc), f"{wc.split}/queries.parquet"),
    shell:
        "{params.script} --hits {input.hits:q}"
        " --corpus {input.corpus:q} --queries {params.queries:q} --top-k {params.top_k}"
        " --tag {wildcards.model} --output {output:q} 2>&1 | tee {log:q}"
