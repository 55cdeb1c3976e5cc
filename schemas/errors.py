"""The exceptions that mean "the input, a setting or the result is not as it must be", as opposed to a fault of the program."""

from collections.abc import Sequence


class InputError(ValueError):
    """A mistake in what the user gave; its message names the value, the rule and the repair, on one line.

    Command lines print the message alone and exit with code 2. The message is kept to one line so that it can be found again
    in the text of a worker's failure, which is all that most Beam runners bring back.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class GatesFailed(Exception):
    """A table that must not be published; command lines print each message and exit with code 3."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = [" ".join(message.split()) for message in messages]
