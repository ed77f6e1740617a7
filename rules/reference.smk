# Needs: staged models, prepared datasets, our runs. Gives: FlagEmbedding's own evaluation of the
# same on the devices of the config, and its numbers beside ours. Its target is `reference`.

for job in jobs("reference"):

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


for job in jobs("parity", "report_with_reference"):

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


rule reference:
    input:
        PLAN.of_rules("reference", "parity", "report_with_reference"),
    log:
        "logs/reference.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: SHOW_THREADS
    shell:
        show("--reference") + " 2>&1 | tee {log:q}"
