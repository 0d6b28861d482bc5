"""Sound in, tags out: files, long recordings and streams."""
