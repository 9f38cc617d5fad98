// The emulator's csrc/cuda/wgmma.h: the same functions. A warp computes its 16 rows of a product when it waits for it,
// the last moment: an operand that was given up too early, or a sum that was read too early, shows.
#pragma once

#include <cuda_runtime_api.h>
#include <ptx.h>
#include <string.h>

#include <memory>
#include <vector>

#include "../../../../csrc/cuda/operand.h"

namespace weit::cuda {

// An operand in shared memory as its 64 bits describe it to the hardware: where the two bytes of a number start.
inline uint32_t operand_address(uint64_t operand, int row, int inner, bool transposed) {
  const uint32_t start = (operand & 0x3fff) << 4;
  const uint32_t inner_block = (operand >> 16 & 0x3fff) << 4, row_block = (operand >> 32 & 0x3fff) << 4;
  if (transposed) {
    if (operand >> 62 != 1) emulator::fail("a transposed operand is not in rows of 128 bytes");
    const uint32_t address = start + row / 64 * inner_block + inner / 8 * row_block + inner % 8 * 128 + row % 64 * 2;
    return address ^ (address >> 7 & 7) << 4;
  }
  if (operand >> 62 == 0) return start + row / 8 * row_block + inner / 8 * inner_block + row % 8 * 16 + inner % 8 * 2;
  if (operand >> 62 != 1) emulator::fail("an operand is neither in blocks nor in rows of 128 bytes");
  const uint32_t address = start + row / 8 * row_block + row % 8 * 128 + inner * 2;
  return address ^ (address >> 7 & 7) << 4;
}

template <class T, bool TRANSPOSED>
float operand_number(uint64_t operand, int row, int inner) {
  T value;
  memcpy(&value, emulator::shared_pointer(operand_address(operand, row, inner, TRANSPOSED), 2), 2);
  return widened(value);
}

// One thread's part in a product.
struct Product {
  float (*a_number)(uint64_t operand, int row, int inner);
  float (*b_number)(uint64_t operand, int row, int inner);
  float (*half)(uint32_t word, int half);
  int tiles;
  float (*sum)[4];
  const uint32_t *left;  // null: the left operand is in shared memory, too
  uint64_t a, b;
  bool add;
};
using Products = std::vector<std::vector<Product>>;  // in groups, the last one open

inline Products &products_of_thread() {
  auto &products = emulator::current->products;
  if (!products) products = std::make_shared<Products>(1);
  return *static_cast<Products *>(products.get());
}

inline void multiply_rows(const std::vector<const Product *> &lanes, int first_row) {
  const Product &any = *lanes[0];
  float A[16][16];
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 16; ++c)
      A[r][c] = any.left ? any.half(lanes[r % 8 * 4 + c % 8 / 2]->left[r / 8 + c / 8 * 2], c % 2)
                         : any.a_number(any.a, first_row + r, c);
  for (int column = 0; column < 8 * any.tiles; ++column) {
    float B[16];
    for (int c = 0; c < 16; ++c) B[c] = any.b_number(any.b, column, c);
    for (int r = 0; r < 16; ++r) {
      const Product &lane = *lanes[r % 8 * 4 + column % 8 / 2];
      float &sum = lane.sum[column / 8][r / 8 * 2 + column % 2], product = 0;
      for (int c = 0; c < 16; ++c) product += A[r][c] * B[c];
      sum = lane.add ? sum + product : product;
    }
  }
}

inline void products_begin() {}
inline void products_end() { products_of_thread().emplace_back(); }

template <int LEFT>
void products_wait() {
  emulator::together(emulator::warp(), 32, "products_wait", products_of_thread(), [](Products *const *lanes) {
    const int first_row = emulator::current->index / 32 % 4 * 16;
    while (lanes[0]->size() > LEFT + 1) {
      for (size_t i = 0; i < lanes[0]->front().size(); ++i) {
        std::vector<const Product *> product(32);
        for (int lane = 0; lane < 32; ++lane) {
          if (lanes[lane]->front().size() <= i || lanes[lane]->front()[i].b != lanes[0]->front()[i].b)
            emulator::fail("threads of a warp disagree on a product");
          product[lane] = &lanes[lane]->front()[i];
        }
        multiply_rows(product, first_row);
      }
      for (int lane = 0; lane < 32; ++lane) lanes[lane]->erase(lanes[lane]->begin());
    }
  });
}

template <int TILES>
void completed(float (&)[TILES][4]) {}

template <class T, bool A_TRANSPOSED, bool B_TRANSPOSED, int TILES>
void multiply(float (&sum)[TILES][4], const uint32_t *left, uint64_t a, uint64_t b, bool add) {
  const auto a_number = operand_number<T, A_TRANSPOSED>, b_number = operand_number<T, B_TRANSPOSED>;
  products_of_thread().back().push_back({a_number, b_number, element_of<T>, TILES, sum, left, a, b, add});
}

template <class T, int TILES>
void multiply_shared(float (&sum)[TILES][4], uint64_t a, uint64_t b, bool add) {
  multiply<T, false, false>(sum, nullptr, a, b, add);
}

template <class T, int TILES>
void multiply_shared_at(float (&sum)[TILES][4], uint64_t a, uint64_t b, bool add) {
  multiply<T, true, false>(sum, nullptr, a, b, add);
}

template <class T, int TILES>
void multiply_left(float (&sum)[TILES][4], const uint32_t (&a)[4], uint64_t b) {
  multiply<T, false, false>(sum, a, 0, b, true);
}

template <class T, int TILES>
void multiply_left_bt(float (&sum)[TILES][4], const uint32_t (&a)[4], uint64_t b) {
  multiply<T, false, true>(sum, a, 0, b, true);
}

}  // namespace weit::cuda
