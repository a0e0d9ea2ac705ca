"""The one exception that bad input raises; its text says what to do."""


class InputError(ValueError):
    """A file, a data set or a setting cannot be used; the message names it."""
