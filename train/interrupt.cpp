#include "train/interrupt.h"

namespace switchyard::train {
namespace {

volatile sig_atomic_t interrupted = 0;

extern "C" void switchyard_on_interrupt(int) { interrupted = 1; }

}  // namespace

InterruptGuard::InterruptGuard() {
  interrupted = 0;
  struct sigaction action {};
  action.sa_handler = switchyard_on_interrupt;
  // Back to the default with the first signal; system calls that it met go on.
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_RESTART);
  ::sigaction(SIGINT, &action, &previous_int_);
  ::sigaction(SIGTERM, &action, &previous_term_);
}

InterruptGuard::~InterruptGuard() {
  ::sigaction(SIGINT, &previous_int_, nullptr);
  ::sigaction(SIGTERM, &previous_term_, nullptr);
}

bool InterruptGuard::requested() const { return interrupted != 0; }

}  // namespace switchyard::train
