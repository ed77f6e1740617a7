"""Retrieval: from vectors or texts to run files."""
