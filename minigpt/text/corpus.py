"""The corpus that is always there: the help texts of Python itself, some 370,000 characters of real English."""

import re

_UNDERLINE = re.compile(r"^[ ]*([*=\-~^\"])\1{2,}[ ]*\n", re.MULTILINE)


def default_corpus() -> str:
    """Python's language reference as `help()` shows it, topic after topic in the order of their names.

    Topics repeat each other, so of equal paragraphs only the first stays: else a validation split would meet text from
    training again. Lines drawn under headings and white space at line ends go, too. The text differs a little between
    Python versions, and needs no network.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise FileNotFoundError(
            "default_corpus: this Python comes without pydoc_data; give a text file instead"
        ) from None
    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    text = _UNDERLINE.sub("", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n{2,}", text)
    return "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
