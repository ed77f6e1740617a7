"""Models: from an id to a staged folder that proves itself."""
