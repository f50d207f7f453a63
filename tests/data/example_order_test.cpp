#include "data/example_order.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/errors.h"

namespace switchyard::data {
namespace {

using Turns = std::vector<std::pair<std::int64_t, std::uint64_t>>;

/// The next `count` turns.
Turns take(ExampleOrder& order, std::size_t count) {
  Turns turns;
  while (turns.size() < count)
    for (const ExampleTurn& turn : order.next()) turns.emplace_back(turn.example, turn.random);
  return turns;
}

TEST(ExampleOrder, VisitsEachExampleOncePerEpochInNewOrders) {
  ExampleOrder order(10, 4, 3, 0);
  const Turns turns = take(order, 40);
  std::set<std::vector<std::int64_t>> orders;
  std::set<std::uint64_t> randoms;
  for (std::size_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<std::int64_t> examples;
    for (std::size_t i = 0; i < 10; ++i) {
      examples.push_back(turns[10 * epoch + i].first);
      randoms.insert(turns[10 * epoch + i].second);
    }
    orders.insert(examples);
    EXPECT_EQ(std::set<std::int64_t>(examples.begin(), examples.end()).size(), 10u);
  }
  EXPECT_EQ(orders.size(), 4u);
  EXPECT_EQ(randoms.size(), 40u);
}

TEST(ExampleOrder, DependsOnTheSeedAloneAndNotOnTheBatch) {
  ExampleOrder a(10, 4, 3, 0), b(10, 5, 3, 0), c(10, 4, 4, 0);
  const Turns first = take(a, 20);
  EXPECT_EQ(first, take(b, 20));
  EXPECT_NE(first, take(c, 20));
}

TEST(ExampleOrder, ContinuesFromASavedPlace) {
  ExampleOrder a(7, 3, 11, 5);
  take(a, 12);
  const boost::json::object place = a.state();
  ExampleOrder b(7, 3, 999, 5);  // the place brings its seed
  b.restore(place);
  EXPECT_EQ(b.state(), place);
  EXPECT_EQ(take(a, 30), take(b, 30));
}

TEST(ExampleOrder, RefusesAPlaceAmongOtherExamples) {
  const boost::json::object place = ExampleOrder(7, 3, 11, 5).state();
  ExampleOrder more(8, 3, 11, 5), others(7, 3, 11, 6), same(7, 3, 11, 5);
  EXPECT_ERROR(more.restore(place), "examples: cannot resume: their number was 7 and is 8 now");
  EXPECT_ERROR(others.restore(place), "examples: cannot resume: their checksum was 5 and is 6 now");
  boost::json::object bad = place;
  bad["position"] = 7;
  EXPECT_ERROR(same.restore(bad), "epoch 0, position 7 is no place among 7 examples");
  bad.erase("position");
  EXPECT_ERROR(same.restore(bad), "has no number 'position'");
  EXPECT_ERROR(ExampleOrder(0, 3, 1, 0), "0 examples in batches of 3");
}

}  // namespace
}  // namespace switchyard::data
