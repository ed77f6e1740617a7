"""Datasets: sources in several layouts, one validated Parquet form, the registry of benchmarks.

`registry`: the public benchmarks. `prepare`: source → Parquet. `folder`, `remote`: the sources.
`export`: a prepared dataset in BEIR's or FlagEmbedding's layout.
"""
