"""From figures to text: the table on the terminal, the README's, and the `// measured:` lines of the kernels.

What is kept lies in minigpt/bench/results/, one JSON file a machine and number of threads, each section with the date
of its measurement; the tables in a checkout are made from the newest file, and tests/test_bench.py fails where they
say something else.
"""

import json
import re
from pathlib import Path

from . import twin
from .knowledge import kept_table
from .machine import limit

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[2]
README_BEGIN, README_END = "<!-- bench:cpu -->", "<!-- /bench -->"
PEERS = (("torch", "compiled"), ("transformers",), ("llama.cpp",))  # variants of one peer stand together


# ---------------------------------------------------------------------------------------------------------------
# figures


def ours(row):
    return row["default"]["ours"]


def rate(row, summary):
    """How fast: (number, unit). Decoding is told in tokens, a training step too, the rest in FLOPs or bytes."""
    if "tokens" in row:
        return row["tokens"] / summary["median"], "tok/s"
    return _rate(row, summary)


def _rate(row, summary):
    if "flops" in row:
        return row["flops"] / summary["median"] / 1e9, "GFLOP/s"
    return row["bytes"] / summary["median"] / 1e9, "GB/s"


def share(row, summary, limits):
    """The part of the machine's limit that is reached."""
    return _rate(row, summary)[0] / limit(limits, row["limit"])


def peers(row):
    """Yields (name, default, best) for every peer that was measured: (summary, how many times faster ours is) for each.
    Both figures of a pair are of one process. The best settings of a peer are the best that were tried for this row: no
    "best" is slower than the default."""
    for variants in PEERS:
        found = {(setting, variant): row[setting][variant] for setting in ("default", "best") for variant in variants
                 if variant in row.get(setting, {})}
        if not found:
            continue
        pairs = {key: (summary, summary["median"] / row[key[0]]["ours"]["median"]) for key, summary in found.items()}
        best = min(pairs, key=lambda key: pairs[key][1])
        name = row["peer"] if variants[0] != "llama.cpp" else "llama.cpp"
        if best[1] == "compiled":
            name += ", best: compiled"
        yield name, pairs.get(("default", variants[0])), pairs[best]


def dates(result):
    """The days on which the sections were measured, as text."""
    return " and ".join(sorted({section["date"] for section in result["sections"].values()}))


def machine_name(result):
    machine = result["machine"]
    model = f"family {machine['family']} model {machine['model']}, " if machine["family"] else ""
    return f"{machine['cpu']} ({model}{machine['isa']})"


# ---------------------------------------------------------------------------------------------------------------
# the terminal


def terminal(result):
    """Everything, as aligned plain text."""
    lines = [f"{machine_name(result)}, {result['threads']} threads, {dates(result)}; "
             + ", ".join(f"{k} {v}" for k, v in result["machine"]["versions"].items())]
    for name, section in result["sections"].items():
        limits = section["limits"]
        lines += ["", f"{name}: this machine does {limits['fma_1_thread']:.0f} GFLOP/s with one thread, "
                  f"{limits['fma']:.0f} with {result['threads']}; reads {limits['read']:.1f} GB/s, triad "
                  f"{limits['triad']:.1f} ({limits['triad_streaming']:.1f} streaming), L3 {limits['l3']:.0f}"]
        table = [["work", "ours", "spread", "speed", "of limit", "alloc.", "peer", "default", "best", "x default",
                  "x best"]]
        for row in section["rows"]:
            figures = ours(row)
            speed, unit = rate(row, figures)
            alloc = row["default"].get("allocating")
            start = [row["work"], seconds(figures), _spread(figures), f"{speed:.4g} {unit}",
                     f"{share(row, figures, limits):.0%}", seconds(alloc) if alloc else ""]
            for peer, default, best in peers(row):
                table.append([*start, peer, seconds(default[0]), seconds(best[0]), _times(default), _times(best)])
                start = [""] * len(start)
            if start[0]:
                table.append([*start, "none installed", "", "", "", ""])
        lines += ["", *_aligned(table)]
        if section["ladders"]:
            table = [["ladder", "rung", "time", "spread", "speed", "of limit"]]
            before = None
            for row in section["ladders"]:
                speed, unit = rate(row, row["ours"])
                table.append([row["work"] if row["work"] != before else "", row["rung"], seconds(row["ours"]),
                              _spread(row["ours"]), f"{speed:.4g} {unit}", f"{share(row, row['ours'], limits):.0%}"])
                before = row["work"]
            lines += ["", *_aligned(table)]
    lines += ["", NOTES]
    return "\n".join(lines)


