// The expert products on the CPU. Rows are gathered block by block into a scratch that stays in the second-level cache,
// and every block is one single-threaded product of the BLAS library, so that experts of very uneven load still fill
// all threads. (At 4096 tokens of 512, 16 experts of 128, k = 4, forward and backward run at 0.74 of the dense GEMM
// rate this way, and at 0.55 with one multi-threaded product per expert; blocks of 128 to 512 rows are equally good.)
//
// Sums over a token's pairs go through a buffer of products: the order of summing is then the order of the choices,
// whichever thread computed them. Taking the tokens in chunks keeps that buffer in the last-level cache (0.74 of the
// dense rate; 0.56 with one buffer for all pairs).

#include "core/kernels/expert_matmul.h"

#include <cstring>
#include <vector>

#include "core/cpu/expert_plan.h"
#include "core/cpu/gemm.h"
#include "core/kernels/elementwise.h"
#include "core/parallel.h"

namespace switchyard::cpu {

namespace {

using experts::dot;
using experts::Operand;
using experts::Plan;
using ops::Rows;

constexpr std::int64_t kBlockPairs = 256;
constexpr std::int64_t kBufferBytes = 8 << 20;
/// With fewer pairs per expert in a chunk, reading the weights again for each chunk costs more than the buffer saves.
constexpr std::int64_t kLeastPairsPerExpert = 128;

/// Consecutive pairs of one expert; `target` is the first row of their products in a buffer that has those of all
/// blocks.
struct Block {
  std::int64_t expert, first, count, target;
};

/// The pairs of tokens first_token .. last_token - 1. For all tokens, targets are pair numbers.
std::vector<Block> blocks_of(const Plan& plan, std::int64_t first_token, std::int64_t last_token) {
  std::vector<Block> blocks;
  std::int64_t target = 0;
  for (std::int64_t expert = 0; expert < plan.experts; ++expert) {
    const std::int64_t end = plan.first_pair(expert, last_token);
    for (std::int64_t pair = plan.first_pair(expert, first_token); pair < end; pair += kBlockPairs) {
      const std::int64_t count = std::min(kBlockPairs, end - pair);
      blocks.push_back({expert, pair, count, target});
      target += count;
    }
  }
  return blocks;
}

/// The operand's rows for a block's pairs, back to back: in place where they lie so, else copied to `scratch`.
template <class T>
const T* gather(const Plan& plan, const Operand<T>& x, const Block& block, std::vector<T>& scratch) {
  if (x.rows == Rows::pair) return x.row(plan, block.first);
  scratch.resize(static_cast<std::size_t>(kBlockPairs * x.width));
  for (std::int64_t i = 0; i < block.count; ++i) {
    std::memcpy(scratch.data() + i * x.width, x.row(plan, block.first + i),
                static_cast<std::size_t>(x.width) * sizeof(T));
  }
  return scratch.data();
}

/// Products worth a thread, each of `work` multiply-adds: a decoding step should not wait for one to wake up.
std::int64_t grain_of(std::int64_t work) { return 1 + (1 << 18) / (1 + work); }

/// For every block, in parallel: products = source rows x matrix of the expert, then use(block, source rows, products).
/// The products [count, width] lie in `buffer` from row block.target on, or in a scratch if there is no buffer.
template <class T, class Use>
void multiply_blocks(const Plan& plan, const std::vector<Block>& blocks, const Operand<T>& source, const Tensor& matrix,
                     const Tensor& buffer, const Use& use) {
  using A = accumulate_t<T>;
  const std::int64_t width = matrix.size(2);
  const T* weights = matrix.data<T>();
  const auto count = static_cast<std::int64_t>(blocks.size());
  const std::int64_t block_work =
      count == 0 ? 0 : (blocks.back().target + blocks.back().count) * source.width * width / count;
  parallel_for(0, count, grain_of(block_work), [&](std::int64_t begin, std::int64_t end) {
    std::vector<T> gathered;
    const Tensor scratch =
        buffer.defined() ? Tensor{} : Tensor::empty({kBlockPairs, width}, dtype_of<A>(), Device::cpu());
    for (std::int64_t i = begin; i < end; ++i) {
      const Block& block = blocks[static_cast<std::size_t>(i)];
      const T* rows = gather(plan, source, block, gathered);
      const Tensor products = buffer.defined() ? buffer.slice(0, block.target, block.target + block.count)
                                               : scratch.slice(0, 0, block.count);
      const MatrixView<T> weight = {weights + block.expert * matrix.stride(0), matrix.stride(1), matrix.stride(2)};
      gemm<T, A>(block.count, width, source.width, 1, {rows, source.width}, weight, 0, products.data<A>(), width);
      use(block, rows, products);
    }
  });
}

/// to[m] = sum over the taken ones of `count` choices, in order, of gate * product. target[j] < 0: not taken.
template <class T, class A>
void weighted_sum(const A* products, const std::int32_t* target, const T* gates, std::int64_t count, std::int64_t width,
                  A* sum, T* to) {
  std::fill(sum, sum + width, A{0});
  for (std::int64_t j = 0; j < count; ++j) {
    if (target[j] < 0) continue;
    const A gate = gates ? static_cast<A>(gates[j]) : A{1};
    const A* product = products + target[j] * width;
    for (std::int64_t m = 0; m < width; ++m) sum[m] += gate * product[m];
  }
  for (std::int64_t m = 0; m < width; ++m) to[m] = static_cast<T>(sum[m]);
}

/// result[pair] = gate products.
template <class T>
void products_per_pair(const Plan& plan, const Operand<T>& source, const Tensor& matrix, const T* gates,
                       const Tensor& result, const auto& use) {
  using A = accumulate_t<T>;
  constexpr bool kInPlace = std::is_same_v<T, A>;
  const std::int64_t width = result.size(1);
  T* to = result.data<T>();
  multiply_blocks(plan, blocks_of(plan, 0, plan.tokens), source, matrix, kInPlace ? result : Tensor{},
                  [&](const Block& block, const T* rows, const Tensor& products) {
                    use(block, rows, products);
                    if (kInPlace && !gates) return;
                    const A* from = products.data<A>();
                    for (std::int64_t i = 0; i < block.count; ++i) {
                      const std::int64_t pair = block.first + i;
                      const A gate = gates ? static_cast<A>(gates[plan.pair_to_choice[pair]]) : A{1};
                      for (std::int64_t m = 0; m < width; ++m) {
                        to[pair * width + m] = static_cast<T>(gate * from[i * width + m]);
                      }
                    }
                  });
  // Nobody reads the rows without a pair for their values, but searches for NaN and elementwise ops pass over them.
  std::fill(to + plan.pairs * width, to + result.numel(), T(0));
}

/// result[row] = sum of gate products over the pairs of each token or row.
template <class T>
void products_summed(const Plan& plan, const Operand<T>& source, const Tensor& matrix, const T* gates, Rows rows_of,
                     const Tensor& result, const auto& use) {
  using A = accumulate_t<T>;
  const std::int64_t width = result.size(1);
  const std::int64_t choices = rows_of == Rows::token ? plan.choices_per_token : plan.choices;
  const std::int64_t rows_per_token = rows_of == Rows::token ? 1 : plan.slots;
  const std::int64_t chunk_pairs =
      std::max(kBufferBytes / (width * static_cast<std::int64_t>(sizeof(A))), kLeastPairsPerExpert * plan.experts);
  const std::int64_t chunks = std::clamp<std::int64_t>((plan.pairs + chunk_pairs - 1) / chunk_pairs, 1, plan.tokens);
  Tensor buffer;
  std::vector<std::int32_t> target;  // of each choice of the chunk
  T* to = result.data<T>();
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
    const std::int64_t first = plan.tokens * chunk / chunks, last = plan.tokens * (chunk + 1) / chunks;
    const std::int64_t first_choice = first * plan.choices_per_token;
    const std::vector<Block> blocks = blocks_of(plan, first, last);
    const std::int64_t needed = blocks.empty() ? 0 : blocks.back().target + blocks.back().count;
    if (!buffer.defined() || buffer.size(0) < needed)
      buffer = Tensor::empty({needed, width}, dtype_of<A>(), Device::cpu());
    target.assign(static_cast<std::size_t>((last - first) * plan.choices_per_token), -1);
    multiply_blocks(plan, blocks, source, matrix, buffer,
                    [&](const Block& block, const T* rows, const Tensor& products) {
                      use(block, rows, products);
                      for (std::int64_t i = 0; i < block.count; ++i) {
                        const std::int64_t choice = plan.pair_to_choice[block.first + i] - first_choice;
                        target[static_cast<std::size_t>(choice)] = static_cast<std::int32_t>(block.target + i);
                      }
                    });
    const std::int64_t grain = 1 + 16384 / (width * std::max<std::int64_t>(1, choices));
    parallel_for(first * rows_per_token, last * rows_per_token, grain, [&](std::int64_t begin, std::int64_t end) {
      std::vector<A> sum(static_cast<std::size_t>(width));
      for (std::int64_t row = begin; row < end; ++row) {
        weighted_sum(buffer.data<A>(), target.data() + (row * choices - first_choice),
                     gates ? gates + row * choices : nullptr, choices, width, sum.data(), to + row * width);
      }
    });
  }
}

/// result = gate products, per pair or summed, where use(block, source rows, products) may change products in place.
template <class T>
void weighted_products(const Plan& plan, const Operand<T>& source, const Tensor& matrix, const T* gates, Rows rows_of,
                       const Tensor& result, const auto& use) {
  if (rows_of == Rows::pair) return products_per_pair(plan, source, matrix, gates, result, use);
  products_summed(plan, source, matrix, gates, rows_of, result, use);
}

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

/// One product of the weight gradient: columns of one expert's dweight [K, M], over rows of K or of M.
struct Part {
  std::int64_t expert, first_row, rows, first_column, columns;
};

/// An expert with more than its share of the pairs is cut along the longer axis of its gradient, so that all threads
/// have work; no sum is cut, so the result does not depend on the number of threads.
std::vector<Part> parts_of(const Plan& plan, std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kLeastWidth = 64;
  std::vector<Part> parts;
  const std::int64_t share = std::max<std::int64_t>(1, plan.pairs / (4 * omp_get_max_threads()));
  for (std::int64_t expert = 0; expert < plan.experts; ++expert) {
    const std::int64_t pairs = plan.offsets[expert + 1] - plan.offsets[expert];
    const std::int64_t axis = std::max(rows, columns);
    const std::int64_t cuts = std::clamp<std::int64_t>(pairs / share, 1, std::max<std::int64_t>(1, axis / kLeastWidth));
    for (std::int64_t cut = 0; cut < cuts; ++cut) {
      const std::int64_t first = axis * cut / cuts, last = axis * (cut + 1) / cuts;
      if (rows >= columns) parts.push_back({expert, first, last - first, 0, columns});
      else parts.push_back({expert, 0, rows, first, last - first});
    }
  }
  return parts;
}

/// Columns first .. first + count - 1 of the operand's rows for a block's pairs, times the gates where there are any.
template <class T>
MatrixView<accumulate_t<T>> gather_columns(const Plan& plan, const Operand<T>& x, const Block& block, const T* gates,
                                           std::int64_t first, std::int64_t count,
                                           std::vector<accumulate_t<T>>& scratch) {
  using A = accumulate_t<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (x.rows == Rows::pair && !gates) return {x.row(plan, block.first) + first, x.width};
  }
  scratch.resize(static_cast<std::size_t>(kBlockPairs * count));
  for (std::int64_t i = 0; i < block.count; ++i) {
    const T* from = x.row(plan, block.first + i) + first;
    const A gate = gates ? static_cast<A>(gates[plan.pair_to_choice[block.first + i]]) : A{1};
    A* to = scratch.data() + i * count;
    for (std::int64_t m = 0; m < count; ++m) to[m] = gate * static_cast<A>(from[m]);
  }
  return {scratch.data(), count};
}

