"""How the rows of a data set become batches of waveforms, labels and clip ids."""
