"""Does it help to hide whole names? minigpt bench knowledge trains small masked models on the synthetic world
(minigpt/text/world.py), which differ in nothing but what is hidden from them, and asks them for its facts in templates
that the text does not hold.

    random spans      the control: as many spans of the same lengths, put anywhere
    whole names       DataCollatorForKnowledge
    names + triples   the same, with TRIPLE_SHARE of the rows replaced by verbalised triples

All arms see the same number of tokens and hide the same share of them; seed by seed they have the same world, text,
tokenizer, first weights and order of blocks. The control takes the lengths that name masking drew for the block and
draws other places for them, so the first two differ in the places alone: names are hidden more often, and whole. (Which
of the two it is that helps, this does not tell.) Beside precision at 1 and mean reciprocal rank stands what it costs:
the loss on ordinary text, sentences of the world without a fact, masked token by token (BERT).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import ModelConfig
from ..evaluate import Cloze, probe
from ..files.atomic import atomic_write
from ..model import GPT
from ..text import DataCollatorForKnowledge, DataCollatorForLanguageModeling, Gazetteer, TextDataset, Tokenizer
from ..text.knowledge import verbalise
from ..text.world import World
from ..train import Trainer, TrainingArguments

SEEDS, STEPS, BATCH, BLOCK = 3, 1100, 32, 32
ARMS = ("random spans", "whole names", "names + triples")
ENTITY_SHARE, TRIPLE_SHARE = 0.5, 0.2
WORLD = dict(people=12, cities=6, countries=6)
TINY = dict(people=2, cities=2, countries=2)
MODEL = dict(n_layer=2, n_head=4, n_kv_head=4, n_embd=64, n_inner=128, block_size=64, tied=True, causal=False)
VOCABULARY, TIMES, FILLER = 880, 100, 0.5  # tokens; how often the text states a fact; other sentences to each
FIGURES = {"precision_at_1": "precision at 1", "mrr": "mean reciprocal rank",
           "vocabulary_precision_at_1": "precision at 1 in the vocabulary", "ordinary_loss": "loss on ordinary text"}
PICTURE = Path(__file__).parent / "results" / "knowledge.png"


class RandomSpans(DataCollatorForKnowledge):
    """The control: the units that name masking would hide in this block, moved to places drawn at random."""

    def choose(self, ids, rng):
        lengths = np.unique(super().choose(ids, rng), return_counts=True)
        lengths = sorted(lengths[1][lengths[0] >= 0], reverse=True)                 # the longest first: they fit
        unit = np.where(self._special[ids], 0, -1)
        for length in lengths:
            taken = np.convolve(unit >= 0, np.ones(length), "valid")               # (T - length + 1,)
            starts = np.flatnonzero(taken == 0)
            if len(starts):
                start = rng.choice(starts)
                unit[start:start + length] = start
        return np.where(self._special[ids], -1, unit)


def collators(tokenizer, world, seed):
    """{arm: its collator}"""
    names = Gazetteer(world.names(), tokenizer)
    options = dict(gazetteer=names, entity_share=ENTITY_SHARE, seed=seed)
    told = dict(triples=verbalise(world.triples), triple_share=TRIPLE_SHARE)
    made = (RandomSpans(tokenizer, **options), DataCollatorForKnowledge(tokenizer, **options),
            DataCollatorForKnowledge(tokenizer, **options, **told))
    return dict(zip(ARMS, made, strict=True))


def measure(progress, tiny=False):
    """{"arms": {name: {figure: [of each seed]}}, "chance", "seeds", ...}. A model this small is best trained by one
    thread, so as many arms are trained at once, each in a process of its own, as there are cores."""
    jobs = [(seed, name, tiny) for seed in range(1 if tiny else SEEDS) for name in ARMS]
    result, started = {"arms": {}}, time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, ((_, name, _), found) in enumerate(zip(jobs, pool.map(_in_a_process, jobs), strict=True), 1):
            progress(f"{time.perf_counter() - started:4.0f} s  {number} of {len(jobs)} models: {name}, precision at 1 "
                     f"{found['precision_at_1']:.2f}")
            for figure in FIGURES:
                result["arms"].setdefault(name, {}).setdefault(figure, []).append(found[figure])
    same = {key: found[key] for key in ("chance", "questions", "facts", "tokens", "parameters")}
    return result | same | {"seeds": len(jobs) // len(ARMS)}


def _in_a_process(job):
    """measure_arm(*job) in a Python of its own. ChildProcessError, with its last words, if it fails."""
    command = [sys.executable, "-m", "minigpt.bench.knowledge", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise ChildProcessError(f"bench knowledge: a model could not be trained: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout)


def measure_arm(seed, name, tiny=False):
    """Trains one model and asks it."""
    world, steps = World(**TINY if tiny else WORLD, seed=seed), 3 if tiny else STEPS
    text = world.text(4 if tiny else TIMES, filler=FILLER)
    tokenizer = Tokenizer.train(text, 400 if tiny else VOCABULARY, special_tokens=["<mask>"])
    dataset = TextDataset.from_tokens(tokenizer.encode(text), BLOCK)
    ordinary = TextDataset.from_tokens(tokenizer.encode("\n".join(world.filler(400, seed=1))), BLOCK)
    model = train(tokenizer, collators(tokenizer, world, seed)[name], dataset, steps, seed)
    found = probe(model, tokenizer, [Cloze(f"\n{sentence}\n", *rest) for sentence, *rest in world.questions()])
    cost = loss(model, DataCollatorForLanguageModeling(tokenizer, seed=0), ordinary)
    return found | {"ordinary_loss": cost, "facts": len(world.triples), "tokens": steps * BATCH * BLOCK,
                    "parameters": model.num_parameters()}


def train(tokenizer, collator, dataset, steps, seed):
    model = GPT(ModelConfig.preset("llama-char", vocab_size=len(tokenizer), **MODEL), seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(f"{folder}/run", max_steps=steps, per_device_train_batch_size=BATCH, seed=seed,
                                      learning_rate=6e-3, lr_scheduler_type="cosine", warmup_steps=0.1,
                                      weight_decay=0.01, adam_beta2=0.98, save_strategy="no", disable_tqdm=True,
                                      logging_steps=steps)
        Trainer(model, arguments, collator, dataset).train()
    return model


def loss(model, collator, dataset):
    """The mean loss over the masked tokens of a data set."""
    batch = collator([dataset[i] for i in range(len(dataset))])
    losses = model.token_losses(batch["input_ids"], batch["labels"])
    return float(losses.sum(dtype=np.float64) / np.count_nonzero(batch["labels"] != -100))


# ---------------------------------------------------------------------------------------------------------------
# what was found


def table(result):
    """The result in Markdown: mean and standard deviation over the seeds."""
    arms = result["arms"]
    lines = [f"{result['parameters']:,} parameters, {result['tokens']:,} tokens to each arm, {result['seeds']} seeds, "
             f"each a world of {result['facts']} facts; {result['questions']} questions in held-out templates, of "
             f"which the best constant answers get {result['chance']:.0%} right. Mean ± standard deviation over the "
             "seeds, by `minigpt bench knowledge --keep`.", "",
             "| " + " | ".join(["hidden", *FIGURES.values()]) + " |", "|---" * (1 + len(FIGURES)) + "|"]
    for name, figures in arms.items():
        cells = [f"{np.mean(figures[f]):.3f} ± {np.std(figures[f], ddof=min(1, len(figures[f]) - 1)):.3f}"
                 for f in FIGURES]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", verdict(result)])


def verdict(result):
    """What the figures say of the question, whichever way they fall. The arms are paired by seed."""
    arms, sentences = result["arms"], []
    for name in list(arms)[1:]:
        gains = np.subtract(arms[name]["precision_at_1"], arms["random spans"]["precision_at_1"])
        cost = np.subtract(arms[name]["ordinary_loss"], arms["random spans"]["ordinary_loss"])
        sentences.append(f"*{name}* against the control: precision at 1 {gains.mean():+.3f} (seed by seed "
                         f"{', '.join(f'{gain:+.3f}' for gain in gains)}; better in {np.count_nonzero(gains > 0)} of "
                         f"{len(gains)}), loss on ordinary text {cost.mean():+.3f}.")
    return " ".join(sentences)


def draw(result, path):
    """Every seed a dot, its mean a bar. Returns False where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(8, 2.6), dpi=130, layout="constrained")
    for axes, key in zip(figure.subplots(1, 3), ("precision_at_1", "mrr", "ordinary_loss"), strict=True):
        for row, (name, figures) in enumerate(result["arms"].items()):
            axes.barh(name, np.mean(figures[key]), color=f"C{row}", alpha=0.5)
            axes.plot(figures[key], [name] * len(figures[key]), "k.", markersize=5)
        if key == "precision_at_1":
            axes.axvline(result["chance"], color="0.4", linestyle="--", linewidth=1)
        else:
            axes.set_yticklabels([])
        axes.set_title(FIGURES[key], fontsize=9)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")
    return True


def run(keep, tiny, json_file, progress):
    """The command. keep: the result is written to minigpt/bench/results, with its picture and table."""
    from . import tables, write_json

    result = measure(progress, tiny)
    print(table(result))
    if json_file:
        write_json(Path(json_file), result)
    if keep:
        write_json(tables.RESULTS / "knowledge.json", result)
        draw(result, PICTURE)
        for path in tables.write():
            print(f"wrote {path}")
    return 0


def kept_table(results):
    """What knowledge.md must say of the result kept in that folder; None where there is none."""
    path = results / "knowledge.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return f"{table(result)}\n\n![A dot a seed, a bar their mean]({PICTURE.name})"


if __name__ == "__main__":
    print(json.dumps(measure_arm(*json.loads(sys.argv[1]))))
