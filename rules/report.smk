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
        resources:
            **asked(job),
        params:
            command=command(job),
        shell:
            "{params.command} 2>&1 | tee {log:q}"


rule plan:
    # Prints what is cached and what is to do; computes nothing.
    log:
        "logs/plan.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    shell:
        f"{PYTHON} {FOLDER}/show_plan.py --plan {PLAN_FILE} | tee {{log:q}}"


rule reproduce:
    # Fails where a published number that can be compared was not reproduced.
    input:
        PLAN.shown(PLAN.report),
    log:
        "logs/reproduce.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: SHOW_THREADS
    shell:
        show("--require") + " 2>&1 | tee {log:q}"


rule why:
    # Tries settings where a published number was not reproduced, and names those that give it.
    input:
        PLAN.shown(PLAN.report),
    log:
        "logs/why.log",
    localrule: True
    conda:
        "../envs/data.yaml"
    params:
        command=restart("find_why"),
    shell:
        "{params.command} 2>&1 | tee {log:q}"
