// The experts that a mask chooses, without a routing plan: an expert may have four neurons and a call one token, and
// then arranging the work would take longer than the work.
//
// Tokens are taken in chunks. First every expert meets the tokens that chose it: a neuron is a dot product, and eight
// neurons at a time stay in the first-level cache. Then each token lists those of its neurons that are not 0: after a
// relu that is often the smaller part. Last, a group of neurons at a time, their rows of `down` are summed up.

#include "core/kernels/masked_feed_forward.h"

#include <bit>
#include <memory>
#include <numeric>
#include <span>

#include "core/cpu/row_products.h"
#include "core/cpu/unary.h"
#include "core/parallel.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kChunkTokens = 256;
constexpr std::int64_t kGroupNeurons = 128, kColumns = 128;  // a block of `down` that stays in the second-level cache
constexpr std::int64_t kCopyTokens = 32;                     // from how many on a block is copied first
constexpr std::int64_t kGrain = 1 << 18;                     // multiply-adds worth a thread
constexpr std::int64_t kNeuronGrain = 1 << 13;               // activations worth a thread

/// Pieces worth a thread, each of `work` multiply-adds.
std::int64_t grain_of(std::int64_t work) { return 1 + kGrain / (1 + work); }

/// The operands where they lie in memory; those that are left out are null.
template <class T>
struct Operands {
  std::int64_t experts, neurons, width, outputs;
  const T *up, *up_bias, *gate, *gate_bias, *down, *last_bias;
  const T *x, *addend;  ///< of the first token, as is what follows
  const bool* mask;
  T* y;

  Operands from(std::int64_t token) const {
    Operands later = *this;
    later.x += token * width;
    if (addend) later.addend += token * outputs;
    later.mask += token * experts;
    later.y += token * outputs;
    return later;
  }
};

/// Memory with a row for each token of a chunk.
template <class T>
class TokenRows {
 public:
  TokenRows(std::int64_t tokens, std::int64_t width)
      : data_(std::make_unique_for_overwrite<T[]>(static_cast<std::size_t>(tokens * width))), width_(width) {}

  T* operator[](std::int64_t token) const { return data_.get() + token * width_; }

 private:
  std::unique_ptr<T[]> data_;
  std::int64_t width_;
};

/// The experts that the tokens of a chunk have chosen, and the tokens of each expert.
class Choices {
 public:
  struct Pair {
    std::int32_t token, place;  ///< place: how many experts the token has chosen before this one
  };

  Choices(const bool* mask, std::int64_t tokens, std::int64_t experts)
      : chosen_(tokens, experts), counts_(static_cast<std::size_t>(tokens)) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      std::int32_t* list = chosen_[token];
      std::int64_t count = 0;
      for (std::int64_t expert = 0; expert < experts; ++expert) {  // no branch, which would often be mispredicted
        list[count] = static_cast<std::int32_t>(expert);
        count += mask[token * experts + expert];
      }
      counts_[static_cast<std::size_t>(token)] = static_cast<std::int32_t>(count);
      pairs_ += count;
    }
    if (tokens > 1) sort_by_expert(experts);
  }

  std::int64_t pairs() const { return pairs_; }
  std::span<const std::int32_t> of_token(std::int64_t token) const {
    return {chosen_[token], static_cast<std::size_t>(counts_[static_cast<std::size_t>(token)])};
  }
  /// Of a chunk of several tokens.
  std::span<const Pair> of_expert(std::int64_t expert) const {
    const auto e = static_cast<std::size_t>(expert);
    return {sorted_.data() + offsets_[e], sorted_.data() + offsets_[e + 1]};
  }

 private:
  void sort_by_expert(std::int64_t experts) {
    offsets_.assign(static_cast<std::size_t>(experts + 1), 0);
    const auto for_pairs = [&](const auto& visit) {
      for (std::size_t token = 0; token < counts_.size(); ++token)
        for (std::int32_t place = 0; place < counts_[token]; ++place)
          visit(static_cast<std::size_t>(chosen_[static_cast<std::int64_t>(token)][place]),
                Pair{static_cast<std::int32_t>(token), place});
    };
    for_pairs([&](std::size_t expert, Pair) { ++offsets_[expert + 1]; });
    std::partial_sum(offsets_.begin(), offsets_.end(), offsets_.begin());
    sorted_.resize(static_cast<std::size_t>(pairs_));
    std::vector<std::int64_t> next(offsets_);
    for_pairs([&](std::size_t expert, Pair pair) { sorted_[static_cast<std::size_t>(next[expert]++)] = pair; });
  }

  TokenRows<std::int32_t> chosen_;
  std::vector<std::int32_t> counts_;
  std::int64_t pairs_ = 0;
  std::vector<std::int64_t> offsets_;
  std::vector<Pair> sorted_;
};

