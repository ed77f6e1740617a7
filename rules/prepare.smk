# Needs: the config's datasets. Gives: validated Parquet: corpora, queries and judgements by split.

for job in jobs("prepare"):

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


rule fetch:
    # All that needs a network, on a machine that has one: for clusters whose nodes have none.
    input:
        PLAN.of_rules("download", "environment", "prepare"),
    localrule: True
