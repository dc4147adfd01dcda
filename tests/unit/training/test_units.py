"""Units of several rows in a step: means over units, one clip per unit, and units that stay whole."""

from types import SimpleNamespace

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.privacy.engines import hooks
from sealed_experts.privacy.ledger.journal import Journal
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import physical_batches
from sealed_experts.training.dataset import UnitDataset
from sealed_experts.training.gradients import PlainGradients, PrivateGradients
from sealed_experts.training.objectives.sft import Sft, SupervisedFineTuning
from sealed_experts.training.response import mean_response_loss, response_logits
from sealed_experts.training.self_check import check_gradients
from tests.kinds import adapted
from tests.loops import loop_on
from tests.pairs import Preference, batch_of, units

CPU = torch.device("cpu")
SFT = SupervisedFineTuning(max_seq_len=64)
CLIP = 1e-4  # below the norm of every gradient here


def pairs(rows):
    """Return units of one record each: all rows of the unit form one record."""
    return UnitDataset([[[row for row in rows if row.unit == unit]] for unit in sorted({row.unit for row in rows})])


class Asking(Preference):
    """It also asks a query: one value per unit."""

    query_noise = {"share": 1e-9}  # noqa: RUF012

    def queries(self, batch):
        return {"share": torch.full((len(batch.rows_by_unit()),), 0.25)}


def alone(model, objective, batch):
    """Return each unit's loss and gradient from a plain backward pass."""
    for unit in batch.units():
        losses, _ = objective.per_example_loss(model, unit, objective.constants(model, unit))
        parts = torch.autograd.grad(losses.sum(), trainable_parameters(model))
        yield losses.item(), torch.cat([part.flatten() for part in parts]).double()


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def private(model, objective, engine, folder, **changes):
    values = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": 4, "queries": {}}
    return PrivateGradients(
        model=model,
        objective=objective,
        parameters=trainable_parameters(model),
        plan=SimpleNamespace(**{**values, **changes}),
        stream=Stream(bytes(32)),
        journal=Journal.open(folder / "journal", fingerprint="0" * 64, key_id="0" * 32),
        engine=engine,
    )


