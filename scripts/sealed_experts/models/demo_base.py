"""The demo's base model: a byte-level BPE tokenizer and a small Qwen2, pretrained locally on the general text."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from sealed_experts.data.demo_general import Document, general_text
from sealed_experts.errors import UserError
from sealed_experts.files.atomic import sync_folder
from sealed_experts.models.completeness import linear_modules
from sealed_experts.models.manifest import MANIFEST, write_base_manifest
from sealed_experts.models.settings import DemoBaseSettings

END, PAD = "<|endoftext|>", "<|pad|>"
IGNORED = -100  # a label without loss
ROW_TOKENS = 128  # documents are short: longer rows would only make attention slower
BATCH_ROWS = 8
COPY_ROWS, COPY_SHARE = 4, 0.17  # rows of a batch, and share of the steps, from the first on
PEAK_LEARNING_RATE = 4e-3
WARMUP_STEPS = 20
WEIGHT_DECAY = 0.05
MAX_GRAD_NORM = 1.0
INITIAL_DEVIATION = 0.04
ROPE_THETA = 10_000.0
LOOK_BACK, LOOK_BACK_PAIRS = (
    7.0,
    4,
)  # strength, and number of rotary pairs: the fastest ones distinguish neighbouring positions

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Token ids and labels, both [rows, length]; a label of -100 carries no loss."""

    ids: torch.Tensor
    labels: torch.Tensor


