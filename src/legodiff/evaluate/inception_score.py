"""The Inception Score (Salimans et al. 2016): sure of each image, and of many kinds."""

from typing import NamedTuple

import torch
from torch import Tensor


class InceptionScore(NamedTuple):
    """Mean and standard deviation over the parts."""

    mean: float
    std: float


def inception_score(logits: Tensor, parts: int = 10) -> InceptionScore:
    """exp of the mean KL divergence of each image's classes from those of all: logits (N, K).

    The mean over ``parts`` equal parts, in the order given. Raises ValueError for fewer images.
    """
    if len(logits) < parts:
        raise ValueError(f"an Inception Score of {parts} parts needs as many images")
    scores = []
    for part in logits.double().tensor_split(parts):
        log = part.log_softmax(dim=1)
        overall = log.exp().mean(dim=0).log()
        scores.append((log.exp() * (log - overall)).sum(dim=1).mean().exp())
    values = torch.stack(scores)
    return InceptionScore(float(values.mean()), float(values.std(correction=0)))
