"""Loss, schedule, decoding, metrics, and runs that are interrupted and resumed."""

import csv
import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import config, read_metrics, read_results
from lightning.pytorch import seed_everything
from sizes import MODELS, make
from torch import nn

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.data.grammar_data import GrammarDataModule, TensorBatches
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.grammars import get_grammar
from rule_extrapolation.grammars.anbn import AnBn
from rule_extrapolation.grammars.ban import BaN
from rule_extrapolation.grammars.judging import accuracies, judge_completions, judged_rows
from rule_extrapolation.inference.decoding import Greedy, Sample
from rule_extrapolation.models.linear import LinearLLM
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.training.schedules import inverse_sqrt

TINY = ["model.embedding_dim=8", "model.hidden_dim=8"]


class TestSchedule:
    @pytest.mark.parametrize("warmup", [1, 4, 10])
    def test_is_the_formula(self, warmup):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
        schedule = inverse_sqrt(optimizer, warmup)["scheduler"]
        for t in range(30):
            expected = 0.5 * t / warmup if t < warmup else 0.5 * math.sqrt(warmup) / math.sqrt(t)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
            optimizer.step()
            schedule.step()

    @pytest.mark.parametrize(("interval", "after"), [("step", 6), ("epoch", 2)])
    def test_steps_per_step_or_per_epoch(self, train, interval, after):
        """Three steps an epoch: after two epochs, six steps or two."""
        run = train(
            "grammar=L1", "data.num_train=6", "data.batch_size=2", "trainer.max_steps=6", *TINY,
            "scheduler.warmup=100", f"scheduler.interval={interval}",
        )  # fmt: skip
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["lr_schedulers"][0]["last_epoch"] == after
        assert checkpoint["lr_schedulers"][0]["_last_lr"] == 2 * [
            pytest.approx(2e-3 * after / 100)
        ]  # two groups of weights

    def test_warmup_below_one_is_refused(self):
        with pytest.raises(ConfigError, match="warmup=0: must be 1 or more"):
            inverse_sqrt(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 0)


class TestData:
    def test_every_row_once_a_pass_in_a_new_order_and_resumable(self):
        rows = torch.arange(10)[:, None]
        batches = TensorBatches(rows, 4, shuffle_seed=0)
        passes = [torch.cat(list(batches)).flatten().tolist() for _ in range(3)]
        assert len(batches) == 3
        assert all(sorted(order) == list(range(10)) for order in passes)
        assert passes[0] != passes[1] != passes[2]
        resumed, reference = TensorBatches(rows, 4, shuffle_seed=0), TensorBatches(rows, 4, shuffle_seed=0)
        next(iter(reference))
        resumed.load_state_dict(reference.state_dict())
        assert torch.cat(list(resumed)).flatten().tolist() == passes[0][4:]
        assert torch.cat(list(resumed)).flatten().tolist() == passes[1]

    def test_shuffle_seed_sets_the_order_and_seed_the_words(self):
        def training(**seeds):
            data = GrammarDataModule(BaN, max_length=32, num_train=64, **seeds).train_dataloader()
            return data.rows, torch.cat(list(data))

        (words, order), (same, reordered), (others, _) = training(), training(shuffle_seed=1), training(seed=1)
        assert torch.equal(words, same) and not torch.equal(words, others)
        assert not torch.equal(order, reordered)

    def test_optimal_loss_on_validation_words_is_their_mean_negative_log_probability(self):
        data = GrammarDataModule(AnBn, max_length=8, num_val=1)  # a^n b^n for n = 1..4, equally probable
        assert data.reference_losses()["optimal_loss_on_validation_words"] == pytest.approx(math.log(4) / 9)

    def test_train_val_and_test_words_are_drawn_independently(self):
        data = GrammarDataModule(BaN, max_length=32, num_train=64, num_val=64, num_test=64, seed=3)
        train, val, test = data.train_dataloader().rows, data.val_dataloader().rows, data.test_dataloader().rows
        assert train.shape == val.shape == test.shape == (64, 34)
        assert not torch.equal(train, val)
        assert not torch.equal(val, test)
        again = GrammarDataModule(BaN, max_length=32, num_train=64, num_val=64, num_test=64, seed=3)
        assert torch.equal(again.train_dataloader().rows, train)

    def test_a_language_with_all_sequences_trains_on_each_once(self):
        assert len(GrammarDataModule(AnBn, max_length=32).train_dataloader().rows) == 16


