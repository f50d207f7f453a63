#include "train/threads.h"

#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

namespace switchyard::train {

void sleep_while_waiting(char** argv) {
  if (::getenv("OMP_WAIT_POLICY") || ::getenv("GOMP_SPINCOUNT")) return;
  ::setenv("OMP_WAIT_POLICY", "passive", 1);
  std::error_code code;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", code);
  if (!code) ::execv(program.c_str(), argv);  // returns only on failure, and then all that is lost is speed
}

}  // namespace switchyard::train
