#pragma once

#include <signal.h>

namespace switchyard::train {

/// While alive, the first Ctrl-C (SIGINT) or SIGTERM only sets a flag, so that the program can save and leave; a second
/// one of the same kind ends it at once.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool requested() const;

 private:
  struct sigaction previous_int_ {};
  struct sigaction previous_term_ {};
};

}  // namespace switchyard::train
