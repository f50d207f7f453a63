#include "moe/switch_head.h"

#include "autograd/grad_mode.h"
#include "core/ops/attention.h"
#include "core/ops/index.h"
#include "tests/golden/golden.h"

namespace switchyard::golden {
namespace {

moe::SwitchHeadOptions options_of(const File& file, bool xl) {
  moe::SwitchHeadOptions options;
  options.width = file.integer("d_model");
  options.heads = file.integer("n_heads");
  options.head_width = file.integer("d_head");
  options.experts = file.integer("n_experts");
  options.k = options.experts > 1 ? file.integer("moe_k") : 1;
  if (xl) {
    options.position.kind = nn::PositionKind::xl;
    return options;
  }
  options.position.kind = nn::PositionKind::rope;
  options.position.base = std::stod(file.text("rope_base", "10000"));
  // Half a channel more, so that rounding of the quotient cannot lose a channel.
  options.position.fraction =
      std::min(1.0, (static_cast<double>(file.integer("n_rotate")) + 0.5) / static_cast<double>(options.head_width));
  return options;
}

std::map<std::string, std::string> parameter_names(const File& file, bool xl) {
  std::map<std::string, std::string> names = {{"query.weight", "param.q.weight"},
                                              {"key.weight", "param.k.weight"},
                                              {"value.weight", "param.v"},
                                              {"output.weight", "param.o"}};
  if (file.integer("n_experts") > 1) {
    names["value_router.weight"] = "param.sel_v";
    names["output_router.weight"] = "param.sel_o";
  } else {
    names["output_gate"] = "param.sel_o";
  }
  if (xl) names["position.projection.weight"] = "param.pos_to_pk";
  return names;
}

nn::AttentionArguments masks_of(const File& file) {
  nn::AttentionArguments arguments;
  const std::string mask = file.text("mask");
  check(mask == "causal" || mask == "causal+padding" || mask == "padding" || mask == "none", file.name(), ": mask \"",
        mask, "\" is unknown");
  arguments.causal = mask.starts_with("causal");
  if (file.has("mask.position")) {
    arguments.mask = file.tensor("mask.position", DType::boolean);
    arguments.causal = false;
  }
  if (file.has("mask.src_length")) arguments.key_padding = file.tensor("mask.src_length", DType::boolean);
  check(mask.find("padding") == std::string::npos || arguments.key_padding.defined(), file.name(),
        ": no mask.src_length");
  return arguments;
}

/// The sources of a file as leaves: {x}, or {q_src, k_src, v_src}.
std::vector<std::string> source_names(const File& file) {
  return file.has("x") ? std::vector<std::string>{"x"} : std::vector<std::string>{"q_src", "k_src", "v_src"};
}

/// Which experts were chosen, whatever their order.
std::vector<std::set<int>> selections(const nn::AttentionInspection& inspection) {
  std::vector<std::set<int>> chosen;
  for (const auto& record : inspection.selections) {
    const auto indices = record.indices.to_vector<int>();
    const auto k = static_cast<std::ptrdiff_t>(record.indices.size(-1));
    for (auto at = indices.begin(); at != indices.end(); at += k) chosen.emplace_back(at, at + k);
  }
  return chosen;
}

/// One layer with a file's parameters and sources.
class Layer {
 public:
  Layer(const File& file, const Numbers& numbers, bool xl)
      : file_(file), numbers_(numbers), names_(parameter_names(file, xl)), layer_(options_of(file, xl)) {
    load_parameters(layer_, file, names_, numbers);
    for (const std::string& name : source_names(file)) sources_[name] = Variable(numbers.of(file.tensor(name)), true);
  }

  std::vector<std::set<int>> chosen() {
    const NoGradGuard no_grad;
    nn::AttentionInspection inspection;
    nn::AttentionArguments arguments = this->arguments();
    arguments.inspection = &inspection;
    layer_.forward(query_source(), arguments);
    return selections(inspection);
  }

  Results results() {
    const Variable out = layer_.forward(query_source(), arguments()).output;
    out.backward(numbers_.of(file_.tensor("w")));
    Results results = {{"out", out.data()}};
    for (const auto& [name, source] : sources_) results["grad." + name] = source.grad();
    for (const auto& parameter : layer_.named_parameters())
      results["grad." + names_.at(parameter.name)] = parameter.variable.grad();
    return results;
  }

