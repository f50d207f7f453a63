#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace switchyard::train {

/// What one progress line says.
struct ProgressReport {
  std::int64_t step = 0;
  std::int64_t steps = 0;
  double loss = 0.0;                    ///< nats per token, or per example of a classifier
  std::optional<double> bits_per_byte;  ///< of language models
  double tokens_per_second = 0.0;
  double seconds_left = 0.0;
  std::optional<double> expert_entropy;  ///< of expert usage, as a share of the largest possible; none without experts
  std::size_t peak_bytes = 0;
};

/// `step  1200/100000  loss 1.8312  2.642 bits/byte  97.1k tok/s  ETA 3h12m  expert entropy 0.97  memory 5.8 GiB`.
std::string format_progress(const ProgressReport& report);

double seconds_since(std::chrono::steady_clock::time_point start);
/// "41s", "3m07s", "2h05m", "4d11h"; "?" when not finite.
std::string format_duration(double seconds);
/// "512 B", "3.4 MiB", ...
std::string format_bytes(std::size_t bytes);
/// Three significant digits with k, M or G: "97.1k".
std::string format_rate(double per_second);

/// Prints progress: on a terminal one line that is rewritten, elsewhere (a file, a pipe) a line each.
class Progress {
 public:
  /// `out` stays the caller's. Whether it is a terminal is asked of the system.
  explicit Progress(std::FILE* out = stdout);
  Progress(std::FILE* out, bool terminal) : out_(out), terminal_(terminal) {}
  /// Ends the line that is being rewritten.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(const ProgressReport& report);
  /// A line that stays, above the progress line.
  void message(const std::string& text);

 private:
  std::FILE* out_;
  bool terminal_;
  bool open_line_ = false;
};

}  // namespace switchyard::train
