# SPDX-License-Identifier: Apache-2.0
"""Trains a ConditionalRoutedViT on scikit-learn's digits, 1,797 real images of 8 x 8 pixels. Of their 16 patches 6 get the
heavy branches. Prints the share of 360 test images that it reads right: 0.950 and 0.958 for seeds 0 and 1 on two cores,
after 45 seconds (0.964 for seed 0 on one core: rounding differs).

usage: python examples/digits.py [--epochs 40] [--seed 0] [--routing global]
"""
import argparse

import torch
import torch.nn.functional as F
import weir
from sklearn.datasets import load_digits

TEST_IMAGES, BATCH = 360, 64


def data():
    """(training images, labels), (test images, labels); images (count, 2, 8, 8), pixels in [0, 1] and a constant: without
    it the norm of a patch would hide whether all of it is dark or bright."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float() / 16
    images = torch.stack([pixels, torch.full_like(pixels, 0.5)], dim=1)
    labels = torch.from_numpy(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))  # the same split for every seed
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return (images[train], labels[train]), (images[test], labels[test])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--routing", default="global", choices=("global", "window"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    (images, labels), (test_images, test_labels) = data()
    model = weir.ConditionalRoutedViT(
        image_size=8, patch_size=2, channels=2, num_classes=10, dim=64, depth=2, attn_light_window_size=2,
        attn_light_heads=2, attn_light_dim_head=16, attn_heavy_heads=4, attn_heavy_dim_head=16, attn_num_heavy_tokens_q=6,
        attn_num_heavy_tokens_kv=6, ff_num_heavy_tokens=6, ff_light_mult=0.5, ff_heavy_mult=4, routing=arguments.routing,
    )  # fmt: skip
    steps = arguments.epochs * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(arguments.epochs):
        for rows in torch.randperm(len(labels)).split(BATCH)[: len(labels) // BATCH]:
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        right = (model(test_images).argmax(-1) == test_labels).float().mean().item()
    print(f"test accuracy {right:.3f}")


if __name__ == "__main__":
    main()
