#pragma once

#include "moe/conversion/projection.h"

namespace switchyard::moe {

/// Mean over all entries of (student - teacher)^2, in the compute dtype. The teacher's output has the student's shape
/// and gets no gradient.
Variable distillation_loss(const Variable& student, const Tensor& teacher);

/// How far one stand-in is from its projection.
struct StandInError {
  std::string name;  ///< the projection's path in the model
  double error = 0;  ///< sum of (student - teacher)^2 over that of teacher^2: 0 is perfect, 1 as bad as all zeros
};

/// Trains stand-ins beside the model whose projections they are to replace. While it lives, every pass through the
/// model shows each stand-in what its projection reads and gives; the model itself goes on as if nothing were there.
///
///   ProjectionDistillation distillation(model, options);
///   for each step: run a batch through the frozen model, then distillation.take_loss().backward() and an update of
///   distillation.parameters()
///   distillation.install();
class ProjectionDistillation {
 public:
  /// Untrained stand-ins for the model's linear projections of options.kinds. `model` must live longer. Throws Error as
  /// linear_projections and stand_in_for do.
  ProjectionDistillation(nn::Module& model, const StandInOptions& options,
                         Generator& generator = nn::initial_weights());
  ~ProjectionDistillation();
  ProjectionDistillation(const ProjectionDistillation&) = delete;
  ProjectionDistillation& operator=(const ProjectionDistillation&) = delete;

  /// The stand-ins' parameters, under the names that they will have in the model.
  std::vector<nn::NamedParameter> parameters() const;
  /// The sum of all stand-ins' distillation_loss for what passed since the last call. Throws Error when nothing did.
  Variable take_loss();
  /// Each stand-in's error over what passed since the last call. Waits for the device.
  std::vector<StandInError> take_errors();
  /// Puts the stand-ins in the place of the projections, which are destroyed. The last call.
  void install();

 private:
  struct Student {
    ProjectionPlace place;
    std::unique_ptr<nn::FeedForward> layer;
    Tensor sums;  // f64 [2]: squares of the differences and of the teacher's outputs
  };

  void observe(Student& student, const Variable& input, const Variable& output);
  void stop_watching();

  std::vector<Student> students_;
  Variable loss_;
};

}  // namespace switchyard::moe
