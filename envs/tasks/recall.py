"""Tasks that are nothing but memory, with known best returns, vectorised in NumPy.

    TMaze-v0              remember for `length` steps which way to turn
    RepeatPrevious-v0     name the card seen a few cards ago
    RepeatFirst-v0        name the first card

`best_return` is what a perfect memory earns on average, `memoryless_return` what the best policy earns that acts on the
present observation alone: an agent that stays there has not learned to remember, one above it has.

Axes: N environments, R some of them ("rows"), K cards in a deck.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs.tasks.batch import BatchEnv, Rows, SingleEnv
from envs.tasks.pictures import BACKGROUND, BLUE, GREEN, cell_size, enlarge


class TMaze(BatchEnv):
    """TMaze-v0: a sign in a corridor says which arm of the T holds the reward; only memory takes it to the junction.

    ::

                                  up
        O  S  .  .  .  .  .  .  . J          O oracle, S start, J junction
                                  down

    Passive (default): S is O, so the sign is seen at the start. Active: S is one cell right of O, and the agent has to
    go and look. From S to J are `length` cells, and an episode has T = length + 1 steps (active: length + 3): enough
    for the best policy and no more.

    Observation, Box (2,) float32: 0 the sign, 1 for up and -1 for down on the oracle, else 0; 1 whether this is the
    junction or an arm, 1 or 0. All other cells look alike.
    Actions, Discrete(4): 0 right, 1 up, 2 left, 3 down; a move into a wall stays where it is.
    Reward: stepping into the right arm 1, into the wrong one 0. Before the last step, being further back than a walker
    who never dawdles costs 1 / (T - 1) a step: after t steps, a position below t (active: below t - 1), O being 0.
    Start: the sign is up or down with equal chance.
    End: terminated on stepping into an arm, or after T steps. The last info says "is_success".
    Return: best 1; without memory 0.5 (walk on, guess the arm); worst close to -1.

    After Bakker, Reinforcement Learning with Long Short-Term Memory (2001), with the reward of Ni et al., When Do
    Transformers Shine in RL? (2023), which makes walking learnable so that memory is what is tested. Theirs lasts T
    steps whatever is done, and shows the sign at the first visit only.
    """

    best_return = 1.0
    memoryless_return = 0.5

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        length: int = 10,
        active: bool = False,
    ) -> None:
        """`length`: cells from the start to the junction, so steps the sign must be kept (active: one more)."""
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        super().__init__(
            num_envs,
            spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32)),
            spaces.Discrete(4),
            uniforms=1,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
        self._oracle_distance = int(active)
        self._junction = length + self._oracle_distance
        self.horizon = length + 1 + 2 * self._oracle_distance
        self._penalty = np.float32(1.0 / (self.horizon - 1))
        self._position, self._arm, self._time, self._sign = np.zeros((4, num_envs), dtype=np.int64)

    def _begin(self, rows: Rows, uniforms: NDArray[np.float64], options: dict[str, Any]) -> None:
        self._sign[rows] = np.where(uniforms[:, 0] < 0.5, -1, 1)
        self._position[rows] = self._oracle_distance
        self._arm[rows] = 0
        self._time[rows] = 0

    def _advance(self, actions: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        position, arm = self._position, self._arm
        np.multiply(_UP[actions], position == self._junction, out=arm)
        position += _RIGHT[actions]
        np.minimum(position, self._junction, out=position)
        np.maximum(position, 0, out=position)
        self._time += 1
        chosen, over = arm != 0, self._time >= self.horizon
        late = position < self._time - self._oracle_distance
        rewards = np.where(over | chosen, np.float32(0.0), -self._penalty * late)
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
        cells = [["."] * (self._junction + 1) if y == 0 else [" "] * self._junction + ["."] for y in (1, 0, -1)]
        cells[1][0] = "^" if self._sign[row] > 0 else "v"
        cells[1 - int(self._arm[row])][int(self._position[row])] = "A"
        return "\n".join("".join(line) for line in cells) + "\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """Cells as squares: the corridor grey, the sign on the oracle, the rewarded arm green, the agent blue."""
        size = cell_size(self._junction + 1)
        colours = np.full((3, self._junction + 1, 3), BACKGROUND, dtype=np.uint8)
        colours[1, :] = colours[:, -1] = _FLOOR
        sign = int(self._sign[row])
        colours[1 - sign, -1] = GREEN
        colours[1 - int(self._arm[row]), int(self._position[row])] = BLUE
        picture = enlarge(colours, size)
        # The sign fills the upper or the lower half of the oracle's cell.
        half = slice(size, size + size // 2) if sign > 0 else slice(size + size // 2, 2 * size)
        picture[half, size // 4 : size - size // 4] = GREEN
        return picture


class TMazeEnv(SingleEnv):
    """One `TMaze`."""

    def __init__(self, render_mode: str | None = None, length: int = 10, active: bool = False) -> None:
        super().__init__(TMaze(1, None, render_mode, length, active))


class Cards(BatchEnv):
    """Decks of cards, shuffled and shown suit by suit; what is to be named is the subclass's rule.

    K = 52 * num_decks cards, as many of each of 4 suits. An episode shows them all: K - 1 answers.
    """

    def __init__(self, num_envs: int, max_episode_steps: int | None, render_mode: str | None, num_decks: int) -> None:
        if num_decks < 1:
            raise ValueError(f"num_decks must be at least 1, not {num_decks}")
        self.cards = 52 * num_decks
        super().__init__(
            num_envs,
            spaces.Discrete(4),
            spaces.Discrete(4),
            uniforms=self.cards,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
        self._deck = np.zeros((num_envs, self.cards), dtype=np.int64)
        self._shown = np.zeros(num_envs, dtype=np.int64)
        self._answers = np.full(num_envs, -1, dtype=np.int64)

    def _begin(self, rows: Rows, uniforms: NDArray[np.float64], options: dict[str, Any]) -> None:
        # The order of random numbers is a random order.
        self._deck[rows] = np.argsort(uniforms, axis=1) % 4
        self._shown[rows] = 0
        self._answers[rows] = -1

    def _advance(self, actions: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        self._answers[:] = actions
        rewards = self._judge(self._answers)
        self._shown += 1
        return rewards, self._shown == self.cards - 1

    def _judge(self, answers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The reward, (N,), of naming the suits `answers` while card number `_shown` is seen."""
        raise NotImplementedError

    def _observe(self) -> NDArray[np.int64]:
        return self._deck[self._every_row, self._shown]

    def _text(self, row: int) -> str:
        shown, answer = int(self._shown[row]), int(self._answers[row])
        cards = "".join(_SUITS[suit] for suit in self._deck[row, : shown + 1].tolist())
        return f"{cards}\nlast answer: {_SUITS[answer] if answer >= 0 else '-'}\n"

    def _picture(self, row: int) -> NDArray[np.uint8]:
        """The last 13 cards, a colour a suit, the newest on the right; below it the last answer."""
        shown, answer = int(self._shown[row]), int(self._answers[row])
        colours = np.full((2, 13, 3), BACKGROUND, dtype=np.uint8)
        recent = self._deck[row, max(0, shown - 12) : shown + 1]
        colours[0, 13 - len(recent) :] = _SUIT_COLOURS[recent]
        if answer >= 0:
            colours[1, -1] = _SUIT_COLOURS[answer]
        return enlarge(colours, cell_size(13))


