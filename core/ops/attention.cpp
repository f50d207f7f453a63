#include "core/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/kernels/attention.h"
#include "core/ops/dispatch.h"
#include "core/ops/norm.h"

namespace switchyard::ops {

namespace {

void check_heads(const char* op, const char* name, const Tensor& x, const Tensor& query) {
  check(x.defined(), op, ": ", name, " is undefined");
  check(x.rank() == 4, op, ": ", name, " has shape ", x.shape(), ", expected four axes [B, T, H, d]");
  check(is_floating(x.dtype()) && x.dtype() == query.dtype(), op, ": ", name, " is ", x.dtype(), ", expected ",
        is_floating(query.dtype()) ? name_of(query.dtype()) : "a floating dtype");
  check(x.device() == query.device(), op, ": ", name, " is on ", x.device(), ", query on ", query.device());
}

Tensor unit_last_stride(const Tensor& x) { return !x.defined() || x.stride(-1) == 1 ? x : x.contiguous(); }

/// Smallest and largest j - i - query_offset of a pair that causality lets through; the first is larger if none is.
std::pair<std::int64_t, std::int64_t> visible_distances(std::int64_t queries, std::int64_t keys,
                                                        const AttentionOptions& options) {
  if (queries == 0 || keys == 0) return {1, 0};
  std::int64_t last = keys - 1 - options.query_offset;
  if (options.causal) last = std::min<std::int64_t>(last, 0);
  return {-(queries - 1) - options.query_offset, last};
}

void check_position_key(const char* op, const Tensor& query, std::int64_t keys, const AttentionOptions& options) {
  const Tensor& position_key = options.position_key;
  if (!position_key.defined()) return;
  check(position_key.rank() == 3 && position_key.size(1) == query.size(2) && position_key.size(2) == query.size(3), op,
        ": position_key has shape ", position_key.shape(), ", expected [R, ", query.size(2), ", ", query.size(3),
        "] for query ", query.shape());
  check(position_key.dtype() == query.dtype(), op, ": position_key is ", position_key.dtype(), ", query is ",
        query.dtype());
  check(position_key.device() == query.device(), op, ": position_key is on ", position_key.device(), ", query on ",
        query.device());
  if (options.mask.defined()) return;  // The mask may hide the pairs that position_key does not cover.
  const auto [first, last] = visible_distances(query.size(1), keys, options);
  check(first > last || (first + options.position_zero >= 0 && last + options.position_zero < position_key.size(0)), op,
        ": position_key has ", position_key.size(0), " rows with position_zero ", options.position_zero,
        ", visible pairs need rows ", first + options.position_zero, " to ", last + options.position_zero);
}

/// Checks everything but the value, and returns the options with tensors laid out as the kernels want them.
AttentionOptions check_options(const char* op, const Tensor& query, const Tensor& key,
                               const AttentionOptions& options) {
  check_heads(op, "query", query, query);
  check_heads(op, "key", key, query);
  check(key.size(0) == query.size(0) && key.size(2) == query.size(2) && key.size(3) == query.size(3), op,
        ": key has shape ", key.shape(), ", expected [", query.size(0), ", S, ", query.size(2), ", ", query.size(3),
        "] for query ", query.shape());
  check(std::isfinite(options.scale), op, ": scale is ", options.scale);
  check(options.query_offset >= 0, op, ": query_offset is ", options.query_offset, ", expected 0 or more");
  check(options.dropout >= 0 && options.dropout < 1, op, ": dropout is ", options.dropout, ", expected 0 <= p < 1");
  check(options.dropout == 0 || (options.stream.base.defined() && options.stream.base.device() == query.device()), op,
        ": dropout needs a random stream on ", query.device());
  const std::int64_t keys = key.size(1);
  AttentionOptions checked = options;
  const auto check_mask = [&](const char* name, const Tensor& mask, const Shape& shape) {
    check(mask.dtype() == DType::boolean, op, ": ", name, " must be bool, got ", mask.dtype());
    check(mask.shape() == shape, op, ": ", name, " has shape ", mask.shape(), ", expected ", shape);
    check(mask.device() == query.device(), op, ": ", name, " is on ", mask.device(), ", query on ", query.device());
  };
  if (options.mask.defined()) {
    check_mask("mask", options.mask, {query.size(1), keys});
    checked.mask = options.mask.contiguous();
  }
  if (options.key_padding.defined()) {
    check_mask("key_padding", options.key_padding, {query.size(0), keys});
    checked.key_padding = options.key_padding.contiguous();
  }
  check_position_key(op, query, keys, options);
  checked.position_key = unit_last_stride(options.position_key);
  return checked;
}

void check_value(const char* op, const Tensor& key, const Tensor& value, const Tensor& query) {
  check_heads(op, "value", value, query);
  check(value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == key.size(2), op,
        ": value has shape ", value.shape(), ", expected [", key.size(0), ", ", key.size(1), ", ", key.size(2),
        ", dv] for key ", key.shape());
}

void check_rope(const Tensor& x, const RopeTables& tables, std::int64_t first_position) {
  check_heads("rope", "x", x, x);
  check(tables.cosine.defined() && tables.sine.defined() && tables.cosine.rank() == 2 &&
            tables.cosine.shape() == tables.sine.shape(),
        "rope: cosine and sine must be tables of one shape [positions, rotated]");
  const std::int64_t rotated = tables.cosine.size(1);
  check(rotated % 2 == 0 && rotated <= x.size(3), "rope: the tables rotate ", rotated,
        " channels, expected an even number up to the head width ", x.size(3));
  check(first_position >= 0 && first_position + x.size(1) <= tables.cosine.size(0), "rope: positions ", first_position,
        " to ", first_position + x.size(1) - 1, " are outside tables of ", tables.cosine.size(0), " positions");
  const DType expected = compute_dtype(x.dtype());
  check(tables.cosine.dtype() == expected && tables.sine.dtype() == expected, "rope: the tables are ",
        tables.cosine.dtype(), ", expected ", expected, " for x of ", x.dtype());
  check(tables.cosine.device() == x.device(), "rope: the tables are on ", tables.cosine.device(), ", x on ",
        x.device());
}

/// Operations of `products` matrix products over all visible (query, key) pairs; what masks hide counts as visible.
double attention_flops(const Tensor& query, const Tensor& key, const AttentionOptions& options, double products) {
  const std::int64_t queries = query.size(1), keys = key.size(1);
  double pairs = 0;
  for (std::int64_t i = 0; i < queries; ++i)
    pairs +=
        static_cast<double>(options.causal ? std::clamp<std::int64_t>(i + options.query_offset + 1, 0, keys) : keys);
  return 2 * products * pairs * static_cast<double>(query.size(0) * query.size(2) * query.size(3));
}

}  // namespace

AttentionResult attention(const Tensor& query, const Tensor& key, const Tensor& value,
                          const AttentionOptions& options) {
  const AttentionOptions checked = check_options("attention", query, key, options);
  check_value("attention", key, value, query);
  const std::int64_t batch = query.size(0), queries = query.size(1), heads = query.size(2);
  AttentionResult result;
  result.out = Tensor::empty({batch, queries, heads, value.size(3)}, query.dtype(), query.device());
  result.log_normalizer = Tensor::empty({batch, heads, queries}, compute_dtype(query.dtype()), query.device());
  if (result.log_normalizer.numel() == 0) return result;
  const double flops = profiler_enabled() ? attention_flops(query, key, checked, 2) : 0;
  SWITCHYARD_DISPATCH_COUNTED(flops, query.device(), attention, unit_last_stride(query), unit_last_stride(key),
                              unit_last_stride(value), checked, result.out, result.log_normalizer);
  return result;
}

AttentionGradients attention_backward(const Tensor& dout, const Tensor& query, const Tensor& key, const Tensor& value,
                                      const AttentionResult& forward, const AttentionOptions& options) {
  constexpr const char* kOp = "attention_backward";
  const AttentionOptions checked = check_options(kOp, query, key, options);
  check_value(kOp, key, value, query);
  const Shape out_shape = {query.size(0), query.size(1), query.size(2), value.size(3)};
  check_heads(kOp, "dout", dout, query);
  check(dout.shape() == out_shape, kOp, ": dout has shape ", dout.shape(), ", expected ", out_shape);
  check_heads(kOp, "out", forward.out, query);
  check(forward.out.shape() == out_shape, kOp, ": out has shape ", forward.out.shape(), ", expected ", out_shape);
  const Shape normalizer_shape = {query.size(0), query.size(2), query.size(1)};
  check(forward.log_normalizer.defined() && forward.log_normalizer.shape() == normalizer_shape, kOp,
        ": log_normalizer must be the forward result of shape ", normalizer_shape);
  AttentionGradients gradients;
  gradients.dquery = Tensor::empty(query.shape(), query.dtype(), query.device());
  gradients.dkey = Tensor::empty(key.shape(), key.dtype(), key.device());
  gradients.dvalue = Tensor::empty(value.shape(), value.dtype(), value.device());
  if (checked.position_key.defined()) gradients.dposition_key = Tensor::empty_like(checked.position_key);
  const double flops = profiler_enabled() ? attention_flops(query, key, checked, 5) : 0;
  SWITCHYARD_DISPATCH_COUNTED(flops, query.device(), attention_backward, dout.contiguous(), unit_last_stride(query),
                              unit_last_stride(key), unit_last_stride(value), forward.out.contiguous(),
                              forward.log_normalizer.contiguous(), checked, gradients.dquery, gradients.dkey,
                              gradients.dvalue, gradients.dposition_key);
  return gradients;
}

Tensor attention_probabilities(const Tensor& query, const Tensor& key, const AttentionOptions& options) {
  const AttentionOptions checked = check_options("attention_probabilities", query, key, options);
  const Tensor probabilities = Tensor::empty({query.size(0), query.size(2), query.size(1), key.size(1)},
                                             compute_dtype(query.dtype()), query.device());
  if (probabilities.numel() == 0) return probabilities;
  SWITCHYARD_DISPATCH(query.device(), attention_probabilities, unit_last_stride(query), unit_last_stride(key), checked,
                      probabilities);
  return probabilities;
}

RopeTables rope_tables(std::int64_t positions, std::int64_t rotated, double base, DType dtype, Device device) {
  check(positions >= 0, "rope_tables: positions is ", positions, ", expected 0 or more");
  check(rotated >= 0 && rotated % 2 == 0, "rope_tables: rotated is ", rotated, ", expected an even number of channels");
  check(std::isfinite(base) && base > 0, "rope_tables: base is ", base, ", expected a positive number");
  check(dtype == DType::f32 || dtype == DType::f64, "rope_tables: dtype is ", dtype, ", expected f32 or f64");
  const auto count = static_cast<std::size_t>(positions * rotated);
  std::vector<double> cosine(count), sine(count);
  const std::int64_t half = rotated / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    const double frequency = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(rotated));
    for (std::int64_t position = 0; position < positions; ++position) {
      const double angle = static_cast<double>(position) * frequency;
      const auto at = static_cast<std::size_t>(position * rotated + i);
      cosine[at] = cosine[at + static_cast<std::size_t>(half)] = std::cos(angle);
      sine[at] = sine[at + static_cast<std::size_t>(half)] = std::sin(angle);
    }
  }
  const Shape shape = {positions, rotated};
  return {Tensor::from(cosine, shape).to(dtype).to(device), Tensor::from(sine, shape).to(dtype).to(device)};
}

Tensor rope(const Tensor& x, const RopeTables& tables, std::int64_t first_position, bool inverse) {
  check_rope(x, tables, first_position);
  const Tensor out = Tensor::empty(x.shape(), x.dtype(), x.device());
  if (out.numel() == 0) return out;
  SWITCHYARD_DISPATCH(x.device(), rope, unit_last_stride(x), tables.cosine.contiguous(), tables.sine.contiguous(),
                      first_position, inverse, out);
  return out;
}

void rope_in_place(const Tensor& x, const RopeTables& tables, std::int64_t first_position, bool inverse) {
  check_rope(x, tables, first_position);
  check(x.stride(-1) == 1, "rope_in_place: x has stride ", x.stride(-1), " on its last axis, expected 1");
  if (x.numel() == 0) return;
  SWITCHYARD_DISPATCH(x.device(), rope, x, tables.cosine.contiguous(), tables.sine.contiguous(), first_position,
                      inverse, x);
}

}  // namespace switchyard::ops
