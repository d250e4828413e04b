"""Does it help to hide whole names? minigpt bench knowledge trains small masked models on the synthetic world
(minigpt/text/world.py), which differ in nothing but what is hidden from them, and asks them for its facts in templates
that the text does not hold.

    random spans      the control: as many spans of the same lengths, put anywhere
    name tokens       as many tokens of names as name masking hides, but each drawn by itself
    whole names       DataCollatorForKnowledge
    names + triples   the same, with TRIPLE_SHARE of the rows replaced by verbalised triples

All arms see the same number of tokens and hide the same share of them; seed by seed they have the same world, text,
tokenizer, first weights and order of blocks. The arms of a block follow from one draw of name masking, so each step
changes one thing: names are hidden more often; and then as a whole; and then facts are stated in more sentences (and
more often: the table says how often). Beside precision at 1 stands what it costs: the loss on ordinary text, sentences
of the world without a fact, masked token by token (BERT).
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

SEEDS, STEPS, BATCH, BLOCK = 3, 2200, 32, 32
ARMS = ("random spans", "name tokens", "whole names", "names + triples")
ENTITY_SHARE, TRIPLE_SHARE = 0.25, 0.2
WORLD = dict(people=12, cities=6, countries=6)
TINY = dict(people=2, cities=2, countries=2)
MODEL = dict(n_layer=2, n_head=4, n_kv_head=4, n_embd=64, n_inner=128, block_size=64, tied=True, causal=False)
VOCABULARY, TIMES, FILLER = 640, 100, 0.5  # tokens; how often the text states a fact; other sentences to each
FIGURES = {"statements": "statements of a fact seen", "named": "names among the hidden tokens",
           "precision_at_1": "precision at 1", "same_length_precision_at_1": "among names of one length",
           "mrr": "mean reciprocal rank", "vocabulary_precision_at_1": "precision at 1 in the vocabulary",
           "ordinary_loss": "loss on ordinary text"}
DIFFERENCES = (("name tokens", "random spans", "names hidden more often"),
               ("whole names", "name tokens", "and hidden whole"),
               ("names + triples", "whole names", "and triples told"))
SHOWN = ("precision_at_1", "same_length_precision_at_1", "ordinary_loss")  # in the picture
BY_SEED = ("chance", "same_length_chance", "same_length_questions")
HISTORY = (
    "All arms have the same settings; they were not the first. Tried before, partly with fewer arms: 1,000, 1,100, "
    "1,200 and 2,500 steps; 16 and 12 people; 8 and 6 cities and countries; each fact 60 and 100 times in the text; as "
    "many other sentences and half as many; vocabularies of 900, 640 and 880 tokens; half of each block's budget for "
    "names, of which those longer than that were never hidden. With the large vocabularies nearly all names are of one "
    "or two tokens, and to hide them whole can change little. The steps were chosen on a world that is not among those "
    "measured.")
PICTURE = Path(__file__).parent / "results" / "knowledge.png"


class RandomSpans(DataCollatorForKnowledge):
    """The control: the units that name masking hides in this block, in random order among the tokens it leaves."""

    def choose(self, ids, rng):
        unit = super().choose(ids, rng)
        hidden = np.unique(unit[unit >= 0], return_counts=True)[1]
        sizes = np.concatenate([hidden, np.ones(np.count_nonzero(unit < 0), int)])  # of spans and of tokens between
        order = rng.permutation(len(sizes))
        starts = np.cumsum(sizes[order]) - sizes[order]
        return np.repeat(np.where(order < len(hidden), starts, -1), sizes[order])   # (T,)


class NameTokens(DataCollatorForKnowledge):
    """As many tokens of names as name masking hides in this block, each drawn by itself."""

    def choose(self, ids, rng):
        unit = super().choose(ids, rng)
        named = in_names(self.gazetteer, ids)
        drawn = rng.permutation(np.flatnonzero(named))[:np.count_nonzero(named & (unit >= 0))]
        unit[named] = -1
        unit[drawn] = drawn
        return unit


def in_names(gazetteer, ids):
    """(T,): whether a token is one of a name."""
    named = np.zeros(len(ids), bool)
    for start, end in gazetteer.find(ids):
        named[start:end] = True
    return named


def collators(tokenizer, world, seed):
    """{arm: its collator}"""
    options = dict(gazetteer=Gazetteer(world.names(), tokenizer), entity_share=ENTITY_SHARE, seed=seed)
    told = dict(triples=verbalise(world.triples), triple_share=TRIPLE_SHARE)
    made = (RandomSpans(tokenizer, **options), NameTokens(tokenizer, **options),
            DataCollatorForKnowledge(tokenizer, **options), DataCollatorForKnowledge(tokenizer, **options, **told))
    return dict(zip(ARMS, made, strict=True))


def settings():
    """All that decides the result but the code."""
    return {"seeds": SEEDS, "steps": STEPS, "batch": BATCH, "block": BLOCK, "entity_share": ENTITY_SHARE,
            "triple_share": TRIPLE_SHARE, "vocabulary": VOCABULARY, "times": TIMES, "filler": FILLER, **WORLD, **MODEL}


def measure(progress, tiny=False):
    """{"arms": {name: {figure: [of each seed]}}, "chance": [of each seed], "settings", ...}. A model this small is best
    trained by one thread, so as many arms are trained at once, each in a process of its own, as there are cores."""
    jobs = [(seed, name, tiny) for seed in range(1 if tiny else SEEDS) for name in ARMS]
    result, started = {"arms": {}} | {key: [] for key in BY_SEED}, time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, ((_, name, _), found) in enumerate(zip(jobs, pool.map(_in_a_process, jobs), strict=True), 1):
            progress(f"{time.perf_counter() - started:4.0f} s  {number} of {len(jobs)} models: {name}, precision at 1 "
                     f"{found['precision_at_1']:.2f}")
            for figure in FIGURES:
                result["arms"].setdefault(name, {}).setdefault(figure, []).append(found[figure])
            if name == ARMS[0]:                                                     # the questions are those of a seed
                for key in BY_SEED:
                    result[key].append(found[key])
    same = {key: found[key] for key in ("questions", "facts", "tokens", "parameters")}
    return result | same | {"seeds": len(jobs) // len(ARMS), "settings": settings()}


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
    times = 4 if tiny else TIMES
    text = world.text(times, filler=FILLER)
    tokenizer = Tokenizer.train(text, 400 if tiny else VOCABULARY, special_tokens=["<mask>"])
    dataset = TextDataset.from_tokens(tokenizer.encode(text), BLOCK)
    ordinary = TextDataset.from_tokens(tokenizer.encode("\n".join(world.filler(400, seed=1))), BLOCK)
    collator = collators(tokenizer, world, seed)[name]
    model = train(tokenizer, collator, dataset, steps, seed)
    found = probe(model, tokenizer, [Cloze(f"\n{sentence}\n", *rest) for sentence, *rest in world.questions()])
    cost = loss(model, DataCollatorForLanguageModeling(tokenizer, seed=0), ordinary)
    tokens = steps * BATCH * BLOCK
    return found | {f"same_length_{key}": value for key, value in found["same_length"].items()} | {
        "statements": statements(collator, dataset, times, tokens), "named": named_share(collator, dataset),
        "ordinary_loss": cost, "facts": len(world.triples), "tokens": tokens, "parameters": model.num_parameters()}


def statements(collator, dataset, times, tokens):
    """How often a fact is stated in so many tokens of training, if the data set states it `times` times."""
    in_text = times * (1 - collator.triple_share) * tokens / sum(len(dataset[i]) for i in range(len(dataset)))
    once = sum(map(len, collator.sentences))                                        # tokens that tell every fact once
    return in_text + (collator.triple_share * tokens / once if once else 0)


def named_share(collator, dataset, blocks=1000):
    """The share of tokens of names among those that the collator hides."""
    hidden = named = 0
    for i in range(min(blocks, len(dataset))):
        chosen = collator.choose(dataset[i], np.random.default_rng(i)) >= 0
        hidden += np.count_nonzero(chosen)
        named += np.count_nonzero(chosen & in_names(collator.gazetteer, dataset[i]))
    return float(named / hidden)


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
             f"which the best constant answers get {np.mean(result['chance']):.0%} right (among names of one length, "
             f"{np.mean(result['same_length_questions']):.0f} questions, {np.mean(result['same_length_chance']):.0%}). "
             "Mean ± standard deviation over the seeds, by `minigpt bench knowledge --keep`.", "",
             "| " + " | ".join(["hidden", *FIGURES.values()]) + " |", "|---" * (1 + len(FIGURES)) + "|"]
    for name, figures in arms.items():
        means = {figure: np.mean(figures[figure]) for figure in FIGURES}
        cells = [f"{means['statements']:.0f}", f"{means['named']:.0%}"]
        cells += [f"{means[f]:.3f} ± {np.std(figures[f], ddof=min(1, len(figures[f]) - 1)):.3f}"
                  for f in list(FIGURES)[2:]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", verdict(result), "", HISTORY])


def verdict(result):
    """What the figures say of each step of the argument, whichever way they fall. The arms are paired by seed."""
    lines = []
    for name, other, what in DIFFERENCES:
        gains, fair, cost = (np.subtract(result["arms"][name][figure], result["arms"][other][figure])
                             for figure in ("precision_at_1", "same_length_precision_at_1", "ordinary_loss"))
        lines.append(f"- {what} (*{name}* against *{other}*): precision at 1 {gains.mean():+.3f} (seed by seed "
                     f"{', '.join(f'{gain:+.3f}' for gain in gains)}; better in {np.count_nonzero(gains > 0)} of "
                     f"{len(gains)}), among names of one length {fair.mean():+.3f}, loss on ordinary text "
                     f"{cost.mean():+.3f}")
    return "\n".join(lines)


def draw(result, path):
    """Every seed a dot, its mean a bar. Returns False where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 2.8), dpi=130, layout="constrained")
    for axes, key in zip(figure.subplots(1, 3), SHOWN, strict=True):
        for row, (name, figures) in enumerate(result["arms"].items()):
            axes.barh(name, np.mean(figures[key]), color=f"C{row}", alpha=0.5)
            axes.plot(figures[key], [name] * len(figures[key]), "k.", markersize=5)
        if key in SHOWN[:2]:
            chance = result["chance" if key == SHOWN[0] else "same_length_chance"]
            axes.axvline(np.mean(chance), color="0.4", linestyle="--", linewidth=1)
        if key != SHOWN[0]:
            axes.set_yticklabels([])
        axes.set_title(FIGURES[key].replace("among", "precision at 1 among"), fontsize=9)
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
    return f"{table(result)}\n\n![A dot a seed, a bar their mean, dashed the best constant answers]({PICTURE.name})"


if __name__ == "__main__":
    print(json.dumps(measure_arm(*json.loads(sys.argv[1]))))