/// A chunk of tokens at work. A token's row has room for all neurons; those of its experts come one after the other.
template <class T>
class Chunk {
 public:
  using A = accumulate_t<T>;

  Chunk(const Operands<T>& operands, UnaryFunction<A> activation, std::int64_t tokens)
      : in_(operands),
        activation_(activation),
        tokens_(tokens),
        room_(in_.experts * in_.neurons),
        choices_(in_.mask, tokens, in_.experts),
        values_(tokens, room_),
        gates_(in_.gate ? tokens : 0, room_),
        numbers_(tokens, room_),
        nonzero_(static_cast<std::size_t>(tokens)) {}

  void run() {
    multiply(in_.up, in_.up_bias, values_);
    if (in_.gate) multiply(in_.gate, in_.gate_bias, gates_);
    const std::int64_t neurons = choices_.pairs() * in_.neurons / tokens_;
    parallel_for(0, tokens_, 1 + kNeuronGrain / (1 + neurons), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t token = begin; token < end; ++token) activate(token);
    });
    const std::int64_t rows = std::accumulate(nonzero_.begin(), nonzero_.end(), std::int64_t{0});
    const std::int64_t blocks = (in_.outputs + kColumns - 1) / kColumns;
    parallel_for(0, blocks, grain_of(rows * kColumns), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block)
        add_up(block * kColumns, std::min(kColumns, in_.outputs - block * kColumns));
    });
  }

 private:
  /// results = x weight^T + bias for all tokens' own neurons; weight [E, S, D], bias [E, S] or null.
  void multiply(const T* weight, const T* bias, const TokenRows<A>& results) const {
    if (tokens_ == 1) return multiply_one(weight, bias, results);
    const std::int64_t work = choices_.pairs() * in_.neurons * in_.width / (1 + in_.experts);
    parallel_for(0, in_.experts, grain_of(work), [&](std::int64_t begin, std::int64_t end) {
      RowProducts<T> products;
      for (std::int64_t expert = begin; expert < end; ++expert) {
        products.clear();
        for (const auto& [token, place] : choices_.of_expert(expert)) {
          products.x.push_back(in_.x + token * in_.width);
          products.results.push_back(results[token] + place * in_.neurons);
        }
        append_rows(expert, weight, bias, products);
        multiply_rows(products, in_.width, 0, products.rows.size());
      }
    });
  }

  /// One token's neurons are multiplied as if they were all of one expert.
  void multiply_one(const T* weight, const T* bias, const TokenRows<A>& results) const {
    RowProducts<T> products{{in_.x}, {results[0]}, {}, {}};
    for (const std::int32_t expert : choices_.of_token(0)) append_rows(expert, weight, bias, products);
    const auto rows = static_cast<std::int64_t>(products.rows.size());
    parallel_for(0, rows, grain_of(in_.width), [&](std::int64_t begin, std::int64_t end) {
      multiply_rows(products, in_.width, static_cast<std::size_t>(begin), static_cast<std::size_t>(end));
    });
  }

  void append_rows(std::int64_t expert, const T* weight, const T* bias, RowProducts<T>& products) const {
    for (std::int64_t n = expert * in_.neurons; n < (expert + 1) * in_.neurons; ++n) {
      products.rows.push_back(weight + n * in_.width);
      products.shifts.push_back(bias ? static_cast<A>(bias[n]) : A(0));
    }
  }

  /// What goes into `down`: of a token's neurons those that are not 0, and their numbers.
  void activate(std::int64_t token) {
    const std::span<const std::int32_t> chosen = choices_.of_token(token);
    const std::int64_t count = static_cast<std::int64_t>(chosen.size()) * in_.neurons;
    A* values = values_[token];
    A* activated = in_.gate ? gates_[token] : values;
    activation_(count, activated, activated);
    for (std::int64_t i = 0; in_.gate && i < count; ++i) values[i] *= activated[i];
    std::int32_t* numbers = numbers_[token];
    const A* next = values;
    std::int64_t kept = 0;
    for (const std::int64_t expert : chosen)
      for (std::int64_t n = expert * in_.neurons; n < (expert + 1) * in_.neurons; ++n) {  // no branch here either
        const A value = *next++;
        values[kept] = value;
        numbers[kept] = static_cast<std::int32_t>(n);
        kept += value != 0;
      }
    nonzero_[static_cast<std::size_t>(token)] = kept;
  }

  /// Columns column .. column + columns - 1 of y.
  void add_up(std::int64_t column, std::int64_t columns) const {
    std::vector<A> totals(static_cast<std::size_t>(tokens_ * kColumns));
    for (std::int64_t token = 0; token < tokens_; ++token) {
      A* total = totals.data() + token * kColumns;
      const std::int64_t at = token * in_.outputs + column;
      for (std::int64_t m = 0; in_.last_bias && m < columns; ++m) total[m] = static_cast<A>(in_.last_bias[column + m]);
      for (std::int64_t m = 0; in_.addend && m < columns; ++m) total[m] += static_cast<A>(in_.addend[at + m]);
    }
    if (tokens_ == 1) {
      const WeightedRows<A> rows{numbers_[0], values_[0], nonzero_[0]};
      add_rows(rows, in_.down + column, in_.outputs, columns, totals.data());
    } else {
      add_groups(column, columns, totals.data());
    }
    for (std::int64_t token = 0; token < tokens_; ++token) {
      const A* total = totals.data() + token * kColumns;
      T* to = in_.y + token * in_.outputs + column;
      for (std::int64_t m = 0; m < columns; ++m) to[m] = static_cast<T>(total[m]);
    }
  }

  /// Many tokens share what a copy of the block costs, in which rows do not compete for the same places in the cache.
  void add_groups(std::int64_t column, std::int64_t columns, A* totals) const {
    const bool copies = tokens_ >= kCopyTokens;
    std::vector<T> copy(static_cast<std::size_t>(copies ? kGroupNeurons * kColumns : 0));
    std::vector<std::int64_t> done(static_cast<std::size_t>(tokens_));
    for (std::int64_t first = 0; first < room_; first += kGroupNeurons) {
      const std::int64_t last = std::min(first + kGroupNeurons, room_);
      const T* down = in_.down + column;
      for (std::int64_t n = first; copies && n < last; ++n)
        std::copy_n(down + n * in_.outputs, columns, copy.data() + (n - first) * kColumns);
      for (std::int64_t token = 0; token < tokens_; ++token) {
        const auto t = static_cast<std::size_t>(token);
        const std::int64_t begin = done[t];
        while (done[t] < nonzero_[t] && numbers_[token][done[t]] < last) ++done[t];
        const WeightedRows<A> rows{numbers_[token] + begin, values_[token] + begin, done[t] - begin,
                                   copies ? first : 0};
        add_rows(rows, copies ? copy.data() : down, copies ? kColumns : in_.outputs, columns,
                 totals + token * kColumns);
      }
    }
  }

  Operands<T> in_;
  UnaryFunction<A> activation_;
  std::int64_t tokens_, room_;
  Choices choices_;
  TokenRows<A> values_, gates_;
  TokenRows<std::int32_t> numbers_;
  std::vector<std::int64_t> nonzero_;
};

