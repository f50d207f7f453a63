#include "moe/conversion/router_tutor.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/reduce.h"

namespace switchyard::moe {

RouterTutor::RouterTutor(std::vector<DynamicFeedForward*> layers, RouterTarget target, RouterLoss loss,
                         std::int64_t most_rows)
    : layers_(std::move(layers)),
      target_(target),
      loss_(loss),
      rows_(layers_.size()),
      targets_(layers_.size()),
      sizes_(layers_.size(), 1) {
  check(!layers_.empty(), "RouterTutor: the model has no converted layer");
  for (std::size_t i = 0; i < layers_.size(); ++i)
    layers_[i]->set_observer([this, i, most_rows](const Tensor& rows) {
      rows_[i] = rows.slice(0, 0, std::min(most_rows, rows.size(0)));
      targets_[i] = {};
    });
}

RouterTutor::~RouterTutor() {
  for (DynamicFeedForward* layer : layers_) layer->set_observer({});
}

void RouterTutor::normalize() {
  const NoGradGuard no_grad;
  check(rows() > 0, "RouterTutor: the model has seen no tokens");
  const auto mean = [](const Tensor& values) { return ops::mean(values).to(DType::f64).item<double>(); };
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const double size = mean(target_of(i, rows_[i]));
    if (size > 0) sizes_[i] = size;  // a layer in which nothing is active keeps its own
    targets_[i] = {};
    NormRouter& router = layers_[i]->router();
    const double score = mean(router.forward(Variable(rows_[i])).data());
    if (score > 0) router.scale_scores(1 / score);
  }
}

void RouterTutor::undo_normalization() {
  for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i]->router().scale_scores(sizes_[i]);
  sizes_.assign(layers_.size(), 1);
  targets_.assign(layers_.size(), {});
}

std::vector<nn::NamedParameter> RouterTutor::parameters() const {
  std::vector<nn::NamedParameter> all;
  for (std::size_t i = 0; i < layers_.size(); ++i)
    for (const nn::NamedParameter& p : layers_[i]->router().named_parameters())
      all.push_back({std::to_string(i) + "." + p.name, p.variable, p.decays});
  return all;
}

Tensor RouterTutor::target_of(std::size_t layer, const Tensor& rows) const {
  const ExpertWeights weights = layers_[layer]->weights();
  const ops::Activation activation = layers_[layer]->activation();
  return target_ == RouterTarget::output_norm ? expert_output_norms(rows, weights, activation)
                                              : expert_activation_shares(rows, weights, activation);
}

const Tensor& RouterTutor::learned_target(std::size_t layer) const {
  Tensor& target = targets_[layer];
  if (!target.defined()) target = ops::affine(target_of(layer, rows_[layer]), 1 / sizes_[layer]);
  return target;
}

std::int64_t RouterTutor::rows() const {
  for (std::size_t i = 0; i < rows_.size(); ++i)
    check(rows_[i].defined(), "RouterTutor: layer ", i, " has seen no rows, expected the model to have run");
  return rows_[0].size(0);
}

Variable RouterTutor::loss(std::int64_t first, std::int64_t last) const {
  check(first >= 0 && first < last && last <= rows(), "RouterTutor: rows ", first, " to ", last, " of ", rows());
  Variable total;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Variable prediction = layers_[i]->router().forward(Variable(rows_[i].slice(0, first, last)));
    const Variable loss = router_loss(loss_, prediction, learned_target(i).slice(0, first, last));
    total = total.defined() ? total + loss : loss;
  }
  return total;
}

std::vector<RouterQuality> RouterTutor::quality(std::int64_t rows, double share) const {
  const NoGradGuard no_grad;
  const std::int64_t count = std::min(rows, this->rows());
  std::vector<RouterQuality> qualities;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const Tensor some = rows_[i].slice(0, 0, count);
    const Tensor prediction = layers_[i]->router().forward(Variable(some)).data();
    const auto k = static_cast<std::int64_t>(share * static_cast<double>(prediction.size(1)));
    qualities.push_back(router_quality(prediction, target_of(i, some), std::max<std::int64_t>(k, 1)));
  }
  return qualities;
}

}  // namespace switchyard::moe
