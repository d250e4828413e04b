"""The cloze probe: does a model fill in the right name? (LAMA, arXiv:1909.01066)

    "The capital of Ruvonia is ____."    among all cities, and among all tokens

A name may have several tokens. A masked model is shown as many masks as the name has tokens, and fills them from left
to right: the score of a name is the sum of log p(token | text, the name's tokens before it), its later tokens still
masked (Kauf and Ivanova, arXiv:2305.10588: with all others visible, the pieces of a rare name would vouch for each
other). A causal model gives the log-probability of the sentence with the name in it. The names are ranked by it.

Names of different lengths are different questions to a masked model: it sees how many masks there are, and a sum of
more terms is smaller. So the right length may betray a name, and a short name win by being short. Therefore precision
is reported a second time, of the answer among the candidates of its own number of tokens.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

LOGITS = 1 << 24  # numbers that the model makes at once


class Cloze(NamedTuple):
    """A sentence with {object} where the answer is missing; the answer is one of the candidates. Questions of one
    `relation` are reported together."""

    sentence: str
    answer: str
    candidates: Sequence[str]
    relation: str = ""


class _Token(NamedTuple):
    """One prediction: at `position` of the text `ids` the model should say `token`."""

    ids: tuple[int, ...]
    position: int
    token: int


def probe(model, tokenizer, questions: Iterable[Cloze]) -> dict:
    """How well `model` answers: {"precision_at_1", "mrr", "vocabulary_precision_at_1", "vocabulary_mrr", "chance",
    "questions", "same_length": {"precision_at_1", "chance", "questions"}, "relations": {name: precision_at_1}}.

    precision_at_1 and mrr (the mean of 1 / rank) rank the answer among its candidates. The same of the vocabulary rank
    each of its tokens among all of them, given those before it, and take the worst: for a name of one token that is
    LAMA's measure, and rank 1 means that the model would write the answer by itself. (Of a causal model it sees the
    text to the left only.) chance is the precision of the best constant answer to each relation.

    same_length ranks the answer among the candidates of as many tokens alone, where there is more than one; its chance
    is that of the best constant answer to each relation and length. Without any such question both are NaN.

    ValueError for a question that cannot be asked, and for a masked model whose tokenizer has no mask token.
    """
    questions = list(questions)
    if not questions:
        raise ValueError("probe: there are no questions, must be one or more")
    if not model.config.causal and tokenizer.mask_token is None:
        raise ValueError("probe: the model is masked (causal=False), but the tokenizer has no mask token")
    asked = [[_predictions(model, tokenizer, question, name) for name in question.candidates]
             for question in map(_checked, questions)]
    log_p, rank_of = _predict(model, {token for names in asked for name in names for token in sum(name, [])})
    ranks, vocabulary_ranks, hits, fair, fair_hits = [], [], {}, {}, []
    for question, names in zip(questions, asked, strict=True):
        scores = [sum(log_p[token] for token in name + after) for name, after in names]
        right = question.candidates.index(question.answer)
        ranks.append(sum(score >= scores[right] for score in scores))                # of equals the worst
        length = len(names[right][0])
        equals = [score for score, (name, _) in zip(scores, names, strict=True) if len(name) == length]
        if len(equals) > 1:
            fair.setdefault((question.relation, length), []).append(question.answer)
            fair_hits.append(sum(score >= scores[right] for score in equals) == 1)
        vocabulary_ranks.append(max(rank_of[token] for token in names[right][0]))
        hits.setdefault(question.relation, []).append(ranks[-1] == 1)
    given = {}
    for question in questions:
        given.setdefault(question.relation, []).append(question.answer)
    return {
        "precision_at_1": _mean(rank == 1 for rank in ranks), "mrr": _mean(1 / rank for rank in ranks),
        "vocabulary_precision_at_1": _mean(rank == 1 for rank in vocabulary_ranks),
        "vocabulary_mrr": _mean(1 / rank for rank in vocabulary_ranks),
        "chance": _chance(given), "questions": len(questions),
        "same_length": {"precision_at_1": _mean(fair_hits), "chance": _chance(fair), "questions": len(fair_hits)},
        "relations": {relation: _mean(found) for relation, found in hits.items()},
    }


def _checked(question):
    if question.sentence.count("{object}") != 1:
        raise ValueError(f"probe: the sentence {question.sentence!r} must hold {{object}} once")
    if question.answer not in question.candidates:
        raise ValueError(f"probe: the answer {question.answer!r} must be one of the candidates")
    return question


def _predictions(model, tokenizer, question, name):
    """The predictions whose log-probabilities add up to that of the name in the sentence: (those of its own tokens,
    for a causal model also those of the text after it)."""
    before, after = question.sentence.split("{object}")
    space = " " * before.endswith(" ")  # which is the first character of the name's first token
    before, name, after = map(tokenizer.encode, (before.removesuffix(" "), space + name, after))
    if not model.config.causal:
        masks = [tokenizer.mask_token_id] * len(name)
        return [_Token((*before, *name[:k], *masks[k:], *after), len(before) + k, token)
                for k, token in enumerate(name)], []
    if not before:
        raise ValueError(f"probe: {question.sentence!r} begins with {{object}}, must begin with text if causal")
    whole = (*before, *name, *after)
    tokens = [_Token(whole[:-1], i - 1, whole[i]) for i in range(len(before), len(whole))]
    return tokens[:len(name)], tokens[len(name):]


def _predict(model, tokens):
    """({token: log p}, {token: its rank in the vocabulary, of equals the worst})."""
    log_p, rank_of, by_length = {}, {}, {}
    for token in tokens:
        by_length.setdefault(len(token.ids), {}).setdefault(token.ids, []).append(token)
    for T, texts in by_length.items():
        size = max(1, LOGITS // (T * model.config.vocab_size))
        rows = sorted(texts)
        for start in range(0, len(rows), size):
            batch = rows[start:start + size]
            logits = model.forward(np.array(batch))                                                 # (B, T, V)
            for row, ids in zip(logits, batch, strict=True):
                for token in texts[ids]:
                    z = row[token.position].astype(np.float64)                                      # (V,)
                    log_p[token] = z[token.token] - z.max() - np.log(np.exp(z - z.max()).sum())
                    rank_of[token] = int(np.count_nonzero(z >= z[token.token]))
    return log_p, rank_of


def _chance(answers):
    """Of the answers to each kind of question: the precision of the best constant one."""
    questions = sum(map(len, answers.values()))
    return sum(max(map(given.count, given)) for given in answers.values()) / questions if questions else float("nan")


def _mean(values):
    values = list(values)
    return float(np.mean(values)) if values else float("nan")
