#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <vector>

namespace switchyard::data {

/// An example's turn in a batch.
struct ExampleTurn {
  std::int64_t example = 0;
  std::uint64_t random = 0;  ///< a number of this turn's own, for changes made to the example
};

/// The endless sequence of training batches of a list of examples: every epoch visits each example once, in a new
/// random order. A batch depends only on the seed, the number of examples and its place, so equal seeds give equal
/// batches anywhere.
class ExampleOrder {
 public:
  /// `content` identifies the examples (a checksum). Throws Error without examples or with a batch that is not
  /// positive.
  ExampleOrder(std::int64_t examples, std::int64_t batch, std::uint64_t seed, std::uint64_t content);

  /// The next batch; it may reach into the following epochs.
  std::vector<ExampleTurn> next();

  /// The place in the sequence, and back to it: {"seed", "epoch", "position", "examples", "content"}.
  boost::json::object state() const;
  /// Throws Error naming the key that is missing or no number, or what differs: a place holds for the same examples
  /// only. The batch may have changed.
  void restore(const boost::json::object& state);

 private:
  std::int64_t examples_, batch_;
  std::uint64_t seed_, content_;
  std::int64_t epoch_ = 0, position_ = 0;
};

}  // namespace switchyard::data