class RepeatPrevious(Cards):
    """RepeatPrevious-v0: name the suit of the card seen k - 1 cards before the present one, as POPGym's task.

    Observation, Discrete(4): the suit of the present card. Actions, Discrete(4): a suit.
    Reward: 0 for the first k - 1 answers, for which there is no such card; then 1 / (K - k) for the right suit and
    minus that for a wrong one, K being 52 * num_decks, so that the best answers sum to 1.
    Start: the shuffled deck's first card. End: terminated when the last card is shown, after K - 1 answers.
    Return: best 1. Without memory 2 p - 1, with p the chance that an earlier card has some suit other than the present
    one's: 13 num_decks / (K - 1), so -25/51 = -0.490 with one deck (k = 1 needs no memory and is worth 1).

    k = 4 with one deck is POPGym's RepeatPreviousEasy (Morad et al., 2023), 32 with two its Medium, 64 with three its
    Hard; there the end of the deck is a truncation.
    """

    best_return = 1.0

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        k: int = 4,
        num_decks: int = 1,
    ) -> None:
        """`k`: how far back, the present card being 1."""
        super().__init__(num_envs, max_episode_steps, render_mode, num_decks)
        if not 1 <= k < self.cards:
            raise ValueError(f"k must lie in [1, {self.cards - 1}], the cards of {num_decks} deck(s), not be {k}")
        self._back = k - 1
        self._unit = np.float32(1.0 / (self.cards - k))
        self.memoryless_return = 1.0 if k == 1 else 2.0 * (self.cards // 4) / (self.cards - 1) - 1.0

    def _judge(self, answers: NDArray[np.int64]) -> NDArray[np.float32]:
        asked = self._shown - self._back
        # Before there is a card to name, `asked` is negative; the card it picks out from the end is not looked at.
        right = self._deck[self._every_row, asked] == answers
        return np.where(right, self._unit, -self._unit) * (asked >= 0)


class RepeatPreviousEnv(SingleEnv):
    """One `RepeatPrevious`."""

    def __init__(self, render_mode: str | None = None, k: int = 4, num_decks: int = 1) -> None:
        super().__init__(RepeatPrevious(1, None, render_mode, k, num_decks))


class RepeatFirst(Cards):
    """RepeatFirst-v0: name the suit of the first card, as POPGym's task.

    Observation, Discrete(4): the suit of the present card. Actions, Discrete(4): a suit.
    Reward: 1 / (K - 1) for the right suit, minus that for a wrong one, at every step, the first included; K is
    52 * num_decks.
    Start: the shuffled deck's first card. End: terminated when the last card is shown, after K - 1 answers.
    Return: best 1. Without memory the best is to name the present suit, right at first and with chance
    (13 num_decks - 1) / (K - 1) later: -0.499 with one deck.

    One deck is POPGym's RepeatFirstEasy (Morad et al., 2023), 8 its Medium, 16 its Hard; there the end of the deck is a
    truncation.
    """

    best_return = 1.0

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        num_decks: int = 1,
    ) -> None:
        super().__init__(num_envs, max_episode_steps, render_mode, num_decks)
        answers = self.cards - 1
        self._unit = np.float32(1.0 / answers)
        right = 1.0 + (answers - 1) * (self.cards // 4 - 1) / answers
        self.memoryless_return = 2.0 * right / answers - 1.0

    def _judge(self, answers: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.where(self._deck[:, 0] == answers, self._unit, -self._unit)


class RepeatFirstEnv(SingleEnv):
    """One `RepeatFirst`."""

    def __init__(self, render_mode: str | None = None, num_decks: int = 1) -> None:
        super().__init__(RepeatFirst(1, None, render_mode, num_decks))


# Moves of the T-maze's actions: right, up, left, down.
_RIGHT = np.array([1, 0, -1, 0])
_UP = np.array([0, 1, 0, -1])

_SUITS = "♠♥♦♣"
_FLOOR = (200, 200, 200)
_SUIT_COLOURS = np.array([(40, 40, 40), (200, 50, 50), (230, 150, 40), (60, 140, 80)], dtype=np.uint8)
