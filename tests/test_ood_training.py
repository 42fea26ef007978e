"""Training on completed OOD prompts, and from the weights of another run."""

import itertools
import re

import pytest
import torch
from conftest import SHORT, config, read_metrics, read_results
from lightning.pytorch import seed_everything
from sizes import MODELS, NUM_TOKENS, make

from rule_extrapolation.core.errors import ConfigError
from rule_extrapolation.core.tokens import EOS, PAD, SOS
from rule_extrapolation.experiment.assembling import assemble
from rule_extrapolation.grammars import LANGUAGES, get_grammar, language_class
from rule_extrapolation.grammars.anbn import AnBn
from rule_extrapolation.grammars.exact.acceptor import Acceptor, matching
from rule_extrapolation.grammars.exact.completion import shortest_completion
from rule_extrapolation.models.minlstm import MinLSTM
from rule_extrapolation.training.ood import OODTraining, completed_prompts

TINY = ["model.embedding_dim=8", "model.hidden_dim=8"]
WITH_R1 = [name for name in LANGUAGES if "rule_1" in get_grammar(name, 12).acceptors]
WITH_OOD = [name for name in WITH_R1 if len(get_grammar(name, 12).prompts["OOD"])]
# Of these, all short completions can be listed.
LISTED = [name for name in WITH_OOD if len(language_class(name).alphabet) <= 4]
DEAD = ["parentheses", "brackets"]  # R1 is broken for good in their OOD prompts


def completions(grammar, rule_1):
    """Prompt and completion of each row, and whether the real rule holds for the whole."""
    rows, length = completed_prompts(grammar, rule_1)
    texts = [(text[: length - 1], text[length - 1 :]) for text in grammar.to_text(rows[:, 1:])]
    return texts, grammar.judge(rows[:, 1:])["rule_1"]


class TestCompletions:
    def test_there_are_languages_to_complete(self):
        assert {"baN", "bbaN", "aNbN", "aNbNcN", "aNbNaN", "parentheses_and_brackets"} <= set(WITH_OOD)
        assert set(DEAD) < set(WITH_OOD)

    @pytest.mark.parametrize("language", WITH_OOD)
    @pytest.mark.parametrize("rule_1", ["kept", "broken"])
    def test_the_rule_agrees(self, language, rule_1):
        grammar = get_grammar(language, 12)
        if language in DEAD and rule_1 == "kept":
            with pytest.raises(ConfigError, match=f"no completion of an OOD prompt of {language} keeps R1"):
                completed_prompts(grammar, rule_1)
            return
        texts, held = completions(grammar, rule_1)
        assert held.tolist() == [rule_1 == "kept"] * len(texts)
        # Every prompt, in order and with its repetitions.
        assert [prompt for prompt, _ in texts] == grammar.to_text(grammar.prompts["OOD"][:, 1:])
        rows, _ = completed_prompts(grammar, rule_1)
        assert (rows[:, 0] == SOS).all()
        assert ((rows == EOS).sum(1) == 1).all()
        # PAD from EOS on, and nowhere else.
        assert torch.equal(rows == PAD, ((rows == EOS).cumsum(1) > 0) & (rows != EOS))

    @pytest.mark.parametrize("language", [name for name in LISTED if name not in DEAD])
    @pytest.mark.parametrize("rule_1", ["kept", "broken"])
    def test_they_are_the_first_of_the_shortest(self, language, rule_1):
        """Compared with all completions of up to five symbols, tried one after the other."""
        grammar = get_grammar(language, 12, test_prompt_length=4)
        texts, _ = completions(grammar, rule_1)
        tried = ["".join(s) for n in range(6) for s in itertools.product(grammar.alphabet, repeat=n)]
        tried = tried if rule_1 == "kept" else tried[1:]
        checked = 0
        for prompt, completion in set(texts):
            if len(completion) <= 5:
                held = grammar.judge(grammar.encode([prompt + c for c in tried]))["rule_1"].tolist()
                assert completion == tried[held.index(rule_1 == "kept")]
                checked += 1
        assert checked

    def test_cases_done_by_hand(self):
        texts = dict(completions(AnBn(max_length=8), "kept")[0])
        assert [texts[prompt] for prompt in ("bbbbbbbb", "abababab", "bbbbbbaa")] == ["aaaaaaaa"[:8], "", "aaaa"]
        texts = dict(completions(AnBn(max_length=8), "broken")[0])
        assert [texts[prompt] for prompt in ("bbbbbbbb", "abababab", "bbbbbbba")] == ["a", "a", "a"]
        texts = dict(completions(AnBn(max_length=8, test_prompt_length=1), "broken")[0])
        assert texts == {"b": "b"}  # an a would repair it

    def test_states_without_a_completion(self):
        dead = matching("()")
        assert shortest_completion(dead, dead.after(")"), "()", kept=True) is None
        assert shortest_completion(dead, dead.after(")"), "()", kept=False) == "("
        everything = Acceptor(0, lambda state, symbol: state, lambda state: True)
        assert shortest_completion(everything, 0, "ab", kept=False) is None
        never = Acceptor(0, lambda state, symbol: state + 1, lambda state: False)  # without end
        assert shortest_completion(never, 0, "ab", kept=True) is None

    def test_prompts_that_cannot_be_completed_are_left_out(self):
        class AtMostSixBs(AnBn):
            acceptors = {
                "rule_1": Acceptor(
                    (0, 0),
                    lambda n, symbol: (n[0] + (symbol == "a"), n[1] + (symbol == "b")) if n[1] <= 6 else None,
                    lambda n: n[0] == n[1] <= 6,
                )
            }

        texts, held = completions(AtMostSixBs(max_length=8), "kept")
        assert held.all()
        assert {prompt for prompt, _ in texts} == {
            prompt
            for prompt in AnBn(8).to_text(AnBn(8).prompts["OOD"][:, 1:])
            if max(prompt.count("a"), prompt.count("b")) <= 6
        }


