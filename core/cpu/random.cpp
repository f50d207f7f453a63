#include "core/kernels/random.h"

#include <cmath>

#include "core/cpu/blocks.h"
#include "core/parallel.h"
#include "core/philox.h"

namespace switchyard::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;

/// The words of `blocks` Philox blocks from number `counter` on. Its locals are all it touches and the four stores are
/// written out, or the compiler would not use SIMD.
void philox_words(std::uint64_t key, std::uint64_t counter, std::int64_t blocks, std::uint32_t* words) {
#pragma omp simd
  for (std::int64_t i = 0; i < blocks; ++i) {
    const auto four = philox(key, counter + static_cast<std::uint64_t>(i));
    words[4 * i] = four[0];
    words[4 * i + 1] = four[1];
    words[4 * i + 2] = four[2];
    words[4 * i + 3] = four[3];
  }
}

/// Calls f(at, count, words) on blocks that cover 0..numel, with the random word of each element, on all threads.
template <class F>
void for_random_blocks(const RandomStream& stream, std::int64_t numel, F&& f) {
  const std::uint64_t start = static_cast<std::uint64_t>(*stream.base.data<std::int64_t>()) + stream.offset;
  const std::int64_t blocks = (numel + kBlock - 1) / kBlock;
  parallel_for(0, blocks, kGrain / kBlock, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) std::uint32_t words[kBlock];
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t at = block * kBlock, count = std::min(kBlock, numel - at);
      philox_words(stream.seed, start + static_cast<std::uint64_t>(at / 4), (count + 3) / 4, words);
      f(at, count, static_cast<const std::uint32_t*>(words));
    }
  });
}

/// uniform_from_bits(word) < probability, exactly, as a comparison of the 24 bits that count.
class Threshold {
 public:
  explicit Threshold(double probability) : limit_(static_cast<std::uint32_t>(std::ceil(probability * 0x1p24))) {}
  bool below(std::uint32_t word) const { return (word >> 8) < limit_; }

 private:
  std::uint32_t limit_;
};

}  // namespace

void advance_counter(const Tensor& base, std::int64_t blocks) { *base.data<std::int64_t>() += blocks; }

void uniform(const RandomStream& stream, double low, double high, const Tensor& out) {
  const auto run = [&]<class A>(TypeTag<A>) {
    for_random_blocks(stream, out.numel(), [&](std::int64_t at, std::int64_t count, const std::uint32_t* words) {
      Writer<A> writer(Operand{out});
      A* to = writer.target(at);
      // In double, so that whether the compiler fuses the product and the sum does not show in a float.
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i)
        to[i] = static_cast<A>(low + (high - low) * static_cast<double>(uniform_from_bits(words[i])));
      writer.flush(at, count);
    });
  };
  if (out.dtype() == DType::f64) run(TypeTag<double>{});
  else run(TypeTag<float>{});
}

void bernoulli(const RandomStream& stream, double probability, const Tensor& out) {
  const Threshold threshold(probability);
  bool* const to = out.data<bool>();
  for_random_blocks(stream, out.numel(), [&](std::int64_t at, std::int64_t count, const std::uint32_t* words) {
#pragma omp simd
    for (std::int64_t i = 0; i < count; ++i) to[at + i] = threshold.below(words[i]);
  });
}

void dropout(const Tensor& x, const RandomStream& stream, double probability, const Tensor& out) {
  const Threshold threshold(probability);
  const auto run = [&]<class A>(TypeTag<A>) {
    const A kept = static_cast<A>(1 - probability);
    for_random_blocks(stream, out.numel(), [&](std::int64_t at, std::int64_t count, const std::uint32_t* words) {
      const Threshold limit = threshold;  // locals, which the stores below cannot change
      const A divisor = kept;
      Reader<A> reader(Operand{x});
      Writer<A> writer(Operand{out});
      const A* from = reader.read(at, count);
      A* to = writer.target(at);
#pragma omp simd
      for (std::int64_t i = 0; i < count; ++i) {
        const A scaled = from[i] / divisor;
        to[i] = limit.below(words[i]) ? A(0) : scaled;
      }
      writer.flush(at, count);
    });
  };
  if (x.dtype() == DType::f64) run(TypeTag<double>{});
  else run(TypeTag<float>{});
}

}  // namespace switchyard::cpu
