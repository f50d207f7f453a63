// GPU benchmarks: the rows of docs/design.md's table, and the kernels they are made of. Each is timed with CUDA events
// (medians, random bf16 data) and, where it multiplies matrices, set beside dense cuBLAS products of the same
// multiply-adds, timed in the same run.
//
//   bench_gpu [--only NAME] [--json FILE] [--commit HASH]
//
// --only takes the rows whose names contain NAME. --json adds one object per row to the list in FILE.

#include <chrono>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "bench/gpu/row.h"

namespace switchyard::bench {
namespace {

/// As /proc names the version of the installed driver, such as "580.159.04".
std::string driver_version() {
  std::ifstream file("/proc/driver/nvidia/version");
  for (std::string word; file >> word;)
    if (std::isdigit(static_cast<unsigned char>(word[0])) && word.find('.') != std::string::npos) return word;
  return "unknown";
}

std::string gpu_name() {
  cudaDeviceProp properties{};
  cuda::check_cuda(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return properties.name;
}

std::string today() {
  const std::chrono::year_month_day date = std::chrono::floor<std::chrono::days>(std::chrono::system_clock::now());
  char text[16];
  std::snprintf(text, sizeof text, "%04d-%02u-%02u", static_cast<int>(date.year()), static_cast<unsigned>(date.month()),
                static_cast<unsigned>(date.day()));
  return text;
}

double ratio(const Row& row) { return row.dense_ms > 0 ? row.ms / row.dense_ms : 0; }
double tflops(const Row& row) { return row.flops / row.ms * 1e-9; }
double gbps(const Row& row) { return row.bytes / row.ms * 1e-6; }

std::string json_of(const std::string& name, const Row& row, const std::string& commit) {
  std::ostringstream out;
  out << std::fixed << R"({"row": ")" << name << R"(", "ms": )" << std::setprecision(4) << row.ms << R"(, "dense_ms": )"
      << row.dense_ms << std::setprecision(2) << R"(, "ratio": )" << ratio(row) << std::setprecision(1)
      << R"(, "tflops": )" << tflops(row) << R"(, "gbps": )" << gbps(row) << std::setprecision(0)
      << R"(, "tokens_per_second": )" << row.tokens / row.ms * 1e3 << std::setprecision(1) << R"(, "peak_mib": )"
      << row.peak_mib << R"(, "commit": ")" << commit << R"(", "date": ")" << today() << R"(", "gpu": ")" << gpu_name()
      << R"(", "driver": ")" << driver_version() << "\"}";
  return out.str();
}

/// Adds objects to the list in a file, which need not be there yet; one object per line.
void append_json(const std::string& path, const std::vector<std::string>& objects) {
  std::ostringstream old;
  if (std::ifstream file(path); file) old << file.rdbuf();
  std::string text = old.str();
  text.erase(text.find_last_not_of(" \n]") + 1);  // without what closes the list
  if (text.empty()) text = "[";
  for (const std::string& object : objects) text += (text.back() == '[' ? "\n  " : ",\n  ") + object;
  std::ofstream(path) << text << "\n]\n";
}

void print_header() {
  std::cout << std::left << std::setw(44) << "row" << std::right << std::setw(10) << "ms" << std::setw(10) << "dense ms"
            << std::setw(8) << "ratio" << std::setw(9) << "TFLOP/s" << std::setw(8) << "GB/s" << std::setw(12)
            << "k tokens/s" << std::setw(10) << "peak MiB" << std::endl;
}

void print(const std::string& name, const Row& row) {
  std::cout << std::left << std::setw(44) << name << std::right << std::fixed;
  const auto cell = [](int width, int digits, double value) {
    std::cout << std::setw(width);
    if (value > 0) std::cout << std::setprecision(digits) << value;
    else std::cout << "-";
  };
  cell(10, 4, row.ms);
  cell(10, 4, row.dense_ms);
  cell(8, 2, ratio(row));
  cell(9, 1, tflops(row));
  cell(8, 0, gbps(row));
  cell(12, 1, row.tokens / row.ms);
  cell(10, 1, row.peak_mib);
  std::cout << std::endl;
}

int run(int argc, char** argv) {
  std::string only, json, commit = SWITCHYARD_COMMIT;
  for (int i = 1; i < argc; i += 2) {
    const bool has_value = i + 1 < argc;
    if (has_value && std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
    else if (has_value && std::strcmp(argv[i], "--json") == 0) json = argv[i + 1];
    else if (has_value && std::strcmp(argv[i], "--commit") == 0) commit = argv[i + 1];
    else
      fail("bench_gpu: unknown argument ", argv[i], "; usage: bench_gpu [--only NAME] [--json FILE] [--commit HASH]");
  }
  set_default_device(Device::cuda());
  reset_peak_memory(Device::cuda());  // throws where there is no GPU, before the table begins
  std::vector<std::string> objects;
  print_header();
  for (const auto& group :
       {layer_benchmarks(), training_benchmarks(), attention_benchmarks(), expert_matmul_benchmarks(),
        dynamic_feed_forward_benchmarks(), decoding_benchmarks(), kernel_benchmarks()})
    for (const Benchmark& benchmark : group) {
      if (benchmark.name.find(only) == std::string::npos) continue;
      const Row row = benchmark.run();
      print(benchmark.name, row);
      objects.push_back(json_of(benchmark.name, row, commit));
    }
  if (!json.empty()) append_json(json, objects);
  return 0;
}

}  // namespace
}  // namespace switchyard::bench

int main(int argc, char** argv) {
  try {
    return switchyard::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