def whole_prefix_decode(model, prompt, budget, pick):
    """Decode one prompt, reading the whole prefix again for each token."""
    tokens = prompt.tolist()
    for _ in range(budget):
        if model.max_context is not None and len(tokens) > model.max_context:
            break
        completion = torch.tensor([[*tokens[len(prompt) :], PAD]])  # the last token is not read
        tokens.append(pick(model.continuation_logits(prompt[None], completion)[0, :, -1]))
        if tokens[-1] == EOS:
            break
    return tokens


class TestDecoding:
    @pytest.mark.parametrize("name", MODELS)
    def test_greedy_equals_reading_the_whole_prefix_each_time(self, name):
        torch.manual_seed(0)
        model = make(name).eval()
        prompts = torch.randint(3, 7, (6, 5))
        prompts[:, 0] = SOS
        completions = Greedy(max_new_tokens=24)(model, prompts)
        for prompt, completion in zip(prompts, completions.tolist()):
            expected = whole_prefix_decode(model, prompt, 24, lambda logits: logits.argmax().item())
            assert completion[: len(expected)] == expected
            assert all(token == PAD for token in completion[len(expected) :])

    def test_stops_when_every_row_has_finished(self):
        model = MinLSTM(5, 4, 4, 1)
        nn.init.zeros_(model.head.weight)
        model.head.bias.data = F.one_hot(torch.tensor(EOS), 5).float()
        assert Greedy(50)(model, torch.full((3, 4), SOS)).tolist() == [[SOS] * 4 + [EOS]] * 3

    def test_never_exceeds_the_context(self):
        model = LinearLLM(5, max_data_length=9)
        model.bias.data[:, 3] = 1e6
        assert Greedy(50)(model, torch.full((2, 4), SOS)).shape == (2, 11)  # ten are read, the eleventh is only written

    def test_empty_prompt_set(self):
        assert Greedy(5)(MinLSTM(5), torch.empty(0, 9, dtype=torch.long)).shape == (0, 9)

    def test_samples_follow_the_models_distribution_at_a_temperature(self):
        model = MinLSTM(5, 4, 4, 1)
        nn.init.zeros_(model.head.weight)
        model.head.bias.data = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
        prompts = torch.full((40_000, 1), SOS)
        for temperature in (0.5, 1.0, 2.0):
            drawn = Sample(1, temperature, seed=1)(model, prompts)[:, 1]
            frequencies = torch.bincount(drawn, minlength=5) / len(drawn)
            torch.testing.assert_close(frequencies, (model.head.bias / temperature).softmax(0).data, atol=0.01, rtol=0)

    def test_samples_are_seeded_and_leave_the_global_generator_alone(self):
        model, prompts = MinLSTM(5), torch.full((20, 1), SOS)
        state = torch.get_rng_state()
        first, again, other = (Sample(20, seed=seed)(model, prompts) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first[:, :2], other[:, :2])
        assert torch.equal(torch.get_rng_state(), state)


