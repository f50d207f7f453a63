#include "core/cpu/attention_blocks.h"

namespace switchyard::cpu {

using namespace attention_blocks;

namespace {

template <class T>
void attention_of(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionOptions& options,
                  const Tensor& out, const Tensor& log_normalizer) {
  using A = accumulate_t<T>;
  const std::int64_t queries = query.size(1), heads = query.size(2), keys = key.size(1), width = value.size(3);
  const std::int64_t all_heads = query.size(0) * heads;
  // With few heads, their queries are shared out too.
  const std::int64_t rows = block_queries(keys), blocks = (queries + rows - 1) / rows;
  const std::int64_t shares = std::clamp<std::int64_t>(2 * omp_get_max_threads() / all_heads, 1, blocks);
  const std::int64_t grain = 1 + 32768 / (1 + queries * keys * (query.size(3) + width) / shares);
  const Dropout<A> dropout(options);
  parallel_for(0, all_heads * shares, grain, [&](std::int64_t begin, std::int64_t end) {
    Logits<T> logits{options};
    std::vector<A> weights, product;
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t batch = task / shares / heads, head = task / shares % heads, share = task % shares;
      const HeadRows<T> q(query, batch, head), k(key, batch, head), v(value, batch, head);
      const HeadRows<T> position(options.position_key, 0, head);
      for (std::int64_t i = blocks * share / shares * rows; i < std::min(queries, blocks * (share + 1) / shares * rows);
           i += rows) {
        const QueryBlock block = query_block(options, batch, head, i, std::min(rows, queries - i), keys);
        A* weight = resized(weights, block.count * block.keys).data();
        A* sums = resized(product, block.count * (width + 1)).data();
        A* mixed = sums + block.count;
        logits.compute(block, q, k, position, weight);
        for (std::int64_t r = 0; r < block.count; ++r) {
          A* row = weight + r * block.keys;
          const auto [sum, normalizer] = softmax_row(row, visible_keys(options, i + r, block.keys), block.keys);
          sums[r] = sum;
          log_normalizer.data<A>()[(batch * heads + head) * queries + i + r] = normalizer;
          if (dropout.active()) dropout.apply(row, first_element(query, block, i + r, keys), block.keys, row);
        }
        gemm<A, A>(block.count, width, block.keys, 1, {weight, block.keys}, v.rows_from(0), 0, mixed, width);
        for (std::int64_t r = 0; r < block.count; ++r) {
          const A scale = sums[r] == 0 ? A{0} : A{1} / sums[r];
          T* to = out.data<T>() + ((batch * queries + i + r) * heads + head) * width;
          for (std::int64_t c = 0; c < width; ++c) to[c] = static_cast<T>(scale * mixed[r * width + c]);
        }
      }
    }
  });
}

}  // namespace

void attention(const Tensor& query, const Tensor& key, const Tensor& value, const AttentionOptions& options,
               const Tensor& out, const Tensor& log_normalizer) {
  dispatch_floating(query.dtype(), "attention",
                    [&]<class T>(TypeTag<T>) { attention_of<T>(query, key, value, options, out, log_normalizer); });
}

void attention_probabilities(const Tensor& query, const Tensor& key, const AttentionOptions& options,
                             const Tensor& probabilities) {
  dispatch_floating(query.dtype(), "attention_probabilities", [&]<class T>(TypeTag<T>) {
    using A = accumulate_t<T>;
    const std::int64_t queries = query.size(1), heads = query.size(2), keys = key.size(1), rows = block_queries(keys);
    parallel_for(0, query.size(0) * heads, 1, [&](std::int64_t begin, std::int64_t end) {
      Logits<T> logits{options};
      std::vector<A> weights;
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t batch = task / heads, head = task % heads;
        const HeadRows<T> q(query, batch, head), k(key, batch, head), position(options.position_key, 0, head);
        for (std::int64_t i = 0; i < queries; i += rows) {
          const QueryBlock block = query_block(options, batch, head, i, std::min(rows, queries - i), keys);
          A* weight = resized(weights, block.count * block.keys).data();
          logits.compute(block, q, k, position, weight);
          for (std::int64_t r = 0; r < block.count; ++r) {
            A* row = weight + r * block.keys;
            const A sum = softmax_row(row, visible_keys(options, i + r, block.keys), block.keys).first;
            A* to = probabilities.data<A>() + (task * queries + i + r) * keys;
            for (std::int64_t j = 0; j < block.keys; ++j) to[j] = sum == 0 ? A{0} : row[j] / sum;
            std::fill(to + block.keys, to + keys, A{0});
          }
        }
      }
    });
  });
}

}  // namespace switchyard::cpu