  /// Decoding with the cache, `first` tokens and then `step` at a time, gives the rows of `out`; the cache then holds
  /// the keys, rotated, and values of all tokens.
  void check_decoding(std::int64_t first, std::int64_t step, const Tensor& out, Comparison& comparison) {
    const NoGradGuard no_grad;
    const Tensor x = sources_.at("x").data();
    nn::KeyValueCache cache;
    nn::AttentionArguments arguments;
    arguments.cache = &cache;
    std::vector<Tensor> rows;
    for (std::int64_t begin = 0, end = first; begin < x.size(1); begin = end, end = std::min(end + step, x.size(1)))
      rows.push_back(layer_.forward(Variable(x.slice(1, begin, end).contiguous()), arguments).output.data());
    const std::string name = "decoding " + std::to_string(first) + " then by " + std::to_string(step);
    comparison.forward(name, ops::concat(rows, 1), out);
    ASSERT_EQ(cache.length, x.size(1));
    if (file_.has("decode.cache_k")) {
      const double s = std::pow(static_cast<double>(file_.integer("d_head")), -0.25);
      const Tensor keys = before_rotation(cache.key.slice(1, 0, cache.length).to(DType::f64)).transpose(1, 2);
      comparison.forward("cached keys", ops::affine(keys, s), file_.tensor("decode.cache_k"));
    }
    if (file_.has("decode.cache_v"))
      comparison.forward("cached values", cache.value.slice(1, 0, cache.length).transpose(1, 2),
                         file_.tensor("decode.cache_v"));
  }

  std::int64_t length() const { return query_source().size(1); }

 private:
  /// Cached keys [B, T, H, d] turned back to what they were before rotation.
  Tensor before_rotation(const Tensor& keys) const {
    const nn::PositionOptions& position = layer_.options().position;
    if (position.kind != nn::PositionKind::rope) return keys;
    const auto tables =
        ops::rope_tables(keys.size(1), file_.integer("n_rotate"), position.base, keys.dtype(), keys.device());
    return ops::rope(keys, tables, 0, true);
  }

  const Variable& query_source() const { return sources_.contains("x") ? sources_.at("x") : sources_.at("q_src"); }

  nn::AttentionArguments arguments() const {
    nn::AttentionArguments arguments = masks_of(file_);
    if (sources_.contains("x")) return arguments;
    arguments.key_source = sources_.at("k_src");
    arguments.value_source = sources_.at("v_src");
    return arguments;
  }

  const File& file_;
  Numbers numbers_;
  std::map<std::string, std::string> names_;
  moe::SwitchHead layer_;
  std::map<std::string, Variable> sources_;
};

void compare(const File& file, Comparison& comparison, const Results& actual, const Results& reference) {
  for (const auto& [name, expected] : reference) {
    const bool per_expert = name == "grad.param.v" || name == "grad.param.o" || name.starts_with("grad.param.sel_");
    const auto merged = [&](const Tensor& x) {
      return file.flag("tie") && per_expert ? merge_tied(x, file.integer("n_experts")) : x;
    };
    if (name == "out") comparison.forward(name, actual.at(name), expected);
    else comparison.gradient(name, merged(actual.at(name)), merged(expected));
  }
}

/// Every split into a first chunk and steps; the files with a cache are those of causal self-attention.
void check_decoding(const File& file, Layer& layer, const Tensor& out, Comparison& comparison) {
  if (!file.has("x") || file.text("mask") != "causal") {
    EXPECT_FALSE(file.has("decode.cache_k")) << file.name() << ": a cache without causal self-attention";
    return;
  }
  std::set<std::int64_t> firsts = {layer.length(), 1, 2, layer.length() - 1, (layer.length() + 1) / 2};
  if (!file.text("decode_first_chunk", "").empty()) firsts.insert(file.integer("decode_first_chunk"));
  for (const std::int64_t first : firsts)
    for (const std::int64_t step : {1, 3})
      if (first >= 1 && first <= layer.length()) layer.check_decoding(first, step, out, comparison);
}

std::string check_file(const File& file, bool xl) {
  std::map<std::string, double> worst;
  for (const Precision& precision : {kF64, kF32}) {
    Comparison comparison(file, precision);
    Layer layer(file, {precision.dtype}, xl);
    const Results results = layer.results();
    compare(file, comparison, results, reference_of(file, results));
    const Tensor w = file.tensor("w"), out = file.tensor("out");
    comparison.loss(objective(results.at("out"), w), file.tensor("loss").item<double>(), out, w);
    check_decoding(file, layer, out, comparison);
    worst[std::string(name_of(precision.dtype))] = comparison.worst();
  }
  Comparison comparison(file, kBf16);
  Layer in_bf16(file, {DType::bf16}, xl);
  const Results results = in_bf16.results();
  const bool same = file.flag("tie") || in_bf16.chosen() == Layer(file, {DType::f64}, xl).chosen();
  compare(file, comparison, results,
          same ? reference_of(file, results) : Layer(file, {DType::f64, true}, xl).results());
  if (same) check_decoding(file, in_bf16, file.tensor("out"), comparison);
  worst["bf16"] = comparison.worst();
  return remark(worst) + (same ? "" : "; rounding to bf16 changes a selection");
}

TEST(SwitchHead, rope) {
  for_family("switchhead_rope", [](const File& file) { return check_file(file, false); });
}

TEST(SwitchHead, xl) {
  for_family("switchhead_xl", [](const File& file) { return check_file(file, true); });
}

}  // namespace
}  // namespace switchyard::golden