class TestMetrics:
    def judge(self, name, prompt, completions):
        grammar = get_grammar(name, max_length=12)
        width = max(map(len, completions)) + 1
        rows = [grammar.encode([prompt + c.rstrip("$")])[0].tolist() for c in completions]
        rows = [row if c.endswith("$") else row[:-1] for row, c in zip(rows, completions)]
        rows = [[SOS, *row, *[PAD] * width][: 1 + len(prompt) + width] for row in rows]
        verdicts = judge_completions(grammar, torch.tensor(rows), 1 + len(prompt))
        return {key: value.tolist() for key, value in verdicts.items()}

    def test_prompt_and_completion_are_judged_together_and_separately(self):
        verdicts = self.judge("aNbN", "ba", ["$", "ab$", "ba$", "b$"])
        assert verdicts == {
            "finished": [True, True, True, True],
            "empty": [True, False, False, False],
            "rule_1": [True, True, True, False],
            "rule_2": [False, False, False, False],
            "rule_3": [True, True, True, False],
            "grammatical": [False, False, False, False],
            "rule_2_completion": [True, True, False, True],
        }

    def test_brackets_completion_starts_after_the_first_two_symbols(self):
        verdicts = self.judge("L5", ")[()", ["]$", "](]$"])
        assert verdicts["rule_1"] == [True, False]
        assert verdicts["rule_2"] == [False, False]
        assert verdicts["rule_2_completion"] == [True, False]

    def test_languages_with_one_rule_lack_the_others_metrics(self):
        assert set(self.judge("abN", "ab", ["$"])) == {"finished", "empty", "rule_1", "grammatical"}
        names = {"finished", "empty", "rule_2", "rule_2_completion", "grammatical"}
        assert set(self.judge("aNbM", "ab", ["$"])) == names

    def test_accuracies_over_all_and_over_finished(self):
        """Of "ab" and its completions "" and "b" of a language with R1 only, the second has no EOS and breaks R1."""
        grammar = get_grammar("abN", max_length=12)
        finished = torch.tensor([[SOS, 3, 4, EOS, PAD]])
        unfinished = torch.tensor([[SOS, 3, 4, 4, 4]])
        assert accuracies(grammar, torch.cat([finished, unfinished]), 3, "Val/ID") == {
            "Val/ID/finished_accuracy": 0.5,
            "Val/ID/empty_accuracy": 0.5,
            "Val/ID/rule_1_accuracy": 0.5,
            "Val/ID/grammatical_accuracy": 0.5,
            "Val/ID/finished/finished_accuracy": 1.0,
            "Val/ID/finished/empty_accuracy": 1.0,
            "Val/ID/finished/rule_1_accuracy": 1.0,
            "Val/ID/finished/grammatical_accuracy": 1.0,
        }
        assert not any("/finished/" in name for name in accuracies(grammar, unfinished, 3, "Val/ID"))
        assert accuracies(grammar, finished[:0], 3, "Val/OOD") == {}

    def test_repaired_is_over_prompts_that_do_not_keep_the_rule_already(self):
        """a|b and a| are prompts that break R1; ab| keeps it, and so is no repair."""
        grammar = get_grammar("abN", max_length=12)
        rows = torch.tensor([[SOS, 3, 4, EOS], [SOS, 3, EOS, PAD]])
        assert accuracies(grammar, rows, 2, "X")["X/rule_1_repaired_accuracy"] == 0.5
        assert "X/rule_1_repaired_accuracy" not in accuracies(grammar, rows[:1], 3, "X")

    def test_repaired_can_be_recomputed_from_the_rows(self):
        grammar = get_grammar("L3", max_length=12)
        completed = {name: Sample(12, seed=0)(MinLSTM(5), prompts) for name, prompts in grammar.prompts.items()}
        rows = judged_rows(grammar, completed)
        repaired = [row["rule_1"] for row in rows if row["prompt_set"] == "OOD" and not row["rule_1_prompt"]]
        figures = accuracies(grammar, completed["OOD"], 9, "OOD")
        assert len(repaired) == 182  # 251 - 69
        assert figures["OOD/rule_1_repaired_accuracy"] == pytest.approx(sum(repaired) / len(repaired))


