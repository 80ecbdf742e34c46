"""The segmenter: sampling, training, dense inference, the two-model ensemble."""