def test_without_privacy_the_mean_is_over_units():
    model, batch = adapted("lora"), batch_of(units())
    losses, expected = zip(*alone(model, Preference(), batch), strict=True)
    source = PlainGradients(model=model, objective=Asking(), parameters=trainable_parameters(model))
    assert source.add(batch).tolist() == pytest.approx(losses, rel=1e-4)
    release = source.release(step=1)
    assert release.queries == {"share": 0.25}
    torch.testing.assert_close(flat(release.gradients), torch.stack(expected).mean(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("engine", ["hooks", "vmap", "one_by_one"])
def test_a_units_gradient_is_clipped_once_however_many_rows_it_has(tmp_path, engine):
    model, batch = adapted("lora"), batch_of(units())
    _, gradients = zip(*alone(model, Preference(), batch), strict=True)
    assert min(float(gradient.norm()) for gradient in gradients) > CLIP
    expected = sum(CLIP * gradient / gradient.norm() for gradient in gradients) / 4
    source = private(model, Asking(), engine, tmp_path, queries={"share": 0.0})
    losses = source.add(batch)
    assert losses.shape == (5,)
    release = source.release(step=1)
    assert release.queries["share"] == pytest.approx(5 * 0.25 / 4)
    torch.testing.assert_close(flat(release.gradients), expected, rtol=1e-3, atol=1e-3 * CLIP)


def test_a_query_with_more_than_one_value_a_unit_is_a_defect(tmp_path):
    class Rows(Asking):
        def queries(self, batch):
            return {"share": torch.full((len(batch.examples),), 0.25)}

    source = private(adapted("lora"), Rows(), "hooks", tmp_path, queries={"share": 0.0})
    with pytest.raises(ValueError, match="one value per unit"):
        source.add(batch_of(units()))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_adding_a_unit_moves_the_sum_by_the_clip_and_no_more(tmp_path, size):
    """If rows were clipped separately, a pair could move it twice as far. The noise is the same and cancels."""
    released = []
    rows = units((1, 1, size))
    for kept in (rows, [row for row in rows if row.unit < 2]):
        folder = tmp_path / str(len(kept))
        folder.mkdir()
        source = private(adapted("lora"), SFT, "hooks", folder, noise_multiplier=1.0, expected_batch_size=1)
        source.add(batch_of(kept))
        released.append(flat(source.release(step=1).gradients))
    assert float((released[0] - released[1]).norm()) == pytest.approx(CLIP, rel=1e-3)


class Unvalidated(Preference):
    """One that has nothing to say of held-out rows."""

    def validate(self, model, batches, *, check):
        return {"val_loss": 0.0}


def test_the_logged_loss_is_the_mean_over_units_and_units_are_counted(tmp_path):
    model, rows, objective = adapted("lora"), units((2,) * 4), Unvalidated()
    expected = [loss for loss, _ in alone(model, objective, batch_of(rows))]
    settings = Sft(batch_size=4, max_steps=1, log_steps=1, eval_steps=9, learning_rate=1e-3, token_budget=64)
    loop = loop_on(
        pairs(rows),
        model=model,
        objective=objective,
        gradients=PlainGradients(model=model, objective=objective, parameters=trainable_parameters(model)),
        settings=settings,
        folder=tmp_path,
    )
    state = loop.train()
    logged = next(line["loss"] for line in state.history if "loss" in line)
    assert logged == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert (state.examples_seen, state.tokens_seen) == (4, sum(len(row.ids) for row in rows))


def before_training(dataset, objective, *, engine="hooks", kind="lora", token_budget=4096):
    check_gradients(
        model=adapted(kind),
        objective=objective,
        dataset=dataset,
        stream=Stream(bytes(32)),
        dtype=torch.float32,
        pad_id=0,
        engine=engine,
        token_budget=token_budget,
    )


def test_the_check_before_training_needs_no_more_memory_than_a_step():
    """With long records its batches had twice as many tokens, and set the peak of the whole training."""
    seen = []

    class Watched(Preference):
        def constants(self, model, batch):
            seen.append((len(batch.rows_by_unit()), batch.input_ids.numel()))
            return super().constants(model, batch)

    dataset = pairs(units((2,) * 12))
    before_training(dataset, Watched(), token_budget=400)
    assert max(tokens for count, tokens in seen if count > 2) <= 400
    assert max(count for count, _ in seen) == 3
    seen.clear()
    before_training(dataset, Watched(), token_budget=16)
    assert max(count for count, _ in seen) == 2  # two at least, or there would be nothing to compare


def test_the_check_before_training_sees_whole_units(monkeypatch, capsys):
    seen = []

    class Watched(Preference):
        def constants(self, model, batch):
            seen.append([len(rows) for rows in batch.rows_by_unit()])
            return super().constants(model, batch)

    rows = units((2,) * 12)
    dataset = pairs(rows)
    before_training(dataset, Watched())
    assert [2] * 4 in seen
    assert "agree with one-at-a-time truth" in capsys.readouterr().out
    monkeypatch.setattr(hooks, "sum_by_unit", lambda gradients, unit: [gradient[::2] for gradient in gradients])
    with pytest.raises(UserError, match="training under privacy is refused: example 0: its gradient from a batch"):
        before_training(dataset, Preference())


def test_the_check_before_training_refuses_hooks_for_a_soft_prompt():
    rows = units((1,) * 8)
    with pytest.raises(UserError, match=r"got 1 gradients for 4 examples.*`hooks`.*choose another adapter.kind"):
        before_training(pairs(rows), SFT, kind="prompt")


def test_one_examples_loss_does_not_depend_on_the_others():
    model, rows = adapted("lora"), units()
    together = response_logits(model, batch_of(rows))
    alone = [response_logits(model, batch_of([example])) for example in batch_of(rows).examples]
    torch.testing.assert_close(
        together.row_means(together.losses()), torch.cat([one.row_means(one.losses()) for one in alone])
    )


def test_validation_loss_is_the_token_mean_however_it_is_cut():
    model, rows = adapted("lora"), units()
    batch = batch_of(rows)
    cut = mean_response_loss(model, physical_batches(rows, token_budget=40, pad_id=0, device=CPU))
    response = response_logits(model, batch)
    whole = response.losses()[response.real].sum() / response.counts.sum()
    assert cut == pytest.approx(whole.item(), rel=1e-5)
    assert cut == pytest.approx(mean_response_loss(model, [batch]), rel=1e-5)


def test_the_bases_dropout_is_off_while_it_trains():
    """No key decides dropout, and two passes over an example would differ."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    base = OPTForCausalLM(
        OPTConfig(
            vocab_size=300,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            dropout=0.3,
            attention_dropout=0.3,
            word_embed_proj_dim=32,
        )
    )
    settings = Lora(rank=2, alpha=4, target_modules=("q_proj", "v_proj"))
    model = attach_adapter(base.requires_grad_(False), settings, seed=0)
    assert model.training
    batch = batch_of(units((1, 1)))
    one, two = (SFT.per_example_loss(model, batch, {})[0] for _ in range(2))
    assert torch.equal(one, two)
