"""The one exception that means "the input or a setting is wrong", as opposed to a fault of the program."""


class InputError(ValueError):
    """A mistake in what the user gave; its message names the value, the rule and the repair, on one line.

    Command lines print the message alone and exit with code 2. The message is kept to one line so that it can be found again
    in the text of a worker's failure, which is all that most Beam runners bring back.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
