# Needs: everything before. Gives: the report in the store, under its key, and the targets that show
# it: results/<experiment>/ is a view of it.

for job in jobs("report"):

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
            command("make_report", job)


rule plan:
    # Prints what is cached and what is to do; computes nothing.
    localrule: True
    shell:
        f"{PYTHON} {SCRIPTS}/show_plan.py --plan {PLAN_FILE}"


rule reproduce:
    # Fails where a published number that can be compared was not reproduced.
    input:
        absent([PLAN.report]),
    localrule: True
    shell:
        show("--require")
