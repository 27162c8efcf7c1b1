# SPDX-License-Identifier: Apache-2.0
"""Routers learn which tokens matter: 4 of 64 tokens are marked, and the answer is a sum over what those hold.

Four tokens at a time reach the heavy branch. A router that learns finds the marked ones; one that chooses at random, the
control, sees a sixteenth of them. Prints the share of marked tokens among the routed ones, and how much of the answer's
variance is explained, for three seeds: 93 to 100 % and 100 % learned, 6 % and 12 to 32 % at random. Half a minute on two
cores. With straight_through=True, the published default, the same routers find 35 to 81 %: chosen tokens then count in full
from the first step, right or wrong.
"""
import torch
from torch import nn
from weir.colt5_attention import CoordinateDescentRouter, route_back

TOKENS, MARKED, VALUES, DIM, ANSWER = 64, 4, 16, 32, 8


class Routed(nn.Module):
    """Tokens -> their answers: a heavy branch for those that the router chooses, 0 for the others, and their sum."""

    def __init__(self, random_route):
        super().__init__()
        self.random_route = random_route
        self.embedding = nn.Embedding(2 * VALUES, DIM)
        self.router = CoordinateDescentRouter(DIM, cosine_sim_routing=True, eps=1.0, straight_through=False)
        self.heavy = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, ANSWER))

    def forward(self, tokens):
        routed = self.router(self.embedding(tokens), num_tokens=MARKED, random_route=self.random_route)
        heavy = self.heavy(routed.routed_tokens) * routed.scores[..., None]
        nothing = torch.zeros(*tokens.shape, ANSWER)
        return route_back(nothing, heavy, routed.indices).sum(dim=1), routed.indices


def batch(table, size=64):
    """Tokens (size, TOKENS), their answers, and which are marked: those with numbers from VALUES on."""
    values = torch.randint(VALUES, (size, TOKENS))
    marked = torch.rand(size, TOKENS).argsort(dim=1) < MARKED
    return values + VALUES * marked, (table[values] * marked[..., None]).sum(dim=1), marked


def run(seed, random_route, steps=1000):
    torch.manual_seed(seed)
    table = torch.randn(VALUES, ANSWER)  # what a marked token of each value adds to the answer
    model = Routed(random_route)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        tokens, answer, _ = batch(table)
        loss = (model(tokens)[0] - answer).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, answer, marked = batch(table, 1000)
    with torch.no_grad():
        guess, indices = model(tokens)
    found = marked.gather(1, indices).float().mean().item()
    return found, 1 - ((guess - answer).square().mean() / answer.var()).item()


if __name__ == "__main__":
    for seed in range(3):
        for name, random_route in ("learned", False), ("random", True):
            found, explained = run(seed, random_route)
            print(f"seed {seed}, {name:7} routes: {found:4.0%} of the routed tokens are marked, {explained:5.1%} explained")
