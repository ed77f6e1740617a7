# Needs: staged models, prepared datasets. Gives: embeddings with a sidecar; the corpus in shards,
# one job and one GPU each, the queries of a split in one file. The key in the path holds all that
# changes a vector, so an input's time stamp never matters: hence ancient().


rule encode_corpus:
    input:
        stage=ancient(lambda wc: staged(of_model(wc))),
        texts=ancient(lambda wc: prepared(of_dataset(wc), "corpus.parquet")),
        spec=ancient(lambda wc: encode_spec(of_model(wc), of_dataset(wc), "passage")),
    output:
        vectors=update(f"{EMBEDDINGS}/corpus-{{shard}}-of-{{shards}}.npy"),
        sidecar=update(f"{EMBEDDINGS}/corpus-{{shard}}-of-{{shards}}.json"),
    log:
        "logs/encode_corpus/{dataset}/{model}-{key}/{shard}-of-{shards}.log",
    conda:
        "../envs/encode.yaml"
    threads: 2
    resources:
        gpu=1,
        runtime=lambda wildcards, attempt: 360 * attempt,
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
    params:
        script=script("encode"),
        staged=lambda wildcards, input: str(Path(input.stage).parent),
        gpu_slot=script("gpu_slot"),
        compiled=f"{STORE}/compiler",
        queries=lambda wc, input: queries_ahead(wc),
    shell:
        "{params.gpu_slot} {resources.gpu} -- {params.script}"
        " --staged {params.staged:q} --texts {input.texts:q} --spec {input.spec:q}"
        " --ahead {params.queries} --role passage --shard {wildcards.shard} --shards {wildcards.shards}"
        " --output {output.vectors:q} --compiler-cache {params.compiled:q} 2>&1 | tee {log:q}"


rule encode_queries:
    input:
        stage=ancient(lambda wc: staged(of_model(wc))),
        dataset=ancient(lambda wc: prepared(of_dataset(wc))),
        spec=ancient(lambda wc: encode_spec(of_model(wc), of_dataset(wc), "query")),
        # Not read: the job of the first shard encodes the queries, too, if they are not there.
        first=ancient(lambda wc: corpus_shards(of_model(wc), of_dataset(wc))[0]),
    output:
        vectors=update(f"{EMBEDDINGS}/{{split}}-queries.npy"),
        sidecar=update(f"{EMBEDDINGS}/{{split}}-queries.json"),
    log:
        "logs/encode_queries/{dataset}/{model}-{key}/{split}.log",
    conda:
        "../envs/encode.yaml"
    threads: 2
    resources:
        gpu=1,
        runtime=lambda wildcards, attempt: 120 * attempt,
        mem_mb=lambda wildcards, attempt: 12000 * attempt,
    params:
        script=script("encode"),
        staged=lambda wildcards, input: str(Path(input.stage).parent),
        texts=lambda wc, input: f"{Path(input.dataset).parent}/{wc.split}/queries.parquet",
        gpu_slot=script("gpu_slot"),
        compiled=f"{STORE}/compiler",
    shell:
        "{params.gpu_slot} {resources.gpu} -- {params.script}"
        " --staged {params.staged:q} --texts {params.texts:q} --spec {input.spec:q}"
        " --role query --shard 0 --shards 1 --output {output.vectors:q} --compiler-cache {params.compiled:q} 2>&1 | tee {log:q}"