class TestLosses:
    def module(self, tmp_path, *overrides):
        return assemble(config(tmp_path, *overrides)).module

    def test_definitions(self, tmp_path):
        module = self.module(tmp_path, "grammar=L1")
        batch = module.grammar.sample(20, torch.Generator().manual_seed(0))
        losses, logits = module.losses(batch)
        expected = [
            [-logits[b, :, t].log_softmax(0)[batch[b, t + 1]] for t in range(batch.shape[1] - 1)] for b in range(20)
        ]
        everything = [loss for row in expected for loss in row]
        symbols = [expected[b][t] for b in range(20) for t in range(batch.shape[1] - 1) if batch[b, t + 1] != PAD]
        torch.testing.assert_close(losses["loss"], torch.stack(everything).mean())
        torch.testing.assert_close(losses["loss_ignore_pad"], torch.stack(symbols).mean())
        assert losses["objective"] == losses["loss"]

    def test_the_linear_model_trains_without_pad(self, tmp_path):
        losses, _ = (module := self.module(tmp_path, "model=linear")).losses(module.grammar.all_words())
        assert losses["objective"] == losses["loss_ignore_pad"] != losses["loss"]

    def test_logged_means_are_means_over_the_data(self, train):
        """Batches of unequal size and unequal padding."""
        run = train("grammar=L1", "data.num_val=7", "data.batch_size=3", "trainer.max_steps=2", *TINY)
        module = self.module(run, "grammar=L1", "data.num_val=7", "data.batch_size=7", *TINY)
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        losses, _ = module.losses(assemble(config(run, "grammar=L1", "data.num_val=7")).data.val_dataloader().rows)
        [logged] = [row for row in read_metrics(run) if "Val/loss" in row]
        assert logged["Val/loss"] == pytest.approx(losses["loss"].item(), abs=1e-6)
        assert logged["Val/loss_ignore_pad"] == pytest.approx(losses["loss_ignore_pad"].item(), abs=1e-6)

    def test_kl_is_loss_minus_optimum(self, train):
        run = train("grammar=L4", "data.max_length=12", *TINY)
        row = next(row for row in read_metrics(run) if "Val/kl" in row)
        assert row["Val/kl"] == pytest.approx(row["Val/loss"] - math.log(4) / 13, abs=1e-6)

    def test_no_kl_where_the_language_does_not_know_its_probabilities(self, train, monkeypatch):
        monkeypatch.delattr(AnBn, "make_process")
        run = train("grammar=L3", *TINY)
        assert not any("Val/kl" in row for row in read_metrics(run))
        assert read_results(run)["optimal_loss"] is None


EPOCHS = ["trainer.max_steps=-1", "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2"]
EPOCHS += ["trainer.val_check_interval=1.0"]


