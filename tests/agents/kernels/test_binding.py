"""Nothing reaches a compiled function that it would misread: every one of them, by a table.

The table says by hand what fits, so that a declaration that does not say what C reads is found: here, or by the
sanitizers that ``make test-native`` runs this under.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from agents.kernels import binding, convolutions, heads, recurrent, scan
from agents.kernels.binding import DECLARATIONS, SIZE_FUNCTIONS, Function, MismatchError

COMPILED = all(each.available for each in (heads, recurrent, convolutions, scan))
pytestmark = pytest.mark.skipif(not COMPILED, reason="built without a C compiler")

T, F, H, A = 3, 5, 8, 2
LSTM, GRU = 2, 3
SIZES = (2, 3)
WIDTHS = (5, 16, 7)


class Call(NamedTuple):
    """Arguments that fit."""

    tensors: list[Tensor | None]
    numbers: tuple[float, ...] = ()
    widths: tuple[int, ...] = ()


def floats(*shapes: tuple[int, ...]) -> list[Tensor | None]:
    return [torch.full(shape, 0.5) for shape in shapes]


def starts(*shape: int) -> Tensor:
    found = torch.zeros(shape, dtype=torch.bool)
    found[::2] = True
    return found


def over_time(n: int, *gates: int) -> list[tuple[int, ...]]:
    """Of two memories: T steps of n sequences."""
    return [(2, T, n, gate, H) if gate else (2, T, n, H) for gate in gates]


def layers(n: int, *kinds: str) -> list[Tensor | None]:
    shapes = {"weights": [(16, 5), (7, 16)], "biases": [(16,), (7,)]}
    return [part for kind in kinds for part in floats(*shapes[kind])]  # type: ignore[misc]


def perceptron_size() -> int:
    return (5 + 1) * 16 + (16 + 1) * 16


def choices(n: int) -> list[Tensor]:
    return [torch.tensor(SIZES), torch.ones(n, A, dtype=torch.int64)]


def images_and_layers(n: int) -> list[Tensor | None]:
    """Images of 9 x 7 -> 4 x 3 positions -> 3 x 2, and two layers' parameters."""
    layers = torch.tensor([[3, 3, 3, 2, 2], [20, 2, 2, 1, 1]])
    return [layers, torch.full((n, 2, 9, 7), 3, dtype=torch.uint8), *floats((3 * (2 * 9 + 1) + 20 * (3 * 4 + 1),))]


def kept_of(n: int) -> tuple[int, ...]:
    """Channels padded to 16 and 32."""
    return (n * (4 * 3 * 16 + 3 * 2 * 32),)