template <class T>
const T* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<T>() : nullptr;
}

}  // namespace

void masked_feed_forward(const Tensor& x, const ops::ExpertLayer& layer, const Tensor& mask, ops::Activation activation,
                         const Tensor& last_bias, const Tensor& addend, const Tensor& y) {
  const std::int64_t tokens = x.size(0), chunks = (tokens + kChunkTokens - 1) / kChunkTokens;
  dispatch_floating(x.dtype(), "masked_feed_forward", [&]<class T>(TypeTag<T>) {
    const Operands<T> all{layer.experts(),
                          layer.expert_width(),
                          layer.width(),
                          layer.output_width(),
                          layer.up.data<T>(),
                          data_or_null<T>(layer.up_bias),
                          data_or_null<T>(layer.gate),
                          data_or_null<T>(layer.gate_bias),
                          layer.down.data<T>(),
                          data_or_null<T>(last_bias),
                          x.data<T>(),
                          data_or_null<T>(addend),
                          mask.data<bool>(),
                          y.data<T>()};
    const UnaryFunction<accumulate_t<T>> function = unary_function<accumulate_t<T>>(activation);
    // Each thread has chunks of its own where there are enough of them; else all share the work on each.
    parallel_for(0, chunks, chunks >= omp_get_max_threads() ? 1 : chunks, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t first = begin * kChunkTokens; first < std::min(tokens, end * kChunkTokens);
           first += kChunkTokens)
        Chunk<T>(all.from(first), function, std::min(kChunkTokens, tokens - first)).run();
    });
  });
}

void keep_chosen(const Tensor& hidden, const Tensor& mask) {
  const std::int64_t pairs = mask.numel(), neurons = hidden.numel() / pairs;
  const bool* chosen = mask.data<bool>();
  dispatch_floating(hidden.dtype(), "keep_chosen", [&]<class T>(TypeTag<T>) {
    using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t,
                                    std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;
    T* values = hidden.data<T>();
    parallel_for(0, pairs, 1 + kNeuronGrain / neurons, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t pair = begin; pair < end; ++pair) {
        const Bits kept = chosen[pair] ? static_cast<Bits>(-1) : Bits(0);  // by bits, as a branch would be mispredicted
        for (std::int64_t n = pair * neurons; n < (pair + 1) * neurons; ++n)
          values[n] = std::bit_cast<T>(static_cast<Bits>(std::bit_cast<Bits>(values[n]) & kept));
      }
    });
  });
}

}  // namespace switchyard::cpu
