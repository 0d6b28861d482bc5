"""Labels with times: read from tables of many makers, and found in scores."""
