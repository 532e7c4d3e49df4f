"""The built-in model's voice: sentences made from the prompt's own words, and how a text falls into tokens.

The same prompt gives the same sentences. Which protocol carries them, and how fast, is settled elsewhere."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_CHARACTERS = 2000
QUOTE_CHARACTERS = 160
TOKEN = re.compile(r"\s*(?:[^\W_]{1,8}|[^\w\s]|_)|\s+")
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")

OPENINGS = (
    "This is the demo model: small, built in, and made of your own words.",
    "Hello from the demo model, which knows nothing but reads carefully.",
    "The demo model speaking: no weights, no GPU, just your prompt on its way back.",
    "You have reached the demo model, a short pipe with a good echo.",
)
ABOUT_A_WORD = (
    "Read backwards, *{word}* is *{backwards}*.",
    "Say **{word}** three times: {word}, {word}, {word}. It is stranger each time.",
    "*{word}* starts with {initial}, which is as good a start as any.",
    "Someone, somewhere, is asking a much larger model about *{word}* right now.",
    "There is a shelf for *{word}* here, still quite empty.",
)
ABOUT_A_LINE = (
    "Your longest word is **{longest}**: {longest_letters} characters.",
    "If *{word}* were a river, *{other}* would be the mill that waits for it.",
    "I kept **{word}** for a moment and let *{other}* go by.",
    "Between *{first}* and *{last}* you took {count} words to say it.",
    "In order of the alphabet, *{lowest}* comes first and *{highest}* closes the line.",
    "A page about *{word}* would surely mention *{other}* somewhere.",
    "There is a quiet rhyme between *{word}* and *{other}*, if you read quickly enough.",
    "Of your {count} words I would frame **{word}** and hang it by the window.",
)
ABOUT_NOTHING = (
    "Each piece of this text left on its own and arrived in order.",
    "Nothing here was looked up, and nothing will be remembered.",
    "Water and tokens have this in common: what counts is that they keep coming.",
    "If you can see this sentence grow, everything between us works.",
    "A larger model would have more to say; this one has better manners.",
    "The gaps between these words are measured, not felt.",
    "Stop me whenever you like; I leave no mess behind.",
)


@dataclass(frozen=True, slots=True)
class Matter:
    """What there is to talk about: the prompt on one line, its words, and those worth a remark."""

    line: str
    words: tuple[str, ...]
    remarkable: tuple[str, ...]

    @classmethod
    def of(cls, prompt: str) -> Matter:
        line = " ".join(prompt[:READ_CHARACTERS].split())
        words = tuple(WORD.findall(line))
        telling = [word for word in words if len(word) > 4 or not word.isascii()]
        return cls(line, words, tuple(dict.fromkeys(word for word in telling or words if len(word) <= 40)))

    @property
    def frames(self) -> tuple[str, ...]:
        """The sentences that have something to say about it."""
        about_a_word = ABOUT_A_WORD if self.remarkable else ()
        about_a_line = ABOUT_A_LINE if len(self.remarkable) > 2 else ()
        return (*about_a_word, *about_a_line, *ABOUT_NOTHING)


def tokens_of(text: str) -> list[str]:
    """Cut a text into word pieces, each with the space before it; joined, they are the text."""
    return TOKEN.findall(text)


def sentences(prompt: str, seed: str) -> Iterator[str]:
    """Sentences without end, each with the space or paragraph break before it. The same seed gives the same ones."""
    matter = Matter.of(prompt)
    chance = random.Random(sha256(seed[:READ_CHARACTERS].encode("utf-8", "replace")).digest())
    yield chance.choice(OPENINGS)
    if matter.line:
        yield f" You wrote: “{shortened(matter.line, QUOTE_CHARACTERS)}”"
    while True:
        yield from _paragraph(matter, chance)
        if len(matter.remarkable) > 2:
            yield _list(matter, chance)


def shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def fitting_sentences(prompt: str) -> int:
    """How many sentences suit a prompt: four for a word, up to twelve for a long one."""
    return 4 + min(8, len(Matter.of(prompt).words) // 6)


def written(prompt: str, seed: str, tokens: int | None, preface: str = "") -> list[str]:
    """An answer as tokens: exactly `tokens` of them, the last one ending a sentence, or as many as suit the prompt."""
    if tokens is None:
        return tokens_of(preface + "".join(islice(sentences(prompt, seed), fitting_sentences(prompt))))
    pieces = tokens_of(preface)
    endless = sentences(prompt, seed)
    while len(pieces) <= tokens:
        pieces += tokens_of(next(endless))
    return [*pieces[: tokens - 1], pieces[tokens - 1] if pieces[tokens - 1] in ".!?”" else "."]


def _paragraph(matter: Matter, chance: random.Random) -> Iterator[str]:
    lead = "\n\n"
    for frame in chance.sample(matter.frames, k=chance.randint(2, 4)):
        yield lead + frame.format_map(_facts(matter, chance))
        lead = " "


def _facts(matter: Matter, chance: random.Random) -> dict[str, str]:
    """The words a sentence may speak of, picked anew for each."""
    if not matter.remarkable:
        return {}
    word = chance.choice(matter.remarkable)
    longest = max(matter.remarkable, key=len)
    return {
        "word": word,
        "other": chance.choice([other for other in matter.remarkable if other != word] or [word]),
        "backwards": word[::-1],
        "initial": word[0].upper(),
        "longest": longest,
        "longest_letters": str(len(longest)),
        "first": matter.words[0],
        "last": matter.words[-1],
        "lowest": min(matter.words, key=str.lower),
        "highest": max(matter.words, key=str.lower),
        "count": str(len(matter.words)),
    }


def _list(matter: Matter, chance: random.Random) -> str:
    picked = chance.sample(matter.remarkable, k=min(len(matter.remarkable), 3))
    return "\n\n" + "\n".join(f"- **{word}**, {len(word)} characters" for word in picked)