/// Where the weight gradient is summed: in the result, or in a scratch that is converted at the end.
template <class T>
struct WeightGradient {
  using A = accumulate_t<T>;

  const Plan& plan;
  Operand<T> x, dy;
  const T* gates;
  T* dweight;
  T* dbias;  // or nullptr
  std::vector<A> x_rows = {}, dy_rows = {}, sums = {}, bias_sums = {};

  void compute(const Part& part) {
    A* sum;
    std::int64_t stride = dy.width;
    T* to = dweight + (part.expert * x.width + part.first_row) * dy.width + part.first_column;
    if constexpr (std::is_same_v<T, A>) {
      sum = to;
    } else {
      sums.resize(static_cast<std::size_t>(part.rows * part.columns));
      sum = sums.data();
      stride = part.columns;
    }
    const bool with_bias = dbias && part.first_row == 0;
    bias_sums.assign(static_cast<std::size_t>(part.columns), A{0});
    const std::int64_t begin = plan.offsets[part.expert], end = plan.offsets[part.expert + 1];
    for (std::int64_t pair = begin; pair < end || pair == begin; pair += kBlockPairs) {
      const Block block = {part.expert, pair, std::min(kBlockPairs, end - pair), 0};
      // The bias gradient needs the gates on dy's side; otherwise they go where rows are copied anyway.
      const bool gate_dy = gates && (with_bias || dy.rows != Rows::pair || x.rows == Rows::pair);
      const auto a = gather_columns(plan, x, block, gate_dy ? nullptr : gates, part.first_row, part.rows, x_rows);
      const auto b =
          gather_columns(plan, dy, block, gate_dy ? gates : nullptr, part.first_column, part.columns, dy_rows);
      gemm<A, A>(part.rows, part.columns, block.count, 1, a.transposed(), b, pair == begin ? 0 : 1, sum, stride);
      for (std::int64_t i = 0; with_bias && i < block.count; ++i) {
        for (std::int64_t m = 0; m < part.columns; ++m) {
          bias_sums[static_cast<std::size_t>(m)] += b.data[i * b.row_stride + m];
        }
      }
    }
    if constexpr (!std::is_same_v<T, A>) {
      for (std::int64_t i = 0; i < part.rows; ++i) {
        for (std::int64_t m = 0; m < part.columns; ++m) to[i * dy.width + m] = static_cast<T>(sum[i * stride + m]);
      }
    }
    if (!with_bias) return;
    T* bias_to = dbias + part.expert * dy.width + part.first_column;
    for (std::int64_t m = 0; m < part.columns; ++m) bias_to[m] = static_cast<T>(bias_sums[static_cast<std::size_t>(m)]);
  }
};

}  // namespace

void expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                   const ops::RoutingPlan& routing, const ops::ExpertMatmulOptions& options, const Tensor& y) {
  const Plan plan(routing);
  dispatch_floating(x.dtype(), "expert_matmul", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const std::int64_t width = weight.size(2);
    const T* shift = data_or_null<T>(bias);
    const auto bias_and_activation = [&](const Block& block, const T*, const Tensor& products) {
      if (shift) {
        A* to = products.data<A>();
        for (std::int64_t i = 0; i < block.count; ++i) {
          for (std::int64_t m = 0; m < width; ++m) to[i * width + m] += static_cast<A>(shift[block.expert * width + m]);
        }
      }
      if (options.activation != ops::Activation::identity) unary(options.activation, products, products);
    };
    weighted_products(plan, Operand<T>(x, options.input), weight, data_or_null<T>(gates), options.output, y,
                      bias_and_activation);
  });
}

// g_p = dy_p weight^T.  dx_p = gate_p g_p (0 where a relu made x_p 0),  dgate_p = x_p . g_p + bias . dy_p, so no
// product has to be stored.
void expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  const Tensor& gates, const ops::RoutingPlan& routing,
                                  const ops::ExpertMatmulOptions& options, const Tensor& dx, const Tensor& dgates) {
  const Plan plan(routing);
  dispatch_floating(x.dtype(), "expert_matmul_input_backward", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const Operand<T> input(x, options.input), output(dy, options.output);
    const T* shift = data_or_null<T>(bias);
    T* dgate = dgates.defined() ? dgates.data<T>() : nullptr;
    if (dgate) std::fill(dgate, dgate + dgates.numel(), T(0));
    const bool through_relu = options.input_activation == ops::Activation::relu;
    const auto gates_and_relu = [&](const Block& block, const T* rows, const Tensor& products) {
      for (std::int64_t i = 0; i < block.count; ++i) {
        const std::int64_t pair = block.first + i;
        const T* x_row = input.row(plan, pair);
        A* product = products.data<A>() + i * input.width;
        if (dgate) {
          A sum = dot(x_row, product, input.width);
          if (shift) sum += dot(shift + block.expert * output.width, rows + i * output.width, output.width);
          dgate[plan.pair_to_choice[pair]] = static_cast<T>(sum);
        }
        for (std::int64_t k = 0; through_relu && k < input.width; ++k)
          if (!(x_row[k] > T(0))) product[k] = 0;
      }
    };
    const Tensor transposed = weight.transpose(1, 2);
    if (dx.defined() && dx.numel() > 0) {
      weighted_products(plan, output, transposed, data_or_null<T>(gates), options.input, dx, gates_and_relu);
    } else if (dgate) {
      multiply_blocks(plan, blocks_of(plan, 0, plan.tokens), output, transposed, Tensor{}, gates_and_relu);
    }
  });
}

void expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates,
                                   const ops::RoutingPlan& routing, const ops::ExpertMatmulOptions& options,
                                   const Tensor& dweight, const Tensor& dbias) {
  const Plan plan(routing);
  dispatch_floating(x.dtype(), "expert_matmul_weight_backward", [&]<class T>(TypeTag<T>) {
    const std::vector<Part> parts = parts_of(plan, x.size(1), dy.size(1));
    const auto count = static_cast<std::int64_t>(parts.size());
    const std::int64_t part_work = plan.pairs * x.size(1) * dy.size(1) / std::max<std::int64_t>(1, count);
    parallel_for(0, count, grain_of(part_work), [&](std::int64_t begin, std::int64_t end) {
      WeightGradient<T> gradient{plan,
                                 Operand<T>(x, options.input),
                                 Operand<T>(dy, options.output),
                                 data_or_null<T>(gates),
                                 dweight.data<T>(),
                                 dbias.defined() ? dbias.data<T>() : nullptr};
      for (std::int64_t i = begin; i < end; ++i) gradient.compute(parts[static_cast<std::size_t>(i)]);
    });
  });
}

}  // namespace switchyard::cpu
