"""Errors that a user can cause, told in one line."""

import functools
import sys


class UserError(Exception):
    """Something in the user's files, settings or data is wrong.

    The message is one line that names the thing (file, row, key) and the
    remedy. Commands print it without a traceback.
    """


class DivergedError(UserError):
    """Training has left the finite numbers, or what can still be learnt from."""


def user_errors_exit(main):
    """Decorate a command's ``main``: a ``UserError`` ends it in one line.

    The line goes to standard error and the exit status is 2, as for a wrong
    command line; any other exception is a defect and keeps its traceback.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
