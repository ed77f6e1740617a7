# Needs: vectors, texts, other runs. Gives: a TREC run for every row of the report.

for job in jobs("search"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/encode.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("search", job)


for job in jobs("merge"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("merge_runs", job)


for job in jobs("bm25"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("bm25_run", job)


for job in jobs("fuse"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("fuse_runs", job)


for job in jobs("run"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("import_run", job)


for job in jobs("rerank"):

    rule:
        name:
            job.name
        input:
            absent(job.inputs),
        output:
            products(job),
        log:
            log_of(job),
        conda:
            "../envs/encode.yaml"
        threads: job.threads
        resources:
            **asked(job),
        shell:
            command("rerank", job)