NOTES = """\
spread: the quartiles of ours. alloc.: ours making its outputs afresh, where `ours` reuses them. x: how many times
faster ours is, side by side in one process. best: the fastest of the settings tried. ~: noisy, something else ran."""


def seconds(summary):
    """A time in the unit that suits it, marked where it is noisy."""
    s, mark = summary["median"], "~" if summary["noisy"] else ""
    for unit, scale in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if s >= scale:
            return f"{mark}{_digits(s / scale)} {unit}"
    return f"{mark}{_digits(s / 1e-6)} us"


def _digits(x):
    """Three digits, without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def _spread(summary):
    low, high = (summary[q] / summary["median"] - 1 for q in ("q1", "q3"))
    return f"{low:+.0%} {high:+.0%}"


def _times(pair):
    return f"{pair[1]:.2f}"


def _aligned(table):
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


# ---------------------------------------------------------------------------------------------------------------
# the README and the headers


# The rows that stand in the README, by how their names begin; FULL_TABLE has all.
README_ROWS = ("attention forward + backward", "linear forward 1024 x 768 x 3072", "layernorm forward + backward (8192",
               "gelu forward", "cross-entropy", "AdamW", "training step", "2000 steps", "decode", "prompt")
FULL_TABLE = "cpu.md"


def markdown_table(result, begin=("",)):
    """The rows whose names begin so, in Markdown."""
    if result is None:
        return "(not measured yet: `minigpt bench all --keep`)"
    lines = [f"Measured {dates(result)} on {machine_name(result)} with {result['threads']} threads in float32, by "
             "`minigpt bench all --keep`; medians, each pair side by side in one process. *Default* is the peer as "
             "people run it, *best* the fastest of its settings that were tried (see `minigpt/bench/__init__.py`).", "",
             "| work | minigpt | of the machine's limit | peer | default | best | faster than default | than best |",
             "|---|---|---|---|---|---|---|---|"]
    for section in result["sections"].values():
        for row in section["rows"]:
            if not row["work"].startswith(begin):
                continue
            figures = ours(row)
            speed, unit = rate(row, figures)
            own = f"{seconds(figures)}, {speed:.3g} {unit}" if "tokens" not in row else _tokens(row, figures)
            start = f"| {row['work']} | {own} | {share(row, figures, section['limits']):.0%} "
            for peer, default, best in peers(row):
                show = (lambda s, row=row: _tokens(row, s)) if "tokens" in row else seconds
                lines.append(f"{start}| {peer} | {show(default[0])} | {show(best[0])} "
                             f"| {default[1]:.2f}x | {best[1]:.2f}x |")
    return "\n".join(lines)


def _tokens(row, summary):
    return f"{'~' if summary['noisy'] else ''}{rate(row, summary)[0]:.0f} tok/s"


def measured_lines(result, folder, direction, rung):
    """The `// measured:` lines of one rung's file: one for each ladder that it is a rung of."""
    lines = []
    ops = (result or {"sections": {}})["sections"].get("ops", {"ladders": []})
    for row in ops["ladders"]:
        operation, _, row_direction = row["ladder"].rpartition("_")
        if (operation, row["rung"]) == (folder, rung) and direction in (None, row_direction):
            speed, unit = rate(row, row["ours"])
            part = f"{share(row, row['ours'], ops['limits']):.0%} of {LIMIT_NAMES[row['limit']]}"
            lines.append(f"// measured: {speed:.3g} {unit}, {part}, {row['work']}")
    if not lines:
        return ["// measured: (none yet)"]
    return [*lines, f"// measured: on {machine_name(result)}, {result['threads']} threads, {ops['date'][:7]}"]


