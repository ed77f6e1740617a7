"""Datasets: sources in several layouts, one validated Parquet form, the registry of benchmarks.

`registry`: the public benchmarks, and what a config's entries mean. `local`: what decides a
dataset's content. `prepare`: source → Parquet; `folder`, `remote`: the sources. `reading`,
`shards`: parts of prepared Parquet, checked as they are read. `export`: a prepared split in BEIR's
or FlagEmbedding's layout.
"""
