"""One token a character: for the smallest models, where a vocabulary of words would be most of the parameters."""

from collections.abc import Iterable, Sequence

from minigpt.text.tokenizer import AddedToken, Tokenizer


class CharTokenizer(Tokenizer):
    """A vocabulary of single characters, `characters[i]` having id i, and special tokens after them.

    A character outside the vocabulary is an error on encode: nothing is dropped or replaced silently.
    """

    kind = "char"

    def __init__(self, characters: str | Sequence[str], added_tokens: dict[str, AddedToken] | None = None, **roles):
        for character in characters:
            if len(character) != 1:
                raise ValueError(f"characters: {character!r} has {len(character)} characters, must have one")
        if len(set(characters)) != len(characters) or not characters:
            raise ValueError(f"characters are {characters!r}, must be one or more, each of them once")
        super().__init__([character.encode() for character in characters], {}, (), added_tokens, **roles)

    @classmethod
    def train(cls, text: str | Iterable[str], special_tokens: Sequence[str] = ()) -> "CharTokenizer":
        """The characters that occur in `text` (a string or several), in the order of their code points."""
        characters = sorted(set().union(*([text] if isinstance(text, str) else text)))
        return cls(characters, {name: AddedToken(len(characters) + i) for i, name in enumerate(special_tokens)})

    def _split(self, text: str) -> Sequence[str]:
        return text

    def _encode_piece(self, piece: str) -> list[int]:
        id = self._token_ids.get(piece.encode())
        if id is None:
            raise ValueError(f"text: character {piece!r} is not among the {len(self._token_ids)} of the vocabulary")
        return [id]
