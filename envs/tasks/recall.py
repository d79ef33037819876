"""Tasks that are nothing but memory, with known best returns, vectorized in NumPy.

    TMaze-v0              remember for `length` steps which way to turn
    RepeatPrevious-v0     name the card seen a few cards ago
    RepeatFirst-v0        name the first card

`best_return` is what a perfect memory earns on average, `memoryless_return` what the best policy earns that acts on the
present observation alone.

Axes: N environments, R some of them ("rows"), K cards in a deck.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Outcome, Rows, Uniforms, check_at_least, single
from envs.tasks.pictures import BACKGROUND, BLUE, GRAY, GREEN, cell_size, enlarge
from envs.tasks.sequences import Integers, Script


class TMaze(BatchEnv):
    """TMaze-v0: a sign in a corridor says which arm of the T holds the reward; only memory takes it to the junction.

    ::

                                  up
        O  S  .  .  .  .  .  .  . J          O oracle, S start, J junction
                                  down

    Passive (default): S is O, so the sign is seen at the start. Active: S is one cell right of O, and the agent has to
    go and look. From S to J are `length` cells, and an episode has T = length + 1 steps (active: length + 3): enough
    for the best policy and no more. With `min_length` the length is drawn for every episode, evenly from there to
    `length`: a curriculum, in whose short corridors the oracle is found.

    Observation, Box (2,) float32: 0 the sign, 1 for up and -1 for down on the oracle, else 0; 1 whether this is the
    junction or an arm, 1 or 0. Actions, Discrete(4): 0 right, 1 up, 2 left, 3 down; a move into a wall stays in place.
    Reward: stepping into the right arm 1, into the wrong one 0. Before the last step, after t steps, a position below t
    (active: below t - 1), O being 0, costs 1 / (T - 1).
    Start: the sign is up or down with equal chance.
    End: terminated on stepping into an arm, or after T steps. The last info says "is_success".
    Return: best 1; without memory 0.5 (walk on, guess the arm); worst close to -1.

    After Bakker, Reinforcement Learning with Long Short-Term Memory (2001), with the reward of Ni et al., When Do
    Transformers Shine in RL? (2023), whose task lasts T steps whatever is done and shows the sign once.
    """

    best_return = 1.0
    memoryless_return = 0.5

    def __init__(
        self, num_envs: int = 1, *, length: int = 10, active: bool = False, min_length: int | None = None, **base: Any
    ) -> None:
        """`length`: cells from the start to the junction, so steps the sign must be kept (active: one more).

        `min_length`: the shortest length there may be; None: all are `length`.
        """
        check_at_least(1, length=length)
        shortest = length if min_length is None else min_length
        if not 1 <= shortest <= length:
            raise ValueError(f"min_length must lie in [1, {length}], length being the longest, not be {min_length}")
        space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        super().__init__(num_envs, space, spaces.Discrete(4), uniforms=1 + (shortest < length), **base)
        self._oracle_distance = int(active)
        self._shortest, self._longest = shortest, length
        self._position, self._arm, self._time, self._sign = np.zeros((4, num_envs), dtype=np.int64)
        self._junction = np.full(num_envs, length + self._oracle_distance)
        self._last = (self._junction + self._oracle_distance).astype(np.float32)  # T - 1

    @property
    def longest_episode(self) -> int:
        return self._longest + 1 + 2 * self._oracle_distance

    def _begin(self, rows: Rows, uniforms: Uniforms, options: dict[str, Any]) -> None:
        self._sign[rows] = np.where(uniforms[:, 0] < 0.5, -1, 1)
        if self._shortest < self._longest:
            drawn = (uniforms[:, 1] * (self._longest - self._shortest + 1)).astype(np.int64)
            self._junction[rows] = self._shortest + drawn + self._oracle_distance
            self._last[rows] = self._junction[rows] + self._oracle_distance
        self._position[rows] = self._oracle_distance
        self._arm[rows] = 0
        self._time[rows] = 0

    def _advance(self, actions: Any) -> Outcome:
        position, arm = self._position, self._arm
        np.multiply(_UP[actions], position == self._junction, out=arm)
        position += _RIGHT[actions]
        np.minimum(position, self._junction, out=position)
        np.maximum(position, 0, out=position)
        self._time += 1
        chosen, over = arm != 0, self._time > self._last
        late = position < self._time - self._oracle_distance
        rewards = np.where(over | chosen, np.float32(0.0), late / -self._last)
        rewards += arm == self._sign
        return rewards, chosen | over

    def _observe(self) -> NDArray[np.float32]:
        observations = np.empty((self.num_envs, 2), np.float32)
        np.multiply(self._sign, self._position == 0, out=observations[:, 0], casting="unsafe")
        np.equal(self._position, self._junction, out=observations[:, 1], casting="unsafe")
        return observations

    def _outcome(self, rows: Rows) -> dict[str, NDArray[Any]]:
        return {"is_success": self._arm[rows] == self._sign[rows]}

    def _text(self, row: int) -> str:
        junction = int(self._junction[row])
        cells = [["."] * (junction + 1) if y == 0 else [" "] * junction + ["."] for y in (1, 0, -1)]
        cells[1][0] = "^" if self._sign[row] > 0 else "v"
        cells[1 - int(self._arm[row])][int(self._position[row])] = "A"
        return "\n".join("".join(line) for line in cells) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Cells as squares: the corridor gray, the sign on the oracle, the rewarded arm green, the agent blue.

        All pictures are as wide as that of the longest corridor.
        """
        width, junction = self._longest + self._oracle_distance + 1, int(self._junction[row])
        size = cell_size(width)
        colors = np.full((3, width, 3), BACKGROUND, dtype=np.uint8)
        colors[1, : junction + 1] = colors[:, junction] = GRAY
        sign = int(self._sign[row])
        colors[1 - sign, junction] = GREEN
        colors[1 - int(self._arm[row]), int(self._position[row])] = BLUE
        picture = enlarge(colors, size)
        # The sign fills the upper or the lower half of the oracle's cell.
        half = slice(size, size + size // 2) if sign > 0 else slice(size + size // 2, 2 * size)
        picture[half, size // 4 : size - size // 4] = GREEN
        return picture


class Cards(Script):
    """Decks of cards, shuffled and shown suit by suit; which suit is to be named is the subclass's rule.

    K = 52 * num_decks cards, as many of each of 4 suits. An episode shows them all: K - 1 answers.
    """

    symbols = "♠♥♦♣"

    def __init__(self, num_envs: int, cards: int, questions: int, **base: Any) -> None:
        self.cards = cards
        super().__init__(
            num_envs,
            sizes=(4,),
            answers=4,
            steps=cards - 1,
            questions=questions,
            uniforms=cards,
            space=spaces.Discrete(4),
            **base,
        )

    def _write(self, uniforms: Uniforms, shown: Integers, right: Integers) -> None:
        deck = np.argsort(uniforms, axis=1) % 4  # the order of random numbers is a random order
        shown[..., 0] = deck
        self._ask(deck, right)

    @abstractmethod
    def _ask(self, deck: Integers, right: Integers) -> None:
        """Decks (R, K) -> fills the right answers, (R, K - 1)."""

    def _observe(self) -> Integers:
        suits: Integers = self._shown[self._every_row, self._time, 0]
        return suits


class RepeatPrevious(Cards):
    """RepeatPrevious-v0: name the suit of the card seen k - 1 cards before the present one, as POPGym's task.

    Observation, Discrete(4): the suit of the present card. Actions, Discrete(4): a suit.
    Reward: 0 for the first k - 1 answers, for which there is no such card; then 1 / (K - k) for the right suit and
    minus that for a wrong one, K being 52 * num_decks, so that the best answers sum to 1.
    End: terminated when the last card is shown, after K - 1 answers.
    Return: best 1. Without memory 2 p - 1, with p the chance that an earlier card has some suit other than the present
    one's: 13 num_decks / (K - 1), so -25/51 = -0.490 with one deck (k = 1 needs no memory and is worth 1).

    k = 4 with one deck is POPGym's RepeatPreviousEasy (Morad et al., 2023), 32 with two its Medium, 64 with three its
    Hard; there the end of the deck is a truncation.
    """

    def __init__(self, num_envs: int = 1, *, k: int = 4, num_decks: int = 1, **base: Any) -> None:
        """`k`: how far back, the present card being 1."""
        cards = _count(num_decks)
        if not 1 <= k < cards:
            raise ValueError(f"k must lie in [1, {cards - 1}], the cards of {num_decks} deck(s), not be {k}")
        super().__init__(num_envs, cards, cards - k, **base)
        self._back = k - 1
        self.memoryless_return = 1.0 if k == 1 else 2.0 * (cards // 4) / (cards - 1) - 1.0

    def _ask(self, deck: Integers, right: Integers) -> None:
        right[:, self._back :] = deck[:, : right.shape[1] - self._back]


class RepeatFirst(Cards):
    """RepeatFirst-v0: name the suit of the first card, as POPGym's task.

    Observation, Discrete(4): the suit of the present card. Actions, Discrete(4): a suit.
    Reward: 1 / (K - 1) for the right suit, minus that for a wrong one, at every step, the first included; K is
    52 * num_decks.
    End: terminated when the last card is shown, after K - 1 answers.
    Return: best 1. Without memory the best is to name the present suit, right at first and with chance
    (13 num_decks - 1) / (K - 1) later: -0.499 with one deck.

    One deck is POPGym's RepeatFirstEasy (Morad et al., 2023), 8 its Medium, 16 its Hard; there the end of the deck is a
    truncation.
    """

    def __init__(self, num_envs: int = 1, *, num_decks: int = 1, **base: Any) -> None:
        cards = _count(num_decks)
        answers = cards - 1
        super().__init__(num_envs, cards, answers, **base)
        right = 1.0 + (answers - 1) * (cards // 4 - 1) / answers
        self.memoryless_return = 2.0 * right / answers - 1.0

    def _ask(self, deck: Integers, right: Integers) -> None:
        right[:] = deck[:, :1]


def _count(num_decks: int) -> int:
    check_at_least(1, num_decks=num_decks)
    return 52 * num_decks


# Moves of the T-maze's actions: right, up, left, down.
_RIGHT = np.array([1, 0, -1, 0])
_UP = np.array([0, 1, 0, -1])


# Single environments, for gymnasium.make.
TMazeEnv = single(TMaze)
RepeatPreviousEnv = single(RepeatPrevious)
RepeatFirstEnv = single(RepeatFirst)
