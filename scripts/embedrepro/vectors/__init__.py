"""Vectors on disk, one module for each format."""
