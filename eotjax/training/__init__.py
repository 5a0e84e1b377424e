"""A run's parts, each alone: the pure step and its optimiser (muon), the pairs that a
bridge makes itself (refit), checkpoints, the log, and signals. It may import
transport, diffusion, networks and data; it knows no config and no artefact.
"""