def build_demo_base(
    settings: DemoBaseSettings,
    *,
    seed: int,
    folder: Path,
    key: str = "demo",
    dtype: str = "auto",
    documents: Sequence[Document] | None = None,
    log: Log = print,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Make the demo base in `folder`, an ordinary Hugging Face model folder plus base.json. Return this manifest.

    The result depends only on settings, seed, documents (by default the demo's general text) and threads. `check` is
    called before each step, and may raise to give up.

    Raises:
        UserError: `hidden_size` is not a multiple of `heads`, or the text is too small for the vocabulary.
    """
    if settings.hidden_size % settings.heads or (settings.hidden_size // settings.heads) % 2:
        raise UserError(
            f"base.demo: hidden_size {settings.hidden_size} divided by heads {settings.heads} is not an even number; "
            "choose another number of heads"
        )
    torch.set_num_threads(settings.threads)
    documents = general_text() if documents is None else documents
    tokenizer = train_tokenizer(documents, vocab_size=settings.vocab_size)
    model = new_model(settings, tokenizer, seed=seed)
    pretrain(model, pack(documents, tokenizer), steps=settings.pretrain_steps, seed=seed, log=log, check=check)
    _save(model, tokenizer, folder)
    modules = linear_modules(model)
    return write_base_manifest(folder, name="demo", revision=None, key=key, dtype=dtype, modules=modules)


def train_tokenizer(documents: Sequence[Document], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with an end-of-sequence and a padding token. Each digit is one token.

    Raises:
        UserError: the text has too few distinct words for `vocab_size` tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.prompt + document.text for document in documents), trainer=trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise UserError(
            f"base.demo.vocab_size: the general text gives only {tokenizer.get_vocab_size()} tokens, "
            f"not {vocab_size}: choose a smaller vocabulary"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def new_model(settings: DemoBaseSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2ForCausalLM:
    """Return a random Qwen2 in float32 with tied embeddings. Half of the heads in its first layer look back."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=settings.vocab_size,
            hidden_size=settings.hidden_size,
            intermediate_size=2 * settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.context,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=True,
            initializer_range=INITIAL_DEVIATION,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for head in range(settings.heads // 2):
        _look_back(model, head=head, distance=head + 1)
    return model


def _look_back(model: Qwen2ForCausalLM, *, head: int, distance: int) -> None:
    """Set the biases of a head in the first layer so that it first attends to the token `distance` places back.

    Key and query get equal biases, and the query's bias is rotated back by `distance`. With rotary positions the score
    is then Σ_f LOOK_BACK² cos(ω_f (i - j - distance)), which is largest at that token. Such heads are one half of every
    circuit that copies. Without this start, a model needs most of a short pretraining to find them.
    """
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    attention = model.model.layers[0].self_attn
    first = head * size
    with torch.no_grad():
        for pair in range(min(LOOK_BACK_PAIRS, size // 2)):
            angle = distance * ROPE_THETA ** (-2 * pair / size)
            attention.k_proj.bias[first + pair] = LOOK_BACK
            attention.q_proj.bias[first + pair] = LOOK_BACK * math.cos(angle)
            attention.q_proj.bias[first + pair + size // 2] = -LOOK_BACK * math.sin(angle)


def pack(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, *, length: int = ROW_TOKENS) -> Rows:
    """Return token rows and labels: whole documents, each with its end token, one after another, padded at the end.

    A row begins with a document, as every conversation does. A document longer than a row is cut. Prompts are tokenized
    separately from the text after them, as in training on records, and have no loss.
    """
    prompts, texts = (
        tokenizer([getattr(document, part) for document in documents], add_special_tokens=False)["input_ids"]
        for part in ("prompt", "text")
    )
    ids: list[list[int]] = [[]]
    labels: list[list[int]] = [[]]
    for prompt, text in zip(prompts, texts, strict=True):
        document = [*prompt, *text, tokenizer.eos_token_id][:length]
        if len(ids[-1]) + len(document) > length:
            ids.append([])
            labels.append([])
        ids[-1].extend(document)
        labels[-1].extend([IGNORED] * min(len(prompt), length) + document[len(prompt) :])
    return Rows(_padded(ids, tokenizer.pad_token_id, length), _padded(labels, IGNORED, length))


def _padded(rows: list[list[int]], filler: int, length: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def pretrain(
    model: Qwen2ForCausalLM,
    rows: Rows,
    *,
    steps: int,
    seed: int,
    log: Log = print,
    check: Callable[[], None] = lambda: None,
) -> float:
    """Train with AdamW and a cosine schedule; return the last step's loss in nats per token.

    The first steps also have rows in which random tokens are repeated. They teach copying faster than anything else,
    and a model must copy from the question to stay on its topic.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, steps))
    model.train()
    order = torch.empty(0, dtype=torch.long)
    loss = float("nan")
    for step in range(steps):
        check()
        if len(order) < BATCH_ROWS:
            order = torch.cat([order, torch.randperm(len(rows.ids), generator=generator)])
        drawn, order = order[:BATCH_ROWS], order[BATCH_ROWS:]
        batch = Rows(rows.ids[drawn], rows.labels[drawn])
        if step < COPY_SHARE * steps:
            _put_copies(batch, vocab_size=model.config.vocab_size, generator=generator)
        loss = _train_step(model, batch, optimizer)
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            log(f"step {step + 1} of {steps}: loss {loss:.3f}")
    model.eval()
    return loss


def _put_copies(batch: Rows, *, vocab_size: int, generator: torch.Generator) -> None:
    """Replace the first rows by random tokens, written twice. Only the second copy has a loss."""
    half = batch.ids.shape[1] // 2
    tokens = torch.randint(2, vocab_size, (COPY_ROWS, half), generator=generator)  # after the two special tokens
    copies = batch.ids[:COPY_ROWS]
    copies[:, :half] = tokens[: len(copies)]
    copies[:, half : 2 * half] = tokens[: len(copies)]
    batch.labels[:COPY_ROWS] = copies
    batch.labels[:COPY_ROWS, :half] = IGNORED


def _train_step(model: Qwen2ForCausalLM, batch: Rows, optimizer: torch.optim.Optimizer) -> float:
    labels = batch.labels[:, 1:]
    learnt = labels != IGNORED
    hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    loss = F.cross_entropy(model.lm_head(hidden[learnt]), labels[learnt])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


def _schedule(step: int, steps: int) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def _save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model folder. The caller writes base.json last, as the mark that the folder is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.iterdir():
        if stale.is_file() and not stale.name.startswith("."):
            stale.unlink()
    assert not (folder / MANIFEST).exists()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sync_folder(folder)
