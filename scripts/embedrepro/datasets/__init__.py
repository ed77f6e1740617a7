"""Datasets: sources in several layouts, one validated Parquet form, the registry of benchmarks.

`known`: the registry. `prepare`: source → Parquet. `folder`, `remote`: the sources. `export`: a
prepared dataset in BEIR's or FlagEmbedding's layout.
"""
