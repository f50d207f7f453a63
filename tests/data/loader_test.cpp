#include "data/loader.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <map>
#include <random>
#include <set>

#include "core/error.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::data {
namespace {

using testing::TemporaryFolder;
using Row = std::vector<std::int64_t>;

/// Tokens 1, 2, 3, ... and 0 behind every document: every token but the separator tells its place.
class CountingTokenizer : public Tokenizer {
 public:
  std::vector<std::int32_t> encode(std::string_view text) const override {
    std::vector<std::int32_t> ids(text.size());
    for (auto& id : ids) id = ++last_;
    return ids;
  }
  std::string decode(std::span<const std::int32_t>) const override { return ""; }
  std::int32_t vocabulary_size() const override { return 1'000'000; }
  std::int32_t separator() const override { return 0; }
  std::string name() const override { return "counting"; }
  std::uint64_t fingerprint() const override { return 1; }

 private:
  mutable std::int32_t last_ = 0;
};

class LoaderTest : public ::testing::Test {
 protected:
  /// A token file of documents with these numbers of tokens (without their separators).
  TokenFile make_tokens(const std::vector<std::size_t>& sizes) {
    TokenFileWriter writer(folder_ / "tokens", std::make_shared<CountingTokenizer>());
    for (const std::size_t size : sizes) writer.add_document(std::string(size, 'x'));
    writer.commit();
    return TokenFile::open(folder_ / "tokens");
  }

