"""Makes a tiny Llama with random weights, so that tests can run a real model server on a laptop's processor.

    python make_model.py FOLDER

Runs in the model server's own environment (requirements.txt beside this file), never in the gateway's. Leaves serving
the model to tests/support/model_server.py.
"""

import sys
from pathlib import Path

import torch  # type: ignore[import-not-found]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found]
from transformers import (  # type: ignore[import-not-found]
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SEED = 20
CONTEXT_TOKENS = 4096  # the server asks for 1,024 new tokens where a request names no limit
END = "<|end|>"
START = "<|start|>"

# What the tokenizer learns its merges from: words for readable output, and characters of two, three and four bytes.
SENTENCES = (
    "the water rises behind the gate and the miller opens it by a hand's breadth",
    "a penstock carries water from the head race to the wheel, and a valve holds it back",
    "streams run side by side; none waits for another, and each one ends in its own time",
    'def turn(wheel: int) -> str: return f"{wheel} turns"  # 0123456789 {"key": [true, null]}',
    "Größe, café, naïve, Ærø – šum vody, ľahko",
    "水は静かに流れる。 река течёт тихо. 🌊🙂🚰",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that can spell any text and ends a turn with `END`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=alphabet, special_tokens=[START, END], show_progress=False
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
    )


def split_characters(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the tokens that are a part of a character: random weights would string them into invalid UTF-8."""
    return [token for token in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([token])]


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return two layers of random weights, so far apart that greedy decoding wanders instead of repeating one word."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.6,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[*split_characters(tokenizer), tokenizer.bos_token_id],
        max_new_tokens=1024,
    )
    return model


def main(folder: Path) -> None:
    """Write the tokenizer, the weights and the generation settings to `folder`: the same bytes on every run."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
