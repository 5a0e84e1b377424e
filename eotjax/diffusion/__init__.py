"""What is learnt from pairs, and how it is followed: conditional (cde, cdiffe, cmde)
and bridge make training examples and sample; sampler is their loop over times,
schedule the noise (a new one is a function there), prediction what the network's
output means. Pure functions of arrays: no network, data, file or config.
"""
