# Needs: staged models, prepared datasets, our runs. Gives: FlagEmbedding's own evaluation of the
# same on the devices of the config, and its numbers beside ours. Its target is `reference`.

for job in jobs("reference"):

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
            command("run_reference", job)


for job in jobs("parity"):

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
            command("compare_reference", job)


rule reference:
    input:
        absent([PLAN.report_with_reference]),
    localrule: True
    shell:
        show("--reference")