  TemporaryFolder folder_;
};

Row row_of(const Tensor& tensor, std::int64_t row) { return tensor.select(0, row).to_vector<std::int64_t>(); }

Row flat(const Batch& batch) {
  Row out = batch.inputs.to_vector<std::int64_t>();
  for (const std::int64_t target : batch.targets.to_vector<std::int64_t>()) out.push_back(target);
  return out;
}

/// The place of a window in the ring of tokens, found from its content; -1 when it is no stretch of the ring.
std::int64_t place_of(const TokenFile& tokens, const Row& inputs, const Row& targets) {
  for (std::int64_t begin = 0; begin < tokens.size(); ++begin) {
    bool equal = true;
    for (std::size_t i = 0; i < inputs.size() && equal; ++i) {
      const auto at = begin + static_cast<std::int64_t>(i);
      equal = inputs[i] == tokens[at % tokens.size()] && targets[i] == tokens[(at + 1) % tokens.size()];
    }
    if (equal) return begin;
  }
  return -1;
}

TEST_F(LoaderTest, RandomWindowsVisitEveryWindowOncePerEpoch) {
  const TokenFile tokens = make_tokens({57, 3, 120, 19});  // 203 tokens
  constexpr std::int64_t kContext = 8;
  Loader loader(tokens, {.batch = 5, .context = kContext, .seed = 3});
  ASSERT_EQ(loader.windows_per_epoch(), 25);
  std::set<std::int64_t> phases;
  std::vector<std::vector<std::int64_t>> orders;
  for (int epoch = 0; epoch < 6; ++epoch) {
    EXPECT_EQ(loader.state().epoch, epoch);
    std::vector<std::int64_t> places;
    for (int step = 0; step < 5; ++step) {
      const Batch batch = loader.next();
      EXPECT_EQ(batch.inputs.shape(), (Shape{5, kContext}));
      EXPECT_TRUE(batch.restarts);
      for (std::int64_t row = 0; row < 5; ++row) {
        places.push_back(place_of(tokens, row_of(batch.inputs, row), row_of(batch.targets, row)));
        ASSERT_GE(places.back(), 0);
      }
    }
    // All starts lie a multiple of the context apart on the ring, and no target is read twice.
    std::set<std::int64_t> targets;
    for (const std::int64_t place : places)
      for (std::int64_t t = 1; t <= kContext; ++t) targets.insert((place + t) % tokens.size());
    EXPECT_EQ(targets.size(), 25u * kContext);
    phases.insert(*std::min_element(places.begin(), places.end()));
    orders.push_back(places);
  }
  EXPECT_GT(phases.size(), 2u);
  EXPECT_FALSE(std::is_sorted(orders[0].begin(), orders[0].end()));
  EXPECT_NE(orders[0], orders[1]);
}

TEST_F(LoaderTest, EqualSeedsGiveEqualBatchesAndOthersDoNot) {
  const TokenFile tokens = make_tokens({500, 300});
  for (const Sampling sampling : {Sampling::random_windows, Sampling::contiguous_streams}) {
    Loader a(tokens, {.batch = 4, .context = 16, .sampling = sampling, .seed = 1});
    Loader b(tokens, {.batch = 4, .context = 16, .sampling = sampling, .seed = 1});
    Loader c(tokens, {.batch = 4, .context = 16, .sampling = sampling, .seed = 2});
    int different = 0;
    for (int step = 0; step < 40; ++step) {
      const Row batch = flat(a.next());
      ASSERT_EQ(batch, flat(b.next()));
      different += batch != flat(c.next());
    }
    EXPECT_GT(different, 30);
  }
}

TEST_F(LoaderTest, RanksReadDisjointRowsOfTheGlobalBatch) {
  const TokenFile tokens = make_tokens({700, 200, 123});
  for (const Sampling sampling : {Sampling::random_windows, Sampling::contiguous_streams}) {
    Loader whole(tokens, {.batch = 6, .context = 8, .sampling = sampling, .seed = 9});
    std::vector<Loader> ranks;
    for (std::int64_t rank = 0; rank < 3; ++rank)
      ranks.emplace_back(
          tokens, LoaderOptions{.batch = 2, .context = 8, .sampling = sampling, .seed = 9, .rank = rank, .world = 3});
    for (int step = 0; step < 50; ++step) {
      const Batch batch = whole.next();
      for (std::int64_t rank = 0; rank < 3; ++rank) {
        const Batch part = ranks[static_cast<std::size_t>(rank)].next();
        for (std::int64_t row = 0; row < 2; ++row) {
          ASSERT_EQ(row_of(part.inputs, row), row_of(batch.inputs, rank * 2 + row));
          ASSERT_EQ(row_of(part.targets, row), row_of(batch.targets, rank * 2 + row));
        }
      }
    }
    EXPECT_EQ(ranks[0].state(), ranks[2].state());
    EXPECT_EQ(ranks[0].state(), whole.state());
  }
}

TEST_F(LoaderTest, StreamsGoOnWhereTheyEnded) {
  const TokenFile tokens = make_tokens({400, 27});
  constexpr std::int64_t kContext = 10, kRows = 3;
  Loader loader(tokens, {.batch = kRows, .context = kContext, .sampling = Sampling::contiguous_streams, .seed = 4});
  EXPECT_EQ(loader.windows_per_epoch(), 42);  // 14 segments of 3 streams
  std::set<std::int64_t> begins;
  for (int epoch = 0; epoch < 4; ++epoch) {
    std::vector<Row> previous(kRows);
    std::set<std::int64_t> targets;
    for (int segment = 0; segment < 14; ++segment) {
      const Batch batch = loader.next();
      EXPECT_EQ(batch.restarts, segment == 0);
      for (std::int64_t row = 0; row < kRows; ++row) {
        const Row inputs = row_of(batch.inputs, row);
        const std::int64_t place = place_of(tokens, inputs, row_of(batch.targets, row));
        ASSERT_GE(place, 0);
        if (segment > 0) {
          EXPECT_EQ(previous[static_cast<std::size_t>(row)].back(), inputs.front());
        } else {
          begins.insert(place);
        }
        previous[static_cast<std::size_t>(row)] = row_of(batch.targets, row);
        for (std::int64_t t = 1; t <= kContext; ++t) targets.insert((place + t) % tokens.size());
      }
    }
    EXPECT_EQ(targets.size(), static_cast<std::size_t>(14 * kRows * kContext));
  }
  EXPECT_GT(begins.size(), static_cast<std::size_t>(kRows));
}

TEST_F(LoaderTest, RespectedDocumentsArePaddedAndNeverMixed) {
  const std::vector<std::size_t> sizes = {3, 0, 9, 4, 11, 1};
  const TokenFile tokens = make_tokens(sizes);
  constexpr std::int64_t kContext = 5;
  Loader loader(tokens, {.batch = 1, .context = kContext, .respect_documents = true, .seed = 6});
  // Every document has one target per token, its separator included.
  EXPECT_EQ(loader.windows_per_epoch(), 1 + 1 + 2 + 1 + 3 + 1);
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::multiset<std::int64_t> seen;
    for (std::int64_t window = 0; window < loader.windows_per_epoch(); ++window) {
      const Batch batch = loader.next();
      const Row inputs = row_of(batch.inputs, 0), targets = row_of(batch.targets, 0);
      bool ended = false;
      for (std::size_t t = 0; t < kContext; ++t) {
        if (ended) {
          EXPECT_EQ(inputs[t], tokens.separator());
          EXPECT_EQ(targets[t], kIgnoreIndex);
          continue;
        }
        ASSERT_NE(targets[t], kIgnoreIndex);
        seen.insert(targets[t]);
        EXPECT_TRUE(t == 0 || inputs[t] == targets[t - 1]);
        EXPECT_TRUE(inputs[t] == 0 || targets[t] == 0 || targets[t] == inputs[t] + 1);
        ended = targets[t] == tokens.separator();
      }
    }
    std::multiset<std::int64_t> expected;
    for (std::int64_t i = 0; i < tokens.size(); ++i) expected.insert(tokens[i]);
    EXPECT_EQ(seen, expected);
  }
}

