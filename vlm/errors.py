"""The one exception that stands for a mistake of the user's, not of ours."""


class UserError(ValueError):
    """Something the user can put right: a wrong key, a missing file, a mismatched model.

    The command line prints its message as one line and exits with code 2; the message says what
    was wrong, where, and what to change.
    """
