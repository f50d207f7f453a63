// The backward pass of attention: a block's probabilities are computed again from the logits and log_normalizer, then
// the softmax's gradient needs only the row sums of dout * out.

#include "core/cpu/attention_blocks.h"

namespace switchyard::cpu {

using namespace attention_blocks;

namespace {

/// The backward pass of the heads one thread works on.
template <class T>
class BackwardPass {
 public:
  using A = accumulate_t<T>;

  BackwardPass(const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& out,
               const Tensor& log_normalizer, const AttentionOptions& options)
      : dout_(dout),
        query_(query),
        key_(key),
        value_(value),
        out_(out),
        log_normalizer_(log_normalizer),
        options_(options),
        logits_{options},
        dropout_(options) {}

  /// Overwrites the head's rows of the gradients, and adds to dposition [R, d] where there is one.
  void run(std::int64_t batch, std::int64_t head, const Tensor& dquery, const Tensor& dkey, const Tensor& dvalue,
           A* dposition) {
    const HeadRows<T> q(query_, batch, head), k(key_, batch, head), v(value_, batch, head);
    const HeadRows<T> dout(dout_, batch, head), out(out_, batch, head), position(options_.position_key, 0, head);
    HeadSums<T> dq(dquery, batch, head), dk(dkey, batch, head), dv(dvalue, batch, head);
    const std::int64_t queries = q.count, keys = k.count, rows = block_queries(keys);
    for (std::int64_t i = 0; i < queries; i += rows) {
      const QueryBlock block = query_block(options_, batch, head, i, std::min(rows, queries - i), keys);
      if (block.keys == 0) continue;
      A* weight = resized(weights_, block.count * block.keys).data();
      A* dweight = resized(dweights_, block.count * block.keys).data();
      logits_.compute(block, q, k, position, weight);
      normalize(block, weight);
      gemm<A, A>(block.count, block.keys, v.width, 1, dout.rows_from(i), v.rows_from(0).transposed(), 0, dweight,
                 block.keys);
      const A* dropped = drop(block, weight, dweight);
      // dv_j += sum_i weight_ij dout_i
      gemm<A, A>(block.keys, v.width, block.count, 1, MatrixView<A>{dropped, block.keys}.transposed(),
                 dout.rows_from(i), 1, dv.row(0), dv.stride);
      logit_gradients(block, dout, out, weight, dweight);
      // dq_i = scale sum_j dlogit_ij k_j,  dk_j += scale sum_i dlogit_ij q_i
      gemm<A, A>(block.count, q.width, block.keys, options_.scale, {dweight, block.keys}, k.rows_from(0), 0, dq.row(i),
                 dq.stride);
      gemm<A, A>(block.keys, q.width, block.count, options_.scale, MatrixView<A>{dweight, block.keys}.transposed(),
                 q.rows_from(i), 1, dk.row(0), dk.stride);
      if (dposition) position_gradients(block, q, position, dweight, dq, dposition);
    }
    dq.store();
    dk.store();
    dv.store();
  }

 private:
  /// Logits to probabilities.
  void normalize(const QueryBlock& block, A* weight) {
    const A* normalizer =
        log_normalizer_.data<A>() + (block.batch * query_.size(2) + block.head) * query_.size(1) + block.first;
    for (std::int64_t r = 0; r < block.count; ++r) {
      A* row = weight + r * block.keys;
      std::int64_t visible = visible_keys(options_, block.first + r, block.keys);
      if (normalizer[r] == -std::numeric_limits<A>::infinity()) visible = 0;
      exp_shifted(row, visible, normalizer[r]);
      std::fill(row + visible, row + block.keys, A{0});
    }
  }

  /// Applies the forward pass's dropout to dweight in place; returns the weights with it.
  const A* drop(const QueryBlock& block, const A* weight, A* dweight) {
    if (!dropout_.active()) return weight;
    A* dropped = resized(dropped_, block.count * block.keys).data();
    for (std::int64_t r = 0; r < block.count; ++r) {
      const std::uint64_t first = first_element(query_, block, block.first + r, key_.size(1));
      dropout_.apply(weight + r * block.keys, first, block.keys, dropped + r * block.keys);
      dropout_.apply(dweight + r * block.keys, first, block.keys, dweight + r * block.keys);
    }
    return dropped;
  }