LIMIT_NAMES = {"fma": "peak", "memory": "the memory's limit", "l3": "the L3's limit", "read": "the memory's limit"}
RUNG_FILE = re.compile(r"(?:(forward|backward)_)?\d+_(\w+)\.cpp")
MEASURED = re.compile(r"^// measured:.*\n(?:// measured:.*\n)*", re.MULTILINE)


def rung_files():
    """Yields (path, folder, direction or None, rung) for every rung of every ladder in csrc/cpp."""
    for path in sorted((REPOSITORY / "csrc" / "cpp").glob("*/*.cpp")):
        match = RUNG_FILE.fullmatch(path.name)
        if match:
            yield path, path.parent.name, match[1], match[2]


def newest():
    """The newest result kept, or None."""
    files = sorted(RESULTS.glob("*-threads.json"))
    return json.loads(files[-1].read_text(encoding="utf-8")) if files else None


def keep(result):
    """Writes a result to its place, dated by its newest section. What was measured takes the place of the same sections
    in the machine's earlier file, which is no longer needed."""
    machine = result["machine"]
    cpu = "-".join(filter(None, [machine["cpu"], machine["family"], machine["model"]])).lower()
    name = re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") + f"_{machine['isa']}_{result['threads']}-threads.json"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{max(section['date'] for section in result['sections'].values())}_{name}"
    for old in sorted(RESULTS.glob(f"????-??-??_{name}")):
        earlier = json.loads(old.read_text(encoding="utf-8"))
        result = {**result, "sections": {**earlier["sections"], **result["sections"]}}
        old.unlink()
        old.with_suffix(".png").unlink(missing_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def stale():
    """{path: what it must hold} for every file of the checkout that disagrees with the newest result."""
    result, changes = newest(), {}
    readme, full = REPOSITORY / "README.md", RESULTS / FULL_TABLE
    texts = {full: (full.read_text(encoding="utf-8") if full.exists() else "", markdown_table(result) + "\n")}
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        if text.count(README_BEGIN) != 1 or text.count(README_END) != 1:
            raise ValueError(f"{readme} must hold {README_BEGIN} and {README_END} once each")
        before, _, rest = text.partition(README_BEGIN)
        after = rest.partition(README_END)[2]
        texts[readme] = text, f"{before}{README_BEGIN}\n{markdown_table(result, README_ROWS)}\n{README_END}{after}"
    knowledge = kept_table(RESULTS)
    if knowledge:
        path = RESULTS / "knowledge.md"
        texts[path] = path.read_text(encoding="utf-8") if path.exists() else "", knowledge + "\n"
    if table := twin.kept(RESULTS):
        path = RESULTS / twin.TABLE
        texts[path] = path.read_text(encoding="utf-8") if path.exists() else "", table
    for path, folder, direction, rung in rung_files():
        text = path.read_text(encoding="utf-8")
        if len(MEASURED.findall(text)) != 1:
            raise ValueError(f"{path} must have a line '// measured: ...' in its header, in one place")
        lines = "\n".join(measured_lines(result, folder, direction, rung)) + "\n"
        texts[path] = text, MEASURED.sub(lambda _, lines=lines: lines, text)
    for path, (old, new) in texts.items():
        if old != new:
            changes[path] = new
    return changes


def write():
    """Brings the checkout in line with the newest result; returns the paths that changed."""
    if not (REPOSITORY / "csrc").is_dir():
        raise ValueError(f"bench tables: {REPOSITORY} is not a checkout of the repository, there is nothing to rewrite")
    changes = stale()
    for path, text in changes.items():
        path.write_text(text, encoding="utf-8")
    return list(changes)


if __name__ == "__main__":
    for changed in write():
        print(f"rewrote {changed}")
