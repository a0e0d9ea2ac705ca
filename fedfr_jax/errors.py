"""The exceptions that bad input raises; their texts say what to do."""


class InputError(ValueError):
    """A file, a data set or a setting cannot be used; the message names it."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DamagedError(InputError):
    """A file is not as this program wrote it."""
