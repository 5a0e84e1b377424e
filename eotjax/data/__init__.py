"""Images, vectors and batches: sources (digits, folders, arrays, TFDS), images
(decoding, writing, grids), batch (the batch as a function of seed and step). It
knows nothing of transport, diffusion, networks or configs.
"""
