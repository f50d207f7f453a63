#include "moe/conversion/balanced_assignment.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/ops/reduce.h"

namespace switchyard::moe {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace

BalancedAssignment::BalancedAssignment(std::int64_t rows, std::int64_t groups)
    : rows_(rows), groups_(groups), capacity_(groups > 0 ? rows / groups : 0) {
  check(groups >= 1 && rows >= groups && rows % groups == 0, "BalancedAssignment: ", rows, " rows do not divide into ",
        groups, " groups of equal size");
  check(rows <= std::numeric_limits<std::int32_t>::max(), "BalancedAssignment: ", rows,
        " rows do not fit 32-bit numbers");
  prices_.assign(at(groups), 0);
  members_.resize(at(groups));
  length_.resize(at(groups));
  entering_row_.resize(at(groups));
}

const std::vector<std::int32_t>& BalancedAssignment::solve(const Tensor& costs) {
  check(costs.defined() && costs.shape() == Shape{rows_, groups_} && costs.dtype() == DType::f64 &&
            !costs.device().is_cuda() && costs.is_contiguous(),
        "BalancedAssignment: costs must be dense f64 [", rows_, ", ", groups_, "] on the CPU");
  check(ops::count_nonfinite(costs).item<std::int64_t>() == 0, "BalancedAssignment: costs must be finite");
  costs_ = costs.data<double>();
  std::vector<std::int32_t> without_room;
  assign_to_favourites(without_room);
  for (const std::int32_t row : without_room) augment(row);
  return group_of_;
}

/// Puts each row into its group of least cost plus price, while there is room; lists the others.
void BalancedAssignment::assign_to_favourites(std::vector<std::int32_t>& without_room) {
  group_of_.assign(at(rows_), -1);
  for (auto& group : members_) group.clear();
  for (std::int32_t row = 0; row < rows_; ++row) {
    const double* costs = costs_of(row);
    std::int32_t best = 0;
    for (std::int32_t group = 1; group < groups_; ++group)
      if (costs[group] + prices_[at(group)] < costs[best] + prices_[at(best)]) best = group;
    if (!has_room(best)) {
      without_room.push_back(row);
      continue;
    }
    group_of_[at(row)] = best;
    members(best).push_back(row);
  }
}

/// Finds room for a row along the cheapest chain of moves: the row enters a group, one of that group's rows enters
/// another, and so on until a group has room. This is Dijkstra's search over groups; a step's length is what the moving
/// row loses by leaving its group, which is of least cost plus price: never negative.
void BalancedAssignment::augment(std::int32_t row) {
  std::fill(length_.begin(), length_.end(), kInfinity);
  open_.resize(at(groups_));
  std::iota(open_.begin(), open_.end(), 0);
  std::vector<Settled> settled;
  relax(row, 0);
  while (true) {
    const Settled nearest = take_nearest_open();
    const std::int32_t group = nearest.group;
    if (has_room(group)) {
      // So priced, every row on the path is as content in the group it enters as in the one it leaves.
      for (const Settled& s : settled) prices_[at(s.group)] += nearest.length - s.length;
      return move_along_path(row, group);
    }
    settled.push_back(nearest);
    for (const std::int32_t member : members(group))
      relax(member, nearest.length - costs_of(member)[group] - prices_[at(group)]);
  }
}

BalancedAssignment::Settled BalancedAssignment::take_nearest_open() {
  const auto nearer = [&](std::int32_t a, std::int32_t b) { return length_[at(a)] < length_[at(b)]; };
  const auto nearest = std::min_element(open_.begin(), open_.end(), nearer);
  const Settled result = {*nearest, length_[at(*nearest)]};
  length_[at(*nearest)] = -kInfinity;
  *nearest = open_.back();
  open_.pop_back();
  return result;
}

/// The paths that go on with `row` entering a group; `length` is that of the path so far, less the row's cost plus
/// price where it sits. Nearly all time is spent here: both stores are unconditional so that the loop is vectorised.
void BalancedAssignment::relax(std::int32_t row, double length) {
  const double* costs = costs_of(row);
  const double* prices = prices_.data();
  double* lengths = length_.data();
  std::int32_t* entering = entering_row_.data();
  for (std::int64_t group = 0; group < groups_; ++group) {
    const double through = length + costs[group] + prices[group];
    const bool shorter = through < lengths[group];
    lengths[group] = shorter ? through : lengths[group];
    entering[group] = shorter ? row : entering[group];
  }
}

void BalancedAssignment::move_along_path(std::int32_t row, std::int32_t group) {
  while (true) {
    const std::int32_t mover = entering_row_[at(group)];
    const std::int32_t left = group_of_[at(mover)];
    group_of_[at(mover)] = group;
    members(group).push_back(mover);
    if (mover == row) return;
    std::erase(members(left), mover);
    group = left;
  }
}

}  // namespace switchyard::moe
