"""Images, vectors and batches: sources (digits, folders, arrays, TFDS), domains (what
they give, in memory or read one by one), images (decoding, writing, grids), batch (the
batch as a function of seed and step). It knows nothing of transport, diffusion,
networks or configs.
"""
