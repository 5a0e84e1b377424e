"""Small sets in four splits: their configs, and what images they hold."""

from configs import default

NAMES = ("trainA", "trainB", "testA", "testB")


def config(kind, path="", **changes):
    c = default.get_config()
    c.data.kind, c.data.path, c.data.image_size = kind, str(path), (20, 24)
    c.model.attention = ()
    c.data.update(changes)
    return c


def four(splits):
    """The sets of a data set in the order of NAMES."""
    return (*splits.train, splits.source.test, splits.target.test)


def rows(array):
    """The images of an array as a set of bytes, and how many there are."""
    return {image.tobytes() for image in array}, len(array)
