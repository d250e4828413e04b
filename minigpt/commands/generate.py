"""minigpt generate: continues a prompt, on the terminal, as the tokens come."""

import codecs
import sys
from argparse import ArgumentTypeError


def add_arguments(parser):
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a trained model")
    parser.add_argument("--prompt", required=True, type=utf8, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="X",
                        help="0: always the likeliest token (default: %(default)s)")
    parser.add_argument("--top-k", type=int, metavar="N", help="choose among the N likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="X", help="among the likeliest that together have probability X")
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text")
    parser.add_argument("--ops", metavar="NAME", help="backend: cpp or numpy (default: the fastest)")


def utf8(argument):
    try:
        argument.encode()
    except UnicodeEncodeError:                              # bytes of the command line that are no characters
        raise ArgumentTypeError(f"{argument!r} is not UTF-8 text") from None
    return argument


def run(args):
    from ..model import GPT
    from ..text import Tokenizer

    model, tokenizer = GPT.from_pretrained(args.model, args.ops), Tokenizer.from_pretrained(args.model)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{args.model}: the tokenizer has {tokenizer.vocab_size} tokens, the model knows only "
                         f"{model.config.vocab_size}")
    write_text(model, tokenizer, args.prompt, sys.stdout, max_new_tokens=args.max_new_tokens, seed=args.seed,
               temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)


def write_text(model, tokenizer, prompt, file, **options):
    """Writes the prompt and its continuation to `file`, each token at once. A token may be part of a character: its
    bytes are held back until the rest has come; and the prompt, until generating has begun without complaint."""
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("--prompt is empty, must be at least one character")
    decoder, held = codecs.getincrementaldecoder("utf-8")("replace"), [prompt]

    def write(token):
        file.write("".join(held) + decoder.decode(tokenizer.decode_bytes([token], skip_special_tokens=True)))
        file.flush()
        held.clear()

    model.generate(ids, eos_token_id=tokenizer.eos_token_id, on_token=write, **options)
    file.write("".join(held) + decoder.decode(b"", final=True) + "\n")