class TestLoss:
    @pytest.mark.parametrize("rule_1", ["kept", "broken"])
    @pytest.mark.parametrize("model", ["minlstm-default", "transformer-post-norm", "linear-l5", "mamba-tiny"])
    def test_is_the_mean_over_the_completions_tokens(self, model, rule_1):
        """One string at a time, without padding."""
        torch.manual_seed(0)
        assert model in MODELS
        model, grammar = make(model).eval(), get_grammar("L5", 12)
        assert grammar.num_tokens == NUM_TOKENS
        ood = OODTraining(grammar, model, rule_1, batch_size=9)
        rows = ood.next_batch()
        losses = []
        for text in grammar.to_text(rows[:, 1:]):
            tokens = torch.tensor([SOS, *grammar.encode([text])[0].tolist()])
            each = -model(tokens[None, :-1])[0].log_softmax(0)
            losses += [each[tokens[t + 1], t] for t in range(8, len(tokens) - 1)]  # ")[" and six symbols
        torch.testing.assert_close(ood.loss(model, rows), torch.stack(losses).mean())

    def test_neither_the_prompts_tokens_nor_pad_are_targets(self):
        """By the gradient of the logits, with a model that consists of its logits."""

        class Table(MinLSTM):
            def forward(self, tokens):
                return self.logits

        grammar = AnBn(max_length=12)
        model = Table(5)
        ood = OODTraining(grammar, model, "kept", batch_size=256)
        rows = ood.next_batch()
        model.logits = torch.randn(len(rows), 5, rows.shape[1] - 1, requires_grad=True)
        ood.loss(model, rows).backward()
        is_target = model.logits.grad.abs().sum(1) > 0
        expected = rows[:, 1:] != PAD
        expected[:, :8] = False
        assert torch.equal(is_target, expected)
        assert expected.sum() == sum(len(completion) + 1 for _, completion in completions(grammar, "kept")[0])

    def test_batches_go_through_all_prompts_in_an_order_from_the_seed(self):
        def drawn(seed, num):
            ood = OODTraining(AnBn(max_length=12), MinLSTM(5), "broken", batch_size=100, seed=seed)
            return [ood.next_batch() for _ in range(num)]

        first, same, other = drawn(0, 6), drawn(0, 6), drawn(1, 6)
        assert [len(batch) for batch in first] == [100, 100, 51] * 2
        assert all(torch.equal(a, b) for a, b in zip(first, same))
        assert not torch.equal(first[0], other[0])
        passes = torch.cat(first[:3]), torch.cat(first[3:])
        assert not torch.equal(*passes)
        assert torch.equal(*(rows.unique(dim=0) for rows in passes))
        assert len(passes[0].unique(dim=0)) == 251


