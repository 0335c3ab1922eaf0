"""Which packs are sent again: only where it pays, the best first, within what may be spent."""

from __future__ import annotations

import random
import uuid

from hypothesis import given
from hypothesis import strategies as st

from driver.core.sizes import CHUNK_BYTES, MIB
from driver.transfer import merge, region, repack
from driver.transfer.region import Chunk, Codec
from driver.transfer.repack import Use
from driver.transfer.spool import NEVER

LINEAGE = uuid.UUID(int=1)
PACK = 16 * MIB
NOT_SENT = Chunk(NEVER, 0, 0, 0, bytes(16))
packs = st.builds(
    lambda name, size, part: Use(uuid.UUID(int=name), size, int(size * part)),
    st.integers(1, 2**64), st.integers(1, PACK), st.floats(0, 1),
)  # fmt: skip
some_packs = st.lists(packs, max_size=40, unique_by=lambda pack: pack.name)


def part(pack: Use) -> float:
    return pack.needed_bytes / pack.share_bytes


@given(some_packs, st.integers(0, 64 * MIB))
def test_only_what_pays_within_what_is_spared_and_the_best_first(given_packs: list[Use], spare: int) -> None:
    chosen = repack.send_again(given_packs, spare)
    mine = [pack for pack in given_packs if pack.name in chosen]
    assert sum(pack.needed_bytes for pack in mine) <= spare
    assert all(part(pack) <= 1 / 4 and pack.share_bytes - pack.needed_bytes >= MIB // 4 for pack in mine)
    left = [pack for pack in given_packs if pack.name not in chosen and repack._pays(pack)]
    assert max(map(part, mine), default=0.0) <= min(map(part, left), default=1.0)
    if left:
        best = min(left, key=lambda pack: (part(pack), pack.name.int))
        assert best.needed_bytes > spare - sum(pack.needed_bytes for pack in mine)
    assert repack.send_again(reversed(given_packs), spare) == chosen


@given(some_packs)
def test_what_stays_is_less_than_four_times_of_what_is_needed(given_packs: list[Use]) -> None:
    chosen = repack.send_again(given_packs, 2**60)
    stays = [pack for pack in given_packs if pack.name not in chosen and pack.share_bytes - pack.needed_bytes >= MIB // 4]
    assert sum(pack.share_bytes for pack in stays) <= 4 * sum(pack.needed_bytes for pack in stays)


def test_the_bytes_that_are_needed_are_counted() -> None:
    one, two = uuid.UUID(int=1), uuid.UUID(int=2)
    chunks = [Chunk(Codec.ZSTD, 7, 0, 100, bytes(16)), region.ZERO_CHUNK, Chunk(Codec.ZSTD, 4, 0, 30, bytes(16)),
              Chunk(Codec.ZSTD, 7, 500, 7, bytes(16))]  # fmt: skip
    index = region.build(0, LINEAGE, chunks, {7: (one, 1000), 4: (two, 2000)}, {4: 1500})
    assert repack.uses(index) == [Use(one, 107, 107), Use(two, 1500, 30)]


def test_a_pack_of_little_of_many_regions_is_sent_once() -> None:
    """Changes here and there: each region has a part of the pack, and needs all of it."""
    packs = {0: (uuid.UUID(int=1), PACK)}
    chunks = [Chunk(Codec.RAW, 0, (8 * place) * CHUNK_BYTES, CHUNK_BYTES, bytes(16)) for place in range(32)]
    index = region.build(0, LINEAGE, chunks, packs)
    assert repack.packs_to_send_again(index) == frozenset()
    after = [*chunks[:8], *[region.ZERO_CHUNK] * 24]
    later = merge.merge(0, LINEAGE, [*[NOT_SENT] * 8, *after[8:]], {}, index, 32)
    assert later is not None and later.packs[0].share_bytes == 32 * CHUNK_BYTES
    assert repack.packs_to_send_again(later) == {uuid.UUID(int=1)}
    assert list(repack.chunks_to_send_again(later)) == [(0, 8)]


def test_a_volume_that_is_written_for_long_takes_no_more_than_four_times_its_size() -> None:
    """Raw chunks of 64 KiB, 256 a pack; each snapshot changes some at random, and only the newest one is kept."""
    dice = random.Random(1)
    chunks, size = 2048, 65536
    home = {chunk: chunk // 256 for chunk in range(chunks)}
    packs_of = dict.fromkeys(range(chunks // 256), 256)
    spent = 0
    for _ in range(400):
        needed: dict[int, int] = {}
        for pack in home.values():
            needed[pack] = needed.get(pack, 0) + size
        parent = [Use(uuid.UUID(int=pack), packs_of[pack] * size, live) for pack, live in needed.items()]
        chosen = {name.int for name in repack.send_again(parent, repack.SPARE_BYTES)}
        again = {chunk for chunk, pack in home.items() if pack in chosen}
        changed = {dice.randrange(chunks) for _ in range(20)}
        spent += len(again - changed)
        fresh = max(packs_of) + 1
        for number, chunk in enumerate(sorted(again | changed)):
            home[chunk] = fresh + number // 256
            packs_of[home[chunk]] = packs_of.get(home[chunk], 0) + 1
        stored = sum(packs_of[pack] for pack in set(home.values()))
        assert stored <= 4.5 * chunks
    assert spent < 400 * 20, "more was sent again than was changed"
