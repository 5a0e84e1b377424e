"""The one kind of error a user is expected to read: a sentence, no traceback."""


class UserError(ValueError):
    """Wrong input. The message names the thing that is wrong and the remedy."""
