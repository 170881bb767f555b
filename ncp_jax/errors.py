"""The one exception that a person at the keyboard can mend."""


class InputError(Exception):
    """Bad input: a setting, a file or a folder that the user can change.

    The program prints the message, without a traceback, and exits with code 2; so the
    message names what was found, what was expected and what to do.
    """
