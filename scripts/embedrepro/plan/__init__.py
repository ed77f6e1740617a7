"""The plan: from a config to artifacts with keys, and from artifacts to jobs.

    plan = compile_plan(experiment)

Pure: reads no store, starts nothing, imports neither torch nor snakemake.
"""
