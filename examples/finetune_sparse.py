"""Fine-tune a masked BERT for an epoch with every zero kept, and prove it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers

import slt_compress
from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint


def task(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts of eight tokens; the label says whether the first token is in the upper half."""
    tokens = torch.randint(0, 64, (count, 8))
    return tokens, (tokens[:, 0] >= 32).long()


torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=128, max_position_embeddings=16, num_labels=2,
)  # fmt: skip
model = transformers.BertForSequenceClassification(config)
for name, weight in model.named_parameters():
    if "encoder" in name and weight.dim() == 2:  # what a search or any other pruning left
        weight.data *= torch.rand_like(weight) < 0.2

with tempfile.TemporaryDirectory() as folder:
    pruned, tuned = Path(folder) / "pruned", Path(folder) / "tuned"
    model.save_pretrained(pruned)
    ticket = import_checkpoint(pruned, Path(folder) / "ticket", recipe=Recipe().to_dict())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    slt_compress.hold_zeros(model, ticket, optimizer)  # the only line that is not plain torch
    tokens, labels = task(2048)
    model.train()
    for batch in torch.arange(2048).split(32):
        model(input_ids=tokens[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval().save_pretrained(tuned)
    audit = audit_model(tuned, ticket.path)
    tokens, labels = task(512)
    with torch.inference_mode():
        right = (model(input_ids=tokens).logits.argmax(1) == labels).float().mean()

print(f"accuracy {float(right):.1%}")
print(audit.verdict)