# By the number n of sequences, environments or steps.
CALLS: dict[str, Callable[[int], Call]] = {
    "pack": lambda n: Call(floats((4 * H, F + H), (64 * (F + H),))),
    "forward": lambda n: Call(
        [
            *floats(*over_time(n, 3), (2, 3, H, H), (2, H), (1, 2, n, H)),
            starts(T, n),
            *floats(*over_time(n, 0), (2, *over_time(n, 0)[0])),
        ],
        (GRU, 1, 1),
    ),
    "backward": lambda n: Call(
        [
            *floats(*over_time(n, 0), (2, 3, H, H), (1, 2, n, H)),
            starts(T, n),
            *floats(*over_time(n, 3), (2, *over_time(n, 0)[0]), *over_time(n, 3, 3), (1, 2, n, H)),
        ],
        (GRU, 1, 1),
    ),
    "step": lambda n: Call(
        [*floats((n, F), (2, n, H)), starts(n), *floats((64 * (F + H),), (4 * H,), (2, n, H))], (LSTM,)
    ),
    "perceptron_pack": lambda n: Call([*floats((perceptron_size(),)), *layers(n, "weights", "biases")], (), WIDTHS),
    "perceptron_run": lambda n: Call(floats((n, 5), (perceptron_size(),), (16 * n,), (n, 7)), (1, 0), WIDTHS),
    "perceptron_forward": lambda n: Call(
        [*floats((n, 5), (16 * n,), (n, 7)), *layers(n, "weights", "biases")], (2, 1), WIDTHS
    ),
    "perceptron_backward": lambda n: Call(
        [*floats((n, 5), (16 * n,), (n, 7), (n, 7), (n, 5)), *layers(n, "weights", "weights", "biases")],
        (1, 1),
        WIDTHS,
    ),
    "categorical_sample": lambda n: Call([choices(n)[0], *floats((n, 5), (n, 5)), choices(n)[1], *floats((n,))]),
    "categorical_forward": lambda n: Call([choices(n)[0], *floats((n, 5)), choices(n)[1], *floats((n,), (n,), (n, 5))]),
    "categorical_backward": lambda n: Call(
        [choices(n)[0], *floats((n, 5)), choices(n)[1], *floats((n,), (n,), (n, 5))]
    ),
    "gaussian_forward": lambda n: Call(floats((n, A), (A,), (n, A), (n,))),
    "gaussian_backward": lambda n: Call(floats((n, A), (A,), (n, A), (n,), (n, A), (A,))),
    "clipped_objective": lambda n: Call([*floats(*[(n,)] * 10), *floats((6,))], (1, 0.2, 0.1, 0.01, 0.5)),
    "convolutions_forward": lambda n: Call([*images_and_layers(n), *floats(kept_of(n), (n, 120))], (2,)),
    "convolutions_backward": lambda n: Call(
        [*images_and_layers(n), *floats(kept_of(n), (n, 120)), torch.empty_like(images_and_layers(n)[2])],  # type: ignore[arg-type]
        (2,),
    ),
    "scan_real": lambda n: Call([*floats((T, n, A), (T, n, A), (n, A)), starts(T, n), *floats((T, n, A))]),
    "scan_real_backward": lambda n: Call(
        [*floats((T, n, A), (n, A)), starts(T, n), *floats(*[(T, n, A)] * 4, (n, A))],
    ),
    "scan_complex": lambda n: Call([*floats((F, 2), (T, n, F, 2), (n, F, 2)), starts(T, n), *floats((T, n, F, 2))]),
    "scan_complex_backward": lambda n: Call(
        [
            *floats((F, 2), (n, F, 2)),
            starts(T, n),
            *floats((T, n, F, 2), (T, n, F, 2), (F, 2), (T, n, F, 2), (n, F, 2)),
        ],
    ),
    "scan_traces": lambda n: Call(
        [*floats((F, A, 2), (T, n, F), (n, F, A, 2)), starts(T, n), *floats((T, n, F, A, 2))]
    ),
    "scan_traces_backward": lambda n: Call(
        [
            *floats((F, A, 2), (n, F, A, 2)),
            starts(T, n),
            *floats((T, n, F, A, 2), (T, n, F, A, 2), (F, A, 2), (T, n, F), (n, F, A, 2)),
        ],
    ),
}
FUNCTIONS: dict[str, Function] = {
    **recurrent.library.functions,
    **heads.library.functions,
    **convolutions.library.functions,
    **scan.library.functions,
}
MAY_BE = {  # array, axis and length of which a function takes others than those of the table
    ("pack", 0, 0, 4 * H + 2),  # outputs up to the next multiple of a tile fit into the same packed array
    ("pack", 0, 0, 4 * H - 1),
    ("convolutions_forward", 3, 0, 0),  # nothing is kept
}

every_function = pytest.mark.parametrize("name", CALLS)


def changed(call: Call, at: int, tensor: Tensor | None) -> Call:
    return call._replace(tensors=[*call.tensors[:at], tensor, *call.tensors[at + 1 :]])


def arrays(name: str, n: int = 2) -> list[tuple[Call, int, Tensor]]:
    call = CALLS[name](n)
    return [(call, at, tensor) for at, tensor in enumerate(call.tensors) if tensor is not None]


def test_every_exported_function_is_declared_and_in_the_table() -> None:
    for library, declarations in DECLARATIONS.items():
        source = (Path(binding.__file__).parent / f"{library}.c").read_text()
        exported = set(re.findall(r"^(?!static|INLINE|typedef)\w[\w \*]*?\b(\w+)\([^;{]*\)\s*\{", source, re.MULTILINE))
        assert exported == {*declarations, *SIZE_FUNCTIONS[library], f"{library}_version"}
    assert CALLS.keys() == FUNCTIONS.keys()


@every_function
@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_what_fits_is_computed(name: str, n: int) -> None:
    call = CALLS[name](n)
    FUNCTIONS[name](*call)
    FUNCTIONS[name].prepared(*call)()


@every_function
def test_an_array_of_another_length_is_refused(name: str) -> None:
    for call, at, tensor in arrays(name):
        for axis, length in enumerate(tensor.shape):
            for other in {0, length - 1, length + 2, 3 * length} - {
                it[3] for it in MAY_BE if it[:3] == (name, at, axis)
            }:
                shape = (*tensor.shape[:axis], other, *tensor.shape[axis + 1 :])
                with pytest.raises(MismatchError, match=name):
                    FUNCTIONS[name](*changed(call, at, torch.ones(shape, dtype=tensor.dtype)))


@every_function
def test_an_array_of_another_number_of_axes_is_refused(name: str) -> None:
    for call, at, tensor in arrays(name):
        for other in (tensor[None], tensor.sum().to(tensor.dtype) if tensor.dim() else torch.ones(2)):
            with pytest.raises(MismatchError, match=name):
                FUNCTIONS[name](*changed(call, at, other))


@every_function
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32, torch.uint8])
def test_an_array_of_another_type_is_refused(name: str, dtype: torch.dtype) -> None:
    for call, at, tensor in arrays(name):
        if tensor.dtype is dtype:
            continue
        with pytest.raises(TypeError, match=str(tensor.dtype)):
            FUNCTIONS[name](*changed(call, at, tensor.to(dtype)))


