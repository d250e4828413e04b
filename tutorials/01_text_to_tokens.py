# %% [markdown]
# # 1. Text to tokens
#
# **You will be able to** turn any text into whole numbers and back without losing a byte; train the tokenizer of
# GPT-2 by hand and encode with it; say why GPT-4 cuts text where it does; count what a vocabulary costs.
#
# **Needs:** a laptop; the packages NumPy, matplotlib and regex.  **Before:** nothing, only Python.
# **Time:** about 50 minutes

# %%
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import regex
from lesson import BLUE, GREEN, ORANGE, RED, case, check, here, seconds, source

from minigpt import Tokenizer
from minigpt.text import bpe, patterns

text = here("data/shakespeare.txt").read_text(encoding="utf-8")
print(text[:76])

# %% [markdown]
# A language model computes with numbers, and it reads and writes one symbol of a fixed list at a time: the
# *vocabulary*. A symbol of that list is a **token**, its place in the list is its **id**. The model sees ids alone.
# So the first question is what the list should hold: letters, words, something between?
#
# Most oddities of language models start here. Why do they count letters badly, why does a space at the end of a prompt
# disturb them, why does Python code cost more than prose? Each of these has an answer in this tutorial.

# %% [markdown]
# ## 1. A text is bytes
#
# Unicode gives every character a number, its **code point**: A is 65, the Greek π is 960. There are 1,114,112 of them,
# more than half not in use. A file does not store these numbers, it stores bytes, numbers from 0 to 255. The usual rule
# is **UTF-8**: a code point takes 1 to 4 bytes, and the small ones, the English letters, take 1.
#
# | code points | bytes | their bits |
# |---|---|---|
# | 0 to 127 | 1 | `0xxxxxxx` |
# | 128 to 2,047 | 2 | `110xxxxx 10xxxxxx` |
# | 2,048 to 65,535 | 3 | `1110xxxx 10xxxxxx 10xxxxxx` |
# | 65,536 to 1,114,111 | 4 | `11110xxx 10xxxxxx 10xxxxxx 10xxxxxx` |
#
# The x hold the bits of the code point, the highest first. A byte says by its first bits what it is: one that begins
# with `10` goes on with a character, every other one begins a character.
#
# A hand count for π: 960 is 1111000000 in binary, 10 bits; two bytes have 5 + 6 = 11 places. Padded to 11 bits it is
# 01111 000000, so the bytes are `11001111 10000000`, 207 and 128. Python agrees:

# %%
for character in "Aïπ☺𝔸":
    bits = " ".join(f"{byte:08b}" for byte in character.encode())
    print(f"{character}  code point {ord(character):6}  bytes {list(character.encode())}  {bits}")

# %%
phrase = "naïve: 3 ≤ π ☺ 𝔸"
figure, panel = plt.subplots(figsize=(8, 1.7))
x = 0
for character in phrase:
    data = character.encode()
    panel.text(x + len(data) / 2, 1.4, character, ha="center", va="center", fontsize=15)
    color = [BLUE, GREEN, ORANGE, RED][len(data) - 1]
    for byte in data:
        panel.add_patch(plt.Rectangle((x + 0.04, 0), 0.92, 0.8, color=color))
        panel.text(x + 0.5, 0.4, byte, ha="center", va="center", color="white", fontsize=9)
        x += 1
panel.set(xlim=(0, x), ylim=(0, 1.9), title=f"{len(phrase)} characters, {x} bytes: 1 (blue) to 4 (red) each")
panel.axis("off")
plt.show()

# %% [markdown]
# ### Exercise 1 (10 minutes): UTF-8 by hand
#
# Write the bytes of one code point as the table above says. `x >> 6` drops the lowest 6 bits of x, `x & 0b111111`
# keeps only them, and `0b110_00000 | x` puts the mark in front. `bytes([207, 128])` makes bytes of numbers.

# %%
def utf8(code_point):                                       # an int below 1114112 -> its 1 to 4 bytes
    ...


