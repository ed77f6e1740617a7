# Needs: the config's datasets. Gives: validated Parquet: corpora, queries and judgements by split.

for job in jobs("prepare"):

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
            command("prepare_dataset", job)

