#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "autograd/node.h"
#include "core/io/safetensors.h"
#include "core/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "nn/module.h"

/// Reading the golden files (README.md here) and comparing with them. Shapes and hyperparameters come from the files
/// alone.
namespace switchyard::golden {

inline std::filesystem::path folder() {
  const char* given = std::getenv("SWITCHYARD_GOLDEN_DIR");
  return given && *given ? given : SWITCHYARD_SOURCE_DIR "/tests/golden";
}

/// A family is named by how its files' names begin.
inline const std::vector<std::string> kFamilies = {
    "switchhead_rope", "switchhead_xl", "sigma_moe",    "switchall_lm_trajectory", "torch_ops",
    "d2dmoe_sparsity", "d2dmoe_gate",   "d2dmoe_split", "d2dmoe_mha_projection",   "d2dmoe_experts",
    "d2dmoe_router",   "d2dmoe_flops",
};

/// The family that a file belongs to: one of kFamilies, or "" for none.
inline std::string family_of(const std::filesystem::path& path) {
  const std::string name = path.stem().string();
  for (const std::string& family : kFamilies)
    if (name == family || name.starts_with(family + "_")) return family;
  return "";
}

/// Every safetensors file of the folder, in alphabetical order.
inline std::vector<std::filesystem::path> all_files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder()))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

/// One precision at which a file is run, with the README's tolerances.
struct Precision {
  DType dtype;
  double forward, gradient, zero;
};
inline const Precision kF64 = {DType::f64, 1e-11, 1e-10, 1e-12};
inline const Precision kF32 = {DType::f32, 1e-5, 5e-5, 1e-5};
inline const Precision kBf16 = {DType::bf16, 3e-2, 6e-2, 1e-5};

/// A golden file. It remembers what was read, so that check_all_read() can tell what no test looked at.
class File {
 public:
  explicit File(const std::filesystem::path& path) : file_(SafetensorsFile::open(path)) {}

  std::string name() const { return file_.path().stem().string(); }
  bool has(const std::string& name) const { return file_.contains(name); }
  const std::vector<std::string>& names() const { return file_.names(); }
  Tensor tensor(const std::string& name) const {
    read_.insert(name);
    return file_.load(name).to(default_device());
  }
  Tensor tensor(const std::string& name, DType dtype) const { return tensor(name).to(dtype); }

  std::string text(const std::string& key) const {
    const auto found = file_.metadata().find(key);
    check(found != file_.metadata().end(), name(), ": no metadata \"", key, "\"");
    return found->second;
  }
  std::string text(const std::string& key, const std::string& otherwise) const {
    return file_.metadata().contains(key) ? text(key) : otherwise;
  }
  double real(const std::string& key) const { return std::stod(text(key)); }
  std::int64_t integer(const std::string& key) const { return std::stoll(text(key)); }
  bool flag(const std::string& key) const {
    const std::string value = text(key, "0");
    check(value == "0" || value == "1", name(), ": metadata ", key, " is \"", value, "\", expected 0 or 1");
    return value == "1";
  }

  /// Fails for every tensor that was not read, apart from those no test has to look at.
  void check_all_read() const {
    for (const std::string& tensor : names()) {
      const bool for_debugging = tensor.starts_with("inter.") || tensor.starts_with("const.") ||
                                 tensor == "decode.official_out" || tensor == "traj.min_selection_margin";
      EXPECT_TRUE(for_debugging || read_.contains(tensor)) << name() << ": nothing checked tensor " << tensor;
    }
  }

 private:
  SafetensorsFile file_;
  mutable std::set<std::string> read_;
};

/// Compares tensors at one precision and keeps the worst errors for the summary line.
class Comparison {
 public:
  Comparison(const File& file, const Precision& precision) : file_(file), precision_(precision) {}

