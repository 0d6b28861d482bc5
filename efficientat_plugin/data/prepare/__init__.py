"""Writes the rows of any data set as shards that are fast to read."""
