"""Tags sound: files, long recordings and streams."""
