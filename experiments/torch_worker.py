"""A pre-training step of Hugging Face transformers in PyTorch, in a separate process.

    python -m experiments.torch_worker '{"size": [2,128,2,512], "batch": 8, "seq": 64, "slots": 10, "gathered": true}'

At the start, the worker runs three steps. It then prints a line with versions and the most GPU memory that these steps
used, in bytes. Each line on standard input is a number of steps to run. The worker answers with a line that says how
many seconds these steps took.

The step has the usual settings for speed: bfloat16 autocast, SDPA and, on a GPU, torch.compile and fused AdamW. If
"gathered" is true, the MLM head runs on predicted positions only.
"""

import json
import sys
import time

import torch
import transformers


def step_of(size, batch: int, seq: int, slots: int, gathered: bool, device: str):
    """A function that takes one step and returns its loss on the device."""
    depth, width, heads, mlp_dim = size
    config = transformers.BertConfig(
        num_hidden_layers=depth, hidden_size=width, num_attention_heads=heads, intermediate_size=mlp_dim,
        attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=device == "cuda")
    ids_BS = torch.randint(1000, config.vocab_size, (batch, seq), device=device)
    slots_BP = torch.stack([torch.randperm(seq)[:slots].sort().values for _ in range(batch)]).to(device)
    labels_BP = torch.randint(1000, config.vocab_size, (batch, slots), device=device)
    labels_BS = torch.full((batch, seq), -100, device=device).scatter(1, slots_BP, labels_BP)

    def loss_of():
        if not gathered:
            return model(input_ids=ids_BS, labels=labels_BS).loss
        x_BSD = model.bert(input_ids=ids_BS).last_hidden_state
        x_BPD = torch.gather(x_BSD, 1, slots_BP[..., None].expand(-1, -1, width))
        return torch.nn.functional.cross_entropy(model.cls(x_BPD).flatten(0, 1).float(), labels_BP.flatten())

    compiled = torch.compile(loss_of) if device == "cuda" else loss_of

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = compiled()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def main():
    asked = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    step = step_of(device=device, **asked)
    for _ in range(3):
        step().item()
    used = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "bytes": used}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        loss.item()
        print(json.dumps(time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
