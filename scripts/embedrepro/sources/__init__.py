"""Bytes from elsewhere: the hub, packages of the index, local folders."""
