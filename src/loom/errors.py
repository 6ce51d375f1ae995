"""The one exception a user is meant to read."""


class LoomError(Exception):
    """Something the user can mend.

    The message is one paragraph: what is wrong, with the name of the file, key or value, and how to
    put it right. The command line prints it and exits with 1; a traceback appears only under `--debug`.
    """
