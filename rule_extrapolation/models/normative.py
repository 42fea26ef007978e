from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_extrapolation.core.errors import ConfigError, check_positive
from rule_extrapolation.core.tokens import EOS, FIRST_SYMBOL, PAD, SOS
from rule_extrapolation.models.language_model import LanguageModel
from rule_extrapolation.models.normative_rules import Rules, all_counts, consistent_automata, num_tables, reached_states

MAX_AUTOMATA = 2**16
"""The maximum number of transition tables that are listed."""

NormativeState = tuple[Tensor, Tensor, Tensor, int]
"""(B, H) each rule's node, (B,) the number of symbols read, (B,) bool: whether the word has ended, and the number of
tokens read."""


class NormativeLM(LanguageModel):
    """A Bayesian mixture over rules: what the simplest explanation of the training words would do.

    A rule is an automaton and a count, both of which a word keeps.

    - Automata are all deterministic finite automata of up to ``states`` states, besides one from which nothing is
      accepted. Each language counts once, by its smallest automaton.
    - Counts are: no condition; ``c #x + c' #y = d`` for one or two symbols, with coefficients of which none is larger
      than ``max_coefficient`` and no common divisor; and the same modulo m, up to ``max_modulo``.

    The prior of a rule is 2^-bits, its description length (``automaton_bits``, ``Count.bits``). Given a rule, a word's
    length is drawn uniformly from those, up to the maximum, at which the rule has words, and then the word uniformly
    from the rule's words of this length. So the posterior prefers rules with few words (the size principle of
    Tenenbaum & Griffiths 2001) and is zero for those that a training word breaks. It is exact.

    Completions are those of the mixture given the prompt: a rule that the prompt has broken has no weight, and those
    that remain keep their ratio. An OOD prompt is thus read as a word of the most probable rule that allows both it and
    the training words. "All strings" is one of the rules, so that there is always one.

    Rules with more than one count (#a = #b = #c), more states, or a memory (nested brackets) are not covered.

    Logits are log-probabilities. Impossible tokens get the logarithm of the smallest positive float, so that losses
    stay finite. EOS and PAD are followed by PAD.

    Args:
        max_data_length: the maximum number of symbols in a word. The model reads one token more, SOS.
        states: of the automata. None: as many as the number of symbols allows: 3 for two symbols,
            2 for three or four.
        max_coefficient: the largest coefficient and constant of an equation.
        max_modulo: the largest m. 1: no congruences.

    Raises:
        ConfigError: a size that is not positive; too many automata; a maximum length whose number of words exceeds the
            range of floats; training rows that are not words; more rules than memory is planned for.
    """

    fitted_by_counting = True
    baseline = True
    context_setting = "max_data_length"

    def __init__(
        self,
        num_tokens: int,
        max_data_length: int = 32,
        states: int | None = None,
        max_coefficient: int = 2,
        max_modulo: int = 4,
    ):
        super().__init__()
        sizes = {"max_coefficient": max_coefficient, "max_modulo": max_modulo}
        check_positive(max_data_length=max_data_length, **sizes, **({} if states is None else {"states": states}))
        self.num_tokens, self.num_symbols = num_tokens, num_tokens - FIRST_SYMBOL
        if self.num_symbols < 1:
            raise ConfigError("num_tokens", num_tokens, "has no symbols besides SOS, EOS and PAD")
        possible = [k for k in range(1, 20) if num_tables(k, self.num_symbols) <= MAX_AUTOMATA]
        if (states or 1) > len(possible):
            fix = f"too many automata over {self.num_symbols} symbols; " + (
                f"use {len(possible)} or fewer" if possible else "use a language with fewer symbols or another model"
            )
            raise ConfigError("states", states, fix)
        longest = int(300 / math.log10(max(self.num_symbols, 2)))
        if max_data_length > longest:
            fix = f"the number of words exceeds the range of floats; use {longest} or less"
            raise ConfigError("max_data_length", max_data_length, fix)
        self.states = min(3, len(possible)) if states is None else states
        self.max_context = max_data_length + 1
        self.max_length = max_data_length
        self.counts = all_counts(self.num_symbols, max_coefficient, max_modulo)
        # The rules that the training words keep. Until ``fit_counts``, the rule "all strings" alone.
        self.register_buffer("tables", torch.zeros(1, self.states + 1, self.num_symbols, dtype=torch.long))
        self.tables[:, 1:] = self.states
        self.register_buffer("accepting", F.one_hot(torch.zeros(1, dtype=torch.long), self.states + 1).bool())
        self.register_buffer("count_numbers", torch.zeros(1, dtype=torch.long))
        self.register_buffer("log_posterior", torch.zeros(1, dtype=torch.double))
        self._rules: Rules | None = None

    def fit_counts(self, rows: Iterable[Tensor], held_out: Iterable[Tensor], carried: bool = False) -> None:
        rows = torch.cat([batch.cpu() for batch in rows])
        words = rows[(rows == EOS).any(1)]
        if carried or not len(words):
            raise ConfigError("model", "normative", "learns from words, which end; set data=grammar")
        symbols, lengths = symbols_of(words)
        tables, accepting, bits = consistent_automata(self.states, self.num_symbols, symbols, lengths)
        kept = torch.tensor([number for number, count in enumerate(self.counts) if count.is_kept_by(symbols, lengths)])
        numbers = kept.repeat(len(tables))
        repeated = (each.repeat_interleave(len(kept), 0) for each in (tables, accepting, bits))
        self.tables, self.accepting, bits = (each.to(self.tables.device) for each in repeated)
        self.count_numbers = numbers.to(self.tables.device)
        bits = bits + torch.tensor([count.bits for count in self.counts], device=bits.device)[self.count_numbers]
        self._rules = None
        lengths = lengths.to(bits.device).clamp(max=self.max_length)
        log_likelihood = self.rules.log_word[:, lengths].sum(1)
        self.log_posterior = (log_likelihood - bits * math.log(2)).log_softmax(0)

    @property
    def rules(self) -> Rules:
        """The rules as one automaton, which is built when it is first used."""
        if self._rules is None or self._rules.next.device != self.tables.device:
            counts = [self.counts[number] for number in self.count_numbers.tolist()]
            self._rules = Rules(self.tables, self.accepting, counts, self.max_length)
        return self._rules

    def most_probable(self, number: int = 5, prompt: str = "", alphabet: str | None = None) -> list[tuple[float, str]]:
        """The most probable rules that a prompt allows, in words, each after its posterior probability.

        Args:
            prompt: symbols of the alphabet.
            alphabet: the symbols in the order of their tokens; by default a, b, c and so on.
        """
        alphabet = alphabet or "".join(chr(ord("a") + i) for i in range(self.num_symbols))
        tokens = torch.tensor([[SOS, *(FIRST_SYMBOL + alphabet.index(symbol) for symbol in prompt)]])
        _, (nodes, read, *_) = self.advance(tokens.to(self.tables.device), self.init_state(1))
        weights = (self.log_posterior + self.rules.log_completions[nodes[0], read[0]]).softmax(0)
        best = weights.topk(min(number, len(weights)))
        return [(float(p), self.describe(int(h), alphabet)) for p, h in zip(best.values, best.indices)]

    def describe(self, rule: int, alphabet: str) -> str:
        """A rule in words, such as "0 -b-> 1, 1 -a-> 1, 1 -b-> 1; ends in 1; #a = 0 mod 2"."""
        table, dead = self.tables[rule].tolist(), self.states
        moves = [
            f"{q} -{alphabet[x]}-> {to}"
            for q in range(dead)
            for x, to in enumerate(table[q])
            if to != dead and q in reached_states(table, dead)
        ]
        ends = ", ".join(str(q) for q in reached_states(table, dead) if self.accepting[rule, q])
        count = self.counts[int(self.count_numbers[rule])].describe(alphabet)
        return "; ".join(filter(None, [", ".join(moves), f"ends in {ends}", count]))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        # How many rules there are depends on the training words.
        for name, buffer in self.named_buffers():
            if prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        self._rules = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_state(self, batch_size: int) -> NormativeState:
        nodes = self.rules.roots.expand(batch_size, -1)
        return nodes, nodes.new_zeros(batch_size), torch.zeros(batch_size, dtype=torch.bool, device=nodes.device), 0

    def advance(self, tokens: Tensor, state: NormativeState) -> tuple[Tensor, NormativeState]:
        nodes, read, ended, num_tokens = state
        num_tokens += tokens.shape[1]
        self.check_context(num_tokens)
        rules, logits = self.rules, []
        for token in tokens.unbind(1):
            is_symbol = token >= FIRST_SYMBOL
            fresh = ended | ~is_symbol
            nodes = torch.where(fresh[:, None], rules.roots, nodes)
            read = torch.where(fresh, 0, read)
            symbol = (token - FIRST_SYMBOL).clamp_min(0)[:, None].expand_as(nodes)
            nodes = torch.where(is_symbol[:, None], rules.next[nodes, symbol], nodes)
            read = read + is_symbol
            ended = (token == EOS) | (token == PAD)
            logits.append(self.logits(nodes, read, ended))
        return torch.stack(logits, 1), (nodes, read, ended, num_tokens)

    def logits(self, nodes: Tensor, read: Tensor, ended: Tensor) -> Tensor:
        """(B, num_tokens) log-probabilities of the next token."""
        rules = self.rules
        time = read.clamp(max=self.max_length)  # beyond it, no rule has a word
        ends = torch.where(rules.accepts[nodes], rules.log_word[:, time].T, -torch.inf)  # (B, H)
        continues = rules.log_completions[rules.next[nodes], time[:, None, None] + 1]  # (B, H, symbols)
        weights = torch.cat([ends[..., None], continues], 2) + self.log_posterior[:, None]
        weights = torch.where((read > self.max_length)[:, None, None], -torch.inf, weights)
        total = weights.logsumexp(1)
        is_possible = total.isfinite().any(1, keepdim=True)
        nothing = F.one_hot(torch.zeros_like(read), total.shape[1]).double().log()  # EOS
        words = torch.where(is_possible, total, nothing).log_softmax(1)
        result = words.new_full((len(nodes), self.num_tokens), -torch.inf)
        result[:, EOS], result[:, FIRST_SYMBOL:] = words[:, 0], words[:, 1:]
        pad = F.one_hot(torch.full_like(read, PAD), self.num_tokens).double().log()
        result = torch.where(ended[:, None], pad, result)
        return result.clamp_min(math.log(torch.finfo(torch.float32).tiny)).float()


def symbols_of(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(W, T) framed words -> (W, T) symbols from 0, which go on after a word's end, and (W,) lengths.

    A special token within a word, which no language's words have, counts as no symbol.
    """
    before = (rows == EOS).cumsum(1) == 0
    is_symbol = before & (rows >= FIRST_SYMBOL)
    order = (~is_symbol).byte().argsort(dim=1, stable=True)
    return (rows.gather(1, order) - FIRST_SYMBOL).clamp_min(0), is_symbol.sum(1)
