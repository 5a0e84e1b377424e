"""Entropic optimal transport: sinkhorn solves the plans of batches and draws pairs,
whole those of whole sets, cut over devices; pairing says where a step's pairs come
from, cost in which space they are compared, epsilon which one has a wanted entropy;
known_plan and moments are the closed forms. It may import data; it knows no network
and no config.
"""