class TestRuns:
    def test_run_folder(self, train):
        run = train("grammar=L3", *TINY)
        results = read_results(run)
        assert results["status"] == "finished"
        assert (results["grammar"], results["label"], results["model"], results["seed"]) == ("aNbN", "L3", "minlstm", 0)
        assert results["optimal_loss"] == pytest.approx(math.log(6) / 13)
        assert results["test"]["Test/kl"] == pytest.approx(results["test"]["Test/loss"] - results["optimal_loss"])
        validations = [row for row in read_metrics(run) if "Val/loss" in row]
        assert results["over_training"]["Val/loss"] == min(row["Val/loss"] for row in validations)
        assert results["at_best_validation"]["Val/loss"] == results["over_training"]["Val/loss"]
        for name in ("ID", "OOD", "SOS"):
            assert {f"Test/{name}/{metric}_accuracy" for metric in ("finished", "rule_1", "rule_2", "rule_3")} <= set(
                results["test"]
            )
        with open(run / "completions.csv") as file:
            rows = list(csv.DictReader(file))
        assert {row["prompt_set"] for row in rows} == {"ID", "OOD", "SOS"}
        ood = [row for row in rows if row["prompt_set"] == "OOD"]
        assert len(ood) == 251
        for row in ood:
            string = row["prompt"] + row["completion"]  # "_" is PAD, which is not in a string
            kept = string.count("a") == string.count("b") and "_" not in string
            assert (row["rule_1"] == "True") == kept
        share = sum(row["rule_1"] == "True" for row in ood) / len(ood)
        assert results["test"]["Test/OOD/rule_1_accuracy"] == pytest.approx(share)
        assert (run / "config.yaml").is_file()
        assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]

    def test_the_test_uses_the_best_checkpoint_and_its_own_data(self, train):
        run = train("grammar=L1", "data.num_test=32", "data.num_val=32", "trainer.max_steps=6", *TINY)
        module = assemble(config(run, "grammar=L1", *TINY)).module
        module.load_state_dict(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
        data = assemble(config(run, "grammar=L1", "data.num_test=32", "data.num_val=32")).data
        loss = module.losses(data.test_dataloader().rows)[0]["loss"].item()
        assert read_results(run)["test"]["Test/loss"] == pytest.approx(loss, abs=1e-6)
        assert read_results(run)["at_best_validation"]["Val/loss"] != pytest.approx(loss, abs=1e-6)

    def test_a_training_that_ends_before_its_first_validation_is_validated_then(self, train):
        run = train("trainer.check_val_every_n_epoch=5", "trainer.val_check_interval=1.0", *TINY)
        assert read_results(run)["tested"] == "best"
        assert read_results(run)["at_best_validation"]["step"] == 4

    def test_same_seed_same_numbers_other_seed_others(self, train):
        one, same, other = (train(f"seed={s}", "grammar=L1", *TINY, folder=f"run{i}") for i, s in enumerate((0, 0, 1)))
        assert read_metrics(one) == read_metrics(same)
        assert read_metrics(one) != read_metrics(other)

    def test_runs_with_other_seeds_have_the_same_words(self, train):
        runs = [train(f"seed={seed}", "grammar=L1", *TINY, folder=f"run{seed}") for seed in (0, 1)]
        first, other = map(read_results, runs)
        for name in ("optimal_loss_on_validation_words", "optimal_loss_on_test_words", "memorised_loss"):
            assert first[name] == other[name]
        assert first["optimal_loss_on_validation_words"] != first["optimal_loss_on_test_words"]
        redrawn = read_results(train("data.seed=1", "grammar=L1", *TINY, folder="redrawn"))
        assert redrawn["optimal_loss_on_test_words"] != first["optimal_loss_on_test_words"]

    @pytest.mark.parametrize("stop", [6, 7])
    def test_resumed_run_has_the_same_curve(self, train, stop):
        """Four steps per epoch, dropout and a schedule; stopped within an epoch."""
        overrides = [
            "grammar=L1", "model=lstm", "model.embedding_dim=4", "model.hidden_dim=8", "model.num_layers=2",
            "model.dropout=0.5", "data.num_train=16", "data.batch_size=4", "scheduler.warmup=3",
            "trainer.val_check_interval=2",
        ]  # fmt: skip
        whole = train(*overrides, "trainer.max_steps=14", folder="whole")
        first = train(*overrides, f"trainer.max_steps={stop}", folder="first")
        rest = train(*overrides, "trainer.max_steps=14", f"resume={first}", folder="rest")

        def by_step(*runs):
            keys = ("Train/loss", "Val/loss", "Val/ID/rule_1_accuracy")
            return {
                (row["step"], key): row[key] for run in runs for row in read_metrics(run) for key in keys if key in row
            }

        more = by_step(first, rest).items() - by_step(whole).items()
        assert by_step(whole).items() <= by_step(first, rest).items()
        assert {step for (step, _), _ in more} == ({6} if stop == 7 else set())  # the first run ended with a validation
        for figures in ("test", "at_best_validation"):
            assert read_results(rest)[figures] == read_results(whole)[figures]
        weights = [
            torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, rest)
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])

    @pytest.mark.parametrize(
        ("stage", "n", "missing"),
        [
            ("train", 3, {(2, "Train/loss")}),
            ("train", 4, set()),
            ("train", 8, set()),
            ("validation", 6, set()),
            ("validation", 8, set()),
            ("validation", 13, set()),
            ("validation", 16, set()),
        ],
    )
    def test_an_interrupted_run_resumes_with_the_same_curve(self, train, tmp_path, stage, n, missing):
        """Four steps per epoch, a validation of four batches every two steps; Ctrl-C in a step or in a validation, also
        in the last ones."""
        overrides = [
            "grammar=L1", "data.num_train=16", "data.num_val=16", "data.batch_size=4", "trainer.max_steps=8",
            "trainer.val_check_interval=2", *TINY,
        ]  # fmt: skip
        whole = train(*overrides, folder="whole")
        ctrl_c = ["+callbacks.ctrl_c._target_=conftest.CtrlC", f"+callbacks.ctrl_c.stage={stage}"]
        with pytest.raises(KeyboardInterrupt):
            train(*overrides, *ctrl_c, f"+callbacks.ctrl_c.n={n}", folder="first")
        assert read_results(tmp_path / "first")["status"] == "interrupted"
        rest = train(*overrides, f"resume={tmp_path / 'first'}", folder="rest")
        keys = ("Train/loss", "Val/loss")
        losses = [
            {(row["step"], key): row[key] for row in read_metrics(run) for key in keys if key in row}
            for run in (whole, tmp_path / "first", rest)
        ]
        both = {**losses[1], **losses[2]}
        # The step in which Ctrl-C came is complete but not logged, unless a validation follows it.
        assert both == {key: loss for key, loss in losses[0].items() if key not in missing}
        assert not losses[1].keys() & losses[2].keys()
        epochs = [
            {row["step"]: row["epoch"] for row in read_metrics(run) if "Val/loss" in row} for run in (whole, rest)
        ]
        assert epochs[1].items() <= epochs[0].items()
        for figures in ("status", "tested", "test", "over_training", "at_best_validation"):
            assert read_results(rest)[figures] == read_results(whole)[figures]

    @pytest.mark.parametrize("interval", [["trainer.max_steps=7", "trainer.val_check_interval=5"], EPOCHS])
    def test_the_end_of_training_is_validated_and_not_twice(self, train, interval):
        """Two steps an epoch."""
        run = train(*interval, "grammar=L1", "data.num_train=8", "data.batch_size=4", *TINY)
        validated = [row["step"] for row in read_metrics(run) if "Val/loss" in row]
        assert validated == ([4, 6] if interval is not EPOCHS else [3, 5])

    def test_a_model_that_sees_the_future_is_marked(self, train, capsys):
        run = train("model=linear", "model.published_mask=true", "trainer.max_steps=2")
        assert "linear (published mask: sees the future) on aNbN" in capsys.readouterr().out
        assert read_results(run)["caveat"] == "published mask: sees the future"

    def test_resumes_from_a_folder_that_was_moved(self, train, tmp_path):
        overrides = ["grammar=L1", "trainer.val_check_interval=2", *TINY]
        whole = train(*overrides, "trainer.max_steps=8", folder="whole")
        train(*overrides, "trainer.max_steps=4", folder="first").rename(tmp_path / "moved")
        rest = train(*overrides, "trainer.max_steps=8", f"resume={tmp_path / 'moved'}", folder="rest")
        assert read_results(rest)["test"] == read_results(whole)["test"]

    def test_a_run_to_resume_must_be_the_same(self, train, tmp_path):
        run = train(*TINY)

        def refusal(*overrides):
            with pytest.raises(ConfigError) as error:
                assemble(config(tmp_path, *overrides))
            return str(error.value)

        resume = [*TINY, "trainer.max_steps=9", f"resume={run}"]
        assemble(config(tmp_path, *resume))
        assert "model.hidden_dim=9: the run to resume has 8" in refusal(*resume, "model.hidden_dim=9")
        assert "seed=1: the run to resume has 0" in refusal(*resume, "seed=1")
        assert "trainer.max_steps=4: already trained for 4; increase it" in refusal(*resume, "trainer.max_steps=4")
        assert "optimizer.betas=[0.1, 0.2]: the run to resume has null" in refusal(
            *resume, "+optimizer.betas=[0.1,0.2]"
        )
        assert "trainer.gradient_clip_val=1: the run to" in refusal(*resume, "trainer.gradient_clip_val=1")
        loose = shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "loose.ckpt")
        resume[-1] = f"resume={loose}"
        assert "its weights are of another model" in refusal(*resume, "model.hidden_dim=9")

    def test_a_run_resumes_if_only_decoding_differs_but_not_with_another_backend(self, train, tmp_path):
        xlstm = ["model=xlstm", "model.num_blocks=2", "model.embedding_dim=8", "trainer.accelerator=cpu"]
        run = train(*xlstm, "trainer.max_steps=2")
        more = [*xlstm, f"resume={run}"]
        assert assemble(config(tmp_path, *more, "decoding.max_new_tokens=5")).module.model.max_context == 12 + 2 + 5
        results = read_results(run)
        (run / "results.json").write_text(json.dumps({**results, "backend": "cuda"}))
        with pytest.raises(ConfigError, match=r"model.backend=vanilla: the run to resume used cuda; use the same"):
            assemble(config(tmp_path, *more))

    def test_a_run_that_has_had_its_epochs_does_not_resume(self, train, tmp_path):
        epochs = ["trainer.max_steps=-1", "trainer.val_check_interval=1.0", "trainer.check_val_every_n_epoch=1", *TINY]
        run = train(*epochs, "trainer.max_epochs=2")
        with pytest.raises(ConfigError, match=r"trainer.max_epochs=2: already trained for 2; increase it"):
            assemble(config(tmp_path, *epochs, "trainer.max_epochs=2", f"resume={run}"))
        rest = train(*epochs, "trainer.max_epochs=3", f"resume={run}", folder="rest")
        whole = train(*epochs, "trainer.max_epochs=3", folder="whole")
        assert [row["epoch"] for row in read_metrics(rest) if "Val/loss" in row] == [2]
        for figures in ("test", "over_training", "at_best_validation"):
            assert read_results(rest)[figures] == read_results(whole)[figures]

    @pytest.mark.parametrize("decoding", ["greedy", "sample"])
    def test_a_training_that_diverges_says_so(self, train, capsys, decoding):
        overrides = ["optimizer=sgd", "optimizer.lr=1e30", "scheduler=constant", f"decoding={decoding}", *TINY]
        results = read_results(train(*overrides))
        assert "training has diverged" in capsys.readouterr().out
        assert results["status"] == "diverged"
        assert results["test"]["Test/loss"] is None

    def test_figures_over_training_go_beyond_the_best_checkpoint(self, train):
        """With this learning rate, the loss rises after its minimum and ends as nan."""
        run = train(
            "optimizer=sgd", "optimizer.lr=60", "optimizer.momentum=0.99", "model.log_space=false",
            "model.scan=sequential", "scheduler.warmup=5", "trainer.max_steps=40", "trainer.val_check_interval=1",
            "data.max_length=32",
        )  # fmt: skip
        validations = [row for row in read_metrics(run) if math.isfinite(row.get("Val/objective", math.nan))]
        results = read_results(run)
        assert results["status"] == "diverged"
        assert results["at_best_validation"]["step"] < validations[-1]["step"]
        for name, value in results["over_training"].items():
            best = max if name.endswith("accuracy") else min
            assert value == pytest.approx(best(row[name] for row in validations if name in row))
        names = [name for name in results["at_best_validation"] if name.endswith("_accuracy")]
        assert any(results["over_training"][name] > results["at_best_validation"][name] for name in names)

    def test_early_stopping_and_gradient_clipping(self, train):
        run = train(
            "optimizer=sgd", "optimizer.lr=1e-9", "scheduler=constant", "trainer.max_steps=50", *TINY,
            "trainer.val_check_interval=1", "callbacks.early_stopping.patience=3", "trainer.gradient_clip_val=1.0",
            "+callbacks.early_stopping.min_delta=0.1",
        )  # fmt: skip
        assert len([row for row in read_metrics(run) if "Val/loss" in row]) == 4

    def test_gradient_clipping_bounds_the_step(self, train):
        def moved(clip):
            overrides = ["optimizer=sgd", "optimizer.lr=1.0", "optimizer.momentum=0", "scheduler=constant", *TINY]
            run = train(*overrides, "trainer.max_steps=1", f"trainer.gradient_clip_val={clip}", folder=f"clip{clip}")
            after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            seed_everything(0, verbose=False)
            before = assemble(config(run, *overrides)).module.state_dict()
            return math.sqrt(sum(((after[key] - before[key]) ** 2).sum().item() for key in after))

        assert moved(0.01) == pytest.approx(0.01, rel=1e-3)
        assert moved("null") > 0.05

    @pytest.mark.parametrize("decoding", ["greedy", "sample"])
    @pytest.mark.parametrize("model", ["transformer", "linear"])
    def test_decoding_by_config(self, train, model, decoding):
        assert read_results(train(f"model={model}", f"decoding={decoding}", "trainer.max_steps=2"))["test"]


def test_history_holds_no_figure_of_an_earlier_validation(train):
    """Few prompts and one sampled token: some completions finish at one validation and none at a later one."""
    run = train(
        "grammar=L2", "grammar.test_prompt_length=3", "decoding=sample", "decoding.max_new_tokens=1", *TINY,
        "scheduler=constant", "optimizer.lr=0.05", "trainer.max_steps=30", "trainer.val_check_interval=1",
    )  # fmt: skip
    validations = [row for row in read_metrics(run) if "Val/loss" in row]
    names = [{name for name in row if "/finished/" in name} for row in validations]
    assert any(earlier - later for earlier, later in pairwise(names))
    at_best = read_results(run)["at_best_validation"]
    [best] = [row for row in validations if row["step"] == at_best["step"] - 1]
    assert {name for name in at_best if "/" in name} == {name for name in best if name.startswith("Val/")}
