"""Greedy decoding from a state, compared with reading the whole prefix again for each new token."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.comparison import Comparison
from benchmarks.sizes import MODELS, NUM_TOKENS, make
from benchmarks.table import run
from rule_extrapolation.core.tokens import FIRST_SYMBOL, PAD
from rule_extrapolation.grammars.grammar import prepend_sos
from rule_extrapolation.inference.decoding import Greedy
from rule_extrapolation.models.language_model import LanguageModel

AT_LEAST = {32: 8.0, 256: 60.0}
AT_LEAST_OF = {"linear": {32: 1.0, 256: 2.0}}


class NeverEnding(Greedy):
    """Greedy decoding without EOS, so that all completions have the full length."""

    def pick(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        return PAD + logits[:, PAD:].argmax(1)


@torch.no_grad()
def read_again(model: LanguageModel, prompts: Tensor, decoder: Greedy) -> Tensor:
    tokens = prompts
    for _ in range(decoder.max_new_tokens):
        token = decoder.pick(model(tokens)[:, :, -1], None)
        tokens = torch.cat([tokens, token[:, None]], 1)
    return tokens


def comparisons(lengths: tuple[int, ...] = (32, 256), num_prompts: int = 128) -> Iterator[Comparison]:
    torch.manual_seed(0)
    prompts = prepend_sos(torch.randint(FIRST_SYMBOL, NUM_TOKENS, (num_prompts, 6)))
    for length in lengths:
        decoder = NeverEnding(length - prompts.shape[1])
        for name in MODELS:
            model = make(name, length + 1).eval()
            yield Comparison(
                name=f"greedy decoding to {length} tokens: {name}",
                ours=lambda model=model, decoder=decoder: decoder(model, prompts),
                peer=lambda model=model, decoder=decoder: read_again(model, prompts, decoder),
                peer_name="the model on the whole prefix for each token",
                at_least=AT_LEAST_OF.get(name, AT_LEAST)[length],
            )


if __name__ == "__main__":
    run(comparisons())
