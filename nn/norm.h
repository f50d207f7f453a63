#pragma once

#include <memory>

#include "autograd/ops/norm.h"
#include "nn/module.h"

namespace switchyard::nn {

/// A normalisation over the last axis: [..., width] -> the same. Its parameters are exempt from weight decay.
class Norm : public Module {
 public:
  virtual Variable forward(const Variable& x) const = 0;
  /// x + addend and its norm; addend has x's shape or is undefined. See add_layer_norm.
  virtual AddedNorm add_forward(const Variable& x, const Variable& addend) const;
};

/// (x - mean) / sqrt(variance + epsilon) * weight + bias.
class LayerNorm : public Norm {
 public:
  explicit LayerNorm(std::int64_t width, double epsilon = 1e-5);
  Variable forward(const Variable& x) const override;
  AddedNorm add_forward(const Variable& x, const Variable& addend) const override;

 private:
  Variable weight_, bias_;
  double epsilon_;
};

/// x / sqrt(mean(x^2) + epsilon) * weight.
class RMSNorm : public Norm {
 public:
  explicit RMSNorm(std::int64_t width, double epsilon = 1e-6);
  Variable forward(const Variable& x) const override;
  AddedNorm add_forward(const Variable& x, const Variable& addend) const override;

 private:
  Variable weight_;
  double epsilon_;
};

enum class NormKind : std::uint8_t { layernorm, rmsnorm };

std::unique_ptr<Norm> make_norm(NormKind kind, std::int64_t width, double epsilon = 1e-5);

}  // namespace switchyard::nn
