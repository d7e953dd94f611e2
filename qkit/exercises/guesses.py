"""What a learner said before each measurement of a lesson, kept until its end."""

from qkit.plots.base import Picture
from qkit.plots.guesses import Said, guess_against_truth, guesses_against_truth


class Guesses:
    """The predictions of one lesson.

    >>> guesses = exercises.Guesses()
    >>> guesses.reveal("what 3 bits keep", my_guess, 88.2, "percent")  # a picture: what you said, what was measured
    >>> guesses.all()                                                  # at the end: all of them
    """

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def reveal(
        self, about: str, guess: float | None, truth: float, unit: str = "", digits: int = 2, varies: bool = False
    ) -> Picture:
        """The prediction beside the measurement; a cell that is run again replaces what it said.

        Args:
            about: what is predicted, in a few words.
            guess: None: nothing was committed.
            truth: what was measured.
            unit: of both; `digits` of the measured number are written.
            varies: whether another machine measures something else.

        Raises:
            ValueError: the guess is no number, or what was measured is not finite.
        """
        if guess is not None and (
            isinstance(guess, bool) or not isinstance(guess, int | float) or not abs(guess) < 1e300
        ):
            raise ValueError(f"my_guess = {guess!r} is no number; write it without its unit")
        if not abs(truth) < 1e300:
            raise ValueError(f"{about} was measured as {truth}, which no guess can be held against; measure it again")
        self._said[about] = said = Said(about, guess, truth, unit, digits, varies)
        return guess_against_truth(said)

    def all(self) -> Picture:
        """What was said over what was measured, of every prediction so far, in their order.

        Raises:
            ValueError: nothing was revealed yet.
        """
        return guesses_against_truth(list(self._said.values()))
