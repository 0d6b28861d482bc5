"""Writes the rows of any data set as shards that are read quickly."""
