# Needs: the config's models, rerankers too. Gives: for each a snapshot with a manifest of digests,
# then a staged folder whose name and files every library loads the same way; where a model's own
# code needs other libraries, an environment of them.

for job in jobs("download", "environment", "stage"):

    rule:
        name:
            job.name
        input:
            inputs(job),
        output:
            products(job),
        log:
            log_of(job),
        priority: job.priority
        conda:
            "../envs/data.yaml"
        threads: job.threads
        resources:
            **asked(job),
        params:
            command=command(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"