  /// dlogit = weight (dweight - dout . out), in place of dweight.
  void logit_gradients(const QueryBlock& block, const HeadRows<T>& dout, const HeadRows<T>& out, const A* weight,
                       A* dweight) {
    for (std::int64_t r = 0; r < block.count; ++r) {
      const A* dout_row = dout.row(block.first + r);
      const A* out_row = out.row(block.first + r);
      A mean = 0;
#pragma omp simd reduction(+ : mean)
      for (std::int64_t c = 0; c < out.width; ++c) mean += dout_row[c] * out_row[c];
      const A* from = weight + r * block.keys;
      A* to = dweight + r * block.keys;
      const std::int64_t visible = visible_keys(options_, block.first + r, block.keys);
      for (std::int64_t j = 0; j < visible; ++j) to[j] = from[j] * (to[j] - mean);
      std::fill(to + visible, to + block.keys, A{0});
    }
  }

  /// The logits' gradients shifted back into the band's columns, then two products as for the keys.
  void position_gradients(const QueryBlock& block, const HeadRows<T>& q, const HeadRows<T>& position, const A* dlogit,
                          HeadSums<T>& dq, A* dposition) {
    const PositionBand band(options_, block, position.count);
    if (band.count == 0) return;
    A* shifted = resized(shifted_, block.count * band.count).data();
    std::fill(shifted, shifted + block.count * band.count, A{0});
    for (std::int64_t r = 0; r < block.count; ++r) {
      const auto [begin, end] = band.keys_of(r, block.keys);
      A* to = shifted + r * band.count + band.shift - r;
      for (std::int64_t j = begin; j < end; ++j) to[j] = dlogit[r * block.keys + j];
    }
    gemm<A, A>(block.count, q.width, band.count, options_.scale, {shifted, band.count}, position.rows_from(band.first),
               1, dq.row(block.first), dq.stride);
    gemm<A, A>(band.count, q.width, block.count, options_.scale, MatrixView<A>{shifted, band.count}.transposed(),
               q.rows_from(block.first), 1, dposition + band.first * q.width, q.width);
  }

  const Tensor &dout_, &query_, &key_, &value_, &out_, &log_normalizer_;
  const AttentionOptions& options_;
  Logits<T> logits_;
  Dropout<A> dropout_;
  std::vector<A> weights_, dweights_, dropped_, shifted_;
};

/// dposition_key [R, H, d] = the sum of partial[group][head] [R, d] over the groups, in their order.
template <class T>
void sum_partials(const std::vector<accumulate_t<T>>& partial, std::int64_t groups, const Tensor& dposition_key) {
  using A = accumulate_t<T>;
  const std::int64_t rows = dposition_key.size(0), heads = dposition_key.size(1), width = dposition_key.size(2);
  T* to = dposition_key.data<T>();
  parallel_for(0, rows * heads, 1 + 16384 / (width * groups), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t row = i / heads, head = i % heads;
      for (std::int64_t c = 0; c < width; ++c) {
        A sum = 0;
        for (std::int64_t group = 0; group < groups; ++group) {
          sum += partial[static_cast<std::size_t>(((group * heads + head) * rows + row) * width + c)];
        }
        to[i * width + c] = static_cast<T>(sum);
      }
    }
  });
}

}  // namespace

void attention_backward(const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& out, const Tensor& log_normalizer, const AttentionOptions& options,
                        const Tensor& dquery, const Tensor& dkey, const Tensor& dvalue, const Tensor& dposition_key) {
  dispatch_floating(query.dtype(), "attention_backward", [&]<class T>(TypeTag<T>) {
    const std::int64_t batch = query.size(0), heads = query.size(2);
    if (batch * heads == 0) return;
    // The batch is cut into groups only for the sake of dposition_key, whose partial sums take memory; their number
    // must not depend on the threads.
    constexpr std::int64_t kLeastTasks = 16;
    const bool positions = dposition_key.defined();
    const std::int64_t groups = positions ? std::min(batch, (kLeastTasks + heads - 1) / heads) : batch;
    const std::int64_t partial_size = positions ? dposition_key.size(0) * dposition_key.size(2) : 0;
    std::vector<accumulate_t<T>> partial(static_cast<std::size_t>(groups * heads * partial_size));
    const std::int64_t work = query.size(1) * key.size(1) * (query.size(3) + value.size(3)) * (batch / groups);
    parallel_for(0, groups * heads, 1 + 32768 / (1 + work), [&](std::int64_t begin, std::int64_t end) {
      BackwardPass<T> pass(dout, query, key, value, out, log_normalizer, options);
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t group = task / heads, head = task % heads;
        for (std::int64_t b = batch * group / groups; b < batch * (group + 1) / groups; ++b) {
          pass.run(b, head, dquery, dkey, dvalue, positions ? partial.data() + task * partial_size : nullptr);
        }
      }
    });
    if (positions) sum_partials<T>(partial, groups, dposition_key);
  });
}

}  // namespace switchyard::cpu