TEST_F(LoaderTest, ResumesExactlyFromAnyState) {
  const TokenFile tokens = make_tokens({300, 40, 5, 77});
  std::mt19937 random(1);
  for (int trial = 0; trial < 30; ++trial) {
    LoaderOptions options{.batch = static_cast<std::int64_t>(random() % 4 + 1),
                          .context = static_cast<std::int64_t>(random() % 20 + 1),
                          .seed = random()};
    options.seed = options.seed << 32 | random();  // large seeds survive JSON
    if (trial % 3 == 1) options.sampling = Sampling::contiguous_streams;
    if (trial % 3 == 2) options.respect_documents = true;
    Loader loader(tokens, options);
    for (std::size_t steps = random() % 100; steps > 0; --steps) loader.next();
    const LoaderState state = loader.state();
    const std::string json = boost::json::serialize(to_json(state));
    options.seed = 0;
    Loader resumed(tokens, options);
    resumed.restore(loader_state_from_json(boost::json::parse(json)));
    EXPECT_EQ(resumed.state(), state);
    for (int step = 0; step < 60; ++step) ASSERT_EQ(flat(loader.next()), flat(resumed.next()));
    EXPECT_EQ(loader.state(), resumed.state());
  }
}

TEST_F(LoaderTest, RandomWindowsResumeWithAnotherBatchSize) {
  const TokenFile tokens = make_tokens({400});
  Loader by_four(tokens, {.batch = 4, .context = 8, .seed = 5}), by_two(tokens, {.batch = 2, .context = 8, .seed = 5});
  for (int step = 0; step < 30; ++step) by_four.next();
  by_two.restore(by_four.state());
  const Batch four = by_four.next(), two = by_two.next(), next_two = by_two.next();
  for (std::int64_t row = 0; row < 2; ++row) {
    EXPECT_EQ(row_of(four.inputs, row), row_of(two.inputs, row));
    EXPECT_EQ(row_of(four.inputs, row + 2), row_of(next_two.inputs, row));
  }
}

TEST_F(LoaderTest, BatchesLargerThanTheCorpus) {
  const TokenFile tokens = make_tokens({16});  // 2 windows of 8
  Loader loader(tokens, {.batch = 7, .context = 8});
  for (int step = 0; step < 4; ++step) {
    const Batch batch = loader.next();
    for (std::int64_t row = 0; row < 7; ++row)
      EXPECT_GE(place_of(tokens, row_of(batch.inputs, row), row_of(batch.targets, row)), 0);
  }
  EXPECT_EQ(loader.state().epoch, 14);
}

TEST_F(LoaderTest, ValidationWindowsAreFixedAndEven) {
  const TokenFile tokens = make_tokens({1000, 500});
  const Batch batch = validation_windows(tokens, 11, 20);
  ASSERT_EQ(batch.inputs.shape(), (Shape{11, 20}));
  for (std::int64_t i = 0; i < 11; ++i) {
    const std::int64_t begin = i * (tokens.size() - 21) / 10;
    EXPECT_EQ(place_of(tokens, row_of(batch.inputs, i), row_of(batch.targets, i)), begin);
  }
  EXPECT_EQ(flat(batch), flat(validation_windows(tokens, 11, 20)));
  EXPECT_EQ(validation_windows(tokens, 1, 20).inputs.shape(), (Shape{1, 20}));
  EXPECT_EQ(validation_windows(tokens, 1'000'000, 20).inputs.shape(), (Shape{75, 20}));
  EXPECT_ERROR(validation_windows(tokens, 0, 20), "validation windows: count 0 is not positive");
  EXPECT_ERROR(validation_windows(tokens, 5, 1502), "has 1502 tokens, one window of context 1502 needs 1503");
}

