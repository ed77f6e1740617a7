# Needs: staged models, prepared datasets. Gives: the proof that a staged folder computes what it
# says, vectors with a sidecar each and, where the work is little, the runs searched in them.

for job in jobs("preflight", "encode"):

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
            "../envs/encode.yaml"
        threads: job.threads
        resources:
            **asked(job),
        params:
            command=command(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"