class TestRuns:
    def test_the_two_controls_move_ood_rule_1_in_opposite_directions(self, train, capsys):
        overrides = [
            "grammar=aNbN", "grammar.test_prompt_length=6", "model.embedding_dim=16", "model.hidden_dim=32",
            "trainer.max_steps=100", "trainer.val_check_interval=100", "optimizer.lr=1e-2", "scheduler.warmup=10",
        ]  # fmt: skip
        accuracy = {}
        for name in ("standard", "adversarial", "oracle"):
            run = train(*overrides, f"training={name}", folder=name)
            results = read_results(run)
            accuracy[name] = results["test"]["Test/OOD/rule_1_accuracy"]
            rows = [row for row in read_metrics(run) if "Train/loss" in row]
            assert [("Train/ood_loss" in row) for row in rows] == [name != "standard"] * 100
            assert results["training"] == name
            out = capsys.readouterr().out
            rule_1 = {"adversarial": "broken", "oracle": "kept"}.get(name)
            caveat = rule_1 and f"trained on the OOD prompts of 6 symbols, R1 {rule_1}"
            assert results["caveat"] == caveat
            assert f"minlstm ({caveat}) on aNbN," in out if caveat else "minlstm on aNbN," in out
        assert accuracy["adversarial"] + 0.2 < accuracy["standard"] < accuracy["oracle"] - 0.2

    def test_logged_losses_are_those_of_the_first_step(self, train):
        run = train("training=oracle", "trainer.max_steps=2", *TINY)
        seed_everything(0, verbose=False)
        module = assemble(config(run, "training=oracle", *TINY)).module
        data = assemble(config(run, *TINY)).data
        row, _ = [row for row in read_metrics(run) if "Train/loss" in row]
        words = next(iter(data.train_dataloader()))
        assert row["Train/loss"] == pytest.approx(module.losses(words)[0]["loss"].item(), abs=1e-6)
        ood_loss = module.ood.loss(module.model, module.ood.next_batch())
        assert row["Train/ood_loss"] == pytest.approx(ood_loss.item(), abs=1e-6)

    def test_a_step_follows_the_gradient_of_the_sum(self, train):
        """The loss on words, and the weighted loss on completions."""
        overrides = [
            "training=adversarial", "training.weight=0.3", "training.batch_size=7", "training.seed=5", *TINY,
            "optimizer=sgd", "optimizer.lr=0.5", "optimizer.momentum=0", "scheduler=constant", "trainer.max_steps=1",
        ]  # fmt: skip
        run = train(*overrides)
        seed_everything(0, verbose=False)
        module = assemble(config(run, *overrides)).module
        rows = OODTraining(module.grammar, module.model, "broken", batch_size=7, seed=5).next_batch()
        words = module.grammar.all_words()
        (module.losses(words)[0]["objective"] + 0.3 * module.ood.loss(module.model, rows)).backward()
        after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(after[name], parameter.detach() - 0.5 * parameter.grad)

    @pytest.mark.parametrize("stop", [3, 4])
    def test_a_resumed_run_has_the_same_curve(self, train, stop):
        """Three batches of OOD prompts per pass, and dropout; stopped at the end of a pass and within one."""
        overrides = [
            "training=adversarial", "training.batch_size=100", "model=lstm", "model.num_layers=2", "model.dropout=0.5",
            "trainer.val_check_interval=2", *TINY,
        ]  # fmt: skip
        whole = train(*overrides, "trainer.max_steps=8", folder="whole")
        first = train(*overrides, f"trainer.max_steps={stop}", folder="first")
        rest = train(*overrides, "trainer.max_steps=8", f"resume={first}", folder="rest")
        curves = [
            {
                (row["step"], key): row[key]
                for run in runs
                for row in read_metrics(run)
                for key in ("Train/loss", "Train/ood_loss", "Val/loss")
                if key in row
            }
            for runs in ([whole], [first, rest])
        ]
        end = {(stop - 1, "Val/loss")} - curves[0].keys()  # the first run ends there, and the end is validated
        assert {key: value for key, value in curves[1].items() if key not in end} == curves[0]
        assert read_results(rest)["test"] == read_results(whole)["test"]

    def test_a_run_to_resume_must_have_the_same_training(self, train, tmp_path):
        run = train("training=oracle", "trainer.max_steps=2", *TINY)

        def refusal(*overrides):
            with pytest.raises(ConfigError) as error:
                assemble(config(tmp_path, *TINY, f"resume={run}", *overrides))
            return str(error.value)

        assert "training.name=standard: the run to resume has oracle; use the same value" in refusal()
        assert "training.weight=2: the run to resume has 1.0" in refusal("training=oracle", "training.weight=2")
        (run / "config.yaml").unlink()
        assert "training.name=standard: the run to resume has another" in refusal()

    @pytest.mark.parametrize(
        "model",
        ["transformer", "lstm model.num_layers=1", "linear", "mamba model.n_layers=1", "xlstm model.num_blocks=2"],
    )
    def test_any_model(self, train, model):
        overrides = ["grammar=L5", "training=oracle", "training.batch_size=4", "data.max_length=14"]
        run = train(*f"model={model}".split(), *overrides, "trainer.max_steps=2", "decoding.max_new_tokens=4")
        assert any("Train/ood_loss" in row for row in read_metrics(run))


