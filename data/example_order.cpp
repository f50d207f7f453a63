#include "data/example_order.h"

#include <boost/json/value.hpp>

#include "core/error.h"
#include "data/permutation.h"

namespace switchyard::data {
namespace {

enum Purpose : std::uint64_t { kOrder = 1, kTurn = 2 };

std::uint64_t number_at(const boost::json::object& state, const char* key) {
  const boost::json::value* value = state.if_contains(key);
  boost::system::error_code error;
  const std::uint64_t number = value ? value->to_number<std::uint64_t>(error) : 0;
  check(value && !error, "place in the examples: has no number '", key, "'");
  return number;
}

}  // namespace

ExampleOrder::ExampleOrder(std::int64_t examples, std::int64_t batch, std::uint64_t seed, std::uint64_t content)
    : examples_(examples), batch_(batch), seed_(seed), content_(content) {
  check(examples > 0 && batch > 0, "example order: ", examples, " examples in batches of ", batch,
        ", expected at least 1 of each");
}

std::vector<ExampleTurn> ExampleOrder::next() {
  std::vector<ExampleTurn> turns;
  for (std::int64_t row = 0; row < batch_; ++row) {
    const Permutation order(static_cast<std::uint64_t>(examples_), epoch_random(seed_, epoch_, kOrder));
    const auto place = static_cast<std::uint64_t>(position_);
    const auto words = philox(epoch_random(seed_, epoch_, kTurn), place);
    turns.push_back({static_cast<std::int64_t>(order(place)), words[0] | std::uint64_t{words[1]} << 32});
    if (++position_ == examples_) {
      position_ = 0;
      ++epoch_;
    }
  }
  return turns;
}

boost::json::object ExampleOrder::state() const {
  return {{"seed", seed_}, {"epoch", epoch_}, {"position", position_}, {"examples", examples_}, {"content", content_}};
}

void ExampleOrder::restore(const boost::json::object& state) {
  const auto same = [&](const char* key, std::uint64_t here, const char* what) {
    const std::uint64_t saved = number_at(state, key);
    check(saved == here, "examples: cannot resume: ", what, " was ", saved, " and is ", here, " now");
  };
  same("examples", static_cast<std::uint64_t>(examples_), "their number");
  same("content", content_, "their checksum");
  const std::uint64_t epoch = number_at(state, "epoch"), position = number_at(state, "position");
  check(epoch <= INT64_MAX && position < static_cast<std::uint64_t>(examples_), "examples: cannot resume: epoch ",
        epoch, ", position ", position, " is no place among ", examples_, " examples");
  seed_ = number_at(state, "seed");
  epoch_ = static_cast<std::int64_t>(epoch);
  position_ = static_cast<std::int64_t>(position);
}

}  // namespace switchyard::data