  void forward(const std::string& name, const Tensor& actual, const Tensor& reference) {
    compare(name, actual, reference, precision_.forward);
  }
  void gradient(const std::string& name, const Tensor& actual, const Tensor& reference) {
    compare(name, actual, reference, precision_.gradient);
  }
  /// A scalar loss sum(out * w) (plus more) is compared relative to the sum of |out * w|.
  void loss(double actual, double reference, const Tensor& out, const Tensor& w) {
    double scale = 0;
    const auto a = out.to_vector<double>(), b = w.to_vector<double>();
    for (std::size_t i = 0; i < a.size(); ++i) scale += std::fabs(a[i] * b[i]);
    expect("loss", std::fabs(actual - reference) / std::max(1.0, scale), precision_.forward);
  }
  void compare(const std::string& name, const Tensor& actual, const Tensor& reference, double allowed) {
    ASSERT_TRUE(actual.defined()) << file_.name() << ": no " << name;
    ASSERT_EQ(actual.shape(), reference.shape()) << file_.name() << ": " << name;
    const auto a = actual.to_vector<double>(), b = reference.to_vector<double>();
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      difference = std::isfinite(a[i]) ? std::max(difference, std::fabs(a[i] - b[i])) : INFINITY;
      size = std::max(size, std::fabs(b[i]));
    }
    if (size < 1e-9) return expect(name, difference, precision_.zero);
    expect(name, difference / std::max(size, 1e-3), allowed);
  }
  void expect(const std::string& name, double error, double allowed) {
    EXPECT_LE(error, allowed) << file_.name() << " in " << precision_.dtype << ": " << name;
    worst_ = std::max(worst_, error / allowed);
  }
  /// Largest error, as a share of what is allowed.
  double worst() const { return worst_; }

 private:
  const File& file_;
  Precision precision_;
  double worst_ = 0;
};

/// Runs `check` on every file of a family, and prints how many there were.
inline void for_family(const std::string& family, const std::function<std::string(const File&)>& check) {
  int files = 0;
  for (const auto& path : all_files()) {
    if (family_of(path) != family) continue;
    SCOPED_TRACE(path.filename().string());
    ++files;
    try {
      const File file(path);
      const std::string remark = check(file);
      file.check_all_read();
      std::printf("golden: %s: %s\n", file.name().c_str(), remark.c_str());
    } catch (const std::exception& error) {
      ADD_FAILURE() << error.what();
    }
  }
  std::printf("golden: %s %d files checked\n", family.c_str(), files);
  if (files == 0) GTEST_SKIP() << "no file of family " << family << " in " << folder();
}

/// What a layer computed: "out", "grad.x", "grad.param.<name>", ...
using Results = std::map<std::string, Tensor>;

/// The file's values of the same names; what it leaves out is left out.
inline Results reference_of(const File& file, const Results& results) {
  Results reference;
  for (const auto& [name, tensor] : results)
    if (name != "reg" || file.has(name)) reference[name] = file.tensor(name);
  return reference;
}

/// How a layer is run. Rounding to bf16 before a run in f64 gives what a run in bf16 must be compared with where the
/// result jumps: across a change of selection, and gradients across relu's kink.
struct Numbers {
  DType dtype;
  bool rounded_to_bf16 = false;

  Tensor of(const Tensor& tensor) const { return (rounded_to_bf16 ? tensor.to(DType::bf16) : tensor).to(dtype); }
};

/// Puts the file's parameters, by their names there, into a module; every parameter must be given.
inline void load_parameters(nn::Module& module, const File& file,
                            const std::map<std::string, std::string>& ours_to_file, const Numbers& numbers) {
  module.to(numbers.dtype);
  for (const auto& parameter : module.named_parameters()) {
    const auto found = ours_to_file.find(parameter.name);
    check(found != ours_to_file.end(), file.name(), ": no name for parameter ", parameter.name);
    const Tensor value = numbers.of(file.tensor(found->second));
    check(value.shape() == parameter.variable.shape(), file.name(), ": ", found->second, " has shape ", value.shape(),
          ", the layer's ", parameter.name, " has ", parameter.variable.shape());
    parameter.variable.set_data(value.clone());
  }
}

/// With the tie rule: experts 1 and 2 of each group of `experts` along the first axis are added into 1, and 2 becomes
/// 0.
inline Tensor merge_tied(const Tensor& gradient, std::int64_t experts) {
  check(experts >= 3 && gradient.size(0) % experts == 0, "merge_tied: shape ", gradient.shape(), ", ", experts,
        " experts");
  const Tensor merged = gradient.clone();
  for (std::int64_t first = 0; first < gradient.size(0); first += experts) {
    ops::accumulate(merged.select(0, first + 1), gradient.select(0, first + 2));
    merged.select(0, first + 2).fill(0);
  }
  return merged;
}

/// sum(out * w) in double.
inline double objective(const Tensor& out, const Tensor& w) {
  return ops::sum(ops::multiply(out.to(DType::f64), w.to(DType::f64))).item<double>();
}

/// "worst error f64 0.002, f32 0.01 of the allowed".
inline std::string remark(const std::map<std::string, double>& worst) {
  std::string text = "worst error";
  char number[32];
  for (const auto& [name, share] : worst) {
    std::snprintf(number, sizeof(number), " %.2g", share);
    text += (text.size() > 11 ? ", " : " ") + name + number;
  }
  return text + " of the allowed";
}

}  // namespace switchyard::golden
