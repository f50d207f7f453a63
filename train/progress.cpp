#include "train/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace switchyard::train {
namespace {

template <class... Arguments>
std::string formatted(const char* format, Arguments... arguments) {
  std::array<char, 128> buffer;
  const int length = std::snprintf(buffer.data(), buffer.size(), format, arguments...);
  return {buffer.data(), std::min(static_cast<std::size_t>(std::max(length, 0)), buffer.size() - 1)};
}

/// Columns of the terminal; a longer line would wrap and could not be rewritten.
std::size_t terminal_columns(std::FILE* out) {
  winsize size{};
  return ::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 120;
}

}  // namespace

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0.0 || seconds > 1e12) return "?";
  const auto total = static_cast<long long>(std::llround(seconds));
  if (total < 60) return formatted("%llds", total);
  if (total < 3600) return formatted("%lldm%02llds", total / 60, total % 60);
  if (total < 86400) return formatted("%lldh%02lldm", total / 3600, total / 60 % 60);
  return formatted("%lldd%02lldh", total / 86400, total / 3600 % 24);
}

std::string format_bytes(std::size_t bytes) {
  if (bytes < 1024) return formatted("%zu B", bytes);
  auto value = static_cast<double>(bytes) / 1024.0;
  const char* unit = "KiB";
  for (const char* larger : {"MiB", "GiB", "TiB"}) {
    if (value < 1023.95) break;  // which would print as 1024.0
    value /= 1024.0;
    unit = larger;
  }
  return formatted("%.1f %s", value, unit);
}

std::string format_rate(double per_second) {
  if (!std::isfinite(per_second) || per_second < 0.0) return "?";
  const char* unit = "";
  for (const char* larger : {"k", "M", "G"}) {
    if (per_second < 999.5) break;
    per_second /= 1000.0;
    unit = larger;
  }
  return formatted(per_second < 10 ? "%.2f%s" : per_second < 100 ? "%.1f%s" : "%.0f%s", per_second, unit);
}

std::string format_progress(const ProgressReport& report) {
  const std::string steps = std::to_string(report.steps);
  std::string line =
      formatted("step %*lld/%s", static_cast<int>(steps.size()), static_cast<long long>(report.step), steps.c_str());
  line += formatted("  loss %.4f", report.loss);
  if (report.bits_per_byte) line += formatted("  %.3f bits/byte", *report.bits_per_byte);
  line += "  " + format_rate(report.tokens_per_second) + " tok/s  ETA " + format_duration(report.seconds_left);
  if (report.expert_entropy) line += formatted("  expert entropy %.2f", *report.expert_entropy);
  return line + "  memory " + format_bytes(report.peak_bytes);
}

Progress::Progress(std::FILE* out) : Progress(out, ::isatty(::fileno(out)) == 1) {}

Progress::~Progress() {
  if (open_line_) std::fputc('\n', out_);
  std::fflush(out_);
}

void Progress::update(const ProgressReport& report) {
  std::string line = format_progress(report);
  if (terminal_) {
    line.resize(std::min(line.size(), terminal_columns(out_) - 1));
    std::fprintf(out_, "\r\033[K%s", line.c_str());
    open_line_ = true;
  } else {
    std::fprintf(out_, "%s\n", line.c_str());
  }
  std::fflush(out_);
}

void Progress::message(const std::string& text) {
  std::fprintf(out_, "%s%s\n", open_line_ ? "\r\033[K" : "", text.c_str());
  open_line_ = false;
  std::fflush(out_);
}

}  // namespace switchyard::train
