"""The exceptions for bad input; their messages say what to do."""


class InputError(ValueError):
    """A file, a data set or a setting cannot be used; the message names it."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class DamagedError(InputError):
    """The content of a file is not what this program wrote."""


class InUseError(InputError):
    """Another process is using a work directory."""
