"""A unit's gradient has the same bits whoever else is drawn, or training under privacy is refused."""

import random
from types import SimpleNamespace

import pytest
import torch

from sealed_experts.errors import UserError
from sealed_experts.models.adapters.lora import Lora
from sealed_experts.models.attachment import attach_adapter, trainable_parameters
from sealed_experts.privacy.engines import make_engine
from sealed_experts.privacy.streams import Stream
from sealed_experts.training.batches import Example, UnitShapes, unit_batches
from sealed_experts.training.gradients import PrivateGradients
from sealed_experts.training.objectives.sft import SupervisedFineTuning
from sealed_experts.training.row_check import check_positions, find_unit_shapes
from sealed_experts.training.shapes import Grid, Shape
from tests.kinds import VOCABULARY, adapted
from tests.pairs import Preference

CPU = torch.device("cpu")
SFT = SupervisedFineTuning(max_seq_len=64)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def units_of(count, *, size=1, longest=60):
    chance = random.Random(0)
    rows = []
    for unit in range(count):
        for _ in range(size):
            length = chance.randint(4, longest)
            ids = tuple(chance.randrange(VOCABULARY) for _ in range(length))
            rows.append(Example(ids=ids, prompt_length=chance.randint(1, length - 1), unit=unit))
    return rows


def shapes_for(model, *, engine="hooks", objective=SFT, size=1, dtype=torch.float32, longest=64):
    return find_unit_shapes(
        model=model,
        objective=objective,
        engine=engine,
        stream=Stream(bytes(32)),
        longest=longest,
        context=256,
        token_budget=256,
        most_units=8,
        sizes=[size],
        pad_id=0,
        dtype=dtype,
    )


def bits_of(model, rows, shapes, *, engine="hooks", objective=SFT):
    """Return the exact gradients and loss of each unit, by unit."""
    chosen, found = make_engine(engine, model=model, objective=objective), {}
    for batch in unit_batches(rows, shapes=shapes, pad_id=0, device=CPU):
        units = chosen.per_unit(batch)
        flat = torch.cat([units.losses[:, None], *(gradient.flatten(1) for gradient in units.gradients)], dim=1)
        for place in range(len(flat)) if batch.counted is None else batch.counted:
            found[batch.examples[batch.rows_by_unit()[place][0]].unit] = flat[place].numpy().tobytes()
    chosen.close()
    return found


def assert_own(model, rows, shapes, **how):
    whole = bits_of(model, rows, shapes, **how)
    count = len(whole)
    assert count == rows[-1].unit + 1
    chance = random.Random(1)
    for size in (1, 2, count // 2, count - 1):
        kept = set(chance.sample(range(count), size))
        some = bits_of(model, [row for row in rows if row.unit in kept], shapes, **how)
        assert some == {unit: whole[unit] for unit in kept}


@DTYPES
@pytest.mark.parametrize("base", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize(("kind", "engine"), [("lora", "hooks"), ("dora", "vmap"), ("ia3", "one_by_one")])
def test_a_units_gradient_has_the_same_bits_whoever_else_is_drawn(base, kind, engine, dtype):
    """In bfloat16, padding to a longer row's width moved gradients by a few percent."""
    model = adapted(kind, base, dtype)
    shapes = shapes_for(model, engine=engine, dtype=dtype)
    assert_own(model, units_of(20), shapes, engine=engine)


def test_so_has_a_unit_of_two_rows():
    model = adapted("lora")
    shapes = shapes_for(model, objective=Preference(), size=2)
    assert_own(model, units_of(12, size=2), shapes, objective=Preference())


class Coupled(SupervisedFineTuning):
    """Its loss depends on the longest answer of the batch, by less than any tolerance."""

    def per_example_loss(self, model, batch, constants):
        losses, figures = super().per_example_loss(model, batch, constants)
        return losses * (1 + 1e-5 * (batch.labels >= 0).sum(1).max()), figures


def test_a_maximum_over_the_batch_makes_units_run_alone_and_says_so(capsys):
    model, objective = adapted("lora"), Coupled(max_seq_len=64)
    shapes = shapes_for(model, objective=objective)
    assert capsys.readouterr().out.count("they are computed one at a time") == 1
    assert all(
        batch.input_ids.shape[0] == 1 for batch in unit_batches(units_of(9), shapes=shapes, pad_id=0, device=CPU)
    )
    assert_own(model, units_of(9), shapes, objective=objective)


def test_in_bfloat16_a_maximum_over_the_batch_is_refused():
    with pytest.raises(UserError, match=r"in bfloat16 a record's gradient changes.*set base\.dtype: float32"):
        shapes_for(adapted("lora", dtype=torch.bfloat16), objective=Coupled(max_seq_len=64), dtype=torch.bfloat16)


def with_dynamic_positions():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    return attach_adapter(LlamaForCausalLM(config).requires_grad_(False), Lora(rank=2, alpha=4), seed=1)


def test_a_base_that_remembers_the_longest_record_is_refused():
    """Dynamic rotary positions keep the longest length that they have seen."""
    with pytest.raises(UserError, match="changes with the records that it saw before"):
        shapes_for(with_dynamic_positions(), longest=96)


def test_it_is_refused_by_its_configuration_before_anything_runs():
    config = with_dynamic_positions().config
    check_positions(config, longest=32, stage="sft")
    with pytest.raises(UserError, match=r"one has more than 32 tokens; set sft\.max_seq_len to at most 32"):
        check_positions(
            SimpleNamespace(
                **{
                    **vars(config),
                    "max_position_embeddings": 96,
                    "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32},
                }
            ),
            longest=64,
            stage="sft",
        )


def test_fillers_contribute_nothing(tmp_path):
    """Copies of a unit fill the places that cannot be used, and are dropped before the clip."""
    rows, released = units_of(5, longest=15), []
    for shape in (Shape.free(5), Shape(8, (1, 4, 7)), Shape(8, tuple(range(8)))):
        model = adapted("lora")
        source = PrivateGradients(
            model=model,
            objective=Asking(max_seq_len=64),
            parameters=trainable_parameters(model),
            plan=SimpleNamespace(
                noise_multiplier=0.0, max_grad_norm=1e-3, expected_batch_size=5, queries={"share": 0.0}
            ),
            stream=Stream(bytes(32)),
            journal=None,
            engine="hooks",
        )
        shapes = UnitShapes(grid=Grid(multiple=16, fineness=8, longest=64), shapes={(16, 1): (shape,)})
        batches = unit_batches(rows, shapes=shapes, pad_id=0, device=CPU)
        assert sum(source.add(batch).numel() for batch in batches) == 5
        assert sum(batch.real_tokens for batch in batches) == sum(len(row.ids) for row in rows)
        released.append(source.release(step=1))
    for release in released[1:]:
        assert release.queries == released[0].queries == {"share": 0.25}
        for one, other in zip(release.gradients, released[0].gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


class Asking(SupervisedFineTuning):
    """It also asks a query."""

    def queries(self, batch):
        return {"share": torch.full((len(batch.rows_by_unit()),), 0.25)}
