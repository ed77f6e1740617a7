# Needs: vectors, texts, other runs. Gives: a TREC run for every row of the report.

# On a device where one is used.
for job in jobs("search", "refine", "rerank"):

    rule:
        name:
            job.name
        input:
            inputs(job),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/encode.yaml"
        threads: job.threads
        resources:
            **asked(job),
        params:
            command=command(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


# From other runs, hits or words alone.
for job in jobs("merge", "bm25", "fuse", "run"):

    rule:
        name:
            job.name
        input:
            inputs(job),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        params:
            command=command(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"
