#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace switchyard::moe {

/// Assigns n rows to k groups of exactly n / k rows each at the least total cost: the transportation problem, solved
/// exactly by shortest augmenting paths (Jonker & Volgenant, 1987, with groups in place of columns).
///
/// Every group has a price. A row sits in a group of least cost plus price; where too many rows want the same group,
/// its price rises until some are content elsewhere. Prices are kept from one call to the next: when costs change
/// little, as between two rounds of k-means, few rows have to move. The first call takes up to n^2 k additions, in
/// practice far fewer.
class BalancedAssignment {
 public:
  BalancedAssignment(std::int64_t rows, std::int64_t groups);

  /// costs f64 [rows, groups] on the CPU, dense and finite -> the group of each row.
  const std::vector<std::int32_t>& solve(const Tensor& costs);

 private:
  /// A group that the search for a path has reached for good.
  struct Settled {
    std::int32_t group;
    double length;  ///< of the shortest path to it
  };

  void assign_to_favourites(std::vector<std::int32_t>& without_room);
  void augment(std::int32_t row);
  Settled take_nearest_open();
  void relax(std::int32_t row, double length);
  void move_along_path(std::int32_t row, std::int32_t group);

  const double* costs_of(std::int32_t row) const { return costs_ + row * groups_; }
  bool has_room(std::int32_t group) { return static_cast<std::int64_t>(members(group).size()) < capacity_; }
  std::vector<std::int32_t>& members(std::int32_t group) { return members_[static_cast<std::size_t>(group)]; }

  std::int64_t rows_, groups_, capacity_;
  const double* costs_ = nullptr;                   // during a call
  std::vector<double> prices_;                      // [groups]
  std::vector<std::int32_t> group_of_;              // [rows]
  std::vector<std::vector<std::int32_t>> members_;  // [groups]

  // The search: length of the shortest path known to each group, and the row that would enter it. The
  // length of a settled group is -infinity, so that no path to it is ever shorter.
  std::vector<double> length_;
  std::vector<std::int32_t> entering_row_;
  std::vector<std::int32_t> open_;  // the groups not settled yet
};

}  // namespace switchyard::moe
