"""The one exception that the trainer turns into a one-line message and a non-zero exit status."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and says what to do."""