class TestFinetune:
    @pytest.fixture
    def first(self, train):
        return train("grammar=L1", "trainer.max_steps=6", "optimizer.lr=0.1", *TINY, folder="first")

    def weights(self, run, name="best"):
        return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]

    def test_starts_from_the_weights_and_trains_from_step_0(self, train, first, capsys):
        """At this learning rate, steps change nothing."""
        tiny = [*TINY, "optimizer.lr=1e-30", "trainer.max_steps=2"]
        run = train("training=finetune", f"ckpt={first}", "grammar=L3", *tiny)
        assert f"on aNbN (L3, context-free), from {first}\n" in capsys.readouterr().out
        results = read_results(run)
        assert (results["started_from"], results["training"], results["grammar"]) == (str(first), "finetune", "aNbN")
        given = self.weights(first)
        assert all(torch.equal(weight, given[name]) for name, weight in self.weights(run, "last").items())
        module = assemble(config(run, *TINY)).module
        module.load_state_dict(given)
        logged = [row for row in read_metrics(run) if "Train/loss" in row]
        assert [row["step"] for row in logged] == [0, 1]
        assert logged[0]["Train/loss"] == pytest.approx(module.losses(module.grammar.all_words())[0]["loss"].item())

    def test_learns_the_other_language(self, train, first):
        overrides = ["training=finetune", f"ckpt={first}", "grammar=L3", "optimizer.lr=1e-2", "scheduler=constant"]
        run = train(*overrides, "trainer.max_steps=30", "trainer.val_check_interval=10", *TINY)
        losses = [row["Val/loss"] for row in read_metrics(run) if "Val/loss" in row]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0] - 0.05

    def test_a_file_is_taken_as_it_is(self, first, tmp_path):
        last = first / "checkpoints" / "last.ckpt"
        module = assemble(config(tmp_path, "training=finetune", f"ckpt={last}", "grammar=L3", *TINY)).module
        assert all(
            torch.equal(weight, self.weights(first, "last")[name]) for name, weight in module.state_dict().items()
        )

    def test_goes_with_the_controls(self, first, tmp_path):
        module = assemble(config(tmp_path, "training=oracle", f"ckpt={first}", "grammar=L3", *TINY)).module
        assert module.ood.verdict == "kept"
        assert all(torch.equal(weight, self.weights(first)[name]) for name, weight in module.state_dict().items())

    def test_resumes_along_the_same_curve(self, train, first):
        overrides = ["training=finetune", f"ckpt={first}", "grammar=L3", *TINY]
        whole = train(*overrides, "trainer.max_steps=6", folder="whole")
        half = train(*overrides, "trainer.max_steps=3", folder="half")
        rest = train(*overrides, "trainer.max_steps=6", f"resume={half}", folder="rest")
        assert read_results(rest)["test"] == read_results(whole)["test"]
        assert all(
            torch.equal(weight, self.weights(whole, "last")[name])
            for name, weight in self.weights(rest, "last").items()
        )

    def test_weights_that_do_not_fit(self, cli, first, tmp_path):
        def refusal(*overrides):
            status, out, err = cli(*SHORT, "training=finetune", f"ckpt={first}", *TINY, *overrides)
            assert (status, out, err.count("\n")) == (2, "", 1)
            return err

        shape = "its model.embedding.weight is (5, 8), not"
        assert f"error: ckpt={first}: {shape} (6, 8); set its model and sizes, and a grammar" in refusal("grammar=L4")
        assert f"{shape} (5, 4)" in refusal("model.embedding_dim=4")
        assert re.search(r"its model\.layers\.2\.\S+ is missing, not \(", refusal("model.num_layers=3"))
        assert "there is no" in refusal(f"ckpt={tmp_path}")
        (first / "checkpoints" / "best.ckpt").write_text("no weights")
        assert "best.ckpt is not a checkpoint of a run" in refusal()


