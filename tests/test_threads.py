"""How many threads are used, and that decoding leaves the number as it was."""

import pytest
import torch
from sizes import make
from torch import nn

from rule_extrapolation.core.threads import WORTH_A_THREAD, multiply_adds, threads_limited, useful_threads
from rule_extrapolation.grammars.grammar import prepend_sos
from rule_extrapolation.inference.decoding import Greedy


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("worth", "threads"), [(0, 1), (0.5, 1), (1.9, 1), (3, 3), (4, 4), (1e9, 4)])
def test_products_get_the_threads_they_are_worth_and_no_more_than_there_are(four_threads, worth, threads):
    assert useful_threads(worth * WORTH_A_THREAD) == threads


def test_multiply_adds_of_a_product():
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    assert multiply_adds(model, 3) == 3 * (200 + 100) / 2
    assert multiply_adds(nn.ReLU(), 3) == 0


@pytest.mark.parametrize(("asked", "used"), [(1, 1), (3, 3), (8, 4)])
def test_limited_never_raises_the_number(four_threads, asked, used):
    with threads_limited(asked):
        assert torch.get_num_threads() == used
    assert torch.get_num_threads() == 4


def test_limited_is_undone_by_an_error(four_threads):
    with pytest.raises(KeyError), threads_limited(1):
        raise KeyError
    assert torch.get_num_threads() == 4


class Watched(Greedy):
    """Notes how many threads there are at each token."""

    def pick(self, logits, generator):
        self.threads = torch.get_num_threads()
        return super().pick(logits, generator)


@pytest.mark.parametrize(("name", "rows", "threads"), [("minlstm-tiny", 2, 1), ("lstm-l5", 1, 1), ("lstm-l5", 128, 4)])
def test_decoding_takes_the_threads_that_the_model_and_its_rows_are_worth(four_threads, name, rows, threads):
    decoder = Watched(3)
    decoder(make(name).eval(), prepend_sos(torch.full((rows, 2), 3)))
    assert decoder.threads == threads
    assert torch.get_num_threads() == 4
