"""Your own arrays: one .npz with trainA, trainB, testA, testB.

uint8 [n, h, w, c] are images, float32 [n, d] are vectors of about unit variance.
python -m eotjax.main --config=configs/npz.py --config.data.path=FILE --workdir=OUT
"""

from configs import default


def get_config(variants: str = ""):
    c = default.get_config()
    c.data.kind = "npz"
    return default.apply_variants(c, variants, VARIANTS)


def vectors(c) -> None:
    """An MLP and larger batches, for float32 [n, d]."""
    c.batch_size = c.coupling.group_size = 256
    c.model.width = 256
    c.model.blocks = 3
    c.optimizer.learning_rate = 1e-3
    c.sampling.batch_size = 1024


VARIANTS = {"vectors": vectors}