@every_function
def test_an_array_that_is_not_contiguous_or_elsewhere_is_refused(name: str) -> None:
    for call, at, tensor in arrays(name):
        if tensor.dim():  # a single number always is contiguous
            with pytest.raises(TypeError, match="contiguous"):
                FUNCTIONS[name](*changed(call, at, torch.stack((tensor, tensor), dim=-1)[..., 0]))
        with pytest.raises(TypeError, match="meta"):
            FUNCTIONS[name](*changed(call, at, tensor.to("meta")))


@every_function
def test_a_missing_array_is_refused(name: str) -> None:
    call = CALLS[name](2)
    optional = [parameter.optional for parameter in FUNCTIONS[name].declaration.parameters]
    for at in range(len(optional)):
        if not optional[at]:
            with pytest.raises(MismatchError, match="None"):
                FUNCTIONS[name](*changed(call, at, None))
    with pytest.raises(MismatchError, match="arrays"):
        FUNCTIONS[name](*call._replace(tensors=call.tensors[:-1]))


@pytest.mark.parametrize("name", ["forward", "backward", "step"])
def test_sizes_that_are_not_those_of_the_kind_of_cell_are_refused(name: str) -> None:
    call = CALLS[name](2)
    for kind in {-1, 0, 1, 2, 3, 4} - {call.numbers[0]}:
        with pytest.raises(MismatchError, match="what is in its arrays"):
            FUNCTIONS[name](*call._replace(numbers=(kind, *call.numbers[1:])))
    if name != "step":
        at = 2 if name == "forward" else 7  # what only a GRU has
        for wrong in (changed(call, at, None), call._replace(numbers=(GRU, 0, 1)), call._replace(numbers=(GRU, 1, 0))):
            with pytest.raises(MismatchError, match="what is in its arrays"):
                FUNCTIONS[name](*wrong)


def test_choices_that_do_not_add_up_to_the_logits_are_refused() -> None:
    for name in ("categorical_sample", "categorical_forward", "categorical_backward"):
        for sizes in ([2, 2], [3, 3], [5, 0], [-1, 6]):
            with pytest.raises(MismatchError):
                FUNCTIONS[name](*changed(CALLS[name](2), 0, torch.tensor(sizes)))


def test_actions_that_are_no_choice_are_refused_forward_and_backward() -> None:
    for name in ("categorical_forward", "categorical_backward"):
        for action in (-1, 3, 2**62):
            with pytest.raises(MismatchError):
                FUNCTIONS[name](*changed(CALLS[name](2), 2, torch.full((2, A), action)))


@pytest.mark.parametrize("name", ["convolutions_forward", "convolutions_backward"])
def test_layers_that_do_not_fit_images_and_parameters_are_refused(name: str) -> None:
    call = CALLS[name](2)
    first, second = [3, 3, 3, 2, 2], [20, 2, 2, 1, 1]
    for at in range(5):
        for other in (-(2**62), -1, 0, first[at] + 3, 4097, 2**62):
            wrong = torch.tensor([[*first[:at], other, *first[at + 1 :]], second])
            with pytest.raises(MismatchError, match="what is in its arrays"):
                FUNCTIONS[name](*changed(call, 0, wrong))
    with pytest.raises(MismatchError, match="what is in its arrays"):
        FUNCTIONS[name](*call._replace(numbers=(0,)))
    for wrong in (torch.tensor([first]), torch.tensor([second, first]), torch.tensor([first, second, second])):
        with pytest.raises(MismatchError, match="what is in its arrays"):
            FUNCTIONS[name](*changed(call, 0, wrong))


def test_widths_that_are_none_are_refused() -> None:
    call = CALLS["perceptron_forward"](2)
    for widths in [(), (5,), (5, 0, 7), (5, -16, 7), (5, 16)]:
        with pytest.raises(MismatchError):
            FUNCTIONS["perceptron_forward"](*call._replace(widths=widths))


def test_hidden_units_must_fill_registers() -> None:
    tensors: list[Any] = [*floats((2, F), (1, 2, 6)), starts(2), *floats((64 * (F + 6),), (6,), (1, 2, 6))]
    with pytest.raises(MismatchError, match="multiple of 8"):
        FUNCTIONS["step"](tensors, (0,))


def test_what_was_checked_once_is_checked_again_for_other_shapes() -> None:
    call = CALLS["gaussian_forward"](4)
    for _ in range(3):
        FUNCTIONS["gaussian_forward"](*call)
        with pytest.raises(MismatchError):
            FUNCTIONS["gaussian_forward"](*changed(call, 3, torch.zeros(3)))


def test_what_is_known_by_its_shapes_is_still_checked_for_its_type() -> None:
    for name in CALLS:
        for call, at, tensor in arrays(name):
            FUNCTIONS[name](*call)
            with pytest.raises(TypeError):
                FUNCTIONS[name](*changed(call, at, tensor.double()))
