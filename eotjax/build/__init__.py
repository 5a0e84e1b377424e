"""The lowest layer that reads a config. wiring makes network, estimator and sampler of
it, learning what trains them, planning its plans, dataset its data, encoding its
latents; run_folder writes and compares a run's config.json; checks refuses a config
whose parts do not fit. It imports all layers below and passes each exactly what it
uses; none of them may import it.
"""
