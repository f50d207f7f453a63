#pragma once

#include <algorithm>

#include "core/ops/gate.h"
#include "tests/golden/golden.h"

/// Naming that the d2dmoe_* files share.
namespace switchyard::golden {

/// "<prefix><mode>.<k or tau>=<value>", as in "random.dynk.tau=0.3" -> the gate.
inline ops::Gate gate_of(const std::string& name, const std::string& prefix) {
  const std::size_t dot = name.find('.', prefix.size()), equals = name.find('=', dot);
  check(dot != std::string::npos && equals != std::string::npos, "no gate in \"", name, "\"");
  ops::Gate gate;
  gate.mode = ops::gate_mode_from_name(name.substr(prefix.size(), dot - prefix.size()));
  const std::string value = name.substr(equals + 1);
  if (gate.mode == ops::GateMode::topk) gate.k = std::stoll(value);
  else gate.tau = std::stod(value);
  return gate;
}

/// The names of all tensors that end with `suffix`, without it.
inline std::vector<std::string> names_with(const File& file, const std::string& suffix) {
  std::vector<std::string> names;
  for (const std::string& name : file.names())
    if (name.ends_with(suffix)) names.push_back(name.substr(0, name.size() - suffix.size()));
  return names;
}

}  // namespace switchyard::golden
