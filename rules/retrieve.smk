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
        update(f"{HITS}/{{split}}-{{shard}}-of-{{shards}}.parquet"),
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
    wildcard_constraints:
        model=of_kind("dense"),
    conda:
        "../envs/data.yaml"
    resources:
        runtime=lambda wildcards, attempt: 60 * attempt,
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    params:
        script=script("merge_hits"),
        top_k=EXPERIMENT.top_k,
        queries=lambda wc, input: f"{Path(input.corpus).parent}/{wc.split}/queries.parquet",
    shell:
        "{params.script} --hits {input.hits:q}"
        " --corpus {input.corpus:q} --queries {params.queries:q} --top-k {params.top_k}"
        " --spare-identical-ids"
        " --tag {wildcards.model} --output {output:q} 2>&1 | tee {log:q}"


rule bm25_run:
    input:
        dataset=ancient(lambda wc: prepared(of_dataset(wc))),
        spec=lambda wc: spec(f"bm25-{wc.model}", of_model(wc).options),
    output:
        f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
    log:
        f"logs/bm25_run/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    wildcard_constraints:
        model=of_kind("bm25"),
    conda:
        "../envs/data.yaml"
    resources:
        runtime=lambda wildcards, attempt: 240 * attempt,
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
    params:
        script=script("bm25_run"),
        top_k=EXPERIMENT.top_k,
        dataset=lambda wildcards, input: str(Path(input.dataset).parent),
    shell:
        "{params.script} --dataset {params.dataset:q} --split {wildcards.split}"
        " --spec {input.spec:q} --top-k {params.top_k} --tag {wildcards.model}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule fuse_runs:
    input:
        runs=lambda wc: ingredient_runs(wc),
        spec=lambda wc: fusion_spec(wc),
    output:
        f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
    log:
        f"logs/fuse_runs/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    wildcard_constraints:
        model=of_kind("fuse"),
    conda:
        "../envs/data.yaml"
    resources:
        runtime=60,
        mem_mb=4000,
    params:
        script=script("fuse_runs"),
        top_k=EXPERIMENT.top_k,
    shell:
        "{params.script} --runs {input.runs:q} --spec {input.spec:q}"
        " --top-k {params.top_k} --tag {wildcards.model} --output {output:q} 2>&1 | tee {log:q}"


rule rerank_shard:
    input:
        run=ancient(lambda wc: ingredient_runs(wc)),
        manifest=ancient(lambda wc: manifest(of_model(wc))),
        dataset=ancient(lambda wc: prepared(of_dataset(wc))),
        spec=lambda wc: rerank_spec(wc),
    output:
        update(f"{RERANKED}/{{split}}-{{shard}}-of-{{shards}}.parquet"),
    log:
        "logs/rerank_shard/{dataset}/{model}-{key}/{split}-{shard}-of-{shards}.log",
    conda:
        "../envs/encode.yaml"
    threads: 2
    resources:
        gpu=1,
        runtime=lambda wildcards, attempt: 360 * attempt,
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
    params:
        script=script("rerank_shard"),
        gpu_slot=script("gpu_slot"),
        dataset=lambda wildcards, input: str(Path(input.dataset).parent),
        model=lambda wildcards, input: str(Path(input.manifest).parent),
    shell:
        "{params.gpu_slot} {resources.gpu} -- {params.script} --run {input.run:q}"
        " --dataset {params.dataset:q} --split {wildcards.split} --staged {params.model:q}"
        " --spec {input.spec:q} --shard {wildcards.shard} --shards {wildcards.shards}"
        " --output {output:q} 2>&1 | tee {log:q}"


rule merge_reranked:
    input:
        scores=lambda wc: reranked(of_model(wc), of_dataset(wc), wc.split),
    output:
        f"{RESULTS}/runs/{{dataset}}/{{split}}/{{model}}.trec",
    log:
        f"logs/merge_reranked/{EXPERIMENT.name}/{{dataset}}/{{split}}/{{model}}.log",
    wildcard_constraints:
        model=of_kind("rerank"),
    conda:
        "../envs/data.yaml"
    resources:
        runtime=60,
        mem_mb=4000,
    params:
        script=script("merge_reranked"),
    shell:
        "{params.script} --scores {input.scores:q} --tag {wildcards.model}"
        " --output {output:q} 2>&1 | tee {log:q}"
