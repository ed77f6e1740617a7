"""Evaluation: from run files to numbers held against the published ones."""
