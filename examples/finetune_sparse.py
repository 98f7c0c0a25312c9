"""Fine-tune a masked BERT with the Trainer, merge a LoRA into it, keep every zero, and prove it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers

import slt_compress
from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint


def task(count: int) -> list[dict[str, torch.Tensor]]:
    """Texts of eight tokens; the label says whether the first token is in the upper half."""
    tokens = torch.randint(0, 64, (count, 8))
    return [{"input_ids": row, "labels": (row[0] >= 32).long()} for row in tokens]


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
    held = slt_compress.hold_zeros(model, ticket, optimizer)  # before the first step
    arguments = transformers.TrainingArguments(
        folder, per_device_train_batch_size=32, num_train_epochs=1, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    train, pair = task(2048), (optimizer, None)
    transformers.Trainer(model, arguments, train_dataset=train, optimizers=pair).train()
    for name in ticket.masks:  # as `merge_and_unload` of peft: a product of thin matrices on top
        weight = model.get_parameter(name)
        weight.data += 1e-3 * torch.randn(len(weight), 4) @ torch.randn(4, weight.shape[1])
    held.put_on_(model)  # the merge filled every zero: put the mask on again

    model.eval().save_pretrained(tuned)
    print(audit_model(tuned, ticket.path).verdict)

test = task(256)
with torch.inference_mode():
    logits = model(input_ids=torch.stack([row["input_ids"] for row in test])).logits
right = logits.argmax(1) == torch.stack([row["labels"] for row in test])
print(f"accuracy {float(right.float().mean()):.1%}")
