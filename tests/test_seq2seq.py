"""The encoder-decoder: its equations, its data (prompts and completions), and runs from training to figures."""

import csv
import json

import pytest
import torch
from conftest import config, read_metrics, read_results
from torch import nn

from rule_extrapolation.cli import complete, evaluate, report
from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.data.completions import CompletionDataModule, split_words
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.grammars.anbn import AnBn
from rule_extrapolation.grammars.ban import BaN
from rule_extrapolation.models.seq2seq import Seq2Seq

NUM_TOKENS, HIDDEN = 5, 6
TINY = ["model=seq2seq", "model.embedding_dim=8", "model.hidden_dim=8"]


def rnn_step(rnn, x, states):
    """The equations in the documentation of nn.LSTM and nn.GRU. states: (h, c) of each LSTM layer, (h,) of a GRU's."""
    new_states = []
    for layer, (h, *c) in enumerate(states):
        weights = {name: getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        from_x = weights["weight_ih"] @ x + weights["bias_ih"]
        from_h = weights["weight_hh"] @ h + weights["bias_hh"]
        if isinstance(rnn, nn.LSTM):
            i, f, g, o = (from_x + from_h).chunk(4)
            cell = f.sigmoid() * c[0] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * cell.tanh()
            new_states.append((x, cell))
        else:
            (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3), from_h.chunk(3)
            z = (xz + hz).sigmoid()
            x = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
            new_states.append((x,))
    return x, new_states


def score(attention, kind, s, h):
    if kind == "dot":
        return s @ h
    if kind == "general":
        return s @ (attention.of_key.weight @ h)
    return attention.of_sum.weight[0] @ (attention.of_query.weight @ s + attention.of_key.weight @ h).tanh()


def equations(model, kind, prompt, tokens):
    """(T, num_tokens) logits of the tokens after a prompt, and (T, P) attention weights, token by token."""
    zeros = torch.zeros(HIDDEN, dtype=torch.float64)
    states = [(zeros, zeros) if isinstance(model.encoder, nn.LSTM) else (zeros,)] * model.encoder.num_layers
    encoded = []
    for token in prompt:
        x, states = rnn_step(model.encoder, model.embedding.weight[token], states)
        encoded.append(x)
    logits, all_weights = [], []
    for token in [SOS, *tokens[:-1]]:
        x = model.embedding.weight[token]

        def context(s):
            weights = torch.stack([score(model.attention, kind, s, h) for h in encoded]).softmax(0)
            all_weights.append(weights)
            return sum(weight * h for weight, h in zip(weights, encoded))

        if kind == "additive":
            c = context(states[-1][0])
            s, states = rnn_step(model.decoder, torch.cat([x, c]), states)
        else:
            s, states = rnn_step(model.decoder, x, states)
            c = None if kind == "none" else context(s)
        s = s if c is None else (model.attention.combine.weight @ torch.cat([c, s])).tanh()
        logits.append(model.head.weight @ s + model.head.bias)
    return torch.stack(logits), torch.stack(all_weights) if all_weights else None


PROMPTS = [[0], [0, 3, 4, 3, 3], [0, 4, 4]]
LENGTHS = torch.tensor([len(prompt) for prompt in PROMPTS])
PADDED = torch.tensor([prompt + [PAD] * (5 - len(prompt)) for prompt in PROMPTS])
TOKENS = torch.tensor([[3, 4, 4, 1], [4, 3, 1, 2], [3, 1, 2, 2]])


def make(**options):
    torch.manual_seed(0)
    return Seq2Seq(NUM_TOKENS, embedding_dim=4, hidden_dim=HIDDEN, **options).double()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["none", "dot", "general", "additive"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
class TestEquations:
    def test_values_and_gradients_for_prompts_of_different_lengths(self, cell, kind, layers):
        model = make(cell=cell, attention=kind, num_layers=layers)
        logits = model.continuation_logits(PADDED, TOKENS, LENGTHS)
        expected = [equations(model, kind, prompt, tokens)[0] for prompt, tokens in zip(PROMPTS, TOKENS.tolist())]
        expected = torch.stack(expected).mT
        torch.testing.assert_close(logits, expected)
        weight = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        names, parameters = zip(*model.named_parameters())
        gradients, expected_gradients = (
            torch.autograd.grad((values * weight).sum(), parameters) for values in (logits, expected)
        )
        for name, gradient, expected_gradient in zip(names, gradients, expected_gradients):
            assert expected_gradient.abs().sum() > 0, name
            torch.testing.assert_close(gradient, expected_gradient)

    def test_attention_weights(self, cell, kind, layers):
        model = make(cell=cell, attention=kind, num_layers=layers)
        weights = model.attention_weights(PADDED[1:2], TOKENS[1:2])
        _, expected = equations(model, kind, PROMPTS[1], TOKENS[1].tolist())
        assert (weights is None) == (expected is None) == (kind == "none")
        if weights is not None:
            torch.testing.assert_close(weights[0], expected)
            torch.testing.assert_close(weights.sum(2), torch.ones(1, 4, dtype=torch.float64))

    def test_padding_after_a_prompt_is_not_read(self, cell, kind, layers):
        model = make(cell=cell, attention=kind, num_layers=layers)
        changed = PADDED.where(PADDED != PAD, 4)
        logits = model.continuation_logits(PADDED, TOKENS, LENGTHS)
        assert torch.equal(model.continuation_logits(changed, TOKENS, LENGTHS), logits)
        assert not torch.allclose(model.continuation_logits(changed, TOKENS), logits)


@pytest.mark.parametrize("kind", ["none", "dot", "additive"])
class TestTeacherForcing:
    def confident_model(self, kind, teacher_forcing):
        model = make(attention=kind, teacher_forcing=teacher_forcing)
        nn.init.normal_(model.head.weight, std=1e5)  # so that the drawn token is the most probable one
        return model

    def test_with_1_every_token_is_read(self, kind):
        model = self.confident_model(kind, 1.0)
        torch.testing.assert_close(
            model.train().continuation_logits(PADDED, TOKENS, LENGTHS),
            model.eval().continuation_logits(PADDED, TOKENS, LENGTHS),
        )

    def test_with_0_the_models_own_tokens_are_read(self, kind):
        model = self.confident_model(kind, 0.0).train()
        logits = model.continuation_logits(PADDED, TOKENS, LENGTHS)
        own = logits.argmax(1)
        torch.testing.assert_close(logits, model.eval().continuation_logits(PADDED, own, LENGTHS))
        assert not torch.equal(own[:, :-1], TOKENS[:, :-1])

    def test_a_token_is_read_with_the_given_probability(self, kind):
        model = self.confident_model(kind, 0.3)
        prompts, rows = PADDED[1:2].expand(2000, -1), 2000
        own = model.eval().continuation_logits(PADDED[1:2], TOKENS[1:2])[:, :, 0].argmax(1)
        tokens = torch.stack([(own + 1) % NUM_TOKENS, own], 1)  # the last token is never read
        forced = model.continuation_logits(PADDED[1:2], tokens)[0, :, 1]
        logits = model.train().continuation_logits(prompts, tokens.expand(rows, -1))[:, :, 1]
        share = torch.isclose(logits, forced).all(1).double().mean()
        assert share.item() == pytest.approx(0.3, abs=0.04)

    def test_draws_follow_the_models_distribution(self, kind):
        """Two tokens have a probability of 1/2 each, so that half of the rows read either."""
        model = make(attention=kind, teacher_forcing=0.0).train()
        nn.init.zeros_(model.head.weight)
        with torch.no_grad():
            model.head.bias.copy_(torch.tensor([-50.0, -50.0, -50.0, 0.0, 0.0]))
        inputs = []
        model.embedding.register_forward_hook(lambda module, arguments, output: inputs.append(arguments[0]))
        model.continuation_logits(PADDED[:1].expand(2000, -1), TOKENS[:1].expand(2000, -1))
        drawn = torch.cat(inputs[2:], 1)  # after the prompt and SOS
        assert drawn.shape == (2000, 3)
        assert set(drawn.unique().tolist()) == {3, 4}
        assert (drawn == 3).double().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    {
        "model.cell=rnn": "model.cell=rnn: must be one of lstm, gru",
        "model.attention=dott": "model.attention=dott: must be one of none, dot, general, additive",
        "model.teacher_forcing=1.5": "model.teacher_forcing=1.5: must be from 0 to 1",
        "model.num_layers=0": "model.num_layers=0: must be greater than 0",
        "data.min_prompt_length=33": "data.min_prompt_length=33: must be from 0 to max_length=32",
        "data=grammar": "model=seq2seq: trains on a language's prompts and completions; set data=completions",
        "model=lstm data=completions": "model=lstm: does not train on prompts and completions; set data=grammar",
    }.items(),
)
def test_invalid_settings_are_refused_in_one_line(cli, overrides, message):
    status, out, err = cli("model=seq2seq", "logger=csv", *overrides.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


class TestData:
    def test_prompt_and_completion_form_the_word(self):
        words = AnBn(max_length=8).all_words()
        for k in range(9):
            lengths = (words != PAD).sum(1) - 2
            pairs = split_words(words, lengths.clamp_max(k))
            assert pairs.shape == (4, 2, 9)
            for word, (prompt, completion), length in zip(words.tolist(), pairs.tolist(), lengths.tolist()):
                symbols = word[1 : length + 1]
                at = min(k, length)
                assert prompt == [SOS, *symbols[:at], *[PAD] * (8 - at)]
                assert completion == [*symbols[at:], EOS, *[PAD] * (8 - length + at)]

    def test_splits_are_uniform_and_respect_the_minimum(self):
        data = CompletionDataModule(AnBn, max_length=8, min_prompt_length=7, num_train=8000)
        prompts, completions = data.pairs(0).unbind(1)
        symbols, rest = (prompts != PAD).sum(1) - 1, (completions != PAD).sum(1) - 1
        length = symbols + rest
        assert symbols[length == 6].unique().tolist() == [6]  # a word shorter than the minimum
        assert symbols[length == 8].unique().tolist() == [7, 8]
        assert (symbols[length == 8] == 7).double().mean().item() == pytest.approx(0.5, abs=0.05)

    def test_languages_that_use_each_word_once_repeat_their_words(self):
        data = CompletionDataModule(AnBn, max_length=8, num_train=10, num_val=3)
        assert len(data.train_dataloader().rows) == 12  # four words three times
        assert len(data.val_dataloader().rows) == 4
        assert len(CompletionDataModule(BaN, max_length=8, num_train=10).train_dataloader().rows) == 10

    def test_training_splits_anew_on_each_pass_and_can_be_resumed_within_it(self):
        data = CompletionDataModule(BaN, max_length=8, num_train=10, num_val=10, batch_size=4, seed=3)
        batches, words = data.train_dataloader(), data.words(0)
        passes = [torch.cat(list(batches)) for _ in range(3)]
        together = [sorted(tuple(t for t in row.flatten().tolist() if t != PAD) for row in rows) for rows in passes]
        assert together == [sorted(tuple(t for t in word.tolist() if t != PAD) for word in words)] * 3
        splits = [sorted((rows[:, 0] != PAD).sum(1).tolist()) for rows in passes]
        assert splits[0] != splits[1] != splits[2]
        resumed, reference = data.train_dataloader(), data.train_dataloader()
        list(reference)
        next(iter(reference))
        resumed.load_state_dict(reference.state_dict())
        assert torch.equal(torch.cat(list(resumed)), passes[1][4:])
        assert torch.equal(torch.cat(list(resumed)), passes[2])

    def test_validation_and_test_are_split_once(self):
        data = CompletionDataModule(BaN, max_length=8, num_val=10, num_test=10)
        val = data.val_dataloader()
        assert torch.equal(torch.cat(list(val)), torch.cat(list(val)))
        assert not torch.equal(val.rows, data.test_dataloader().rows)


def test_losses_are_the_mean_over_the_completions_symbols_and_eos(tmp_path):
    module = assemble(config(tmp_path, *TINY, "grammar=L1")).module.eval()
    batch = CompletionDataModule(BaN, max_length=12, num_val=9).pairs(1)
    losses, hits = [], []
    for prompt, completion in batch:
        prompt, completion = prompt[prompt != PAD][None], completion[completion != PAD][None]
        logits = module.model.continuation_logits(prompt, completion)
        losses.append(nn.functional.cross_entropy(logits, completion, reduction="none").flatten())
        hits.append((logits.argmax(1) == completion).flatten())
    found, logits = module.losses(batch)
    for loss in found.values():
        torch.testing.assert_close(loss, torch.cat(losses).mean())
    means = module.evaluate_batch(logits, batch[:, 1])
    assert set(means) == {"loss", "loss_ignore_pad", "objective", "accuracy"}
    assert {f"Val/{name}" for name in means} <= set(module.validation_names())
    assert means["accuracy"][0].item() == pytest.approx(torch.cat(hits).double().mean().item())
    assert {count for _, count in means.values()} == {len(torch.cat(losses))}


class TestRuns:
    def test_training_evaluation_and_report(self, train, call, tmp_path):
        folders = [train(*TINY, f"model.attention={kind}", folder=kind) for kind in ("none", "additive")]
        for folder in folders:
            results = read_results(folder)
            assert (results["status"], results["caveat"]) == ("finished", "loss of completions alone")
            assert results["optimal_loss"] is results["memorised_loss"] is None
            assert results["test"]["Test/loss"] == results["test"]["Test/objective"]
            assert 0 < results["chance_levels"]["OOD/rule_1_accuracy"] < 1
            status, out, _ = call(evaluate.main, f"run={folder}", "prompt_length=2,4,5")
            assert status == 0
            assert "prompt_length=5" in out and "in training up to 12" in out
        by = [f"runs={','.join(map(str, folders))}", "by=model.attention", f"out={tmp_path / 'report'}"]
        status, out, _ = call(report.main, *by)
        assert status == 0
        assert "learning_curves, lengths, prompt_lengths" in " ".join(out.split())
        assert (tmp_path / "report" / "figures" / "prompt_lengths.png").stat().st_size > 1000

    def test_its_loss_does_not_affect_the_axes_of_other_models(self, train):
        from rule_extrapolation.reporting.comparison import group_runs
        from rule_extrapolation.reporting.plotting import loss_limit, trains_on_loss
        from rule_extrapolation.reporting.runs import read_run_folders

        folders = [train(*TINY, folder="seq2seq"), train("model=lstm", "model.num_layers=1", folder="lstm")]
        groups = group_runs(read_run_folders(folders, 10))
        assert {group.model: trains_on_loss(group) for group in groups} == {"lstm": True, "seq2seq": False}
        assert loss_limit({"lstm": [0.1, 0.5], "seq2seq": [9.0]}, groups) == pytest.approx(0.6)

    def test_the_figure_shows_the_evaluations_values(self, train, call):
        from rule_extrapolation.reporting.comparison import group_runs
        from rule_extrapolation.reporting.figures import draw_all
        from rule_extrapolation.reporting.runs import read_run_folders

        folder = train(*TINY)
        call(evaluate.main, f"run={folder}", "prompt_length=5,2", "max_length_factor=0")
        call(evaluate.main, f"run={folder}", "prompt_length=3", "max_length_factor=0")  # later, but of one length
        figures, _ = draw_all(group_runs(read_run_folders([folder], 10)))
        [written] = [
            evaluation["prompt_length"]
            for path in folder.glob("evaluations/*/evaluation.json")
            if len((evaluation := json.loads(path.read_text()))["prompt_length"]) > 1
        ]
        axes = figures["prompt_lengths"].axes
        for ax, name in zip(axes, ("ID/finished/rule_1", "OOD/finished/rule_1", "OOD/finished")):
            figures = {n: written[str(n)]["test"].get(f"Test/{name}_accuracy") for n in (2, 5)}
            known = {n: value for n, value in figures.items() if value is not None}  # of a length where any finishes
            assert [dict(zip(line.get_xdata(), line.get_ydata())) for line in ax.lines] == ([known] if known else [])

    def test_attention_is_drawn(self, train, call, tmp_path):
        run = f"run={train(*TINY)}"
        for suffix, magic in {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}.items():
            file = tmp_path / f"attention.{suffix}"
            status, out, _ = call(complete.main, run, "prompt=aaab", "samples=0", f"attention={file}")
            assert (status, out.splitlines()[-1]) == (0, f"Attention: {file}")
            assert file.read_bytes().startswith(magic)
        for arguments, message in {
            "attention=a.png": "attention=a.png: is drawn for one prompt; give prompt= too",
            "prompt=a attention=a.jpg": "attention=a.jpg: must end in one of .pdf, .svg, .png",
            "prompt=a attention=no/a.png": "attention=no/a.png: there is no such folder",
        }.items():
            status, out, err = call(complete.main, run, *arguments.split())
            assert (status, out, err.count("\n")) == (2, "", 1)
            assert message in err

    @pytest.mark.parametrize("model", [[*TINY, "model.attention=none"], []])
    def test_drawing_without_attention_is_refused(self, trained, call, tmp_path, model):
        file = tmp_path / "attention.png"
        status, out, err = call(complete.main, f"run={trained(*model)}", "prompt=aab", f"attention={file}")
        assert (status, out) == (2, "")
        assert "has no attention to its prompt; train with model=seq2seq" in err
        assert not file.exists()

    def test_the_drawn_weights_are_those_of_the_completion(self):
        from rule_extrapolation.reporting.attention_figure import attention

        weights = [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]
        axes = attention(weights, ["SOS", "a"], ["b", "b", "EOS"]).axes[0]
        assert axes.images[0].get_array().tolist() == weights
        assert [label.get_text() for label in axes.get_xticklabels()] == ["SOS", "a"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "b", "EOS"]
        assert axes.yaxis_inverted()  # the first token is on top

    def test_a_run_resumed_within_an_epoch_has_the_same_curve(self, train):
        overrides = [
            *TINY, "grammar=L1", "model.attention=additive", "model.teacher_forcing=0.5", "data.num_train=16",
            "data.batch_size=4", "trainer.val_check_interval=2",
        ]  # fmt: skip
        uninterrupted = train(*overrides, "trainer.max_steps=12", folder="uninterrupted")
        first = train(*overrides, "trainer.max_steps=6", folder="first")
        rest = train(*overrides, "trainer.max_steps=12", f"resume={first}", folder="rest")
        keys = ("Train/loss", "Val/loss")

        def curve(*runs):
            return {
                (row["step"], key): row[key] for run in runs for row in read_metrics(run) for key in keys & row.keys()
            }

        assert curve(first, rest) == curve(uninterrupted)
        assert len({value for (_, key), value in curve(uninterrupted).items() if key == "Train/loss"}) == 12
        assert read_results(rest)["test"] == read_results(uninterrupted)["test"]

    def test_trains_on_ood_prompts_too(self, train):
        run = train(*TINY, "training=oracle")
        assert read_results(run)["caveat"].startswith("loss of completions alone; trained on the OOD prompts")
        assert all(row["Train/ood_loss"] > 0 for row in read_metrics(run) if "Train/loss" in row)

    def test_it_completes_the_same_prompts_as_other_models(self, train, trained):
        prompts = []
        for folder in (train(*TINY), trained()):
            with open(folder / "completions.csv", newline="") as file:
                prompts.append([(row["prompt_set"], row["prompt"]) for row in csv.DictReader(file)])
        assert prompts[0] == prompts[1]


def test_forward_treats_the_first_token_as_the_prompt():
    """SOS is the prompt, and the decoder begins with an SOS of its own."""
    model = make(attention="general")
    tokens = torch.cat([torch.full((3, 1), SOS), TOKENS], 1)
    expected = model.continuation_logits(tokens[:, :1], torch.cat([TOKENS, TOKENS[:, :1]], 1))
    torch.testing.assert_close(model(tokens), expected)


def test_teacher_forcing_must_be_a_probability():
    with pytest.raises(ConfigError, match="teacher_forcing=-1: must be from 0 to 1"):
        Seq2Seq(NUM_TOKENS, teacher_forcing=-1)
