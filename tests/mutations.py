"""Damage to files, as a disk, a broken transfer or somebody hostile does it; the same for the same seed."""

from collections.abc import Callable
from random import Random

Mutation = Callable[[bytes, Random], bytes]


def truncated(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content))]


def one_bit(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    changed[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return bytes(changed)


def one_bit_of_the_beginning(content: bytes, random: Random) -> bytes:
    return one_bit(content[:300], random) + content[300:]


def one_bit_of_the_end(content: bytes, random: Random) -> bytes:
    return content[:-300] + one_bit(content[-300:], random)


def many_bits(content: bytes, random: Random) -> bytes:
    for _ in range(random.randint(2, 64)):
        content = one_bit(content, random)
    return content


def overwritten(content: bytes, random: Random) -> bytes:
    begin, count = random.randrange(len(content)), random.randint(1, 64)
    return content[:begin] + random.randbytes(count) + content[begin + count :]


def all_ones(content: bytes, random: Random) -> bytes:
    """Sizes and offsets become as large as they can be."""
    begin, count = random.randrange(len(content)), random.choice([1, 2, 4, 8])
    return content[:begin] + b"\xff" * count + content[begin + count :]


def larger_number(content: bytes, random: Random) -> bytes:
    """More digits for a number that is written out."""
    digits = [i for i in range(min(len(content), 20_000)) if content[i : i + 1].isdigit()]
    begin = random.choice(digits) if digits else 0
    return content[:begin] + b"9" * random.randint(1, 25) + content[begin:]


def cut(content: bytes, random: Random) -> bytes:
    begin = random.randrange(len(content))
    return content[:begin] + content[begin + random.randint(1, 64) :]


def doubled(content: bytes, random: Random) -> bytes:
    begin, count = random.randrange(len(content)), random.randint(1, 256)
    return content[: begin + count] + content[begin:]


def replaced(content: bytes, random: Random) -> bytes:
    """Something else altogether."""
    return random.choice([b"", b"\0" * 4096, b"PK\5\6" + bytes(18), b"PAR1", b"{}", random.randbytes(len(content))])


MUTATIONS: list[Mutation] = [
    *(truncated, one_bit, one_bit_of_the_beginning, one_bit_of_the_end, many_bits, overwritten),
    *(all_ones, larger_number, cut, doubled, replaced),
]
