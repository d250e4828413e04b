r"""Tasks 1.1 and 1.2: a text is cut into pieces, roughly words, before byte pair encoding sees it. No token reaches
over the edge of a piece, so "dog", "dog." and "dog!" share one.

GPT-2 and GPT-4 each use a regular expression with \p{L} for any letter and \p{N} for any number. Python's own `re` does
not know these. Here a *letter* is what [^\W\d_] matches, a *number* what \d matches, *white space* what \s matches, and
a *sign* everything else, "_" among them. (For GPT-2 signs like ½ are numbers; for us they are letters.)

Each function returns the pieces, a list of strings; joined, they are the text again. At every place the rules are tried
in order, and the first that matches takes as much as it can. Use `re`, or loops.
"""

import re


def split_gpt2(text):
    r"""GPT-2's rules:
    1  one of 's 't 'd 'm 'll 've 're
    2  one space or none, then letters
    3  one space or none, then numbers
    4  one space or none, then signs
    5  white space that no other character follows: of "a   b" two of the three spaces, and all of them in "a   "
    6  white space
    """
    # BEGIN SOLUTION 1.1
    return re.findall(r"'(?:[stdm]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+", text)
    # END SOLUTION


def split_gpt4(text):
    r"""GPT-4's rules (the encoding cl100k_base):
    1  as GPT-2's, in capitals too: 'S
    2  one character or none that is no letter, no number, no \r and no \n, then letters
    3  one to three numbers: a model learns to calculate better where 1234567 is always cut alike
    4  one space or none, then signs, then any \r and \n
    5  white space that ends with a \r or \n, up to the last of these
    6  white space that no other character follows
    7  white space
    """
    # BEGIN SOLUTION 1.2
    return re.findall(r"'(?i:[stdm]|ll|ve|re)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n]*"
                      r"|\s*[\r\n]+|\s+(?!\S)|\s+", text)
    # END SOLUTION
