"""What other people's pipelines plug in: SpeechBrain's slots and the HEAR API."""
