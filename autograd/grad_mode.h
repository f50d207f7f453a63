#pragma once

#include "core/name_scope.h"

namespace switchyard {

/// True unless a NoGradGuard is alive on this thread.
bool grad_enabled();

/// While alive, ops on this thread record nothing and save nothing.
class NoGradGuard {
 public:
  NoGradGuard();
  ~NoGradGuard();
  NoGradGuard(const NoGradGuard&) = delete;
  NoGradGuard& operator=(const NoGradGuard&) = delete;

 private:
  bool previous_;
};

/// While alive, records again inside a NoGradGuard.
class EnableGradGuard {
 public:
  EnableGradGuard();
  ~EnableGradGuard();
  EnableGradGuard(const EnableGradGuard&) = delete;
  EnableGradGuard& operator=(const EnableGradGuard&) = delete;

 private:
  bool previous_;
};

/// While alive, every op of this thread checks its results, forward and backward, and the first that makes a NaN or an
/// infinity throws an Error naming the op and the module it ran in. Slow: it reads every result.
class AnomalyGuard {
 public:
  AnomalyGuard();
  ~AnomalyGuard();
  AnomalyGuard(const AnomalyGuard&) = delete;
  AnomalyGuard& operator=(const AnomalyGuard&) = delete;

 private:
  bool previous_;
};
/// True while an AnomalyGuard is alive on this thread.
bool anomaly_enabled();

}  // namespace switchyard
