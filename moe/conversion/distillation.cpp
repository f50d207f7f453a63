#include "moe/conversion/distillation.h"

#include <utility>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"

namespace switchyard::moe {

Variable distillation_loss(const Variable& student, const Tensor& teacher) {
  check(teacher.defined() && teacher.shape() == student.shape(), "distillation_loss: the teacher's output must be ",
        student.shape(), ", got ", teacher.defined() ? teacher.shape() : Shape{});
  const DType dtype = ops::compute_dtype(student.dtype());
  return mean(unary(ops::Unary::square, cast(student, dtype) - Variable(teacher.to(dtype))));
}

ProjectionDistillation::ProjectionDistillation(nn::Module& model, const StandInOptions& options, Generator& generator) {
  for (const ProjectionPlace& place : linear_projections(model, options.kinds)) {
    const nn::Linear& teacher = *place.attention->linear(place.kind);
    students_.push_back({place, stand_in_for(teacher, options, generator),
                         Tensor::zeros({2}, DType::f64, teacher.weight().data().device())});
  }
  for (const Student& first : students_)
    first.place.attention->set_projection_observer(
        [this, attention = first.place.attention](nn::ProjectionKind kind, const Variable& in, const Variable& out) {
          for (Student& student : students_)
            if (student.place.attention == attention && student.place.kind == kind) observe(student, in, out);
        });
}

ProjectionDistillation::~ProjectionDistillation() { stop_watching(); }

void ProjectionDistillation::stop_watching() {
  for (const Student& student : students_) student.place.attention->set_projection_observer({});
}

std::vector<nn::NamedParameter> ProjectionDistillation::parameters() const {
  std::vector<nn::NamedParameter> all;
  for (const Student& student : students_)
    for (nn::NamedParameter parameter : student.layer->named_parameters()) {
      parameter.name = student.place.name + "." + parameter.name;
      all.push_back(std::move(parameter));
    }
  return all;
}

// The loss is made here and now: the teacher's output may be overwritten afterwards.
void ProjectionDistillation::observe(Student& student, const Variable& input, const Variable& output) {
  const EnableGradGuard recording;  // frozen models run without
  const Variable loss = distillation_loss(student.layer->forward(Variable(input.data())).output, output.data());
  loss_ = loss_.defined() ? loss_ + loss : loss;
  const Tensor teacher = output.data().to(loss.dtype());
  ops::accumulate(student.sums.select(0, 0), loss.data(), static_cast<double>(teacher.numel()));
  ops::accumulate(student.sums.select(0, 1), ops::sum(ops::unary(ops::Unary::square, teacher)));
}

Variable ProjectionDistillation::take_loss() {
  check(loss_.defined(), "ProjectionDistillation: nothing passed through the model");
  return std::exchange(loss_, {});
}

std::vector<StandInError> ProjectionDistillation::take_errors() {
  std::vector<StandInError> errors;
  for (const Student& student : students_) {
    const std::vector<double> sums = student.sums.to_vector<double>();
    check(sums[1] > 0, "ProjectionDistillation: nothing passed through ", student.place.name);
    errors.push_back({student.place.name, sums[0] / sums[1]});
    student.sums.fill(0);
  }
  return errors;
}

void ProjectionDistillation::install() {
  stop_watching();
  for (Student& student : students_)
    student.place.attention->set_stand_in(student.place.kind, std::move(student.layer));
  students_.clear();
}

}  // namespace switchyard::moe
