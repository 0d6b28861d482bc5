"""The embedded sample: synthesised sounds with the logits of a published teacher."""
