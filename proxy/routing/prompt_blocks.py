"""A prompt as a chain of block hashes: two prompts that begin alike have chains that begin alike.

The raw bytes are cut, without decoding them, in the order in which chat templates put them before the model: tools,
system, messages. A conversation's next turn appends to its last one, so its chain goes on where that one ended.
"""

from __future__ import annotations

from proxy.request import RequestBody

BLOCK_BYTES = 1024
"""About 256 tokens: less than that is computed again sooner than it is looked for."""
MOST_BLOCKS = 256
"""What comes after the first 256 KiB no longer matters for where a prompt goes."""
PROMPT_MEMBERS = ("tools", "system", "instructions", "messages", "prompt", "input")


def block_hashes(body: RequestBody) -> list[int]:
    """The hash of each whole block and all before it; empty for a prompt shorter than one.

    They mean something in this process only: Python salts its hashes, so nobody outside can make two alike.
    """
    prompt = _prompt(body)
    hashes: list[int] = []
    running = 0
    for start in range(0, len(prompt) - BLOCK_BYTES + 1, BLOCK_BYTES):
        running = hash((running, prompt[start : start + BLOCK_BYTES]))
        hashes.append(running)
    return hashes


def _prompt(body: RequestBody) -> bytes:
    places = {member.name: (member.start, member.end) for member in body.members if member.name in PROMPT_MEMBERS}
    prompt = b""
    for name in PROMPT_MEMBERS:
        room = BLOCK_BYTES * MOST_BLOCKS - len(prompt)
        if name in places:
            start, end = places[name]
            prompt += body.raw[start : min(end, start + room)]
    return prompt
