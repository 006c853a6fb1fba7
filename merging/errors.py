"""The errors every room shares: a mistake a person must correct, and a failure worth trying again."""


class MergeflowError(Exception):
    """Anything mergeflow reports in its own words."""


class InputError(MergeflowError):
    """Terminal: a person must change something first; retrying cannot help.

    `problems` holds one line per mistake (what was found, where, what to do), all that were found at once.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class TransientError(MergeflowError):
    """Worth retrying: a service did not answer, a connection broke, a rate limit was hit."""