# %%
check(utf8, case(65, want=b"A"), case(960, want="π".encode(), why="two bytes: 110xxxxx 10xxxxxx"),
      case(0x7F, want=b"\x7f", why="127 is the last code point of one byte"),
      case(0x80, want="\x80".encode(), why="128 is the first code point of two bytes"),
      case(0x7FF, want="\u07ff".encode(), why="2047 is the last code point of two bytes"),
      case(0x800, want="\u0800".encode(), why="2048 is the first code point of three bytes"),
      case(0x263A, want="☺".encode(), why="three bytes: 1110xxxx 10xxxxxx 10xxxxxx"),
      case(0xFFFF, want="\uffff".encode(), why="65535 is the last code point of three bytes"),
      case(0x10000, want="\U00010000".encode(), why="65536 is the first code point of four bytes"),
      case(0x1D538, want="𝔸".encode(), why="four bytes: 11110xxx, then three times 10xxxxxx"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The last byte is always `0b10_000000 | (code_point & 0b111111)`, the one before it the same of `code_point >> 6`, and
# so on. What is left when all of these are cut off goes into the first byte, behind its mark.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def utf8(code_point):
#     if code_point < 0x80:
#         return bytes([code_point])
#     following = 1 if code_point < 0x800 else 2 if code_point < 0x10000 else 3
#     out = []
#     for _ in range(following):
#         out.append(0b10_000000 | (code_point & 0b111111))
#         code_point >>= 6
#     out.append([None, 0b110_00000, 0b1110_0000, 0b11110_000][following] | code_point)
#     return bytes(reversed(out))
# ```
# </details>

# %% [markdown]
# ## 2. Why not characters, why not words
#
# The text of this course is *tiny Shakespeare*, forty thousand lines of plays. Take each character as a token, and the
# vocabulary is small. What it costs is length: a model handles a text token by token, and attention (tutorial 2)
# compares every token with every other, T² pairs for T tokens. Tokens of 4 characters make a text a quarter as long,
# and T² a sixteenth.
#
# So take words: cut at spaces. To see whether that works, learn the list of words from the first nine tenths of the
# text and use it on the last tenth.
#
# **Predict:** the list of words comes from a million characters by the same author. What share of the words of the
# last tenth is not in it: 0.1 %, 1 %, 10 %?

# %%
cut = len(text) * 9 // 10
learned, held_out = text[:cut], text[cut:]
words = set(learned.split())
unknown = [word for word in held_out.split() if word not in words]
print(f"{len(text):,} characters, {len(set(text))} different ones")
print(f"{len(words):,} different words in the first nine tenths")
print(f"{len(unknown) / len(held_out.split()):.1%} of the words of the last tenth are not among them:")
print(unknown[5:13])

# %% [markdown]
# Look at the unknown ones: many are known words with a comma or a full stop attached. Others are names, and there will
# always be new names. A model over words would have to write "unknown word" for each, or never read them.
#
# Nor does the list ever become complete. The picture counts different words and different characters in longer and
# longer parts of the text. Both axes are logarithmic, so a straight line is a power law (for words: *Heaps' law*).

# %%
lengths = np.geomspace(300, len(text), 15).astype(int)
figure, panel = plt.subplots()
panel.loglog(lengths, [len(set(text[:n].split())) for n in lengths], "o-", label="words (cut at white space)")
panel.loglog(lengths, [len(set(text[:n])) for n in lengths], "o-", label="characters")
panel.set(xlabel="characters of text read", ylabel="different ones so far",
          title="The list of characters is soon complete, the list of words never")
panel.legend()
plt.show()

# %% [markdown]
# A vocabulary costs, too. A model keeps one row of C numbers for each of its V tokens. A hand count: GPT-2 has
# V = 50,257 and C = 768, so 50,257 × 768 = 38.6 million numbers, of 124 million in all. With a word for every form in
# English, Finnish and Python, V would be in the millions, and the model little but its list of words.
#
# What we want: nothing unknown, as with characters; short, as with words; a list whose length we choose.

# %% [markdown]
# ## 3. Byte pair encoding, by hand
#
# Start with the 256 bytes as tokens: then no text is unknown. Now find the pair of neighbouring tokens that occurs most
# often, and make it a new token. Repeat. That is all of **byte pair encoding**, BPE.
#
# Which byte has which id is a convention; take that of GPT-2, whose order starts with the visible characters, so that
# our ids can be compared with others' later.

# %%
vocabulary = [bytes([byte]) for byte in bpe.BYTE_ORDER]            # id -> the bytes it stands for
number = {byte: id for id, byte in enumerate(bpe.BYTE_ORDER)}      # byte -> id
ids = tuple(number[byte] for byte in text[:50_000].encode())
print("First ->", ids[:5], "->", [vocabulary[id] for id in ids[:5]])

# %% [markdown]
# **Predict:** which pair of neighbouring bytes occurs most often in English plays: `th`, `he`, or one with a space in
# it?

# %%
pairs = Counter(pairwise(ids))
for (left, right), count in pairs.most_common(8):
    print(f"{count:5} times  {vocabulary[left] + vocabulary[right]}")

# %% [markdown]
# Ends of words, then: so many words end in the same few letters. Now one merge. The function reads the ids from the
# left and puts `new` wherever it finds the pair. A hand count: each occurrence turns two tokens into one, so the
# text must become shorter by exactly the number counted above (it may differ only for a pair of two equal tokens, such
# as the two in `ooo`, which overlap).

# %%
def merge(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if ids[i:i + 2] == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return tuple(out)


pair, count = pairs.most_common(1)[0]
shorter = merge(ids, pair, 256)
print(f"{len(ids)} tokens - {count} occurrences = {len(ids) - count}, and merge leaves {len(shorter)}")

# %% [markdown]
# And the loop. Every merge is one more token; what it stands for is what its two halves stand for, joined.

# %%
stream, crude = ids, list(vocabulary)
for new in range(256, 256 + 60):
    pairs = Counter(pairwise(stream))
    pair = max(pairs, key=pairs.get)
    stream = merge(stream, pair, new)
    crude.append(crude[pair[0]] + crude[pair[1]])
print(f"{len(ids)} bytes are now {len(stream)} tokens: {len(ids) / len(stream):.2f} bytes a token")
print(*crude[256:])

# %% [markdown]
# It works, and it shows a flaw: tokens such as `b'e '`, `b', '` or `b'I '` glue the end of a word to what happens to
# follow it.
#
# ## 4. Cut first, then merge
#
# Imagine a longer run. The word *dog* would get the tokens `dog.`, `dog!`, `dog?` and `dog ` — four ids that share
# nothing, though the model should learn what a dog is once. So GPT-2 cuts the text into **pieces** first, by a regular
# expression, and never merges across a cut. A piece is roughly a word with the space *before* it:

# %%
print(patterns.GPT2)
cut_gpt2 = regex.compile(patterns.GPT2)
print(cut_gpt2.findall("The dog. My dog! A dog? It's 2024, and they'll run"))

# %% [markdown]
# In words: `'s` and other contractions; or a space (perhaps) and letters (`\p{L}`); or a space and digits (`\p{N}`); or
# a space and other signs; or white space, without its last character if a word follows. ` dog` is the same piece before
# every sign. The space belongs to the word after it, so that a text needs no extra tokens for its spaces. That is also
# why a prompt that ends in a space disturbs a model: the space has become a token of its own, and what usually follows
# that is not a word with its own space.
#
# Words repeat. So training need not walk through the text again and again: it counts how often each piece occurs, and
# works on the different ones only.

# %%
slice_ = learned[:100_000]
pieces = Counter(cut_gpt2.findall(slice_))
print(f"{sum(pieces.values())} pieces, {len(pieces)} different: {pieces.most_common(6)}")
start = {tuple(number[byte] for byte in piece.encode()): times for piece, times in pieces.items()}


def count_pairs(words):                                   # {ids of a piece: how often it occurs}
    pairs = Counter()
    for ids, times in words.items():
        for pair in pairwise(ids):
            pairs[pair] += times
    return pairs

# %% [markdown]
# The training loop as before; of pairs that occur equally often, the one with the lower ids goes first. It keeps, after
# every merge, how many tokens the slice has.

# %%
MERGES = 256


def train(words):
    merges, vocab, lengths = [], list(vocabulary), []
    for new in range(256, 256 + MERGES):
        pairs = count_pairs(words)
        pair = max(pairs, key=lambda pair: (pairs[pair], -pair[0], -pair[1]))
        words = {merge(ids, pair, new): times for ids, times in words.items()}
        merges.append(pair)
        vocab.append(vocab[pair[0]] + vocab[pair[1]])
        lengths.append(sum(len(ids) * times for ids, times in words.items()))
    return merges, vocab, lengths


merges, vocab, lengths = train(start)
print(f"{len(slice_)} bytes are {lengths[-1]} tokens: {len(slice_) / lengths[-1]:.2f} bytes each")

# %%
print("first:", *vocab[256:276])
print("last: ", *vocab[-12:])
print("longest:", *sorted(vocab, key=len)[-8:])

# %% [markdown]
# First pairs of letters, then short words with their space (` the`, ` and`), then names of the plays' people. Nobody
# told the algorithm what a word is.
#
# The package does the same, faster: after a merge it counts again only the pieces that hold the pair. The list of
# merges must be equal to ours, id by id.

# %%
fast = Tokenizer.train(slice_, vocab_size=256 + MERGES, special_tokens=(), pattern="gpt2")
print("the same vocabulary:", fast.tokens == vocab)
print("the same merges:    ", list(fast.merges) == merges)
ours = seconds(train, start, repeats=1)
theirs = seconds(lambda: Tokenizer.train(slice_, 256 + MERGES, special_tokens=()), repeats=3)
print(f"ours took {ours:.2f} s, the package's {theirs:.2f} s: {ours / theirs:.0f} times faster")

# %%
source("minigpt/text/bpe.py", "token = len(BYTE_ORDER) + len(merges)", "heappush(heap, (-counts[changed]")

# %% [markdown]
# `where` knows the words that hold a pair. Their old pairs are taken off the counts, the new ones added, and a heap
# gives the most frequent pair without looking at all of them. The rest is our loop.

# %% [markdown]
# ## 5. Encoding: the merges in order
#
# Training made the merges one after the other; a new text goes through the same ones in the same order. The place of a
# merge in the list is its **rank**. The plainest encoder replays them all:

# %%
def encode_piece(piece, show=False):
    ids = tuple(number[byte] for byte in piece.encode())
    for rank, pair in enumerate(merges):
        before, ids = ids, merge(ids, pair, 256 + rank)
        if show and ids != before:
            print(f"  rank {rank:3}: {[vocab[id].decode() for id in ids]}")
    return ids


for piece in (" brother", " thereabout"):
    print(repr(piece))
    encode_piece(piece, show=True)

# %% [markdown]
# Encode a text: cut it into pieces, encode each, join. The package's `encode`, with the vocabulary it learned from the
# same slice, must give the same ids, here on a text that neither has seen:

# %%
unseen = held_out[:3000]
own_ids = [id for piece in cut_gpt2.findall(unseen) for id in encode_piece(piece)]
print("the same ids:", own_ids == fast.encode(unseen), f"({len(unseen)} bytes, {len(own_ids)} tokens)")

# %% [markdown]
# To see the tokens, colour them. A space is drawn as a dot. From the top: no merges, 40, all of ours, and the
# vocabulary of 1,024 tokens of the model that we shall take apart in the next tutorials, learned from more text.

# %%
TINTS = ["#bcd4ea", "#f3c9b5", "#c5e0c4", "#ecdf9e"]
model_tokenizer = Tokenizer.from_pretrained(here("checkpoint"))


def draw_tokens(panel, tokens, title, width=80):
    x = y = 0
    for i, token in enumerate(tokens):
        for character in token:
            x, y = (x, y) if x < width else (0, y + 1)
            panel.add_patch(plt.Rectangle((x, y), 1, 0.88, color=TINTS[i % 4], linewidth=0))
            character = {" ": "·", "\n": "↵"}.get(character, character)
            panel.text(x + 0.5, y + 0.46, character, ha="center", va="center", family="monospace", fontsize=10)
            x += 1
    panel.set(xlim=(0, width), ylim=(y + 1, 0), title=title)
    panel.axis("off")

# %%
line = "Now is the winter of our discontent made glorious summer by this sun of York;"
figure, panels = plt.subplots(4, figsize=(8, 3))
some = {f"{n} merges": Tokenizer(vocab[:256 + n], dict(list(fast.merges.items())[:n])) for n in (0, 40, MERGES)}
some["the model's tokenizer"] = model_tokenizer
for panel, (name, known) in zip(panels, some.items(), strict=True):
    tokens = [known.tokens[id].decode() for id in known.encode(line)]
    draw_tokens(panel, tokens, f"{name}: {len(tokens)} tokens, {len(line) / len(tokens):.2f} bytes each")
plt.show()

# %% [markdown]
# This is also why language models count letters badly. What the model reads of ` summer` is one id, or a few: which
# letters are in it, and how many m, stands nowhere. It has to have read about it.

# %% [markdown]
# ### Exercise 2 (15 minutes): encode without replaying everything
#
# GPT-4 has 100,000 merges; to go through all of them for a piece of six letters is absurd. Look only at the pairs that
# are there: find the one of lowest rank, merge it (everywhere in the piece: `merge` above does that), look again, and
# stop when no pair of the piece has a rank. `ranks[pair]` is the rank of a pair, and the token it makes is
# `256 + rank`.

# %%
ranks = {pair: rank for rank, pair in enumerate(merges)}


def encode_quickly(ids, ranks):                     # a tuple of the ids of bytes -> a tuple of ids of tokens
    ...


# %%
def example(piece, why=""):
    return case(tuple(number[byte] for byte in piece.encode()), ranks, want=encode_piece(piece), why=why)


check(encode_quickly, example("x", "one token has no pairs, and is the answer itself"), example(" the"),
      example(" brother", "the pair of lowest rank goes first, not the leftmost"),
      example(" thereabout", "after a merge there are new pairs: look again"), example(" Mississippi"),
      example(" unbelievable", "is it always the lowest rank of all pairs that are there?"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `known = [pair for pair in pairwise(ids) if pair in ranks]`, and `min(known, key=ranks.get)` is the one to merge.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def encode_quickly(ids, ranks):
#     while True:
#         known = [pair for pair in pairwise(ids) if pair in ranks]
#         if not known:
#             return ids
#         pair = min(known, key=ranks.get)
#         ids = merge(ids, pair, 256 + ranks[pair])
# ```
# </details>

# %% [markdown]
# The package's version is this loop with a heap in the place of the search, so that a "word" of a million letters,
# which somebody will send to a server sooner or later, takes seconds rather than days:

# %%
source("minigpt/text/bpe.py", "while heap:", "return [token for token")

# %% [markdown]
# ## 6. How many merges?
#
# More merges, longer tokens. How much longer, and for which text? The package learns 8,000 merges from the first nine
# tenths of the plays; used with only the first n of them, it encodes the last tenth, and a file of Python code, too.
#
# **Predict:** by what factor do 8,000 merges shorten unseen Shakespeare: 2, 3, 5? And Python code?

# %%
large = Tokenizer.train(learned, vocab_size=8256, special_tokens=())
code = here("../minigpt/ops/numpy_ops.py").read_text(encoding="utf-8")
counts = [0, 10, 30, 100, 300, 1000, 2000, 4000, 8000]
sizes = {"text it learned from": learned[:100_000], "the last tenth, unseen": held_out, "Python code": code}
compression = {name: [] for name in sizes}
for count in counts:
    part = Tokenizer(large.tokens[:256 + count], dict(list(large.merges.items())[:count]))
    for name, sample in sizes.items():
        compression[name].append(len(sample.encode()) / len(part.encode(sample)))

# %%
figure, panel = plt.subplots()
for name, values in compression.items():
    panel.plot(counts, values, "o-", label=name)
    print(f"{name:24} {values[-1]:.2f} bytes a token with {counts[-1]} merges")
panel.set_xscale("symlog", linthresh=10)
panel.set(xlabel="merges (logarithmic)", ylabel="bytes a token",
          title="Ten times as many merges add about one byte a token at best")
panel.legend()
plt.show()

# %% [markdown]
# The lower axis is logarithmic: each power of ten to the right costs ten times as many tokens. So vocabularies end
# where rows of the model cost more than shorter texts save: GPT-2 has 50,257 tokens, GPT-4 100,277, a model for many
# languages 200,000 and more.
#
# And Python stays expensive for a vocabulary learned from plays. On what are the tokens spent? Compare it with one of
# the same size that was learned from code.

# %%
first_half, second_half = code[:len(code) // 2], code[len(code) // 2:]
of_plays = Tokenizer.train(learned, vocab_size=1024, special_tokens=())
of_code = Tokenizer.train(first_half, vocab_size=1024, special_tokens=())
for name, known in {"plays": of_plays, "the first half": of_code}.items():
    spent = Counter(known.tokens[id] for id in known.encode(second_half))
    total = sum(spent.values())
    print(f"learned from {name}: {len(second_half.encode()) / total:.2f} bytes a token in the rest of the code")
    print("   most used:", {token: f"{count / total:.0%}" for token, count in spent.most_common(4)})
    print("   runs of spaces it knows:", sorted(len(token) for token in known.tokens if not token.strip(b" ")))

# %% [markdown]
# On indentation: plays have hardly any runs of spaces, so each space of one is a token of its own. GPT-2 had this very
# fault, because its vocabulary came from web pages. For Codex, the model behind the first Copilot, OpenAI added tokens
# for runs of spaces by hand, and code took about 30 % fewer tokens (Chen et al. 2021).

# %%
function = "def f(x):\n        return x + 2024\n"
figure, panels = plt.subplots(2, figsize=(8, 1.5))
for panel, (name, known) in zip(panels, {"from plays": of_plays, "from code": of_code}.items(), strict=True):
    tokens = [known.tokens[id].decode() for id in known.encode(function)]
    draw_tokens(panel, tokens, f"learned {name}: {len(tokens)} tokens", width=48)
plt.show()

# %% [markdown]
# ## 7. The splitting pattern, from GPT-2 to GPT-4o
#
# The merges come from data. Where to cut is decided by people, and they have changed their minds. `minigpt` has the
# patterns of three generations. One line of text, cut by each:

# %%
sample = "IT'S 1234567 dogs.\n\nThe dog. dog! dog? getName(x)\n    return   π"
figure, panels = plt.subplots(3, figsize=(8, 2.7))
for panel, name in zip(panels, ("gpt2", "cl100k_base", "o200k_base"), strict=True):
    cut_here = patterns.compile_pattern(patterns.ENCODINGS[name].pattern)
    found = patterns.split(cut_here, sample)
    model = {"gpt2": "GPT-2", "cl100k_base": "GPT-4", "o200k_base": "GPT-4o"}[name]
    draw_tokens(panel, found, f"{model} ({name}): {len(found)} pieces", width=70)
plt.show()

# %% [markdown]
# What changed, from the top down:
#
# - GPT-2 knows contractions in small letters only: `IT'S` is three pieces. GPT-4 takes both cases.
# - A number is one piece for GPT-2. If 1234567 is frequent it becomes one token, and a model has to learn by heart
#   what it is. Since GPT-4, a piece has at most three digits, so 1,110 tokens cover all of them: 10 + 100 + 1,000.
# - A word may bring one sign other than a space with it (`(x`), and a line's end stays with the sign before it.
# - GPT-4o begins a new piece where a capital follows a small letter, so ` getName` is two; and it leaves a contraction
#   with its word.
#
# The same on a whole file, Python again. Each number is a count of pieces, no merge has happened yet:

# %%
for name in ("gpt2", "cl100k_base", "o200k_base"):
    found = patterns.split(patterns.compile_pattern(patterns.ENCODINGS[name].pattern), code)
    blank = [piece for piece in found if piece.isspace()]
    print(f"{name:12} {len(found)} pieces, {len(set(found))} different; only white space: {len(blank)}, "
          f"for instance {Counter(blank).most_common(2)}")

# %% [markdown]
# GPT-2's pattern takes a line's end together with the indentation after it, one piece for every depth. GPT-4's leaves
# the line's end to the sign before it (`:` or `)`, usually), so that the indentation is a piece of spaces alone.

# %% [markdown]
# ### Exercise 3 (5 minutes): digits from the right
#
# GPT-4 cuts a number into threes from the left: 1234567 is `123 456 7`. People write 1,234,567, and with groups from
# the right models add better (Singh and Strouse 2024): only then does the same place mean thousands in every number.
# Write that cut.

# %%
def digit_groups(digits):                                   # "1234567" -> ["1", "234", "567"]
    ...


# %%
check(digit_groups, case("1234567", want=["1", "234", "567"], why="cut from the right end"),
      case("42", want=["42"]), case("123456", want=["123", "456"], why="no empty group in front"),
      case("10000", want=["10", "000"]))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The first group has `len(digits) % 3` digits, or 3 where that is 0. All others have 3.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def digit_groups(digits):
#     first = len(digits) % 3
#     groups = [digits[:first]] if first else []
#     return groups + [digits[i:i + 3] for i in range(first, len(digits), 3)]
# ```
# </details>

# %% [markdown]
# ## 8. Back to text
#
# Decoding is a look-up: join the bytes of the ids, and read them as UTF-8. The order of the merges plays no part.
#
# A model may produce any sequence of ids, and a token may be half a character: our vocabulary has no merge for the
# three bytes of ☺, so it is three tokens. Two of them are not UTF-8. The usual answer is to show the sign U+FFFD for
# what cannot be read.

# %%
smile = encode_piece("☺")
print(smile, [vocab[id] for id in smile])
for ids in (smile, smile[:2]):
    data = b"".join(vocab[id] for id in ids)
    print(data, "->", data.decode("utf-8", errors="replace"), "   the package:", fast.decode(ids))

# %% [markdown]
# Is anything lost? The proof that `decode(encode(text)) == text`, whatever the text: (1) cutting loses nothing, the
# pieces joined are the text; (2) every byte is a token; (3) a merge replaces two tokens by one that stands for the same
# bytes in the same order. So the bytes joined are the bytes of the text. And a test, on a random text from all of
# Unicode:

# %%
rng = np.random.default_rng(0)
points = rng.integers(0, 0x110000, 20_000)
points = points[(points < 0xD800) | (points > 0xDFFF)]          # what lies between is reserved for UTF-16
strange = "".join(map(chr, points))
print("back as it was:", fast.decode(fast.encode(strange)) == strange,
      f"   {len(strange)} characters, {len(fast.encode(strange))} tokens")

# %% [markdown]
# **Predict:** and the other way round? Take any ids, decode them, encode the text: are the ids the same?

# %%
two = [number[ord("t")], number[ord("h")]]
print(two, "->", fast.decode(two), "->", fast.encode(fast.decode(two)))

# %% [markdown]
# No: many sequences of ids are the same text, and `encode` gives one of them. A model is trained on these alone.

# %% [markdown]
# ### Exercise 4 (10 minutes): text while it is being written
#
# A chat shows each token as soon as the model has made it. To decode token by token and show U+FFFD is the famous
# fault: the smile never appears, three � do. Instead, hold back the bytes of a character that is not yet complete.
# Write the function that takes all bytes not shown so far, and returns what can be shown now and the bytes to keep.
# Let an incomplete character be the only trouble there is; it has at most 3 bytes at the end.

# %%
def showable(data):                                         # bytes -> (str to show now, bytes to keep)
    ...


# %%
check(showable, case(b"abc", want=("abc", b"")),
      case("é".encode(), want=("é", b""), why="it is complete: show it"),
      case(b"abc\xe2\x98", want=("abc", b"\xe2\x98"), why="two of three bytes are there: keep them"),
      case(b"\xe2", want=("", b"\xe2"), why="nothing to show yet"),
      case("a𝔸".encode()[:-1], want=("a", "𝔸".encode()[:-1]), why="three of four bytes: keep them all"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Try `data[:n].decode("utf-8")` with n = len(data), one less, two less, three less. The first that raises no
# UnicodeDecodeError is the answer.
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def showable(data):
#     for end in range(len(data), max(-1, len(data) - 4), -1):
#         try:
#             return data[:end].decode("utf-8"), data[end:]
#         except UnicodeDecodeError:
#             continue
# ```
# </details>

# %% [markdown]
# ## 9. Special tokens
#
# Some tokens stand for no text at all: `<|endoftext|>` says that a document is over, others that now the user speaks,
# or that here something is hidden. They get ids behind the merges. Their names look like text, and there lies a danger:
# if everybody who types `<|endoftext|>` into a form could end the document, users could pose as the system. So `encode`
# treats it as ordinary text, unless the program that calls it says otherwise.

# %%
from_outside = "Once upon a time<|endoftext|>"
as_text = model_tokenizer.encode(from_outside)
as_special = model_tokenizer.encode(from_outside, allowed_special="all")
for ids in (as_text, as_special):
    print(len(ids), "tokens:", [model_tokenizer.tokens[id].decode() for id in ids])

# %% [markdown]
# ## Summary
#
# - A text is bytes: UTF-8 takes 1 to 4 for each of 1,114,112 code points. With 256 byte tokens no text is unknown.
# - Characters make texts long (attention pays T²), words never end: of the words of an unseen tenth, the share printed
#   in section 2 was not in the list.
# - BPE merges the most frequent pair, again and again; a few hundred merges halve the length, and ten times as many
#   add about one byte a token at best. Encoding applies the merges in the order in which training made them.
# - Text is cut before it is merged, so that `dog.` and `dog!` share ` dog`; since GPT-4 a number is cut into at most
#   three digits; what is frequent in the training text decides the rest, runs of spaces included.
# - `decode(encode(text)) == text` always; `encode(decode(ids)) == ids` not always. A token may be half a character.
#
# What to try next: train a tokenizer on a text of your own (`Tokenizer.train`), and colour a line of it. The
# assignment [A5](assignments/a5_text/README.md) asks for a tokenizer, and more. Next comes
# [attention](02_attention.ipynb), by which a model looks back at the tokens before.
#
# ## Papers
#
# - R. Sennrich, B. Haddow, A. Birch: Neural machine translation of rare words with subword units. 2016,
#   [arXiv:1508.07909](https://arxiv.org/abs/1508.07909). BPE for words.
# - A. Radford, J. Wu, R. Child, D. Luan, D. Amodei, I. Sutskever: Language models are unsupervised multitask learners.
#   2019. GPT-2: BPE on bytes, and the pattern.
# - M. Chen et al.: Evaluating large language models trained on code. 2021,
#   [arXiv:2107.03374](https://arxiv.org/abs/2107.03374). Tokens for runs of spaces: section 3.2.
# - A. Singh, D. Strouse: Tokenization counts: the impact of tokenization on arithmetic in frontier LLMs. 2024,
#   [arXiv:2402.14903](https://arxiv.org/abs/2402.14903)