TEST_F(LoaderTest, ImpossibleOptions) {
  const TokenFile tokens = make_tokens({20, 3});
  const auto make = [&](LoaderOptions options) { return Loader(tokens, options); };
  EXPECT_ERROR(make({.batch = 0}), "loader: batch 0 is not in 1..");
  EXPECT_ERROR(make({.batch = std::int64_t{1} << 40}), "loader: batch 1099511627776 is not in 1..");
  EXPECT_ERROR(make({.context = 0}), "loader: context 0 is not positive");
  EXPECT_ERROR(make({.context = -3, .respect_documents = true}), "loader: context -3 is not positive");
  EXPECT_ERROR(make({.context = 25}), "has 25 tokens, one window of context 25 needs 26");
  EXPECT_ERROR(make({.world = 0}), "loader: world 0 is not in 1..");
  EXPECT_ERROR(make({.rank = 2, .world = 2}), "loader: rank 2 is not in 0..1");
  EXPECT_ERROR(make({.rank = -1}), "loader: rank -1 is not in 0..0");
  EXPECT_ERROR(make({.batch = 4, .context = 8, .sampling = Sampling::contiguous_streams}),
               "has 25 tokens, too few for 4 streams of context 8");
  EXPECT_ERROR(make({.sampling = Sampling::contiguous_streams, .respect_documents = true}),
               "respect_documents needs random windows");
}

TEST_F(LoaderTest, StatesThatDoNotFit) {
  const TokenFile tokens = make_tokens({100});
  Loader loader(tokens, {.batch = 2, .context = 8});
  const auto restored = [&](auto change) {
    LoaderState state = loader.state();
    change(state);
    loader.restore(state);
  };
  EXPECT_ERROR(restored([](LoaderState& s) { s.context = 9; }), "cannot resume: context was 9 and is 8 now");
  EXPECT_ERROR(restored([](LoaderState& s) { s.content = 1; }),
               "cannot resume: the checksum of the tokens was 1 and is");
  EXPECT_ERROR(restored([](LoaderState& s) { s.streams = 2; }), "the number of streams was 2 and is 0 now");
  EXPECT_ERROR(restored([](LoaderState& s) { s.respect_documents = true; }), "respect_documents was 1 and is 0 now");
  EXPECT_ERROR(restored([](LoaderState& s) { s.position = 12; }), "epoch 0, position 12 is outside the epoch's 12");
  EXPECT_ERROR(restored([](LoaderState& s) { s.position = -1; }), "position -1 is outside the epoch's 12");

  const std::string good = boost::json::serialize(to_json(loader.state()));
  const auto parsed = [&](const std::string& from, const std::string& to) {
    std::string json = good;
    json.replace(json.find(from), from.size(), to);
    return loader_state_from_json(boost::json::parse(json));
  };
  EXPECT_ERROR(loader_state_from_json(boost::json::parse("[]")), "loader state: expected a JSON object");
  EXPECT_ERROR(parsed("\"epoch\"", "\"epochs\""), "loader state: the key 'epoch' is missing");
  EXPECT_ERROR(parsed("\"epoch\":0", "\"epoch\":-1"), "loader state: epoch: expected a whole number in 0..");
  EXPECT_ERROR(parsed("\"epoch\":0", "\"epoch\":\"1\""),
               "epoch: expected a whole number in 0..9223372036854775807, got");
  EXPECT_ERROR(parsed("\"epoch\":0", "\"epoch\":1.5"), "epoch: expected a whole number");
  EXPECT_ERROR(parsed("\"epoch\":0", "\"epoch\":9223372036854775808"), "epoch: expected a whole number");
  EXPECT_ERROR(parsed("false", "0"), "respect_documents: expected true or false");
  EXPECT_ERROR(parsed("\"epoch\":0", "\"epoch\":0,\"more\":1"), "loader state: 1 unknown keys");
}

}  // namespace
}  // namespace switchyard::data