ERRORS = {
    "training=advers": "training=advers: did you mean adversarial? (one of adversarial, finetune, oracle, standard)",
    "training=finetune": "ckpt=null: must be set; name a run folder or a .ckpt file to start from",
    "training=finetune ckpt=nowhere": "ckpt=nowhere: there is no nowhere; name a run folder or a .ckpt file",
    "ckpt=nowhere": "ckpt=nowhere: there is no nowhere",
    f"training=finetune ckpt={__file__}": "test_ood_training.py is not a checkpoint of a run",
    "training=oracle training.wieght=2": "training.wieght=2: no such key; did you mean weight?",
    "training=oracle +training.wieght=2": "training.wieght=2: no such key; did you mean weight?",
    "training.weight=2": "training.weight=2: no such key",
    "+training.weight=2": "training=",
    "training=oracle training.weight=0": "training.weight=0: must be greater than 0",
    "training=oracle training.weight=inf": "training.weight=inf: must be finite",
    "training=oracle training.batch_size=0": "training.batch_size=0: must be greater than 0",
    "training=oracle training.seed=-1": "training.seed=-1: must be from 0",
    "training=oracle training.verdict=perhaps": "training.verdict=perhaps: must be one of kept, broken",
    "training=oracle grammar=abN": "training.verdict=kept: abN has no OOD prompts; choose another grammar",
    "training=adversarial grammar=aNbM": "training.rule=rule_1: aNbM has no R1 with an acceptor; choose another",
    "training=oracle grammar=brackets": "training.verdict=kept: no completion of an OOD prompt of brackets keeps R1",
    "training=oracle model=oracle": "training.verdict=kept: the model has nothing to train; use training=standard",
    "training=oracle model=linear": "data.max_length=12: completed OOD prompts take 17 tokens, and the model reads 13",
    "~training": "training=null: must be set",
}


@pytest.mark.parametrize(("overrides", "message"), ERRORS.items())
def test_errors_are_one_line_before_any_work(cli, tmp_path, overrides, message):
    status, out, err = cli(*SHORT, *overrides.split())
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert list(tmp_path.iterdir()) == []
