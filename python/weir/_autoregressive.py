# SPDX-License-Identifier: Apache-2.0
"""AutoregressiveWrapper of the packages coordinate-descent-attention and mixture-of-attention."""
import torch
import torch.nn.functional as F
from torch import nn

from ._module import LanguageModel


class AutoregressiveWrapper(nn.Module):
    """Loss of a causal language model on its own input, and generation.

    Args:
        net (nn.Module): (batch, n) int64 -> logits (batch, n, num_tokens).
        pad_value (int): Kept as an attribute; sequences are not padded.
        seq_len (int | None): Longest sequence that `net` takes; None: `net.max_length` or `net.seq_len`.
    """

    def __init__(self, net, pad_value=0, seq_len=None):
        super().__init__()
        self.net = net
        self.pad_value = pad_value
        own = net.max_length if isinstance(net, LanguageModel) else getattr(net, "seq_len", None)
        self.seq_len = own if seq_len is None else seq_len
        if self.seq_len is None:
            raise ValueError("expected `seq_len`, or a net that has it")

    def forward(self, x, **kwargs):
        """Mean cross entropy, in nats per token, of tokens (batch, n) given those before them: a scalar."""
        logits = self.net(x[:, :-1], **kwargs)
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:])

    @torch.no_grad()
    def generate(self, prompt, seq_len, temperature=1.0, filter_thres=0.9, **kwargs):
        """Samples `seq_len` tokens after `prompt`.

        Args:
            prompt (torch.Tensor): int64 (batch, t), t at least 1.
            seq_len (int): New tokens.
            temperature (float): Divides the logits; 0 takes the likeliest token.
            filter_thres (float): The share of the vocabulary that is not sampled from; at least one token is kept.

        Returns:
            torch.Tensor: The new tokens, int64 (batch, seq_len).
        """
        if isinstance(self.net, LanguageModel) and not kwargs:
            num_tokens = self.net.num_tokens
            rows = self.net.generate(
                prompt,
                max_new_tokens=seq_len,
                temperature=temperature,
                top_k=_kept(filter_thres, num_tokens),
                seed=int(torch.randint(2**31, ()).item()),
            )
            return torch.tensor(rows, dtype=prompt.dtype, device=prompt.device)
        training = self.training
        self.eval()
        try:
            out = prompt
            for _ in range(seq_len):
                logits = self.net(out[:, -self.seq_len :], **kwargs)[:, -1]
                out = torch.cat((out, _sample(logits, temperature, filter_thres)), dim=-1)
        finally:
            self.train(training)
        return out[:, prompt.shape[1] :]


def _kept(filter_thres, num_tokens):
    return max(1, int((1 - filter_thres) * num_tokens))


def _sample(logits, temperature, filter_thres):
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    values, indices = logits.topk(_kept(filter_thres, logits.shape[-1]), dim=-1)
    choice = torch.multinomial((values / temperature).softmax(dim=-1), 1)
    return indices.gather(-1, choice)
