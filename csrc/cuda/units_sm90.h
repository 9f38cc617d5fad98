// How templates_first_sm90.cu's persistent blocks share its work.
#pragma once

#include <hopper.h>

#include "element.h"

namespace weit::cuda {

// A tile is 64 tokens of one place: two neighbouring tiles of template rows and one of scaler rows. The tiles of a
// place are cut into units of `tiles` each, `count` units in all.
struct Units {
  int token_blocks, a_blocks, places;  // tiles of a place; places side by side, and all
  int count, tiles;
};

// Cuts the work such that the last block to end does so as early as possible. A unit costs one tile more, about what
// the templates and scalers of its place take. For so many rounds of blocks, the smallest units that need no more.
inline Units units_of(int token_blocks, int a_blocks, int places, int processors) {
  Units units{token_blocks, a_blocks, places};
  int64_t least = INT64_MAX;
  const int64_t even = blocks_of(int64_t(token_blocks) * places, processors);  // tiles of each block
  for (int64_t rounds = blocks_of(places, processors); even + rounds <= least; ++rounds) {
    const int64_t most = min(int64_t(token_blocks), rounds * processors / places);  // units of a place
    const int64_t tiles = blocks_of(token_blocks, most), time = rounds * (tiles + 1);
    if (time > least) continue;
    least = time, units.tiles = int(tiles), units.count = int(blocks_of(token_blocks, tiles) * places);
  }
  return units;
}

// The tiles of a block. Blocks take units in turn and neighbouring units differ in their place alone, so that the
// tokens that blocks read at one time are the same: x comes from memory once, and the short runs of y that they write
// meet in the L2 cache.
template <class Tile>
struct Tiles {
  const Units &units;
  int unit, first, token, end;

  __device__ explicit Tiles(const Units &units) : units(units), unit(blockIdx.x) { open(); }
  __device__ void open() {
    first = token = unit / units.places * units.tiles;
    end = min(first + units.tiles, units.token_blocks);
  }
  __device__ bool more() const { return unit < units.count; }
  __device__ void advance() {
    if (++token == end) unit += gridDim.x, open();
  }
  __device__ int a0() const { return unit % units.places % units.a_blocks * 2 * Tile::kRows; }
  __device__ int i0() const { return unit % units.places / units.a_blocks * Tile::kScalerRows; }
  __device__ int first_token() const { return token * 64; }
  __device__ bool opens_place() const { return token == first; }
  __device__ bool ends_place() const { return token + 1 == end; }
};

}  // namespace weit::cuda
