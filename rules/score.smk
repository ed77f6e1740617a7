# Needs: runs, judgements. Gives: metrics per query and mean, with intervals.

for job in jobs("score"):

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


rule scores:
    input:
        PLAN.of_rules("score"),
    localrule: True
