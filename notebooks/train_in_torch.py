"""Train a network of refimpl in PyTorch, take it back, and let the NumPy reference judge it.

    python notebooks/train_in_torch.py -o digits.safetensors              # on the CPU
    python notebooks/train_in_torch.py -o digits.safetensors --device cuda

200 steps on the 2,000 training digits inside the package. It needs the extra `torch`.
"""

import argparse

import numpy as np
import torch
from torch.nn import functional as F

import refimpl
import refimpl.torch
from refimpl.data import bundled, datasets

STEPS, BATCH, RATE = 200, 16, 4e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    # how digits are made ready, and what they are called, is that of the shipped model
    shipped, _ = refimpl.load("didb_micro_mnist")
    train, test = (
        datasets.load(bundled.mnist() / "small", split, shipped.preprocessing)
        for split in ("train", "test")
    )
    torch.manual_seed(0)
    module = refimpl.torch.module(shipped.replace(depth=1)).to(args.device)
    optimizer = torch.optim.AdamW(module.parameters(), RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    images, labels = torch.tensor(shipped.prepare(train.images)), torch.tensor(train.labels)
    images, labels = images.to(args.device), labels.to(args.device)
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(module(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{step} steps: loss {loss.item():.3f}")

    refimpl.torch.save(module, args.output)
    model, params = refimpl.load(args.output)
    some = model.prepare(test.images[:100])
    ours = model.predict(params, some)
    with torch.no_grad():
        theirs = module(torch.tensor(some, device=args.device)).cpu().numpy()
    right = np.isclose(ours, theirs, rtol=1e-4, atol=1e-4).all(axis=1).mean()
    accuracy = (ours.argmax(1) == test.labels[:100]).mean()
    # another is one where a sign lies so near its threshold that rounding decides it
    print(f"{right:.0%} of 100 images have the same logits in NumPy; {accuracy:.0%} are recognised")


if __name__ == "__main__":
    main()
