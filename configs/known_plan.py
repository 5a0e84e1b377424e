"""Vectors whose entropic plan is known in closed form: how right is a model?

python -m eotjax.main --config=configs/known_plan.py:bridge --workdir=RUN \\
  --config.known.dim=16 --config.coupling.epsilon=1.0

coupling.epsilon is also the instance's. Evaluation prints BW2-UVP and cBW2-UVP (in
percent, of the target's distribution and of the plan) beside those of the exact plan,
of independent pairs and of the rows of plans of single batches; docs/known_plans.md
has the table.
"""

from configs import default


def get_config(variants: str = ""):
    c = default.get_config()
    c.steps = 6_000
    c.batch_size = 256
    c.log_every = c.sample_every = 1_000
    c.tensorboard = False

    c.data.kind = "known_plan"

    c.coupling.group_size = 256
    c.coupling.epsilon = 1.0
    c.coupling.relative = ""
    c.coupling.threshold = 1e-2

    c.model.width = 128
    c.model.blocks = 3

    c.optimizer.learning_rate = 2e-3
    c.optimizer.warmup_steps = 100

    c.sampling.batch_size = 8_192
    c.checkpoint.every = 6_000
    return default.apply_variants(c, variants, VARIANTS)


def bridge(c) -> None:
    """The second-order solver: its steps' error is below that of the network."""
    default.estimator("bridge")(c)
    c.sampling.solver = "heun"
    c.sampling.steps = 25


def smoke(c) -> None:
    """A few steps of a tiny network; its laws are of many vectors all the same."""
    default.smoke(c)
    c.sampling.batch_size = 1_024


VARIANTS = {"bridge": bridge, "smoke": smoke}
