#include "train/import/weights.h"

#include <algorithm>
#include <optional>
#include <set>

#include "core/ops/elementwise.h"

namespace switchyard::train {
namespace {

/// What stands for # in `text`, where `text` is the pattern or goes on with a dot after it.
struct Match {
  std::string_view layer;  ///< digits; empty for a pattern without #
  std::string_view rest;   ///< ".weight"
};

std::optional<Match> match(std::string_view pattern, std::string_view text) {
  Match found;
  const auto at = pattern.find('#');
  if (at != std::string_view::npos) {
    if (text.substr(0, at) != pattern.substr(0, at)) return {};
    const auto end = std::min(text.find_first_not_of("0123456789", at), text.size());
    found.layer = text.substr(at, end - at);
    pattern.remove_prefix(at + 1);
    text.remove_prefix(end);
  }
  if (!text.starts_with(pattern)) return {};
  found.rest = text.substr(pattern.size());
  if (!found.rest.empty() && found.rest[0] != '.') return {};
  return found;
}

struct Source {
  const WeightRule* rule;
  std::string tensor;
};

/// Where parameter `name` is to be found.
Source source_of(const HubFolder& folder, const WeightNames& names, const std::string& name) {
  for (const WeightRule& rule : names.rules) {
    const std::optional<Match> found = match(rule.ours, name);
    if (!found) continue;
    std::string tensor(rule.theirs);
    if (const auto at = tensor.find('#'); at != std::string::npos) tensor.replace(at, 1, found->layer);
    tensor += found->rest;
    const bool shortened = !folder.tensors().contains(tensor) && tensor.starts_with(names.prefix) &&
                           folder.tensors().contains(tensor.substr(names.prefix.size()));
    return {&rule, shortened ? tensor.substr(names.prefix.size()) : tensor};
  }
  fail("import: ", folder.path().string(), ": a ", folder.model_type(), " model has no counterpart of ", name);
}

/// The values of a parameter of shape `shape`; undefined where the tensor cannot be one.
Tensor values_of(const WeightRule& rule, Tensor tensor, const Shape& shape) {
  if (rule.transposed && tensor.rank() == 2) tensor = tensor.transpose(0, 1);
  if (rule.parts > 1) {
    if (tensor.rank() == 0 || tensor.size(0) % rule.parts != 0) return {};
    const std::int64_t rows = tensor.size(0) / rule.parts;
    tensor = tensor.slice(0, rule.part * rows, (rule.part + 1) * rows);
  }
  if (rule.leading && tensor.rank() == 2 && tensor.size(0) > shape[0]) tensor = tensor.slice(0, 0, shape[0]);
  if (rule.reshaped && tensor.numel() == shape.numel()) tensor = tensor.reshape(shape);
  if (tensor.shape() != shape || !is_floating(tensor.dtype())) return {};
  return rule.added == 0 ? tensor : ops::affine(tensor.to(DType::f32), 1, rule.added);
}

}  // namespace

void import_weights(const HubFolder& folder, const WeightNames& names, nn::Module& model) {
  std::set<std::string, std::less<>> used;
  for (const nn::NamedParameter& parameter : model.named_parameters()) {
    const auto [rule, tensor] = source_of(folder, names, parameter.name);
    const SafetensorsFile& file = folder.file_of(tensor);
    const Tensor& target = parameter.variable.data();
    const Tensor values = values_of(*rule, file.load(tensor), target.shape());
    check(values.defined(), "import: ", folder.path().string(), ": tensor ", tensor, " ", file.dtype(tensor), " ",
          file.shape(tensor), " does not fit ", parameter.name, " ", target.shape());
    target.copy_from(values);
    used.insert(tensor);
  }
  for (const auto& [tensor, file] : folder.tensors()) {
    const bool known =
        used.contains(tensor) || std::any_of(names.unused.begin(), names.unused.end(),
                                             [&name = tensor](std::string_view end) { return name.ends_with(end); });
    check(known, "import: ", folder.path().string(), ": tensor ", tensor, " is no part of a ", folder.model_type(),
          " model of this shape");
  }
}

}  // namespace switchyard::train
