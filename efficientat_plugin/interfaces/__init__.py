"""Connects students to other pipelines: SpeechBrain's interfaces and the HEAR API."""
