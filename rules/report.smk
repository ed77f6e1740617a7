# Needs: everything before. Gives: the report in the store, under its key, and the targets that show
# it: results/<experiment>/ is a view of it.

for job in jobs("report"):

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
        params:
            command=command("make_report", job),
        resources:
            **asked(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


rule plan:
    # Prints what is cached and what is to do; computes nothing.
    localrule: True
    shell:
        f"{PYTHON} {SCRIPTS}/show_plan.py --plan {PLAN_FILE}"


rule reproduce:
    # Fails where a published number that can be compared was not reproduced.
    input:
        PLAN.of_rules("report"),
    localrule: True
    shell:
        show("--require")
