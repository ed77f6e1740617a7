# Needs: vectors, texts, other runs. Gives: a TREC run for every row of the report.

for job in jobs("search"):

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
            command=command("search", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("refine"):

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
            command=command("refine", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("merge"):

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
            command=command("merge_runs", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("bm25"):

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
            command=command("bm25_run", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("fuse"):

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
            command=command("fuse_runs", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("run"):

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
            command=command("import_run", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


for job in jobs("rerank"):

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
            command=command("rerank", job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"
