#include "train/threads.h"

#include <stdlib.h>
#include <unistd.h>

namespace switchyard::train {

void sleep_while_waiting(char** argv) {
  if (::getenv("OMP_WAIT_POLICY") || ::getenv("GOMP_SPINCOUNT")) return;
  ::setenv("OMP_WAIT_POLICY", "passive", 1);
  ::execv("/proc/self/exe", argv);  // returns only on failure, and then all that is lost is speed
}

}  // namespace switchyard::train
