"""Sample text from a dense language model, as data to search its masks and to measure them.

    python benchmarks/sampled_text.py PATH/TO/llama -o FOLDER

Writes `train.jsonl` and `test.jsonl` (one text a line) and prints their seeds as JSON. The two
files come from disjoint seeds: every text has its own seed, counted up from 0 for the training
texts and from 1,000,000 for the test texts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from surroundings import surroundings
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 250
FIRST_SEED = {"train": 0, "test": 1_000_000}


def main() -> None:
    """Parse, sample, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--train", type=int, default=6_000, help="texts to search on")
    parser.add_argument("--test", type=int, default=500, help="texts to measure on")
    parser.add_argument("--tokens", type=int, default=127, help="tokens in a text, at most")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    arguments.out.mkdir(parents=True)
    facts = {}
    for split in ("train", "test"):
        count, seed = getattr(arguments, split), FIRST_SEED[split]
        texts = sample(model, tokenizer, count, arguments.tokens, seed)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (arguments.out / f"{split}.jsonl").write_text(lines)
        facts[split] = {"texts": count, "seeds": [seed, seed + count - 1]}
    print(json.dumps({**facts, "tokens": arguments.tokens, **surroundings()}, indent=2))


@torch.no_grad()
def sample(model: torch.nn.Module, tokenizer: object, count: int, tokens: int, seed: int) -> list:
    """`count` texts at temperature 1, text i drawn with the seed `seed` + i alone."""
    texts: list[str] = []
    for start in range(0, count, BATCH):
        generators = [
            torch.Generator().manual_seed(seed + i) for i in range(start, min(count, start + BATCH))
        ]
        ids = torch.full((len(generators), 1), model.config.bos_token_id)
        cache = None
        for _ in range(tokens):
            given = ids if cache is None else ids[:, -1:]
            output = model(input_ids=given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            chances = output.logits[:, -1].float().softmax(-1)
            drawn = [
                torch.multinomial(row, 1, generator=generator)
                for row, generator in zip(chances, generators, strict=True)
            ]
            ids = torch.cat([ids, torch.stack(drawn)], dim=1)
        texts += [ended(row.tolist(), tokenizer, model.config) for row in ids]
    return texts


def ended(ids: list[int], tokenizer: object, config: object) -> str:
    """The text of one sample, up to the first token that ends or begins a text."""
    stops = {config.bos_token_id, config.eos_token_id}
    length = next((i for i, token in enumerate(ids[1:], 1) if token in stops), len(ids))
    return tokenizer.decode(ids[1:length])


if __name__ == "__main__":
    main()
