// Attention and rotary positions at the shapes of the models, forward and backward apart.

#include "core/ops/attention.h"

#include "bench/gpu/row.h"

namespace switchyard::bench {
namespace {

struct AttentionShape {
  std::string name;
  std::int64_t batch, queries, keys, heads, width;
  bool positions = false;  ///< Transformer-XL's
};

const std::vector<AttentionShape> kShapes = {
    {"64x512_4x112", 64, 512, 512, 4, 112},          {"8x4096_4x112", 8, 4096, 4096, 4, 112},
    {"64x512_16x64", 64, 512, 512, 16, 64},          {"64x256_2x76", 64, 256, 256, 2, 76},
    {"4x8192_16x128", 4, 8192, 8192, 16, 128},       {"xl_64x256_10x41", 64, 256, 512, 10, 41, true},
    {"xl_64x512_4x112", 64, 512, 1024, 4, 112, true}};

struct Operands {
  Tensor query, key, value, dout;
  ops::AttentionOptions options;
  ops::AttentionResult result;
};

Operands operands(const AttentionShape& s) {
  Operands in{random_tensor({s.batch, s.queries, s.heads, s.width}),
              random_tensor({s.batch, s.keys, s.heads, s.width}),
              random_tensor({s.batch, s.keys, s.heads, s.width}),
              random_tensor({s.batch, s.queries, s.heads, s.width}),
              {},
              {}};
  in.options.scale = 1 / std::sqrt(static_cast<double>(s.width));
  in.options.causal = true;
  in.options.query_offset = s.keys - s.queries;
  if (s.positions) {
    in.options.position_zero = s.keys - 1;
    in.options.position_key = random_tensor({s.keys, s.heads, s.width});
  }
  in.result = ops::attention(in.query, in.key, in.value, in.options);
  return in;
}

/// Counted as the field does: products of visible pairs only, 2 forward and 5 backward; positions add 1 and 2.
Row attention_row(const AttentionShape& s, bool backward) {
  const auto queries = static_cast<double>(s.queries), keys = static_cast<double>(s.keys);
  const double visible = queries * (keys - queries / 2);
  const double products = backward ? (s.positions ? 7 : 5) : (s.positions ? 3 : 2);
  const double bytes = 2.0 * static_cast<double>(s.batch * s.heads * s.width) * (queries + keys) * 2;
  const auto call = [&](const Operands& in) {
    if (backward) ops::attention_backward(in.dout, in.query, in.key, in.value, in.result, in.options);
    else ops::attention(in.query, in.key, in.value, in.options);
  };
  return {.ms = rotating_ms(
              bytes, [&] { return operands(s); }, call),
          .flops = products * 2 * static_cast<double>(s.batch * s.heads * s.width) * visible,
          .bytes = backward ? 2 * bytes : bytes};
}

Row rope(std::int64_t batch, std::int64_t length, std::int64_t heads, std::int64_t width) {
  const auto tables = ops::rope_tables(length, width / 2, 10000, DType::f32, Device::cuda());
  const double bytes = 2 * 2.0 * static_cast<double>(batch * length * heads * width);
  const auto make = [&] { return random_tensor({batch, length, heads, width}); };
  const auto call = [&](const Tensor& x) { ops::rope_in_place(x, tables, 0); };
  return {.ms = rotating_ms(bytes / 2, make, call), .bytes = bytes / 2};  // half of the channels turn
}

}  // namespace

std::vector<Benchmark> attention_benchmarks() {
  std::vector<Benchmark> all;
  for (const AttentionShape& shape : kShapes)
    for (const bool backward : {false, true})
      all.push_back({"kernel_attention_" + shape.name + (backward ? "_backward" : "_forward"),
                     [&shape, backward] { return attention_row(shape, backward); }});
  all.push_back({"rope_64x512_4x112", [] { return rope(64, 512, 4, 112); }});
  all.push_back({"rope_64x256_2x76", [] { return rope(64, 256, 2, 76); }});
  return all;
}

}  // namespace switchyard::bench
