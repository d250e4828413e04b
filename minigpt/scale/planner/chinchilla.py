"""How large a model, on how many tokens, makes the best use of a given number of FLOPs (Hoffmann et al. 2022,
arXiv:2203.15556, approach 3): the loss, fitted by L(N, D) = E + A / N^alpha + B / D^beta, is minimised with C = 6 N D.

The paper's printed constants are rounded so far that they contradict the paper's own conclusion: for its own budget of
5.76e23 FLOPs they ask for 32 billion parameters and 93 tokens each, where the paper trained 70 billion on 20 each.
Plans use the constants that Besiroglu et al. 2024 (arXiv:2404.10102) fitted again to the same data, which agree with
it. All of this was measured on dense models.

How many tokens a step should then have is from DeepSeek LLM (arXiv:2401.02954, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: float, D: float) -> float:
        """Nats per token of a model of N parameters trained on D tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best_size(self, flops: float) -> tuple[float, float]:
        """(N, D): parameters and tokens that reach the lowest loss within 6 N D FLOPs."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        N = G * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return N, flops / (6 * N)


def batch_tokens(flops: float) -> float:
    """Tokens of a step that serve a training of so many FLOPs best: 0.292 C^0.3271, measured up to 2e19 FLOPs."""
    return 0.2920 * flops**0.3271


REFIT = Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658)            # plan with these
PRINTED = Law(1.69, 406.4, 410.7, 0.34, 0.28)                   # as printed in the paper: for reference only
