"""embed-repro: the library. It never imports snakemake and never reads the config."""
