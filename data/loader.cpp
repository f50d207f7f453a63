#include "data/loader.h"

#include <algorithm>
#include <boost/json.hpp>
#include <limits>
#include <utility>

#include "core/error.h"
#include "data/permutation.h"

namespace switchyard::data {
namespace {

enum Purpose : std::uint64_t { kPhase = 1, kOrder = 2 };

void fill_window(const TokenFile& tokens, std::int64_t begin, std::int64_t context, std::int64_t* inputs,
                 std::int64_t* targets) {
  tokens.read(begin, context, inputs);
  std::copy(inputs + 1, inputs + context, targets);
  tokens.read((begin + context) % tokens.size(), 1, targets + context - 1);
}

void check_enough(const TokenFile& tokens, std::int64_t context) {
  check(context > 0, "loader: context ", context, " is not positive");
  check(tokens.size() > context, "loader: ", tokens.path().string(), " has ", tokens.size(),
        " tokens, one window of context ", context, " needs ", context + 1);
}

Batch empty_batch(std::int64_t rows, std::int64_t context) {
  const auto tokens = [&] { return Tensor::empty({rows, context}, DType::i64, Device::cpu()); };
  return {tokens(), tokens(), true};
}

}  // namespace

Loader::Loader(TokenFile tokens, const LoaderOptions& options) : tokens_(std::move(tokens)), options_(options) {
  constexpr std::int64_t kMaxRows = std::int64_t{1} << 24;
  check(options.batch > 0 && options.batch <= kMaxRows, "loader: batch ", options.batch, " is not in 1..", kMaxRows);
  check(options.world > 0 && options.world <= kMaxRows, "loader: world ", options.world, " is not in 1..", kMaxRows);
  check(options.rank >= 0 && options.rank < options.world, "loader: rank ", options.rank, " is not in 0..",
        options.world - 1);
  if (options.respect_documents) {
    check(options.sampling == Sampling::random_windows, "loader: respect_documents needs random windows");
    check(options.context > 0, "loader: context ", options.context, " is not positive");
    first_windows_.reserve(static_cast<std::size_t>(tokens_.document_count()) + 1);
    for (std::int64_t i = 0; i < tokens_.document_count(); ++i) {
      first_windows_.push_back(windows_);
      const std::int64_t size = tokens_.document_begin(i + 1) - tokens_.document_begin(i);
      windows_ += (size - 1) / options.context + 1;
    }
    return;
  }
  check_enough(tokens_, options.context);
  windows_ = (tokens_.size() - 1) / options.context;
  if (options.sampling == Sampling::contiguous_streams) {
    const std::int64_t streams = options.batch * options.world;
    segments_ = windows_ / streams;
    check(segments_ > 0, "loader: ", tokens_.path().string(), " has ", tokens_.size(), " tokens, too few for ", streams,
          " streams of context ", options.context);
    windows_ = segments_ * streams;
  }
}

Batch Loader::next() {
  const std::int64_t batch = options_.batch, context = options_.context;
  Batch out = empty_batch(batch, context);
  const bool streams = segments_ > 0;
  for (std::int64_t row = 0; row < batch; ++row) {
    const std::int64_t global_row = options_.rank * batch + row;
    // A batch may reach into following epochs; a segment never does.
    const std::int64_t place = streams ? global_row * segments_ + position_ : position_ + global_row;
    fill_row(epoch_ + place / windows_, place % windows_, out.inputs.data<std::int64_t>() + row * context,
             out.targets.data<std::int64_t>() + row * context);
  }
  out.restarts = !streams || position_ == 0;
  const std::int64_t epoch_end = streams ? segments_ : windows_;
  position_ += streams ? 1 : batch * options_.world;
  epoch_ += position_ / epoch_end;
  position_ %= epoch_end;
  return out;
}

// The tokens form a ring (its joint is a separator like any other), cut at a new random place in every epoch.
void Loader::fill_row(std::int64_t epoch, std::int64_t window, std::int64_t* inputs, std::int64_t* targets) const {
  if (segments_ == 0)
    window = static_cast<std::int64_t>(
        Permutation(static_cast<std::uint64_t>(windows_),
                    epoch_random(options_.seed, epoch, kOrder))(static_cast<std::uint64_t>(window)));
  if (options_.respect_documents) return fill_document_row(window, inputs, targets);
  const auto size = static_cast<std::uint64_t>(tokens_.size());
  const std::uint64_t phase = epoch_random(options_.seed, epoch, kPhase) % size;
  const auto begin = (phase + static_cast<std::uint64_t>(window * options_.context)) % size;
  fill_window(tokens_, static_cast<std::int64_t>(begin), options_.context, inputs, targets);
}

void Loader::fill_document_row(std::int64_t window, std::int64_t* inputs, std::int64_t* targets) const {
  const auto after = std::upper_bound(first_windows_.begin(), first_windows_.end(), window);
  const std::int64_t document = after - first_windows_.begin() - 1;
  const std::int64_t context = options_.context;
  const std::int64_t begin = tokens_.document_begin(document) + (window - *(after - 1)) * context;
  const std::int64_t count = std::min(context, tokens_.document_begin(document + 1) - begin);
  tokens_.read(begin, count, targets);
  std::fill(targets + count, targets + context, kIgnoreIndex);
  const bool is_first = begin == tokens_.document_begin(document);
  inputs[0] = is_first ? tokens_.separator() : tokens_[begin - 1];
  std::copy(targets, targets + count - 1, inputs + 1);
  std::fill(inputs + count, inputs + context, tokens_.separator());
}

LoaderState Loader::state() const {
  return {options_.seed,
          epoch_,
          position_,
          options_.context,
          segments_ > 0 ? options_.batch * options_.world : 0,
          options_.respect_documents,
          tokens_.checksum()};
}

void Loader::restore(const LoaderState& state) {
  const LoaderState mine = this->state();
  const auto same = [](const char* what, auto saved, auto here) {
    check(saved == here, "loader: cannot resume: ", what, " was ", saved, " and is ", here, " now");
  };
  same("the checksum of the tokens", state.content, mine.content);
  same("context", state.context, mine.context);
  same("the number of streams", state.streams, mine.streams);
  same("respect_documents", state.respect_documents, mine.respect_documents);
  const std::int64_t epoch_end = segments_ > 0 ? segments_ : windows_;
  check(state.epoch >= 0 && state.position >= 0 && state.position < epoch_end, "loader: cannot resume: epoch ",
        state.epoch, ", position ", state.position, " is outside the epoch's ", epoch_end);
  options_.seed = state.seed;
  epoch_ = state.epoch;
  position_ = state.position;
}

boost::json::value to_json(const LoaderState& state) {
  return {{"seed", state.seed},       {"epoch", state.epoch},     {"position", state.position},
          {"context", state.context}, {"streams", state.streams}, {"respect_documents", state.respect_documents},
          {"content", state.content}};
}

LoaderState loader_state_from_json(const boost::json::value& json) {
  check(json.is_object(), "loader state: expected a JSON object");
  const boost::json::object& object = json.get_object();
  std::size_t known = 0;
  const auto number = [&](const char* key, std::uint64_t largest) {
    const boost::json::value* value = object.if_contains(key);
    check(value, "loader state: the key '", key, "' is missing");
    ++known;
    boost::json::error_code error;
    const auto out = value->is_number() ? value->to_number<std::uint64_t>(error) : 0;
    check(value->is_number() && !error && out <= largest, "loader state: ", key, ": expected a whole number in 0..",
          largest, ", got ", boost::json::serialize(*value));
    return out;
  };
  const auto signed_number = [&](const char* key) {
    return static_cast<std::int64_t>(number(key, std::numeric_limits<std::int64_t>::max()));
  };
  LoaderState state;
  state.seed = number("seed", std::numeric_limits<std::uint64_t>::max());
  state.epoch = signed_number("epoch");
  state.position = signed_number("position");
  state.context = signed_number("context");
  state.streams = signed_number("streams");
  state.content = number("content", std::numeric_limits<std::uint64_t>::max());
  const boost::json::value* respect = object.if_contains("respect_documents");
  check(respect && respect->is_bool(), "loader state: respect_documents: expected true or false");
  state.respect_documents = respect->get_bool();
  check(object.size() == known + 1, "loader state: ", object.size() - known - 1, " unknown keys");
  return state;
}

Batch validation_windows(const TokenFile& tokens, std::int64_t count, std::int64_t context) {
  check(count > 0, "validation windows: count ", count, " is not positive");
  check_enough(tokens, context);
  count = std::min(count, (tokens.size() - 1) / context);
  Batch out = empty_batch(count, context);
  const std::int64_t last = tokens.size() - 1 - context;
  for (std::int64_t i = 0; i < count; ++i) {
    // i * last / (count - 1), without its overflow for large files
    const std::int64_t steps = std::max<std::int64_t>(count - 1, 1);
    const std::int64_t begin = last / steps * i + last % steps * i / steps;
    fill_window(tokens, begin, context, out.inputs.data<std::int64_t>() + i * context,
                out.targets.data<std::int64_t>() + i * context);
  }
  return out;
}

}  // namespace switchyard::data
