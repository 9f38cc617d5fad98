// What the driver (driver.cpp) and the kernels, compiled once an instruction set, agree on. Free of torch and of the
// standard library: what a kernel file instantiates must not be shared with files compiled for an older machine.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace weit {

// One call. With x (M, in), dy (M, out), T (N, p, q), S (N, m, n), everything that follows from
//
//     Z[b,j,t,a] = sum_k T[t,a,k] x[b,j,k]        V[b,j,t,a] = sum_i S[t,i,j] dy[b,i,a]
//
//     y  = sum_{t,j} S Z      dx = sum_{t,a} T V      dT = sum_{b,j} V x      dS = sum_{b,a} dy Z
//
// Templates first is y (forward) and dx, dT, dS (backward). Scalers first is the same with S and T transposed and x
// and dy exchanged: its forward product is this dx. The strides say which of the two it is.
//
// A convolution adds a sum over taps to the formulas with T, whose every tap is a template of its own there:
// T (N * taps, p, q). What it meets, V for dx, otherwise x, is then read around each token, the pixels of an image
// being tokens; `near` is the size of the image whose pixels count, `far` of the one that is read. One job with a
// window makes dx or the others, never both.
struct Size {
  int64_t height, width;
};

struct Window {
  Size taps, step;  // how many, and how many pixels apart
  Size before;      // pixels of padding above and on the left
  bool backwards;   // matrix 0 of a template belongs to the last tap that x is read at, not to the first
};

struct Job {
  int64_t M, N, m, n, p, q, in, out;
  bool maps;  // tensors are [image][feature][pixel], not [token][feature]
  bool windowed;
  Size near, far;
  Window window;
  const void *x, *dy, *T, *S;
  int64_t T_a, T_k, S_i, S_j;  // strides of T in a and k, of S in i and j
  void *y, *dx;                // wanted where not null
  const void *y_bias, *dx_bias;
  bool dT, dS;

  // Filled in by the driver.
  void *packed_Z, *packed_dx;  // T in the order in which Z and dx read it; null: pack where it is used
  void *S_mix, *S_unmix;       // S as [t, j, i] and [i, t, j]
  int64_t *rows;               // row of (t, j) in Z and V, in steps of one panel row
  int64_t block;               // most tokens at a time
};

// The part of a job that one core does on its own: tokens b, panels of a (for y), panels of k (for dx).
struct Part {
  int64_t b0, b1, a0, a1, k0, k1;
  void *dT, *dS;  // this part's accumulators, zeroed
  void *scratch;
};

// One element type on one instruction set. Sizes are in bytes.
struct Kernels {
  int64_t width;     // columns of a panel
  int64_t sum_size;  // of a number in the accumulators
  int64_t (*unit)(const Job &);  // tokens that stay together; a block is some units
  int64_t (*packed_Z_size)(const Job &);
  int64_t (*packed_dx_size)(const Job &);
  int64_t (*block_size)(const Job &, int64_t tokens);  // scratch for a block of so many tokens
  void (*pack_S)(Job &);
  void (*pack_T)(const Job &, int64_t matrix, int64_t a_panel);
  void (*run)(const Job &, const Part &);
  // Null where kernels sum up neither.
  void (*finish_dT)(const Job &, const void *sums, int64_t parts, int64_t matrix, int64_t a_panel, void *dT);
  void (*finish_dS)(const Job &, const void *sums, int64_t parts, void *dS);
};

enum Element { kFloat, kDouble, kBFloat16 };

// For a job whose tensors are known; dT and dS say whether they are wanted.
const Kernels &generic_kernels(const Job &, Element);
#ifdef __x86_64__
const Kernels &avx2_kernels(const Job &, Element);
const Kernels &avx512_kernels(const Job &, Element);
const Kernels &avx512_bf16_kernels(const Job &);  // bfloat16 products in hardware
#endif

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t pixels(Size size) { return size.height * size.width; }

// How many matrices T holds.
static inline int64_t matrices(const Job &job) { return job.N * pixels(job.window.taps); }

// Lines of tokens: how many, how long, and how far apart where they are read with what is around them.
struct Lines {
  int64_t count, length, pitch;
};

static inline Lines lines_of(const Job &job, int64_t tokens) {
  if (!job.windowed) return {1, tokens, tokens};
  const Window &w = job.window;
  return {tokens / job.near.width, job.near.width, job.near.width + (w.taps.width - 1) * w.step.width};
}

// Positions of the grid that a block of tokens reads, padding included.
static inline int64_t around(const Job &job, int64_t tokens) {
  const Lines lines = lines_of(job, tokens);
  return (lines.count + (job.window.taps.height - 1) * job.window.step.height) * lines.pitch;
}

// Tokens of a block as the panels of x, and those of dy, V and Z, hold them.
static inline int64_t x_tokens(const Job &job, int64_t tokens) { return job.dx ? tokens : around(job, tokens); }
static inline int64_t dy_tokens(const Job &job, int64_t tokens) { return job.dx ? around(job, tokens) : tokens; }

}  // namespace weit
